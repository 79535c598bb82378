//! Decodes columns in any encoding into runs of cells, which are read in place. Received arrays are
//! checked.
//!
//! ```text
//!  run_end     ends, values     ─┐
//!  dictionary  keys,  values    ─┼─▶ ColumnRuns: the end of each run, and the index of its cell
//!  plain       values           ─┤         │
//!  intervals × timestamps       ─┘         └─▶ CellValue: null, a MetaHeader, bytes
//! ```

use arrow_array::cast::AsArray as _;
use arrow_array::types::{ArrowPrimitiveType, Int32Type};
use arrow_array::{
    Array, ArrayRef, FixedSizeBinaryArray, FixedSizeListArray, Int64Array, LargeBinaryArray,
    PrimitiveArray, RunArray, StructArray, UInt8Array, UInt16Array, UInt64Array,
};
use arrow_schema::DataType;

use crate::error::coded;
use crate::shm::MetaHeader;

/// Content of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CellValue<'a> {
    /// A null.
    Null,
    /// Location of the object.
    Header(MetaHeader),
    /// Location of the object without a generation: the cell `o2`.
    O2 {
        /// Offset of the chunk header in the segment.
        handle: i64,
        /// Id of the managed segment.
        segment: i64,
        /// Size of the payload in bytes.
        size: i64,
    },
    /// Payload of the object.
    Payload(&'a [u8]),
}

/// A received column does not have the form of a column of a table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a column is {got}: {reason}")]
pub struct DecodeError {
    /// Its Arrow type.
    pub got: String,
    /// Why it is refused.
    pub reason: String,
}

coded! { DecodeError => Internal 1030 }

pub(super) fn wrong(array: &dyn Array, reason: &str) -> DecodeError {
    DecodeError { got: array.data_type().to_string(), reason: reason.to_owned() }
}

/// Position of a cell: an array, and an index into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct CellPosition {
    array: u32,
    at: u32,
}

impl CellPosition {
    const NONE: Self = Self { array: u32::MAX, at: 0 };
}

/// Runs of a column. They cover all rows without gaps, and neighbours differ. Cells stay in the
/// arrays in which they were received.
#[derive(Debug, Clone, Default)]
pub struct ColumnRuns {
    /// For each run, the row after its last one.
    ends: Vec<usize>,
    places: Vec<CellPosition>,
    arrays: Vec<CellArray>,
}

