//! Reads timestamps from Arrow: each supported type is converted to milliseconds, finer units
//! rounded down, or refused.

use std::sync::Arc;

use arrow_array::cast::AsArray as _;
use arrow_array::types::{
    ArrowPrimitiveType, Int64Type, RunEndIndexType, TimestampMicrosecondType,
    TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType, UInt64Type,
};
use arrow_array::{AnyDictionaryArray, Array, RecordBatch, RunArray};
use arrow_buffer::{ArrowNativeType as _, NullBuffer, ScalarBuffer};
use arrow_schema::{DataType, SchemaRef, TimeUnit};
#[cfg(feature = "server")]
use {arrow_buffer::Buffer, arrow_schema::Schema, bytes::Bytes};

use super::arrow_keys::{keys_from_batch, with_first_rows};
use super::key_rows::{KeyColumns, KeyError, TableRows};
use super::range::RangeRequest;
use crate::error::coded;
use crate::index::Timestamps;

/// Name of the timestamp column.
pub(super) const TIMESTAMP: &str = "timestamp";
/// Name of the timestamp column in AliceO2's tables.
const O2_TIMESTAMP: &str = "fTimestamp";
/// Maximum number of rows that are not run-end encoded: that of a range.
const MAX_PLAIN_ROWS: usize = RangeRequest::MAX_ROWS as usize;
/// The accepted types, for error messages.
const EXPECTED: &str = "int64 or uint64 in milliseconds, or timestamp; plain, dictionary or \
                        run-end encoded";

/// Why timestamps cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TimestampsError {
    /// No column has a fitting type, or several have one and none has the expected name.
    #[error("there is no column of timestamps: expected one named timestamp or fTimestamp, or \
             only one of a fitting type ({EXPECTED}); there are {}", columns.join(", "))]
    NoColumn {
        /// Name and type of each column.
        columns: Vec<String>,
    },
    /// The column has another type.
    #[error("column {column:?} is {got}, expected {EXPECTED}")]
    Type {
        /// The column.
        column: String,
        /// Its type.
        got: String,
    },
    /// A value does not fit into an i64 of milliseconds.
    #[error("column {column:?} has the value {value}, which is no i64 in milliseconds")]
    Overflow {
        /// The column.
        column: String,
        /// The value.
        value: String,
    },
    /// There are more rows than Int32 can count, or than may be sent without run-end encoding.
    #[error(
        "{rows} timestamps are too many: at most {} are taken, and {MAX_PLAIN_ROWS} that are not \
         run-end encoded",
        Timestamps::MAX_ROWS
    )]
    TooMany {
        /// Number of rows.
        rows: usize,
    },
    /// The batches have different schemas.
    #[error("batch {batch} and the first have different columns")]
    Batches {
        /// Index of the first batch that differs, from 0.
        batch: usize,
    },
    /// There is no batch.
    #[error("there is no batch of timestamps")]
    Empty,
}

coded! { TimestampsError {
    NoColumn => InvalidArgument 1010,
    Type => InvalidArgument 1011,
    Overflow => InvalidArgument 1012,
    TooMany => InvalidArgument 1013,
    Batches => InvalidArgument 1014,
    Empty => InvalidArgument 1015,
} }

fn fits(data_type: &DataType) -> bool {
    match data_type {
        DataType::Int64 | DataType::UInt64 | DataType::Timestamp(..) => true,
        DataType::Dictionary(_, values) => fits(values),
        DataType::RunEndEncoded(_, values) => fits(values.data_type()),
        _ => false,
    }
}

/// Timestamps of a table: the column `timestamp`, else `fTimestamp`, else the only column of a
/// fitting type.
///
/// # Errors
/// [`TimestampsError`] if there is no such column, or its values do not fit into milliseconds.
#[cfg(test)]
pub(crate) fn timestamps_from_batches(
    batches: &[RecordBatch],
) -> Result<Timestamps, TimestampsError> {
    let first = batches.first().ok_or(TimestampsError::Empty)?;
    let place = timestamp_column(&first.schema(), &[])?;
    timestamps_in(batches, place)
}

