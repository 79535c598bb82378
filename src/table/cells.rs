//! The physical layout of cells of each kind.
//!
//! ```text
//!  binary   validity, 40 bytes per cell
//!  struct   validity ─ 7 × (node, no validity, the field)
//!  o2       validity ─ node, no validity, 3 × Int64 per cell
//!  payload  validity, offsets Int64, bytes
//! ```

use arrow_array::ArrayRef;
use arrow_schema::ArrowError;

use super::batch_buffers::{BatchBuffers, Payloads};
use super::content::{Cell, Objects};
use super::encode_error::EncodeError;
use super::layout::cell_type;
use super::request_options::CellKind;
use crate::shm::MetaHeader;

impl BatchBuffers {
    /// Appends an array of `length` cells of kind `kind`. `runs` are numbers of equal cells, each
    /// with its cell; `None` is null.
    pub(super) fn cells<'a>(
        &mut self,
        length: usize,
        runs: impl Iterator<Item = (usize, Option<&'a Cell>)> + Clone,
        kind: CellKind,
        payloads: Payloads<'_>,
    ) {
        if kind != CellKind::Payload {
            let headers = runs.map(|(count, cell)| (count, cell.map(|cell| cell.header)));
            return self.headers(length, headers, kind);
        }
        self.validity(length, runs.clone().map(|(count, cell)| (count, cell.is_some())));
        let number = |cell: Option<&Cell>| cell.map(|cell| cell.object);
        let numbers = runs.flat_map(|(count, cell)| std::iter::repeat_n(number(cell), count));
        self.payloads(numbers, payloads);
    }

    /// Like [`cells`](Self::cells) for the kinds whose cells are made of MetaHeaders.
    pub(super) fn headers(
        &mut self,
        length: usize,
        runs: impl Iterator<Item = (usize, Option<MetaHeader>)> + Clone,
        kind: CellKind,
    ) {
        self.validity(length, runs.clone().map(|(count, header)| (count, header.is_some())));
        let runs = runs.map(|(count, header)| (count, header.unwrap_or(MetaHeader::NOTHING)));
        match kind {
            CellKind::Binary => self.values(runs, MetaHeader::to_bytes),
            CellKind::Struct => {
                self.child(length, runs.clone(), |header| header.size.to_le_bytes());
                self.child(length, runs.clone(), |header| header.hint.to_le_bytes());
                self.child(length, runs.clone(), |header| header.handle.to_le_bytes());
                self.child(length, runs.clone(), |header| header.shared.to_le_bytes());
                self.child(length, runs.clone(), |header| header.region_id.to_le_bytes());
                self.child(length, runs.clone(), |header| header.segment_id.to_le_bytes());
                self.child(length, runs, |header| header.managed.to_le_bytes());
            }
            CellKind::O2 => self.child(length * 3, runs, o2_bytes),
            CellKind::Payload => {}
        }
    }

    /// Appends a child array without nulls.
    fn child<const N: usize>(
        &mut self,
        length: usize,
        runs: impl Iterator<Item = (usize, MetaHeader)>,
        value: impl Fn(&MetaHeader) -> [u8; N],
    ) {
        self.node(length, 0);
        self.buffer(|_| {});
        self.values(runs, value);
    }

    /// Appends a buffer with the value of each header.
    fn values<const N: usize>(
        &mut self,
        runs: impl Iterator<Item = (usize, MetaHeader)>,
        value: impl Fn(&MetaHeader) -> [u8; N],
    ) {
        self.buffer(|bytes| runs.for_each(|(count, header)| repeat(bytes, &value(&header), count)));
    }
}

/// The three integers of an `o2` cell: handle, segment, size.
fn o2_bytes(header: &MetaHeader) -> [u8; 24] {
    let size = i64::try_from(header.size).unwrap_or(i64::MAX);
    let integers = [header.handle, i64::from(header.segment_id), size];
    let mut bytes = [0; 24];
    let places = bytes.chunks_exact_mut(8);
    places.zip(integers).for_each(|(place, one)| place.copy_from_slice(&one.to_le_bytes()));
    bytes
}

/// Appends `item` `times` times. Each copy doubles the bytes that were written.
pub(super) fn repeat(bytes: &mut Vec<u8>, item: &[u8], times: usize) {
    let start = bytes.len();
    let wanted = item.len() * times;
    if times == 0 {
        return;
    }
    bytes.extend_from_slice(item);
    while bytes.len() - start < wanted {
        let more = (bytes.len() - start).min(wanted - (bytes.len() - start));
        bytes.extend_from_within(start..start + more);
    }
}

/// Checks that the objects can be cells of this kind.
///
/// # Errors
/// [`EncodeError::Unmanaged`]
pub(super) fn check_cells<'a>(
    mut cells: impl Iterator<Item = &'a Cell>,
    kind: CellKind,
) -> Result<(), EncodeError> {
    if kind == CellKind::O2
        && let Some(cell) = cells.find(|cell| cell.header.managed == 0)
    {
        return Err(EncodeError::Unmanaged { region: cell.header.region_id });
    }
    Ok(())
}

/// Array with one cell of kind `kind` per object.
///
/// # Errors
/// [`EncodeError::Unmanaged`]
pub(super) fn cell_array<'a>(
    kind: CellKind,
    cells: impl ExactSizeIterator<Item = &'a Cell> + Clone,
    objects: &dyn Objects,
) -> Result<ArrayRef, EncodeError> {
    check_cells(cells.clone(), kind)?;
    let mut buffers = BatchBuffers::default();
    let payloads = Payloads { objects, pins: None };
    buffers.cells(cells.len(), cells.map(|cell| (1, Some(cell))), kind, payloads);
    buffers.into_array(&cell_type(kind))
}

impl From<ArrowError> for EncodeError {
    fn from(error: ArrowError) -> Self {
        Self::Arrow { reason: error.to_string() }
    }
}
