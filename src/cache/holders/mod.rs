//! Sessions, leases and timeframes: the holders of the pins of a table, and the end of each.

pub(crate) mod caller;
pub(crate) mod gate;
pub(crate) mod lease;
pub(crate) mod lease_terms;
pub(crate) mod leases;
pub(crate) mod limits;
#[cfg(all(test, feature = "loom"))]
mod loom_model;
pub(crate) mod origin;
pub(crate) mod polls;
pub(crate) mod quota;
pub(crate) mod timeframe;
pub(crate) mod timeframe_load;
pub(crate) mod timeframe_publisher;
pub(crate) mod timeframes;
mod watermarks;
