//! The versions of one path in memory: rows in order of `from`, in chunks.
//!
//! ```text
//!  chunk 0 [MIN, a)      chunk 1 [a, b)         chunk 2 [b, MAX)
//!  rows by (from, id)    rows                   rows
//!  carry: –              carry: rows of 0       carry: rows of 0, 1 that can be in effect from b
//! ```
//!
//! The versions that decide within a chunk's time are its own rows and its carry. So the cost of a
//! look-up or a change is that of one chunk, independent of the number of versions of the path.

mod chunk;
mod filling;
mod interned_metadata;
mod look_up;
mod path_table;
mod row;
#[cfg(test)]
mod tests;

pub(super) use filling::Filling;
pub(super) use look_up::ReadMetadata;
pub(super) use path_table::PathTable;
pub(super) use row::Row;
