//! From columns and timestamps to a table: which version serves which row, its bytes loaded and
//! pinned, and the schema and batches that are made once.

pub(crate) mod audit_log;
pub(crate) mod columns;
mod distinct;
pub(crate) mod key_look_ups;
pub(crate) mod known_columns;
pub(crate) mod loader;
mod lock_selection;
pub(crate) mod plan;
mod planning;
pub(crate) mod run_information;
mod run_times;
pub(crate) mod schema_cache;
