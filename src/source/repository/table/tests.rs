//! Tests of the table of a path.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use proptest::prelude::*;

use super::chunk::Chunk;
use super::filling::Filling;
use super::look_up::MAX_DESCRIBED;
use super::{PathTable, Row};
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{CreationLimits, ObjectId, ObjectInfo, ObjectPath, Query, VersionMetadata};

fn path() -> ObjectPath {
    ObjectPath::new("A/B").unwrap()
}

/// (from, length, created, metadata, id)
type Plan = (i64, i64, i64, u8, u8);

fn info(plan: Plan, metadata: &str) -> ObjectInfo {
    let (from, length, created, _, id) = plan;
    let [from, until, created] = [from, from + length, created].map(Timestamp::from_millis);
    ObjectInfo {
        path: path(),
        id: ObjectId::from_bytes([id; 16]),
        validity: ValidityInterval::new(from, until).unwrap(),
        created,
        size_bytes: Some(1),
        md5: None,
        metadata: [("k", metadata)].into(),
    }
}

fn winner(versions: &[Arc<ObjectInfo>], at: i64) -> Option<ObjectId> {
    let at = Timestamp::from_millis(at);
    let valid = versions.iter().filter(|version| version.validity.contains(at));
    valid.max_by_key(|version| version.rank()).map(|version| version.id)
}

fn never(_: &Row) -> io::Result<VersionMetadata> {
    panic!("all metadata is in memory")
}

fn plans(count: usize) -> impl Strategy<Value = Vec<Plan>> {
    let one = (-40..40_i64, 1..60_i64, 0..6_i64, 0..3_u8, any::<u8>());
    proptest::collection::vec(one, 0..count)
}

/// Divides the rows into chunks of a few rows.
fn small_chunks(table: &mut PathTable) {
    let rows: Vec<Row> = table.iter().copied().collect();
    table.chunks.clear();
    let mut rest = &rows[..];
    while !rest.is_empty() {
        let wanted = rest.len().min(3);
        let last = rest[wanted - 1].from;
        let end = rest.partition_point(|row| row.from <= last);
        table.chunks.push(Chunk::new(rest[..end].to_vec()));
        rest = &rest[end..];
    }
    table.carry_from(0);
}

fn check(table: &mut PathTable, all: &[Arc<ObjectInfo>]) {
    assert_eq!(table.len(), table.iter().count());
    let queries = [
        Query::all(path()),
        Query { metadata: [("k".to_owned(), "1".to_owned())].into(), ..Query::all(path()) },
        Query {
            limits: CreationLimits { not_after: Some(Timestamp::from_millis(3)), not_before: None },
            ..Query::all(path())
        },
    ];
    for query in queries {
        let seen: Vec<_> = all.iter().filter(|info| query.matches(info)).cloned().collect();
        for at in (-45..105).chain([i64::MIN, i64::MAX - 1]) {
            let window = table.window(&query, at, &never).unwrap();
            assert!(window.span.contains(Timestamp::from_millis(at)), "{at} {window:?}");
            let edges = [window.span.from().as_millis(), window.span.until().as_millis() - 1];
            for time in [at, edges[0].clamp(-45, 105), edges[1].clamp(-45, 105)] {
                if window.span.contains(Timestamp::from_millis(time)) {
                    let expected = winner(&seen, time);
                    assert_eq!(winner(&window.versions, time), expected, "{time}");
                }
            }
        }
        let (page, more) = table.page(&query, None, usize::MAX, &never).unwrap();
        assert!(!more);
        assert_eq!(page.len(), seen.len());
    }
}

proptest! {
    #[test]
    fn windows_decide_like_the_scan_whatever_was_changed_before(
        first in plans(40),
        changes in proptest::collection::vec((plans(3), -40..40_i64), 0..12),
    ) {
        let mut all: BTreeMap<(i64, u8), Arc<ObjectInfo>> = BTreeMap::new();
        let mut table = PathTable::new(path());
        let mut rows = Vec::new();
        for plan in first {
            let info = info(plan, &plan.3.to_string());
            if all.insert((plan.0, plan.4), Arc::new(info)).is_none() {}
        }
        for info in all.values() {
            rows.push(table.row(ObjectInfo::clone(info), 1));
        }
        table.fill(rows);
        small_chunks(&mut table);
        check(&mut table, &all.values().cloned().collect::<Vec<_>>());
        for (folder, from) in changes {
            all.retain(|(at, _), _| *at != from);
            for plan in folder {
                let plan = (from, plan.1, plan.2, plan.3, plan.4);
                all.insert((from, plan.4), Arc::new(info(plan, &plan.3.to_string())));
            }
            let there = all.range((from, 0)..=(from, 255)).map(|(_, info)| Arc::clone(info));
            let rows = there.collect::<Vec<_>>();
            let rows = rows.iter().map(|info| table.row(ObjectInfo::clone(info), 2)).collect();
            table.replace_folder(from, rows);
            check(&mut table, &all.values().cloned().collect::<Vec<_>>());
        }
    }
}

