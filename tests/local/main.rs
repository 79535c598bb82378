//! Look-ups in shared memory: they say what the service says, whoever dies, lies or is stopped.

#[path = "../common/mod.rs"]
mod common;

mod answers;
mod pressure;
mod setup;
