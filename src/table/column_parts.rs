//! Where the arrays of each column lie in the message of a batch.

use arrow_ipc::root_as_message;

use super::ipc::Message;
use crate::shm::{ColumnPart, MetaHeader};

/// Nodes of a run-end encoded column: itself, its run ends, and its cells.
const NODES: usize = 3;
/// Buffers of such a column: validity and values of the run ends, and of the cells.
const BUFFERS: usize = 4;

/// Where the arrays of each of `columns` run-end encoded columns of MetaHeaders lie in the body of a
/// batch; `None` if it is no such batch.
pub(crate) fn column_parts(message: &Message, columns: usize) -> Option<Vec<ColumnPart>> {
    let parsed = root_as_message(&message.header).ok()?;
    let batch = parsed.header_as_record_batch()?;
    let (nodes, buffers) = (batch.nodes()?, batch.buffers()?);
    let is_whole = batch.compression().is_none()
        && nodes.len() == columns * NODES
        && buffers.len() == columns * BUFFERS
        && message.rest_bytes() == 0;
    if !is_whole {
        return None;
    }
    let body = message.body.len();
    let part = |column: usize| {
        let (ends, cells) = (nodes.get(column * NODES + 1), nodes.get(column * NODES + 2));
        let runs =
            usize::try_from(ends.length()).ok().filter(|_| cells.length() == ends.length())?;
        let array = |number: usize, bytes: usize| {
            let buffer = buffers.get(column * BUFFERS + number);
            let start = usize::try_from(buffer.offset()).ok()?;
            let is_inside = start.checked_add(bytes).is_some_and(|end| end <= body);
            u32::try_from(start).ok().filter(|_| is_inside)
        };
        let nulls = u32::try_from(cells.null_count()).ok()?;
        Some(ColumnPart {
            runs: u32::try_from(runs).ok()?,
            nulls,
            ends: array(1, runs.checked_mul(size_of::<i32>())?)?,
            validity: array(2, if nulls == 0 { 0 } else { runs.div_ceil(8) })?,
            cells: array(3, runs.checked_mul(MetaHeader::BYTES)?)?,
        })
    };
    (0..columns).map(part).collect()
}