proptest! {
    #[test]
    fn rows_that_arrive_one_by_one_decide_like_the_scan(
        plans in plans(60),
        in_order in any::<bool>(),
        chunk_rows in 1..5_usize,
    ) {
        let mut table = PathTable::new(path());
        let mut all: BTreeMap<(i64, u8), ObjectInfo> = BTreeMap::new();
        let mut rows = Vec::new();
        for plan in plans {
            let info = info(plan, &plan.3.to_string());
            rows.push(table.row(info.clone(), 1));
            // Of a version that occurs twice the last row counts.
            all.insert((plan.0, plan.4), info);
        }
        if in_order {
            rows.sort_by_key(Row::key);
        }
        let mut filling = Filling::with_chunk_rows(chunk_rows);
        rows.into_iter().for_each(|row| filling.push(row));
        let folders = filling.finish(&mut table);
        let mut froms: Vec<i64> = all.keys().map(|(from, _)| *from).collect();
        froms.dedup();
        prop_assert_eq!(folders, froms.len() as u64);
        prop_assert_eq!(table.froms().collect::<Vec<_>>(), froms);
        check(&mut table, &all.into_values().map(Arc::new).collect::<Vec<_>>());
    }
}

#[test]
fn carries_of_rows_that_arrive_one_by_one_are_never_longer_than_a_quarter_of_the_rows() {
    let (count, mut table) = (20_000_i64, PathTable::new(path()));
    let mut filling = Filling::with_chunk_rows(100);
    for n in 0..count {
        let mut row = table.row(info((0, 1, n, 0, 0), ""), 1);
        (row.from, row.until) = (n, 3 * count - n);
        filling.push(row);
        assert!(filling.carried() <= 4 * 1024 + n as usize / 4 + 100, "{n}");
    }
    assert_eq!(filling.finish(&mut table), count as u64);
    for at in [0, 1, 7_000, 19_999, 20_001, 49_999] {
        let window = table.window(&Query::all(path()), at, &never).unwrap();
        let valid = window.versions.iter();
        let valid = valid.filter(|version| version.validity.contains(Timestamp::from_millis(at)));
        let created = valid.map(|version| version.created.as_millis()).max();
        let expected = (0..count).filter(|n| *n <= at && at < 3 * count - n).max();
        assert_eq!(created, expected, "at {at}");
    }
}

fn steady(count: i64) -> PathTable {
    let mut table = PathTable::new(path());
    let rows = (0..count)
        .map(|n| {
            let mut row = table.row(info((0, 1, n, 0, 0), ""), 1);
            (row.from, row.until) = (n * 10, i64::MAX);
            row
        })
        .collect();
    table.fill(rows);
    table
}

#[test]
fn a_hundred_thousand_versions_that_never_end_take_a_hundred_bytes_each() {
    let table = steady(100_000);
    let bytes = table.bytes();
    assert!(bytes < 100 * 100_000, "{bytes}");
}

#[test]
fn a_look_up_of_every_time_keeps_the_descriptions_of_a_few_chunks() {
    let mut table = steady(50_000);
    for at in (0..500_000).step_by(1_000) {
        table.window(&Query::all(path()), at, &never).unwrap();
    }
    let kept = table.chunks.iter().filter_map(|chunk| chunk.versions.as_ref());
    let kept: usize = kept.map(|versions| versions.len()).sum();
    assert!((1..=MAX_DESCRIBED).contains(&kept), "{kept}");
}

#[test]
fn deeply_nested_intervals_take_no_more_memory_than_their_rows() {
    let mut table = PathTable::new(path());
    let count = 50_000_i64;
    let rows = (0..count)
        .map(|n| {
            // Later rows are nested in earlier ones, and have later creation times.
            let mut row = table.row(info((0, 1, n, 0, 0), ""), 1);
            (row.from, row.until) = (n, 3 * count - n);
            row
        })
        .collect();
    table.fill(rows);
    let bytes = table.bytes();
    assert!(bytes < 120 * count as usize, "{bytes}");
    for at in [0, 1, 20_000, 49_999, 50_001, 120_000, 149_999] {
        let window = table.window(&Query::all(path()), at, &never).unwrap();
        let created =
            window.versions.iter().filter(|v| v.validity.contains(Timestamp::from_millis(at)));
        let created = created.map(|v| v.created.as_millis()).max();
        let expected = (0..count).filter(|n| *n <= at && at < 3 * count - n).max();
        assert_eq!(created, expected, "at {at}");
    }
}
