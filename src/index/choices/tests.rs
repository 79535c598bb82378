//! Tests of the join by a key.

use std::ops::Range;
use std::sync::Arc;

use proptest::prelude::*;

use super::{ChoicePieces, ChoiceSource, RowChoices};
use crate::clock::Moment;
use crate::index::{
    KeyBuilder, KeyColumn, KeyType, KeyValue, Slot, State, Step, Timeline, Timestamps,
    open_times_within,
};
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{ObjectId, ObjectInfo, ObjectPath};

fn timeline(pieces: &[(i64, i64)], known: Option<(i64, i64)>) -> Timeline {
    let at = Timestamp::from_millis;
    let version = |(n, &(from, until)): (usize, &(i64, i64))| {
        Arc::new(ObjectInfo {
            path: ObjectPath::new("A").unwrap(),
            id: ObjectId::from_bytes([n as u8; 16]),
            validity: ValidityInterval::new(at(from), at(until)).unwrap(),
            created: at(n as i64),
            size_bytes: None,
            md5: None,
            metadata: Default::default(),
        })
    };
    let versions: Vec<_> = pieces.iter().enumerate().map(version).collect();
    let span = match known {
        Some((from, until)) => ValidityInterval::new(at(from), at(until)).unwrap(),
        None => ValidityInterval::ALL,
    };
    Timeline::unknown().learn(span, &versions, Moment::from_millis(5))
}

fn pieces() -> impl Strategy<Value = Vec<(i64, i64)>> {
    let piece = (-60_i64..60, 1_i64..40).prop_map(|(from, length)| (from, from + length));
    proptest::collection::vec(piece, 0..12)
}

/// Rows in all layouts of timestamps: sorted or not, with nulls, run-encoded, stepped.
fn timestamps() -> impl Strategy<Value = Timestamps> {
    let rows = proptest::collection::vec(
        prop_oneof![9 => (-70_i64..70).prop_map(Some), 1 => Just(None)],
        1..400,
    );
    (rows, 0..5_usize, 1..30_i32).prop_map(|(mut rows, layout, length)| match layout {
        0 => rows.into_iter().collect(),
        1 => rows.into_iter().map(|at| at.or(Some(3))).collect(),
        2 => {
            rows.sort_by_key(|at| at.unwrap_or(7));
            rows.into_iter().collect()
        }
        3 => {
            let plain: Timestamps = rows.iter().copied().collect();
            let ends: Vec<i32> = (1..=plain.len() as i32).map(|n| n * length).collect();
            plain.with_ends(ends)
        }
        _ => Timestamps::stepped(Timestamp::from_millis(-70), 3, rows.len()),
    })
}

/// The key of `rows` rows, with these values and their numbers of rows in turn.
fn key_of_runs(runs: &[(Option<i64>, usize)], rows: usize) -> KeyColumn {
    let mut builder = KeyBuilder::new(KeyType::Integers);
    for (value, length) in runs.iter().cycle() {
        let length = (*length).min(rows - builder.len());
        builder.push(length, value.map(KeyValue::Integer));
        if builder.len() == rows {
            break;
        }
    }
    builder.finish()
}

/// The look-up of a value: 0 to 4 have their own, 5 shares that of 0, higher ones have none.
fn choice_of(value: Option<KeyValue<'_>>) -> u32 {
    match value {
        None => RowChoices::NULL,
        Some(KeyValue::Integer(value)) if value > 5 => RowChoices::NONE,
        Some(KeyValue::Integer(value)) => (value % 5) as u32,
        Some(KeyValue::Text(_)) => unreachable!(),
    }
}

fn distinct(mut times: Vec<Timestamp>) -> Vec<Timestamp> {
    times.sort_unstable();
    times.dedup();
    times
}

