//! Decodes the intervals view: effective spans, joined with timestamps that stay with the client.
//!
//! ```text
//!  rows (column, from, until, cell) ─▶ ColumnSpans: a step function of cells
//!                                          × Timestamps ──join──▶ runs of cells
//! ```

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::cast::AsArray as _;
use arrow_array::types::{Int32Type, Int64Type};
use arrow_array::{Array, ArrayRef, RecordBatch, RecordBatchOptions};
use arrow_schema::SchemaRef;

use super::batch_buffers::BatchBuffers;
use super::decode::{CellValue, ColumnRuns, DecodeError, wrong};
use super::encode_error::EncodeError;
use super::request_options::CellKind;
use crate::index::{Slot, Timestamps, join_steps};

/// The effective spans of one column.
#[derive(Debug, Clone)]
pub(crate) struct ColumnSpans {
    /// Start of each step; the first step begins at the lowest timestamp.
    starts: Vec<i64>,
    /// Cell of each step: a batch and a row in it.
    cells: Vec<Option<(usize, usize)>>,
    /// The cells of all batches, without runs.
    empty: ColumnRuns,
}

/// Rows of a column as runs of cells.
#[derive(Debug, Clone)]
pub(crate) struct JoinedColumn {
    /// The runs of the column.
    pub runs: ColumnRuns,
    /// Whether no object is valid at some timestamps; their cells are null.
    pub gaps: bool,
}

impl ColumnSpans {
    fn none(empty: ColumnRuns) -> Self {
        Self { starts: vec![i64::MIN], cells: vec![None], empty }
    }

    /// Appends a span; returns `false` if it is empty or overlaps the last one.
    fn push(&mut self, from: i64, until: i64, cell: (usize, usize)) -> bool {
        let Some(&last) = self.starts.last() else { return false };
        if from < last || from >= until {
            return false;
        }
        if from == last {
            // It begins where the last span ended.
            self.starts.pop();
            self.cells.pop();
        }
        self.starts.extend([from, until]);
        self.cells.extend([Some(cell), None]);
        true
    }

    /// Spans of the columns `names` from the batches of an intervals view.
    ///
    /// # Errors
    /// [`DecodeError`] if the batches have other columns, a span is of a column that is not in
    /// `names`, or spans of one column overlap.
    #[doc(hidden)]
    pub(crate) fn of_batches(
        names: &[&str],
        batches: &[RecordBatch],
    ) -> Result<Vec<Self>, DecodeError> {
        let places: HashMap<&str, usize> = names.iter().copied().zip(0..).collect();
        let cells = batches.iter().map(|batch| column_of(batch, "cell"));
        let cells = cells.collect::<Result<Vec<&ArrayRef>, DecodeError>>()?;
        let empty = ColumnRuns::of_cells(cells.iter().copied())?;
        let mut columns = vec![Self::none(empty); names.len()];
        for (number, batch) in batches.iter().enumerate() {
            let column = |name: &str| column_of(batch, name);
            let [from, until] = [column("from")?, column("until")?].map(|array| {
                let array = array.as_primitive_opt::<Int64Type>();
                array.filter(|array| array.null_count() == 0)
            });
            let headers = cells[number].as_fixed_size_binary_opt();
            let headers = headers.filter(|headers| headers.null_count() == 0);
            let (Some(from), Some(until), Some(_)) = (from, until, headers) else {
                return Err(wrong(batch.column(0), "from, until and cell have other types"));
            };
            let mut row = 0;
            for (end, name) in text_runs(column("column")?)? {
                let place = places.get(name).copied();
                let place = place.ok_or_else(|| {
                    wrong(batch.column(0), &format!("{name:?} was not requested"))
                })?;
                let spans = &mut columns[place];
                for row in row..end {
                    if !spans.push(from.value(row), until.value(row), (number, row)) {
                        let reason = format!("the spans of {name:?} overlap");
                        return Err(wrong(from, &reason));
                    }
                }
                row = end;
            }
        }
        Ok(columns)
    }

    /// Looks up the cell of each timestamp.
    pub(crate) fn join(&self, timestamps: &Timestamps) -> JoinedColumn {
        // Numbers of steps index the cells.
        let slot = |step: usize| match self.cells.get(step) {
            Some(Some(_)) => Slot::Version(step as u32),
            _ => Slot::Absent,
        };
        let mut joined = JoinedColumn { runs: self.empty.clone(), gaps: false };
        for run in join_steps(&self.starts, slot, timestamps).iter() {
            let cell = match run.slot {
                Slot::Version(step) => self.cells[step as usize],
                Slot::Absent | Slot::Unknown => {
                    joined.gaps = true;
                    None
                }
                Slot::Null => None,
            };
            match cell {
                Some((batch, row)) => joined.runs.push(run.end, batch, row),
                None => joined.runs.push_null(run.end),
            }
        }
        joined
    }
}