/// Rows of a table: its timestamps, and the key columns of these names that exist. Other columns
/// are ignored. The timestamps are the column `timestamp`, else `fTimestamp`, else the only one of
/// a fitting type ([`timestamps_from_array`] lists the types); keys are integers of any width or
/// strings.
///
/// `charge` gets the bytes that the keys take before they are allocated, and may
/// refuse.
///
/// # Errors
/// [`TimestampsError`], [`KeyError`], or the error of `charge`.
pub fn rows_from_batches<E: From<TimestampsError> + From<KeyError>>(
    batches: &[RecordBatch],
    keys: &[Arc<str>],
    charge: impl FnMut(u64) -> Result<(), E>,
) -> Result<TableRows, E> {
    rows_of_part(batches, keys, 0, charge)
}

/// Like [`rows_from_batches`], for batches whose first row is row `first_row` of the table; errors
/// name rows of the table.
pub(crate) fn rows_of_part<E: From<TimestampsError> + From<KeyError>>(
    batches: &[RecordBatch],
    keys: &[Arc<str>],
    first_row: usize,
    mut charge: impl FnMut(u64) -> Result<(), E>,
) -> Result<TableRows, E> {
    let first = batches.first().ok_or(TimestampsError::Empty)?;
    let place = timestamp_column(&first.schema(), keys)?;
    let timestamps = Arc::new(timestamps_in(batches, place)?);
    let parts = with_first_rows(batches)
        .map(|(row, batch)| keys_from_batch(keys, batch, first_row + row, &mut charge));
    let parts = parts.collect::<Result<Vec<KeyColumns>, E>>()?;
    Ok(TableRows { timestamps, keys: KeyColumns::concat(&parts)? })
}

/// Index of the timestamp column. A column named in `keys` is never chosen by its type alone.
fn timestamp_column(schema: &SchemaRef, keys: &[Arc<str>]) -> Result<usize, TimestampsError> {
    let named = [TIMESTAMP, O2_TIMESTAMP].iter().find_map(|name| schema.index_of(name).ok());
    let place = named.or_else(|| {
        let fields = schema.fields().iter().enumerate();
        let mut fitting = fields.filter(|(_, field)| {
            fits(field.data_type()) && keys.iter().all(|key| **key != **field.name())
        });
        match (fitting.next(), fitting.next()) {
            (Some((place, _)), None) => Some(place),
            _ => None,
        }
    });
    place.ok_or_else(|| TimestampsError::NoColumn {
        columns: schema
            .fields()
            .iter()
            .map(|field| format!("{} ({})", field.name(), field.data_type()))
            .collect(),
    })
}

fn timestamps_in(batches: &[RecordBatch], place: usize) -> Result<Timestamps, TimestampsError> {
    let Some(first) = batches.first() else { return Err(TimestampsError::Empty) };
    let schema = first.schema();
    let name = schema.field(place).name();
    let mut parts = Vec::with_capacity(batches.len());
    for (batch, table) in batches.iter().enumerate() {
        if table.num_columns() != schema.fields().len() {
            return Err(TimestampsError::Batches { batch });
        }
        parts.push(timestamps_from_array(name, table.column(place))?);
    }
    if parts.len() == 1
        && let Some(only) = parts.pop()
    {
        return Ok(only);
    }
    together(&parts)
}

impl TableRows {
    /// Concatenates the rows of all parts. Each part must have the same keys.
    ///
    /// # Errors
    /// [`TimestampsError::TooMany`], [`KeyError::Type`].
    pub fn concat<E: From<TimestampsError> + From<KeyError>>(parts: &[Self]) -> Result<Self, E> {
        let timestamps: Vec<Timestamps> =
            parts.iter().map(|part| Timestamps::clone(&part.timestamps)).collect();
        let timestamps = together(&timestamps)?;
        let keys: Vec<KeyColumns> = parts.iter().map(|part| part.keys.clone()).collect();
        Ok(Self { timestamps: Arc::new(timestamps), keys: KeyColumns::concat(&keys)? })
    }
}

