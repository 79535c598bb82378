//! From a column, in whatever encoding, back to runs of cells. What comes from elsewhere is checked.

use arrow_array::cast::AsArray as _;
use arrow_array::types::{Int32Type, Int64Type};
use arrow_array::{Array, Int64Array, RunArray, StructArray, UInt8Array, UInt16Array, UInt64Array};
use arrow_buffer::Buffer;
use arrow_schema::DataType;

use crate::error::{Code, Coded, ErrorKind};
use crate::shm::MetaHeader;

/// What stands in a cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CellValue {
    /// Nothing.
    Null,
    /// Where the object lies.
    Header(MetaHeader),
    /// The object's bytes.
    Payload(Buffer),
}

/// A column is not of a form that tables have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a column is {got}: {reason}")]
pub struct DecodeError {
    /// Its type.
    pub got: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Coded for DecodeError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Internal
    }
    fn code(&self) -> Code {
        Code(1030)
    }
}

pub(super) fn wrong(array: &dyn Array, reason: &str) -> DecodeError {
    DecodeError { got: array.data_type().to_string(), reason: reason.to_owned() }
}

/// The runs of a column: the row behind the last one of each, and its cell.
///
/// # Errors
/// [`DecodeError`].
pub fn column_runs(column: &dyn Array) -> Result<Vec<(usize, CellValue)>, DecodeError> {
    match column.data_type() {
        DataType::RunEndEncoded(..) => {
            let runs = column
                .as_any()
                .downcast_ref::<RunArray<Int32Type>>()
                .ok_or_else(|| wrong(column, "its run ends are not Int32"))?;
            if runs.is_empty() {
                return Ok(Vec::new());
            }
            let ends = runs.run_ends();
            let first = ends.get_start_physical_index();
            let last = ends.get_end_physical_index();
            (first..=last)
                .map(|place| {
                    let end = usize::try_from(ends.values()[place])
                        .map_err(|_| wrong(column, "a run end is negative"))?;
                    let end = end.saturating_sub(ends.offset()).min(runs.len());
                    Ok((end, cell(runs.values(), place)?))
                })
                .collect()
        }
        DataType::Dictionary(..) => {
            let dictionary = column
                .as_dictionary_opt::<Int32Type>()
                .ok_or_else(|| wrong(column, "its keys are not Int32"))?;
            let keys = dictionary.keys();
            merged(column.len(), |row, other| {
                keys.is_null(row) == keys.is_null(other) && keys.value(row) == keys.value(other)
            })
            .map(|(row, end)| {
                if keys.is_null(row) {
                    return Ok((end, CellValue::Null));
                }
                let key = usize::try_from(keys.value(row)).ok();
                let key = key.filter(|&key| key < dictionary.values().len());
                let key = key.ok_or_else(|| wrong(column, "a key has no value"))?;
                Ok((end, cell(dictionary.values(), key)?))
            })
            .collect()
        }
        _ => {
            let mut runs: Vec<(usize, CellValue)> = Vec::new();
            for row in 0..column.len() {
                let value = cell(column, row)?;
                match runs.last_mut() {
                    Some((end, last)) if *last == value => *end = row + 1,
                    _ => runs.push((row + 1, value)),
                }
            }
            Ok(runs)
        }
    }
}

/// The runs of rows that are the same: the first row of each, and the one behind the last.
fn merged(
    rows: usize,
    same: impl Fn(usize, usize) -> bool,
) -> impl Iterator<Item = (usize, usize)> {
    let mut next = 0;
    std::iter::from_fn(move || {
        let first = next;
        if first == rows {
            return None;
        }
        next += 1;
        while next < rows && same(first, next) {
            next += 1;
        }
        Some((first, next))
    })
}

fn cell(array: &dyn Array, row: usize) -> Result<CellValue, DecodeError> {
    if array.is_null(row) {
        return Ok(CellValue::Null);
    }
    match array.data_type() {
        DataType::FixedSizeBinary(_) => {
            let bytes = array.as_fixed_size_binary().value(row);
            let header = MetaHeader::from_bytes(bytes);
            header.map(CellValue::Header).map_err(|error| wrong(array, &error.to_string()))
        }
        DataType::Struct(_) => struct_header(array.as_struct(), row)
            .map(CellValue::Header)
            .ok_or_else(|| wrong(array, "it has not the fields of a MetaHeader")),
        DataType::LargeBinary => {
            let array = array.as_binary::<i64>();
            let [start, end] = [row, row + 1].map(|place| array.value_offsets()[place] as usize);
            Ok(CellValue::Payload(array.values().slice_with_length(start, end - start)))
        }
        DataType::FixedSizeList(_, 3) => {
            Err(wrong(array, "the cell o2 has no generation, so it cannot be resolved safely"))
        }
        _ => Err(wrong(array, "it is no cell")),
    }
}

fn struct_header(array: &StructArray, row: usize) -> Option<MetaHeader> {
    let column = |name: &str| array.column_by_name(name);
    let long = |name: &str| Some(column(name)?.as_any().downcast_ref::<UInt64Array>()?.value(row));
    let signed = |name: &str| {
        let array: &Int64Array = column(name)?.as_primitive_opt::<Int64Type>()?;
        Some(array.value(row))
    };
    let short = |name: &str| Some(column(name)?.as_any().downcast_ref::<UInt16Array>()?.value(row));
    let managed = column("managed")?.as_any().downcast_ref::<UInt8Array>()?.value(row);
    let (size, hint, handle) = (long("size")?, long("hint")?, signed("handle")?);
    let mut header = match managed {
        0 => MetaHeader::unmanaged(short("region_id")?, handle, size, hint),
        _ => MetaHeader::managed(short("segment_id")?, handle, size, hint),
    };
    header.managed = managed;
    header.shared = signed("shared")?;
    Some(header)
}
