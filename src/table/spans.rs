//! The intervals view on the other side: effective spans, joined with timestamps that stay where
//! they are.
//!
//! ```text
//!  rows (column, from, until, cell) ─▶ ColumnSpans: a step function of cells
//!                                          × Timestamps ──join──▶ runs of cells
//! ```

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::cast::AsArray as _;
use arrow_array::types::{Int32Type, Int64Type};
use arrow_array::{Array, ArrayRef, Int32Array, RecordBatch, RecordBatchOptions};
use arrow_schema::SchemaRef;

use super::cells::{header_array, run_array};
use super::decode::{CellValue, DecodeError, wrong};
use super::encode::EncodeError;
use crate::index::{Slot, Timestamps, join_steps};
use crate::shm::MetaHeader;

/// The effective spans of one column.
#[derive(Debug, Clone)]
pub struct ColumnSpans {
    /// Where each step begins: the first at the beginning of time.
    starts: Vec<i64>,
    /// What holds from there on.
    cells: Vec<Option<MetaHeader>>,
}

/// Rows of a column, each run with its cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinedColumn {
    /// The row behind the last one of each run, and its cell.
    pub runs: Vec<(usize, CellValue)>,
    /// Whether nothing is valid at some timestamps; they have null cells.
    pub gaps: bool,
}

impl ColumnSpans {
    fn none() -> Self {
        Self { starts: vec![i64::MIN], cells: vec![None] }
    }

    /// Puts a span behind the others; says whether it belongs there.
    fn push(&mut self, from: i64, until: i64, cell: MetaHeader) -> bool {
        let Some(&last) = self.starts.last() else { return false };
        if from < last || from >= until {
            return false;
        }
        if from == last {
            // It begins where the one before ended.
            self.starts.pop();
            self.cells.pop();
        }
        self.starts.extend([from, until]);
        self.cells.extend([Some(cell), None]);
        true
    }

    /// The columns of these names from the batches of an intervals view.
    ///
    /// # Errors
    /// [`DecodeError`] if they have other columns, or the spans of one overlap.
    pub fn of_batches(names: &[&str], batches: &[RecordBatch]) -> Result<Vec<Self>, DecodeError> {
        let places: HashMap<&str, usize> = names.iter().copied().zip(0..).collect();
        let mut columns = vec![Self::none(); names.len()];
        for batch in batches {
            let column = |name: &str| {
                let none = || DecodeError {
                    got: "missing".to_owned(),
                    reason: format!("the view intervals has a column {name:?}"),
                };
                batch.column_by_name(name).ok_or_else(none)
            };
            let [from, until] = [column("from")?, column("until")?].map(|array| {
                let array = array.as_primitive_opt::<Int64Type>();
                array.filter(|array| array.null_count() == 0)
            });
            let cells = column("cell")?.as_fixed_size_binary_opt();
            let cells = cells.filter(|cells| {
                cells.value_length() == MetaHeader::BYTES as i32 && cells.null_count() == 0
            });
            let (Some(from), Some(until), Some(cells)) = (from, until, cells) else {
                return Err(wrong(batch.column(0), "from, until and cell are of other types"));
            };
            let mut row = 0;
            for (end, name) in text_runs(column("column")?)? {
                let place = places.get(name).copied();
                let place = place.ok_or_else(|| {
                    wrong(batch.column(0), &format!("{name:?} was not asked for"))
                })?;
                let spans = &mut columns[place];
                for row in row..end {
                    let cell = MetaHeader::from_bytes(cells.value(row));
                    let cell = cell.map_err(|error| wrong(cells, &error.to_string()))?;
                    if !spans.push(from.value(row), until.value(row), cell) {
                        let reason = format!("the spans of {name:?} overlap");
                        return Err(wrong(from, &reason));
                    }
                }
                row = end;
            }
        }
        Ok(columns)
    }

    /// The cell of each timestamp.
    pub fn join(&self, timestamps: &Timestamps) -> JoinedColumn {
        // The numbers of steps are those of cells.
        let slot = |place: usize| match self.cells.get(place) {
            Some(Some(_)) => Slot::Version(place as u32),
            _ => Slot::Absent,
        };
        let mut joined = JoinedColumn { runs: Vec::new(), gaps: false };
        for run in join_steps(&self.starts, slot, timestamps).iter() {
            let header = match run.slot {
                Slot::Version(place) => self.cells[place as usize],
                Slot::Absent | Slot::Unknown => {
                    joined.gaps = true;
                    None
                }
                Slot::Null => None,
            };
            let cell = header.map_or(CellValue::Null, CellValue::Header);
            match joined.runs.last_mut() {
                Some((end, last)) if *last == cell => *end = run.end,
                _ => joined.runs.push((run.end, cell)),
            }
        }
        joined
    }
}

/// A batch of run-end encoded columns from runs of MetaHeaders and nulls.
///
/// # Errors
/// [`EncodeError`] if these are not the columns of `schema`.
pub fn run_end_batch(
    schema: &SchemaRef,
    columns: &[&[(usize, CellValue)]],
    rows: usize,
) -> Result<RecordBatch, EncodeError> {
    let fields = schema.fields().iter().zip(columns);
    let arrays = fields.map(|(field, runs)| {
        let ends = Int32Array::from_iter_values(runs.iter().map(|(end, _)| *end as i32));
        let header = |cell: &CellValue| match cell {
            CellValue::Header(header) => Some(*header),
            CellValue::Null | CellValue::Payload(_) => None,
        };
        let values = header_array(runs.iter().map(|(_, cell)| header(cell)))?;
        run_array(field.data_type(), ends, &values, rows)
    });
    let arrays = arrays.collect::<Result<_, EncodeError>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), arrays, &options)?)
}

/// The runs of equal texts in a column, run-end encoded or not.
fn text_runs(column: &ArrayRef) -> Result<Vec<(usize, &str)>, DecodeError> {
    let not_text = || wrong(column, "it is no text");
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

    fn header(n: u64) -> MetaHeader {
        MetaHeader::managed(0, 4144, n, 1000 + n)
    }

    fn value(n: u64) -> CellValue {
        CellValue::Header(header(n))
    }

    #[test]
    fn rows_get_the_cell_of_the_span_that_they_are_in() {
        let mut spans = ColumnSpans::none();
        assert!(spans.push(0, 10, header(1)) && spans.push(10, 20, header(2)));
        assert!(spans.push(30, 40, header(1)));
        let timestamps: Timestamps =
            [Some(0), Some(9), Some(10), None, Some(19), Some(30)].into_iter().collect();
        let joined = spans.join(&timestamps);
        let runs = vec![(2, value(1)), (3, value(2)), (4, CellValue::Null), (5, value(2))];
        assert_eq!(joined.runs, [runs, vec![(6, value(1))]].concat());
        assert!(!joined.gaps);
        let outside = spans.join(&[Some(-1), Some(25), Some(40)].into_iter().collect());
        assert_eq!((outside.runs, outside.gaps), (vec![(3, CellValue::Null)], true));
    }

    #[test]
    fn a_span_can_begin_with_time_itself_and_others_must_follow() {
        let mut spans = ColumnSpans::none();
        assert!(spans.push(i64::MIN, 0, header(1)));
        assert!(!spans.push(-1, 5, header(2)) && !spans.push(5, 5, header(2)));
        let joined = spans.join(&[Some(i64::MIN), Some(-1)].into_iter().collect());
        assert_eq!(joined.runs, [(2, value(1))]);
    }
}