/// Concatenates the timestamps of all parts.
///
/// # Errors
/// [`TimestampsError::TooMany`].
fn together(parts: &[Timestamps]) -> Result<Timestamps, TimestampsError> {
    let rows = parts.iter().map(Timestamps::len).sum();
    if rows > Timestamps::MAX_ROWS {
        return Err(TimestampsError::TooMany { rows });
    }
    Ok(Timestamps::concat(parts))
}

/// Timestamps of a received batch that has one column, plain and without nulls: read in place, or
/// copied if they are short. `None`: the batch has another form or contradicts itself, and arrow's
/// decoder must read it.
#[cfg(feature = "server")]
pub(crate) fn plain_timestamps(
    schema: &Schema,
    batch: arrow_ipc::RecordBatch<'_>,
    body: &Bytes,
) -> Option<Timestamps> {
    /// Timestamps of at most this many bytes are copied. Read in place, they would keep the buffer
    /// of the connection, which may be much larger, in memory until their timeframe ends.
    const COPIED_BYTES: usize = 256 << 10;
    if cfg!(target_endian = "big") {
        return None;
    }
    let fields = schema.fields();
    let [field] = &fields[..] else { return None };
    let plain = matches!(
        field.data_type(),
        DataType::Int64 | DataType::Timestamp(TimeUnit::Millisecond, _)
    );
    let (nodes, buffers) = (batch.nodes()?, batch.buffers()?);
    if !plain || batch.compression().is_some() || nodes.len() != 1 || buffers.len() != 2 {
        return None;
    }
    let (node, values) = (nodes.get(0), buffers.get(1));
    let rows = usize::try_from(node.length()).ok().filter(|rows| *rows <= MAX_PLAIN_ROWS)?;
    if node.null_count() != 0 || batch.length() != node.length() {
        return None;
    }
    let start = usize::try_from(values.offset()).ok()?;
    let bytes = rows * size_of::<i64>();
    if usize::try_from(values.length()).ok()? < bytes {
        return None;
    }
    let end = start.checked_add(bytes)?;
    let values = body.get(start..end)?;
    Some(Timestamps::of_bytes(match bytes <= COPIED_BYTES {
        true => Buffer::from(values),
        false => Buffer::from(body.slice(start..end)),
    }))
}

/// Timestamps of one array; `column` is its name for error messages.
///
/// Accepted are Int64 and UInt64 (milliseconds) and Timestamp in s, ms, µs or ns with or without a
/// time zone; plain, dictionary or run-end encoded. Finer units are rounded down to milliseconds.
/// Nulls stay nulls; run-end encoded arrays are not expanded.
///
/// # Errors
/// [`TimestampsError`] if the array has another type, or a value does not fit into milliseconds.
pub fn timestamps_from_array(
    column: &str,
    array: &dyn Array,
) -> Result<Timestamps, TimestampsError> {
    let limit = match array.data_type() {
        DataType::RunEndEncoded(..) => Timestamps::MAX_ROWS,
        _ => MAX_PLAIN_ROWS,
    };
    if array.len() > limit {
        return Err(TimestampsError::TooMany { rows: array.len() });
    }
    let wrong_type =
        || TimestampsError::Type { column: column.to_owned(), got: array.data_type().to_string() };
    match array.data_type() {
        DataType::Int64 => {
            let array = array.as_primitive::<Int64Type>();
            Ok(Timestamps::new(array.values().clone(), array.nulls().cloned()))
        }
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            let array = array.as_primitive::<TimestampMillisecondType>();
            Ok(Timestamps::new(array.values().clone(), array.nulls().cloned()))
        }
        DataType::UInt64 => converted::<UInt64Type>(column, array, |at| i64::try_from(at).ok()),
        DataType::Timestamp(TimeUnit::Second, _) => {
            converted::<TimestampSecondType>(column, array, |at| at.checked_mul(1_000))
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            converted::<TimestampMicrosecondType>(column, array, |at| Some(at.div_euclid(1_000)))
        }
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            converted::<TimestampNanosecondType>(column, array, |at| Some(at.div_euclid(1_000_000)))
        }
        DataType::Dictionary(..) => {
            from_dictionary(column, array.as_any_dictionary_opt().ok_or_else(wrong_type)?)
        }
        DataType::RunEndEncoded(ends, _) => match ends.data_type() {
            DataType::Int16 => runs::<arrow_array::types::Int16Type>(column, array),
            DataType::Int32 => runs::<arrow_array::types::Int32Type>(column, array),
            DataType::Int64 => runs::<Int64Type>(column, array),
            _ => Err(wrong_type()),
        },
        _ => Err(wrong_type()),
    }
}