impl ColumnRuns {
    /// No rows yet; their cells will be in these arrays.
    ///
    /// # Errors
    /// [`DecodeError`] if an array holds no cells.
    pub(super) fn of_cells<'a>(
        arrays: impl IntoIterator<Item = &'a ArrayRef>,
    ) -> Result<Self, DecodeError> {
        let arrays = arrays.into_iter().map(|array| CellArray::of(array));
        let arrays = arrays.collect::<Result<_, _>>()?;
        Ok(Self { arrays, ..Self::default() })
    }

    /// Runs of MetaHeaders: the row after the last one of each, and its cell.
    ///
    /// # Errors
    /// [`DecodeError`] if there are more or fewer cells than runs, or they are no MetaHeaders.
    #[cfg(feature = "client")]
    pub(crate) fn of_headers(
        ends: Vec<usize>,
        cells: FixedSizeBinaryArray,
    ) -> Result<Self, DecodeError> {
        if ends.len() != cells.len() {
            return Err(wrong(&cells, "it has another number of runs"));
        }
        let places = (0..cells.len()).map(|at| CellPosition { array: 0, at: at as u32 }).collect();
        Ok(Self { ends, places, arrays: vec![CellArray::of(&cells)?] })
    }

    /// Number of runs.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are no runs.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The runs in order: the row after the last one of each, and its cell.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (usize, CellValue<'_>)> + Clone {
        self.ends.iter().zip(&self.places).map(|(end, place)| (*end, self.cell(*place)))
    }

    /// For each run, the row after its last one, in ascending order.
    pub fn ends(&self) -> &[usize] {
        &self.ends
    }

    /// Cell of a run, counted from 0; `None`: there is no such run.
    pub fn run(&self, run: usize) -> Option<CellValue<'_>> {
        Some(self.cell(*self.places.get(run)?))
    }

    /// Cell of a row, counted from 0; `None`: there is no such row.
    pub fn at(&self, row: usize) -> Option<CellValue<'_>> {
        let run = self.ends.partition_point(|end| *end <= row);
        Some(self.cell(*self.places.get(run)?))
    }

    fn cell(&self, place: CellPosition) -> CellValue<'_> {
        match self.arrays.get(place.array as usize) {
            Some(array) => array.cell(place.at as usize),
            None => CellValue::Null,
        }
    }

    /// Appends a run up to the row before `end`, with cell `at` of array `array`.
    pub(super) fn push(&mut self, end: usize, array: usize, at: usize) {
        // Run ends and keys are Int32, so indices fit as well.
        self.push_place(end, CellPosition { array: array as u32, at: at as u32 });
    }

    /// Appends a run of null cells up to the row before `end`.
    pub(super) fn push_null(&mut self, end: usize) {
        self.push_place(end, CellPosition::NONE);
    }

    fn push_place(&mut self, end: usize, place: CellPosition) {
        let last = self.places.last();
        let same = last.is_some_and(|last| *last == place || self.cell(*last) == self.cell(place));
        match self.ends.last_mut() {
            Some(last) if same => *last = end,
            _ => {
                self.ends.push(end);
                self.places.push(place);
            }
        }
    }

    /// Appends the rows of a further batch. A first run equal to the last one so far continues it.
    ///
    /// # Errors
    /// [`DecodeError`] if the array is no column of a table.
    pub fn extend(&mut self, column: &dyn Array) -> Result<(), DecodeError> {
        match column.data_type() {
            DataType::RunEndEncoded(..) => self.extend_run_ends(column),
            DataType::Dictionary(..) => self.extend_dictionary(column),
            _ => {
                let (before, array) = (self.rows(), self.arrays.len());
                self.arrays.push(CellArray::of(column)?);
                (0..column.len()).for_each(|row| self.push(before + row + 1, array, row));
                Ok(())
            }
        }
    }

    fn extend_run_ends(&mut self, column: &dyn Array) -> Result<(), DecodeError> {
        let (before, array) = (self.rows(), self.arrays.len());
        let runs = column
            .as_any()
            .downcast_ref::<RunArray<Int32Type>>()
            .ok_or_else(|| wrong(column, "its run ends are not Int32"))?;
        self.arrays.push(CellArray::of(runs.values())?);
        if runs.is_empty() {
            return Ok(());
        }
        let ends = runs.run_ends();
        let places = ends.get_start_physical_index()..=ends.get_end_physical_index();
        self.ends.reserve(places.clone().count());
        self.places.reserve(places.clone().count());
        let first = *places.start();
        for at in places {
            let end = usize::try_from(ends.values()[at])
                .map_err(|_| wrong(column, "a run end is negative"))?;
            let end = before + end.saturating_sub(ends.offset()).min(runs.len());
            // A run that was cut at the end of a batch becomes one run again.
            if at == first {
                self.push(end, array, at);
            } else {
                self.ends.push(end);
                self.places.push(CellPosition { array: array as u32, at: at as u32 });
            }
        }
        Ok(())
    }

    fn extend_dictionary(&mut self, column: &dyn Array) -> Result<(), DecodeError> {
        let (before, array) = (self.rows(), self.arrays.len());
        let dictionary = column
            .as_dictionary_opt::<Int32Type>()
            .ok_or_else(|| wrong(column, "its keys are not Int32"))?;
        self.arrays.push(CellArray::of(dictionary.values())?);
        let keys = dictionary.keys();
        let same = |row, other| {
            keys.is_null(row) == keys.is_null(other) && keys.value(row) == keys.value(other)
        };
        for (row, end) in merged(column.len(), same) {
            if keys.is_null(row) {
                self.push_null(before + end);
                continue;
            }
            let key = usize::try_from(keys.value(row)).ok();
            let key = key.filter(|&key| key < dictionary.values().len());
            let key = key.ok_or_else(|| wrong(column, "a key has no value"))?;
            self.push(before + end, array, key);
        }
        Ok(())
    }
}

/// Runs of a column: dictionary, run-end encoded or plain, with cells `FixedSizeBinary(40)`,
/// `Struct`, `FixedSizeList<Int64>[3]` or `LargeBinary`.
///
/// ```
/// use arrow_array::LargeBinaryArray;
/// use iovcache::table::{CellValue, column_runs};
/// let column = LargeBinaryArray::from_opt_vec(vec![Some(b"drift"), None, Some(b"noise")]);
/// let runs = column_runs(&column).unwrap();
/// assert_eq!(runs.rows(), 3);
/// assert!(matches!(runs.at(2), Some(CellValue::Payload(b"noise"))));
/// assert!(matches!(runs.at(1), Some(CellValue::Null)));
/// ```
///
/// # Errors
/// [`DecodeError`] if the array is no column of a table.
pub fn column_runs(column: &dyn Array) -> Result<ColumnRuns, DecodeError> {
    let mut runs = ColumnRuns::default();
    runs.extend(column)?;
    Ok(runs)
}

