//! Tables: what is asked for, and the Arrow form of the answer. Shared by service and clients.
//!
//! ```text
//!  JSON ──▶ Request ──(cache: versions, pins)──▶ Content (runs of cells) ──┐
//!                                                                          ▼
//!  Shape (encoding, cell, view, nulls) ─▶ schema ──────────▶ batches ─▶ IPC messages
//!                                                               │ on the other side
//!                                            runs of MetaHeaders ◀── decode
//! ```
//!
//! Everything works on runs of rows; only `plain` and the keys of `dictionary` ever expand them.

mod action;
mod admit;
mod arrow_keys;
mod cells;
mod check;
mod column;
mod content;
mod decode;
mod encode;
mod head;
mod ipc;
mod key_rows;
mod limits;
mod lock;
mod records;
mod request;
mod shape;
mod spans;
mod status;
#[cfg(test)]
mod tests;
mod times;
mod wire;

pub use action::{
    ActionError, Consumed, ConsumedAnswer, DropTimeframe, Invalidate, Nothing, Prefetch, PutAnswer,
    Register, Release, SegmentsAnswer, action_types, parse_action,
};
pub use check::{Check, CheckAnswer};
pub use column::{ColumnList, ColumnPath, ColumnRequest, KeyLookUp, KeyUse, PathRange};
pub use content::{
    CacheState, Cell, CellRun, Column, Content, IntervalColumn, IntervalRow, Objects, Shown,
};
pub use decode::{CellValue, ColumnRuns, DecodeError, column_runs};
pub use encode::{Batches, EncodeError, Messages};
pub use head::Head;
pub use ipc::{BatchMessages, Message, MessageWriter};
pub use key_rows::{KeyError, Keys, TableRows, key_names};
pub use limits::RequestLimits;
pub use lock::LockEntry;
pub use request::{
    CellKind, Columns, Encoding, Missing, RangeRequest, Request,
    RequestError, SHORT_SPAN, View, When,
};
pub use shape::{Meta, Shape};
pub use spans::{ColumnSpans, JoinedColumn, run_end_batch};
pub use status::{
    ConsumerState, MemoryStatus, SessionStatus, SourceState, SourceStatus, Status, TimeframeState,
    TimeframeStatus,
};
pub use times::{
    TimestampsError, rows_from_batches, timestamps_from_array, timestamps_from_batches,
};
#[cfg(feature = "server")]
pub(crate) use times::plain_timestamps;
pub use wire::Dictionaries;