fn from_dictionary(
    column: &str,
    dictionary: &dyn AnyDictionaryArray,
) -> Result<Timestamps, TimestampsError> {
    let values = timestamps_from_array(column, dictionary.values())?;
    let rows = dictionary.len();
    if values.is_empty() {
        // Without values, every key is null.
        let nothing = ScalarBuffer::from(vec![0; rows]);
        return Ok(Timestamps::new(nothing, Some(NullBuffer::new_null(rows))));
    }
    let keys = dictionary.normalized_keys();
    let rows = keys.into_iter().enumerate().map(|(row, key)| {
        let there = dictionary.keys().is_valid(row);
        if there { values.value(key).map(|at| at.as_millis()) } else { None }
    });
    Ok(rows.collect())
}

fn converted<T: ArrowPrimitiveType>(
    column: &str,
    array: &dyn Array,
    to_millis: impl Fn(T::Native) -> Option<i64>,
) -> Result<Timestamps, TimestampsError> {
    let array = array.as_primitive::<T>();
    let mut millis = Vec::with_capacity(array.len());
    for (row, &value) in array.values().iter().enumerate() {
        match to_millis(value) {
            Some(at) => millis.push(at),
            // The value under a null has no meaning.
            None if array.is_null(row) => millis.push(0),
            None => {
                let (column, value) = (column.to_owned(), format!("{value:?}"));
                return Err(TimestampsError::Overflow { column, value });
            }
        }
    }
    Ok(Timestamps::new(millis, array.nulls().cloned()))
}

fn runs<R: RunEndIndexType>(
    column: &str,
    array: &dyn Array,
) -> Result<Timestamps, TimestampsError> {
    let Some(array) = array.as_any().downcast_ref::<RunArray<R>>() else {
        let got = array.data_type().to_string();
        return Err(TimestampsError::Type { column: column.to_owned(), got });
    };
    if array.is_empty() {
        return Ok(Timestamps::new(Vec::new(), None));
    }
    // A slice of a run array keeps all of its runs; only the runs inside the slice count.
    let run_ends = array.run_ends();
    let (first, last) = (run_ends.get_start_physical_index(), run_ends.get_end_physical_index());
    let offset = run_ends.offset();
    let mut ends = Vec::with_capacity(last - first + 1);
    for end in &run_ends.values()[first..=last] {
        let end = (end.as_usize() - offset).min(array.len());
        ends.push(i32::try_from(end).map_err(|_| TimestampsError::TooMany { rows: end })?);
    }
    let values = array.values().slice(first, last - first + 1);
    let values = timestamps_from_array(column, &values)?;
    Ok(values.with_ends(ends))
}

#[cfg(test)]
mod tests {
    use arrow_array::{
        ArrayRef, DictionaryArray, Int32Array, Int64Array, StringArray, TimestampMicrosecondArray,
        TimestampMillisecondArray, TimestampNanosecondArray, TimestampSecondArray, UInt64Array,
    };

    use super::*;

    fn rows(array: &dyn Array) -> Vec<Option<i64>> {
        let timestamps = timestamps_from_array("t", array).unwrap();
        let value = |row| timestamps.value(row).map(|at| at.as_millis());
        (0..timestamps.len()).map(value).collect()
    }

    fn error(array: &dyn Array) -> String {
        timestamps_from_array("t", array).unwrap_err().to_string()
    }