fn column_of<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef, DecodeError> {
    batch.column_by_name(name).ok_or_else(|| DecodeError {
        got: "missing".to_owned(),
        reason: format!("the view intervals must have a column {name:?}"),
    })
}

/// Batch of run-end encoded columns from runs of MetaHeaders and nulls.
///
/// # Errors
/// [`EncodeError`] if the runs are not the columns of `schema`.
#[doc(hidden)]
pub fn run_end_batch(
    schema: &SchemaRef,
    columns: &[&ColumnRuns],
    rows: usize,
) -> Result<RecordBatch, EncodeError> {
    let mut buffers = BatchBuffers::default();
    for runs in columns {
        let header = |(_, cell)| match cell {
            CellValue::Header(header) => (1, Some(header)),
            CellValue::Null | CellValue::O2 { .. } | CellValue::Payload(_) => (1, None),
        };
        let ends = runs.ends().iter().map(|&end| end as i32);
        let count = ends.len();
        buffers.run_ends(rows, ends);
        buffers.headers(count, runs.iter().map(header), CellKind::Binary);
    }
    let types = schema.fields().iter().map(|field| field.data_type());
    let arrays = buffers.into_arrays(types, &[])?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), arrays, &options)?)
}

/// Runs of equal texts in a column, run-end encoded or not.
fn text_runs(column: &ArrayRef) -> Result<Vec<(usize, &str)>, DecodeError> {
    let not_text = || wrong(column, "it is not a column of text");
    if let Some(array) = column.as_string_opt::<i32>() {
        let mut runs: Vec<(usize, &str)> = Vec::new();
        for row in 0..array.len() {
            match runs.last_mut() {
                Some((end, text)) if *text == array.value(row) => *end = row + 1,
                _ => runs.push((row + 1, array.value(row))),
            }
        }
        return Ok(runs);
    }
    let runs = column.as_run_opt::<Int32Type>().ok_or_else(not_text)?;
    let values = runs.values().as_string_opt::<i32>().ok_or_else(not_text)?;
    if runs.is_empty() {
        return Ok(Vec::new());
    }
    let ends = runs.run_ends();
    let places = ends.get_start_physical_index()..=ends.get_end_physical_index();
    places
        .map(|place| {
            let end = usize::try_from(ends.values()[place]).map_err(|_| not_text())?;
            Ok((end.saturating_sub(ends.offset()).min(runs.len()), values.value(place)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shm::MetaHeader;
    use crate::table::layout::cell_type;

    fn header(n: u64) -> MetaHeader {
        MetaHeader::managed(0, 4144, n, 1000 + n)
    }

    /// Columns without spans, for cells of `count` sizes.
    fn none(count: u32) -> ColumnSpans {
        let mut buffers = BatchBuffers::default();
        let cells = (0..count).map(|n| (1, Some(header(u64::from(n)))));
        buffers.headers(count as usize, cells, CellKind::Binary);
        let cells = buffers.into_array(&cell_type(CellKind::Binary)).unwrap();
        ColumnSpans::none(ColumnRuns::of_cells([&cells]).unwrap())
    }

    fn joined(
        spans: &ColumnSpans,
        timestamps: &[Option<i64>],
    ) -> (Vec<(usize, Option<u64>)>, bool) {
        let joined = spans.join(&timestamps.iter().copied().collect());
        let runs = joined.runs.iter().map(|(end, cell)| match cell {
            CellValue::Header(header) => (end, Some(header.size)),
            _ => (end, None),
        });
        (runs.collect(), joined.gaps)
    }

    #[test]
    fn rows_get_the_cell_of_the_span_that_they_are_in() {
        let mut spans = none(3);
        assert!(spans.push(0, 10, (0, 1)) && spans.push(10, 20, (0, 2)));
        assert!(spans.push(30, 40, (0, 1)));
        let (runs, gaps) = joined(&spans, &[Some(0), Some(9), Some(10), None, Some(19), Some(30)]);
        let expected = [(2, Some(1)), (3, Some(2)), (4, None), (5, Some(2)), (6, Some(1))];
        assert_eq!(runs, expected);
        assert!(!gaps);
        let outside = joined(&spans, &[Some(-1), Some(25), Some(40)]);
        assert_eq!(outside, (vec![(3, None)], true));
    }

    #[test]
    fn a_span_can_begin_with_time_itself_and_others_must_follow() {
        let mut spans = none(3);
        assert!(spans.push(i64::MIN, 0, (0, 1)));
        assert!(!spans.push(-1, 5, (0, 2)) && !spans.push(5, 5, (0, 2)));
        assert_eq!(joined(&spans, &[Some(i64::MIN), Some(-1)]).0, [(2, Some(1))]);
    }
}
