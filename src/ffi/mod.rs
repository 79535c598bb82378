//! The C ABI: for devices in C and C++, which resolve MetaHeaders natively or host a cache.
//!
//! ```text
//!  iovc_local_t ◀─iovc_local_open┐   objects by path and time, timeframes: no request, pinned
//!                                │
//!  attach socket ─iovc_attach─▶ iovc_attach_t ◀─iovc_cache_attach─ iovc_cache_t ◀─iovc_cache_open
//!                                   │                                  │ timeframes in, tables out
//!  MetaHeaders (40 bytes each) ─────┤ iovc_resolve…                    ▼ (Arrow C Data Interface)
//!                                   ▼                              MetaHeaders
//!                        const void *, size_t
//! ```
//!
//! Every function that can fail returns a [`StatusCode`]; `iovc_last_error` describes the last
//! failure of a thread. A null pointer where none is allowed is `IOVC_INVALID_ARGUMENT`, a
//! panic is `IOVC_INTERNAL`: neither crosses the border. `schemas/iovcache.h` is generated from here
//! (`IOVCACHE_BLESS=1 cargo test --test capi`), `schemas/iovcache.hpp` is C++17 over it.
//!
//! Two preconditions cannot be checked and are stated at each function: a pointer is null or points
//! to the stated type, and a handle that was closed is not used again.
#![allow(unsafe_code)]

mod arguments;
pub mod attach;
pub mod event;
pub mod host;
pub mod host_memory;
pub mod local;
pub mod options;
pub mod renewal;
pub mod resolve;
pub mod status;
pub mod table;
mod taken_timeframe;
pub mod timeframe;
pub mod version;

pub use attach::Attach;
pub use event::PlaneEventHandle;
pub use host::{EmbeddedCache, SegmentNumber};
pub use host_memory::HostMemoryFunctions;
pub use local::{LocalHandle, LocalPathHandle, LocalView};
pub use options::CacheOptions;
pub use renewal::{Renewal, SegmentRegistry};
pub use status::StatusCode;
pub use timeframe::{TimeframeColumn, TimeframeHandle};