    #[test]
    fn every_type_is_converted_exactly_and_finer_ones_are_floored() {
        assert_eq!(rows(&Int64Array::from(vec![Some(-1), None])), [Some(-1), None]);
        assert_eq!(rows(&UInt64Array::from(vec![7, i64::MAX as u64])), [Some(7), Some(i64::MAX)]);
        let zone = TimestampSecondArray::from(vec![-2, 3]).with_timezone("Europe/Zurich");
        assert_eq!(rows(&zone), [Some(-2000), Some(3000)]);
        assert_eq!(rows(&TimestampMillisecondArray::from(vec![5])), [Some(5)]);
        let micros = TimestampMicrosecondArray::from(vec![1999, -1, -1000, -1001]);
        assert_eq!(rows(&micros), [Some(1), Some(-1), Some(-1), Some(-2)]);
        let nanos = TimestampNanosecondArray::from(vec![1_999_999, -1]);
        assert_eq!(rows(&nanos), [Some(1), Some(-1)]);
    }

    #[test]
    fn a_time_that_is_no_i64_in_milliseconds_is_refused_unless_it_is_null() {
        assert!(error(&UInt64Array::from(vec![u64::MAX])).contains("18446744073709551615"));
        assert!(error(&TimestampSecondArray::from(vec![i64::MAX])).contains("no i64"));
        let nulls = Some(NullBuffer::from(vec![false]));
        assert_eq!(rows(&UInt64Array::new(vec![u64::MAX].into(), nulls)), [None]);
        assert!(error(&StringArray::from(vec!["noon"])).contains("Utf8"));
    }

    #[test]
    fn dictionaries_are_looked_up_and_their_nulls_kept_on_both_sides() {
        let values: ArrayRef = Arc::new(Int64Array::from(vec![Some(10), None]));
        let keys = Int32Array::from(vec![Some(0), Some(1), None, Some(0)]);
        let dictionary = DictionaryArray::new(keys, values);
        assert_eq!(rows(&dictionary), [Some(10), None, None, Some(10)]);
        assert_eq!(rows(&dictionary.slice(2, 2)), [None, Some(10)]);
        let none: ArrayRef = Arc::new(Int64Array::from(Vec::<i64>::new()));
        let empty = DictionaryArray::new(Int32Array::from(vec![None, None]), none);
        assert_eq!(rows(&empty), [None, None]);
    }

    #[test]
    fn runs_are_not_expanded_and_slices_of_them_are_right() {
        let ends = Int32Array::from(vec![2, 3, 1_000_000]);
        let values = Int64Array::from(vec![Some(1), None, Some(3)]);
        let runs = RunArray::try_new(&ends, &values).unwrap();
        let timestamps = timestamps_from_array("t", &runs).unwrap();
        assert_eq!(timestamps.len(), 1_000_000);
        assert_eq!(timestamps.runs().count(), 3);
        let slice = runs.slice(1, 3);
        assert_eq!(rows(&slice), [Some(1), None, Some(3)]);
        assert_eq!(rows(&runs.slice(5, 0)), []);
    }

    #[test]
    fn the_column_is_found_by_name_or_by_being_the_only_one() {
        let batch = |columns: &[&str]| {
            RecordBatch::try_from_iter(columns.iter().zip(1_i64..).map(|(name, value)| {
                let column: ArrayRef = match *name {
                    "text" => Arc::new(StringArray::from(vec!["x"])),
                    _ => Arc::new(Int64Array::from(vec![value])),
                };
                (*name, column)
            }))
            .unwrap()
        };
        let first = |columns: &[&str]| {
            let found = timestamps_from_batches(&[batch(columns), batch(columns)])?;
            assert_eq!(found.len(), 2);
            Ok::<_, TimestampsError>(found.value(1).unwrap().as_millis())
        };
        assert_eq!(first(&["orbit", "fTimestamp", "timestamp"]), Ok(3));
        assert_eq!(first(&["orbit", "fTimestamp"]), Ok(2));
        assert_eq!(first(&["text", "orbit"]), Ok(2));
        assert!(matches!(first(&["a", "b"]), Err(TimestampsError::NoColumn { .. })));
        assert!(matches!(first(&["text"]), Err(TimestampsError::NoColumn { .. })));
        assert_eq!(timestamps_from_batches(&[]).unwrap_err(), TimestampsError::Empty);
    }
}
