//! Builds Arrow arrays of cells.

use std::sync::Arc;

use arrow_array::types::Int32Type;
use arrow_array::{
    Array, ArrayRef, FixedSizeBinaryArray, FixedSizeListArray, Int32Array, Int64Array,
    LargeBinaryArray, RunArray, StructArray, UInt8Array, UInt16Array, UInt64Array,
};
use arrow_buffer::{Buffer, NullBuffer, OffsetBuffer};
use arrow_data::ArrayData;
use arrow_schema::{ArrowError, DataType};

use super::content::{Cell, Objects};
use super::encode_error::EncodeError;
use super::layout::{header_fields, o2_item};
use super::request_options::CellKind;
use crate::shm::MetaHeader;

/// Filler under a null: it has no meaning, but must be equal everywhere.
pub(super) const NOTHING: MetaHeader = MetaHeader::managed(0, 0, 0, 0);

/// Run-end encoded array, its values unchecked. `RunArray::try_new` does not fit: it declares all
/// values nullable.
pub(super) fn run_array(
    data_type: &DataType,
    ends: Int32Array,
    values: &dyn Array,
    rows: usize,
) -> Result<ArrayRef, EncodeError> {
    let data = ArrayData::builder(data_type.clone())
        .len(rows)
        .add_child_data(ends.into_data())
        .add_child_data(values.to_data())
        .build()?;
    Ok(Arc::new(RunArray::<Int32Type>::from(data)))
}

/// MetaHeaders as `FixedSizeBinary(40)`; `None` gives a null.
pub(super) fn header_array(
    headers: impl ExactSizeIterator<Item = Option<MetaHeader>> + Clone,
) -> Result<ArrayRef, EncodeError> {
    let count = headers.len();
    let nulls = headers.clone().any(|header| header.is_none());
    let nulls =
        nulls.then(|| NullBuffer::from_iter(headers.clone().map(|header| header.is_some())));
    let mut bytes = Vec::with_capacity(count * MetaHeader::BYTES);
    headers.for_each(|header| bytes.extend_from_slice(&header.unwrap_or(NOTHING).to_bytes()));
    let (size, bytes) = (MetaHeader::BYTES as i32, Buffer::from_vec(bytes));
    Ok(Arc::new(FixedSizeBinaryArray::try_new_with_len(size, bytes, nulls, count)?))
}

/// Array with one cell of kind `kind` per object; `None` gives a null.
pub(super) fn cell_array<'a>(
    kind: CellKind,
    cells: impl ExactSizeIterator<Item = Option<&'a Cell>> + Clone,
    objects: &dyn Objects,
) -> Result<ArrayRef, EncodeError> {
    let length = cells.len();
    let headers = || cells.clone().map(|cell| cell.map_or(NOTHING, |cell| cell.header));
    let nulls = || {
        let nulls = cells.clone().any(|cell| cell.is_none());
        nulls.then(|| NullBuffer::from_iter(cells.clone().map(|cell| cell.is_some())))
    };
    Ok(match kind {
        CellKind::Binary => header_array(cells.map(|cell| cell.map(|cell| cell.header)))?,
        CellKind::Struct => {
            let columns: Vec<ArrayRef> = vec![
                Arc::new(UInt64Array::from_iter_values(headers().map(|header| header.size))),
                Arc::new(UInt64Array::from_iter_values(headers().map(|header| header.hint))),
                Arc::new(Int64Array::from_iter_values(headers().map(|header| header.handle))),
                Arc::new(Int64Array::from_iter_values(headers().map(|header| header.shared))),
                Arc::new(UInt16Array::from_iter_values(headers().map(|header| header.region_id))),
                Arc::new(UInt16Array::from_iter_values(headers().map(|header| header.segment_id))),
                Arc::new(UInt8Array::from_iter_values(headers().map(|header| header.managed))),
            ];
            Arc::new(StructArray::try_new_with_length(header_fields(), columns, nulls(), length)?)
        }
        CellKind::O2 => {
            let mut integers = Vec::with_capacity(length * 3);
            for header in headers() {
                if header.managed == 0 {
                    return Err(EncodeError::Unmanaged { region: header.region_id });
                }
                let size = i64::try_from(header.size).unwrap_or(i64::MAX);
                integers.extend([header.handle, i64::from(header.segment_id), size]);
            }
            let integers = Arc::new(Int64Array::from(integers));
            Arc::new(FixedSizeListArray::try_new_with_length(
                o2_item(),
                3,
                integers,
                nulls(),
                length,
            )?)
        }
        CellKind::Payload => {
            let bytes = |cell: &Cell| objects.bytes(cell.object);
            let payloads = || cells.clone().map(|cell| cell.map_or(&[][..], bytes));
            let offsets = OffsetBuffer::<i64>::from_lengths(payloads().map(<[u8]>::len));
            let mut bytes = Vec::with_capacity(payloads().map(<[u8]>::len).sum());
            payloads().for_each(|payload| bytes.extend_from_slice(payload));
            Arc::new(LargeBinaryArray::try_new(offsets, Buffer::from_vec(bytes), nulls())?)
        }
    })
}

impl From<ArrowError> for EncodeError {
    fn from(error: ArrowError) -> Self {
        Self::Arrow { reason: error.to_string() }
    }
}
