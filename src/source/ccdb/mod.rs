//! A CCDB server over HTTP, as real servers speak it: file-backed, SQL-backed, or a cache before.
//!
//! ```text
//!  look_up(query, at)                                    fetch(version)
//!    │ listed?  /browse/<path>  ──────▶ all of time        │ Location, Content-Location…
//!    │ by time: HEAD /<path>/<at>[/k=v] ─▶ [at, Cache-     │ /<path>/<from>/<uuid>
//!    │                               Valid-Until) or at    │ /download/<uuid>
//!    ▼                                                     ▼
//!  transport: hosts in order, breaker and bulkhead per host, our own redirects, retries
//!    ▼                                                     ▼
//!  checked against the query, never taken on trust       ETag, length, MD5, then published
//! ```
//!
//! What a server says is checked, since every server is wrong somewhere: filters on metadata are
//! ignored or inverted, metadata named like a protocol header replace it, a page of usage comes
//! with status 200, an upload is served half-written. An answer that does not fit together is
//! [`Unusable`](super::SourceError::Unusable), never an object under a wrong name.
//!
//! **Run-dependent objects.** AliceO2 knows three modes. Mode 0 asks by time. Mode 1 asks by time
//! for a version whose metadata say `runNumber=<run>`: put that into
//! [`Query::metadata`](crate::object::Query). Mode 2 takes the run number for the time: ask at
//! `Timestamp::from_millis(run)`. The source does nothing of its own for any of them.
//!
//! **Spelling of metadata.** HTTP header names have no case, so the metadata of a version that was
//! found by time are taken from its listing; without listings they have the spelling of the query,
//! else lower case.

mod address;
mod answer;
mod change;
mod entry;
mod fetch;
mod host;
mod list;
mod listing;
mod location;
mod look_up;
mod options;
mod paths;
mod proxy;
mod source;
mod transport;

pub use options::CcdbOptions;
pub use source::CcdbSource;
