//! From columns and timestamps to a table: interns columns with their schemas, assigns versions to
//! rows, loads and pins their objects, and caches encoded batches.

pub(crate) mod audit_log;
mod coded_planning;
pub(crate) mod column_sets;
pub(crate) mod columns;
mod distinct;
pub(crate) mod key_look_ups;
pub(crate) mod known_columns;
pub(crate) mod loader;
mod lock_selection;
mod object_load;
pub(crate) mod plan;
pub(crate) mod plan_objects;
mod planning;
pub(crate) mod run_information;
mod run_times;
