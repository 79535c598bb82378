//! Arrays of cells, from places among the cells of a column.

use std::sync::Arc;

use arrow_array::{
    ArrayRef, FixedSizeBinaryArray, FixedSizeListArray, Int64Array, LargeBinaryArray, StructArray,
    UInt8Array, UInt16Array, UInt64Array,
};
use arrow_buffer::{Buffer, NullBuffer, OffsetBuffer};
use arrow_schema::ArrowError;

use super::content::Cell;
use super::encode::EncodeError;
use super::request::CellKind;
use super::shape::{header_fields, o2_item};
use crate::shm::MetaHeader;

/// What stands under a null: it means nothing, but it must be the same everywhere.
const NOTHING: MetaHeader = MetaHeader::managed(0, 0, 0, 0);

/// One cell per place; `None` gives a null.
pub(super) fn cell_array(
    kind: CellKind,
    cells: &[Cell],
    places: &[Option<u32>],
) -> Result<ArrayRef, EncodeError> {
    let nulls = places.iter().any(Option::is_none);
    let nulls = nulls.then(|| NullBuffer::from_iter(places.iter().map(Option::is_some)));
    let headers =
        || places.iter().map(|place| place.map_or(NOTHING, |place| cells[place as usize].header));
    Ok(match kind {
        CellKind::Binary => {
            let mut bytes = Vec::with_capacity(places.len() * MetaHeader::BYTES);
            headers().for_each(|header| bytes.extend_from_slice(&header.to_bytes()));
            let (size, bytes) = (MetaHeader::BYTES as i32, Buffer::from_vec(bytes));
            Arc::new(FixedSizeBinaryArray::try_new_with_len(size, bytes, nulls, places.len())?)
        }
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
            Arc::new(StructArray::try_new_with_length(
                header_fields(),
                columns,
                nulls,
                places.len(),
            )?)
        }
        CellKind::O2 => {
            let mut integers = Vec::with_capacity(places.len() * 3);
            for header in headers() {
                if header.managed == 0 {
                    return Err(EncodeError::Unmanaged { region: header.region_id });
                }
                let size = i64::try_from(header.size).unwrap_or(i64::MAX);
                integers.extend([header.handle, i64::from(header.segment_id), size]);
            }
            let integers = Arc::new(Int64Array::from(integers));
            let length = places.len();
            Arc::new(FixedSizeListArray::try_new_with_length(
                o2_item(),
                3,
                integers,
                nulls,
                length,
            )?)
        }
        CellKind::Payload => {
            let payloads = || {
                let payload = |place: &Option<u32>| {
                    place.map_or(&[][..], |place| cells[place as usize].bytes())
                };
                places.iter().map(payload)
            };
            let offsets = OffsetBuffer::<i64>::from_lengths(payloads().map(<[u8]>::len));
            let mut bytes = Vec::with_capacity(payloads().map(<[u8]>::len).sum());
            payloads().for_each(|payload| bytes.extend_from_slice(payload));
            Arc::new(LargeBinaryArray::try_new(offsets, Buffer::from_vec(bytes), nulls)?)
        }
    })
}

impl From<ArrowError> for EncodeError {
    fn from(error: ArrowError) -> Self {
        Self::Arrow { reason: error.to_string() }
    }
}
