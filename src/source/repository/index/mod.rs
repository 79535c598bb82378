//! The index of a repository: the contents of its properties files, in a few Arrow IPC files.
//!
//! ```text
//!  put, import, copy ──▶ append one file ──▶ many small ones? merge ──▶ <root>/.iovcache~/
//!  iovcache index    ──▶ read all folders ──▶ one file in place of all         │
//!  reader ◀── rows of one path, each with the stamp of its files ──────────────┘
//!     └─▶ folders with another stamp are read again: the index is a shortcut, never the truth
//! ```
//!
//! The layout is drawn in `schemas/repository.md`.

mod append;
mod details;
mod encode;
mod file;
mod file_name;
mod path_counts;
mod rebuild;
mod row;
mod set;
mod store_list;
mod store_reader;
mod store_rebuild;
mod store_writer;

pub(super) use append::IndexWriter;
pub(super) use file_name::FOLDER;
pub(super) use path_counts::PathCounts;
pub(super) use rebuild::row_of;
pub use rebuild::{IndexReport, index};
pub(super) use row::{IndexRow, RowRef};
pub(super) use set::IndexSet;
pub(super) use store_list::store_stamp;
pub(super) use store_reader::StoreIndex;
pub use store_rebuild::index_bucket;
pub(super) use store_writer::StoreIndexWriter;
