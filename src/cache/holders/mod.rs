//! Sessions, leases and timeframes: what holds the pins of a table, and until when.

pub(crate) mod caller;
pub(crate) mod gate;
pub(crate) mod lease;
pub(crate) mod limits;
pub(crate) mod origin;
pub(crate) mod polls;
pub(crate) mod quota;
pub(crate) mod timeframe;
pub(crate) mod timeframe_load;
