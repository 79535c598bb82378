//! From columns and timestamps to a table: which version serves which row, its bytes loaded and
//! pinned, and the schema and batches that are made once.

pub(crate) mod audit_log;
pub(crate) mod columns;
pub(crate) mod loader;
mod lock_selection;
pub(crate) mod plan;
pub(crate) mod schema_cache;
