//! Look-ups in shared memory: they give the answers of the service, even if a process dies, lies or is stopped.

#[path = "../common/mod.rs"]
mod common;
#[path = "../fake_ccdb/mod.rs"]
mod fake_ccdb;

mod accounts;
mod answers;
mod changes;
mod gated;
#[path = "../in_process/mod.rs"]
mod in_process;
mod kills;
mod names;
mod pressure;
mod setup;
mod stopped;
mod tables;
mod timeframes;
mod walk;