/// Runs of equal rows: the first row of each, and the row after its last one.
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

/// Array of cells, by kind.
#[derive(Debug, Clone)]
enum CellArray {
    Headers(FixedSizeBinaryArray),
    Fields(Box<HeaderFields>),
    /// Three integers per cell.
    Places(FixedSizeListArray, Int64Array),
    Payloads(LargeBinaryArray),
}

impl CellArray {
    /// # Errors
    /// [`DecodeError`] if the array holds no cells.
    fn of(array: &dyn Array) -> Result<Self, DecodeError> {
        match array.data_type() {
            DataType::FixedSizeBinary(width) if *width as usize == MetaHeader::BYTES => {
                Ok(Self::Headers(array.as_fixed_size_binary().clone()))
            }
            DataType::FixedSizeBinary(_) => Err(wrong(array, "a MetaHeader has 40 bytes")),
            DataType::Struct(_) => HeaderFields::of(array.as_struct())
                .map(|fields| Self::Fields(Box::new(fields)))
                .ok_or_else(|| wrong(array, "it has not the fields of a MetaHeader")),
            DataType::LargeBinary => Ok(Self::Payloads(array.as_binary().clone())),
            DataType::FixedSizeList(_, 3) => {
                let cells = array.as_fixed_size_list().clone();
                let integers = cells.values().as_primitive_opt().cloned();
                let integers =
                    integers.ok_or_else(|| wrong(array, "its integers are not Int64"))?;
                Ok(Self::Places(cells, integers))
            }
            _ => Err(wrong(array, "it is not an array of cells")),
        }
    }

    fn cell(&self, row: usize) -> CellValue<'_> {
        match self {
            Self::Headers(array) if array.is_valid(row) => {
                // The type of the array fixes the length of its values.
                MetaHeader::from_bytes(array.value(row)).map_or(CellValue::Null, CellValue::Header)
            }
            Self::Fields(fields) if fields.cells.is_valid(row) => {
                CellValue::Header(fields.header(row))
            }
            Self::Places(cells, integers) if cells.is_valid(row) => {
                let first = cells.value_offset_at(row);
                let part = |n: usize| integers.value(first + n);
                CellValue::O2 { handle: part(0), segment: part(1), size: part(2) }
            }
            Self::Payloads(array) if array.is_valid(row) => CellValue::Payload(array.value(row)),
            Self::Headers(_) | Self::Fields(_) | Self::Places(..) | Self::Payloads(_) => {
                CellValue::Null
            }
        }
    }
}

/// MetaHeaders as one array per field.
#[derive(Debug, Clone)]
struct HeaderFields {
    cells: StructArray,
    size: UInt64Array,
    hint: UInt64Array,
    handle: Int64Array,
    shared: Int64Array,
    region_id: UInt16Array,
    segment_id: UInt16Array,
    managed: UInt8Array,
}

impl HeaderFields {
    fn of(array: &StructArray) -> Option<Self> {
        fn field<T: ArrowPrimitiveType>(
            array: &StructArray,
            name: &str,
        ) -> Option<PrimitiveArray<T>> {
            array.column_by_name(name)?.as_primitive_opt().cloned()
        }
        Some(Self {
            cells: array.clone(),
            size: field(array, "size")?,
            hint: field(array, "hint")?,
            handle: field(array, "handle")?,
            shared: field(array, "shared")?,
            region_id: field(array, "region_id")?,
            segment_id: field(array, "segment_id")?,
            managed: field(array, "managed")?,
        })
    }

    fn header(&self, row: usize) -> MetaHeader {
        let (size, hint, handle) =
            (self.size.value(row), self.hint.value(row), self.handle.value(row));
        let managed = self.managed.value(row);
        let mut header = match managed {
            0 => MetaHeader::unmanaged(self.region_id.value(row), handle, size, hint),
            _ => MetaHeader::managed(self.segment_id.value(row), handle, size, hint),
        };
        header.managed = managed;
        header.shared = self.shared.value(row);
        header
    }
}
