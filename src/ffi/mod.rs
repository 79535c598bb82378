//! The C ABI: for devices in C and C++, which resolve MetaHeaders natively or host a cache.
//!
//! ```text
//!  attach socket ─iovc_attach─▶ iovc_attach_t ◀─iovc_cache_attach─ iovc_cache_t ◀─iovc_cache_open
//!                                   │                                  │ timeframes in, tables out
//!  MetaHeaders (40 bytes each) ─────┤ iovc_resolve…                    ▼ (Arrow C Data Interface)
//!                                   ▼                              MetaHeaders
//!                        const void *, size_t
//! ```
//!
//! Every function that can fail returns a [`StatusCode`]; what exactly went wrong stands in
//! `iovc_last_error`, per thread. A null pointer where none may be is `IOVC_INVALID_ARGUMENT`, a
//! panic is `IOVC_INTERNAL`: neither crosses the border. `schemas/iovcache.h` is generated from here
//! (`IOVCACHE_BLESS=1 cargo test --test capi`), `schemas/iovcache.hpp` is C++17 over it.
//!
//! What cannot be checked is said at each function: a pointer that is neither null nor to what it
//! should be, and a handle that was given back.
#![allow(unsafe_code)]

mod arguments;
pub mod attach;
pub mod host;
pub mod host_memory;
pub mod local;
pub mod options;
pub mod resolve;
pub mod status;
pub mod table;
pub mod version;

pub use attach::Attach;
pub use host::{EmbeddedCache, SegmentNumber};
pub use host_memory::HostMemoryFunctions;
pub use local::{LocalHandle, LocalPathHandle, LocalView};
pub use options::CacheOptions;
pub use status::StatusCode;