/// Look-up and version of each row, from the runs of the join.
fn joined_rows(
    choices: &RowChoices,
    sources: &[ChoiceSource<'_>],
    timestamps: &Timestamps,
) -> Result<Vec<(u32, Slot)>, TestCaseError> {
    let mut joined = Vec::new();
    let (mut join, mut runs) = (ChoicePieces::new(choices, sources, timestamps), vec![]);
    while join.next_into(&mut runs) {
        for run in &runs {
            prop_assert_eq!(run.start, joined.len());
            prop_assert!(run.end > run.start);
            joined.resize(run.end, (run.choice, run.slot));
        }
    }
    Ok(joined)
}

/// Checks that the open times within `ranges` are those of `times` that the timeline does not
/// know.
fn check_open_times(
    timeline: &Timeline,
    timestamps: &Timestamps,
    ranges: &[Range<u32>],
    mut times: Vec<Timestamp>,
) -> Result<(), TestCaseError> {
    let unknown = |step: &Step| (step.state == State::Unknown).then_some(());
    let found = open_times_within(timeline, timestamps, ranges, 1000, unknown);
    let found = found.into_iter().map(|(at, ())| at).collect();
    times.retain(|at| timeline.at(*at).state == State::Unknown);
    // Neighbouring ranges may repeat a time within one piece only.
    prop_assert_eq!(distinct(found), distinct(times));
    Ok(())
}

proptest! {
    #[test]
    fn each_row_gets_what_its_own_look_up_says(
        timestamps in timestamps(),
        key in proptest::collection::vec((prop_oneof![
            9 => (0_i64..8).prop_map(Some), 1 => Just(None)
        ], 1..200_usize), 1..400),
        all in proptest::collection::vec(pieces(), 5),
        known in proptest::option::of((-50_i64..0, 1_i64..50)),
        fixed in 0..5_usize,
    ) {
        let key = key_of_runs(&key, timestamps.len());
        // Values 0..5 have look-ups of their own, 5 shares that of 0, and 6 and 7 have none.
        let values = key.to_timestamps().unwrap();
        let starts = [i64::MIN, 0, 1, 2, 3, 4, 5, 6];
        let of = |step: usize| [None, Some(0), Some(1), Some(2), Some(3), Some(4), Some(0), None]
            [step];
        let choices = RowChoices::by_steps(&values, &starts, of);
        let timelines: Vec<Timeline> = all.iter().map(|all| timeline(all, known)).collect();
        let sources: Vec<ChoiceSource<'_>> = timelines
            .iter()
            .enumerate()
            .map(|(n, one)| match n == fixed {
                true => ChoiceSource::Fixed(Slot::Version(99)),
                false => ChoiceSource::Timeline(one),
            })
            .collect();
        let joined = joined_rows(&choices, &sources, &timestamps)?;
        prop_assert_eq!(joined.len(), timestamps.len());
        for (row, cell) in joined.into_iter().enumerate() {
            let (choice, at) = (choice_of(key.value(row)), timestamps.value(row));
            let slot = match (choice, at) {
                (RowChoices::NULL, _) => Slot::Null,
                (RowChoices::NONE, _) => Slot::Absent,
                (choice, _) if choice as usize == fixed => Slot::Version(99),
                (_, None) => Slot::Null,
                (choice, Some(at)) => timelines[choice as usize].at(at).state.into(),
            };
            prop_assert_eq!(cell, (choice, slot), "row {}", row);
        }
        let ranges = choices.ranges(5, |choice| Some(choice as usize));
        for (choice, timeline) in timelines.iter().enumerate() {
            let rows = choices.runs().filter(|(.., one)| *one == choice as u32);
            let rows = rows.flat_map(|(start, end, _)| start..end);
            let times = rows.filter_map(|row| timestamps.value(row)).collect();
            check_open_times(timeline, &timestamps, ranges.of_group(choice), times)?;
        }
    }

    #[test]
    fn null_timestamps_have_no_look_up(
        timestamps in timestamps(),
        values in proptest::collection::vec(proptest::option::of(0_i64..3), 1..20),
    ) {
        let rows = (0..timestamps.len()).map(|row| values[row / 3 % values.len()]);
        let key: KeyColumn = rows.collect();
        let choices = RowChoices::by_value(&key).without_null_timestamps(&timestamps);
        let mut row = 0;
        for (start, end, choice) in choices.runs() {
            prop_assert_eq!(start, row);
            for at in start..end {
                let expected = match (timestamps.value(at), key.value(at)) {
                    (Some(_), Some(value)) => Some(value),
                    _ => None,
                };
                let got = (choice != RowChoices::NULL)
                    .then(|| key.distinct(choice as usize).0);
                prop_assert_eq!(got, expected);
            }
            row = end;
        }
        prop_assert_eq!(row, timestamps.len());
    }
}
