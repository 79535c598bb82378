//! Objects in shared memory: pins, eviction, and memory reserved for timeframes in flight.

mod eviction;
pub(crate) mod in_use;
#[cfg(all(test, feature = "loom"))]
mod loom_model;
pub(crate) mod object;
mod pin_count;
pub(crate) mod pin_request;
pub(crate) mod publish;
pub(crate) mod read_queue;
pub(crate) mod reservations;
pub(crate) mod residency;
#[cfg(test)]
pub(crate) mod samples;
