//! Tables: requests, and the Arrow form of the answers. Shared by service and clients.
//!
//! ```text
//!  JSON ──▶ Request ──(cache: versions, pins)──▶ Content (runs of cells) ──┐
//!                                                            ┌─────────────┘
//!                                                            ▼
//!  TableLayout (encoding, cell, view, nulls) ─▶ schema ─▶ batches ─▶ IPC messages
//!                                                            │ on the other side
//!                                         runs of MetaHeaders ◀── decode
//! ```
//!
//! Everything works on runs of rows; only `plain` and the keys of `dictionary` ever expand them.

mod action;
mod admit;
mod arrow_keys;
mod arrow_timestamps;
mod batch_buffers;
mod batch_size;
mod cell_rows;
mod cells;
mod check;
mod column;
#[cfg(feature = "cache")]
mod column_parts;
mod content;
mod decode;
mod dictionaries;
mod encode;
mod encode_error;
mod interval_batch;
mod intervals;
mod ipc;
mod key_rows;
mod layout;
mod limits;
mod lock_file;
mod part;
mod range;
mod records;
mod request;
mod request_message;
mod request_options;
mod row_window;
mod schema_message;
mod schema_metadata;
mod served_digest;
mod status;
mod table_request;
#[cfg(test)]
mod tests;
mod text_runs;
mod timeline_page;

#[doc(hidden)]
pub(crate) use action::ConsumptionReport;
pub use action::action_types;
pub use action::{
    Consumed, ConsumedAnswer, DropTimeframe, Invalidate, NoFields, Prefetch, PutAnswer, Register,
    Release, SegmentsAnswer, parse_action,
};
pub use arrow_keys::key_from_batches;
#[cfg(test)]
pub(crate) use arrow_timestamps::timestamps_from_batches;
pub use arrow_timestamps::{TimestampsError, rows_from_batches, timestamps_from_array};
#[cfg(feature = "server")]
pub(crate) use arrow_timestamps::{plain_timestamps, rows_of_part};
pub use cell_rows::CellRows;
pub(crate) use cell_rows::{CellRun, CodedCells};
pub use check::{CheckAnswer, CheckRequest};
pub use column::{ColumnList, ColumnPath, ColumnRequest, KeyLookUp, KeyUse, PathRange};
#[cfg(feature = "cache")]
pub(crate) use column_parts::column_parts;
pub(crate) use content::{CacheState, IntervalColumn, IntervalRow, TableBody};
pub use content::{Cell, Column, Content, Objects};
pub use decode::{CellValue, ColumnRuns, DecodeError, column_runs};
pub(crate) use dictionaries::Dictionaries;
pub use encode::Batches;
pub use encode_error::EncodeError;
#[cfg(feature = "client")]
pub(crate) use intervals::ColumnSpans;
#[doc(hidden)]
pub use intervals::run_end_batch;
pub(crate) use ipc::BatchMessages;
pub use ipc::{Message, MessageWriter};
pub use key_rows::{KeyColumns, KeyError, TableRows, key_names};
pub use layout::TableMetadata;
pub(crate) use layout::{
    REGISTRATION, TIMEFRAME, TableLayout, TableMarks, TimeframeMark, VERSIONS,
};
pub use limits::RequestLimits;
pub use lock_file::LockEntry;
pub use part::Part;
pub(crate) use part::PayloadPins;
pub use range::{RangeError, RangeRequest, RunRange, SHORT_SPAN};
pub use request::{Columns, Request, RequestError, When};
#[cfg(feature = "client")]
pub(crate) use request_message::{RequestMessage, Times};
pub use request_options::{CellKind, Encoding, Missing, View};
pub(crate) use schema_message::SchemaMessage;
pub use schema_metadata::SchemaMetadata;
pub(crate) use served_digest::ServedDigest;
pub use status::{
    ConfigurationStatus, ConsumerState, MemoryStatus, ReloadRefusal, SessionStatus, SourceState,
    SourceStatus, Status, TimeframeState, TimeframeStatus,
};
pub use table_request::TableRequest;
pub use timeline_page::{TIMELINE_PAGE_SPANS, TimelinePage, TimelineRequest, TimelineSpan};
