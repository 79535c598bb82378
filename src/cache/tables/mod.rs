//! From columns and timestamps to a table: assigns versions to rows, loads and pins their objects,
//! and caches schemas and encoded batches.

pub(crate) mod audit_log;
pub(crate) mod columns;
pub(crate) mod loader;
mod lock_selection;
pub(crate) mod plan;
pub(crate) mod schema_cache;
