//! The versions of a path that were created last.

use std::cmp::Reverse;
use std::io;
use std::sync::Arc;

use super::table::{PathTable, ReadMetadata, Row};
use crate::interval::Timestamp;
use crate::object::{ObjectInfo, Query};
use crate::source::NewestVersions;

/// At most `limit` versions that match `query`, those created last, in no particular order. With
/// `at`, only those that are valid then.
///
/// Blocks of rows whose versions were all created earlier are not read.
///
/// # Errors
/// If metadata must be read from a file and cannot be.
pub(super) fn newest(
    table: &PathTable,
    query: &Query,
    at: Option<Timestamp>,
    limit: usize,
    read: ReadMetadata<'_>,
) -> io::Result<Vec<Arc<ObjectInfo>>> {
    let at = at.map(|at| at.as_millis());
    let begins_in_time = |rows: &[Row]| rows.first().zip(at).is_none_or(|(row, at)| row.from <= at);
    let mut blocks: Vec<(i64, &[Row])> =
        table.blocks().filter(|(_, rows)| begins_in_time(rows)).collect();
    blocks.sort_unstable_by_key(|(created_until, _)| Reverse(*created_until));
    let mut newest: NewestVersions<&Row> = NewestVersions::new(limit);
    for (created_until, rows) in blocks {
        let is_full = newest.len() == limit;
        if is_full && newest.least().is_none_or(|least| least.0.as_millis() > created_until) {
            break;
        }
        for row in rows {
            let [from, created] = [row.from, row.created].map(Timestamp::from_millis);
            let is_valid = at.is_none_or(|at| row.from <= at && at < row.until);
            let rank = (created, from, row.id);
            if row.from < row.until
                && is_valid
                && query.limits.admit(created)
                && newest.admits(rank)
                && table.has_metadata(row, query, read)?
            {
                newest.add(rank, row);
            }
        }
    }
    let described = newest.into_versions().into_iter().map(|row| table.info(row, read));
    described.filter_map(|info| info.map(|info| info.map(Arc::new)).transpose()).collect()
}

#[cfg(test)]
mod tests {

    use proptest::prelude::*;

    use super::*;
    use crate::interval::ValidityInterval;
    use crate::object::{CreationLimits, ObjectId, ObjectPath, VersionMetadata};

    proptest! {
        #[test]
        fn the_newest_are_those_of_a_scan_whatever_was_changed_before(
            plans in proptest::collection::vec((0..2_000_i64, 1..900_i64, 0..50_i64), 0..3_000),
            replaced in 0..2_000_i64,
            at in proptest::option::of(0..2_500_i64),
            limit in 0..20_usize,
            not_after in proptest::option::of(0..50_i64),
        ) {
            let millis = Timestamp::from_millis;
            let path = ObjectPath::new("A/B").unwrap();
            let mut table = PathTable::new(path.clone());
            let mut all: Vec<Arc<ObjectInfo>> = Vec::new();
            for (n, (from, length, created)) in plans.into_iter().enumerate() {
                let mut id = [0; 16];
                id[..8].copy_from_slice(&(n as u64).to_be_bytes());
                all.push(Arc::new(ObjectInfo {
                    path: path.clone(),
                    id: ObjectId::from_bytes(id),
                    validity: ValidityInterval::new(millis(from), millis(from + length)).unwrap(),
                    created: millis(created),
                    size_bytes: Some(1),
                    md5: None,
                    metadata: [("n", (n % 2).to_string())].into(),
                }));
            }
            let rows = all.iter().map(|info| table.row(ObjectInfo::clone(info), 1)).collect();
            table.fill(rows);
            // One folder loses its versions.
            table.replace_folder(replaced, Vec::new());
            all.retain(|info| info.validity.from().as_millis() != replaced);
            let mut query = Query::all(path);
            query.limits = CreationLimits { not_before: None, not_after: not_after.map(millis) };
            query.metadata.insert("n".into(), "1".into());
            let at = at.map(millis);
            let mut expected: Vec<_> = all
                .iter()
                .filter(|info| query.matches(info) && at.is_none_or(|at| info.validity.contains(at)))
                .map(|info| info.rank())
                .collect();
            expected.sort_unstable();
            let expected = expected.split_off(expected.len().saturating_sub(limit));
            let unread = |_: &Row| Ok(VersionMetadata::default());
            let found = newest(&table, &query, at, limit, &unread).unwrap();
            let mut found: Vec<_> = found.iter().map(|info| info.rank()).collect();
            found.sort_unstable();
            prop_assert_eq!(found, expected);
        }
    }
}
