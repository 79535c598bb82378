//! A CCDB server over HTTP: file-backed, SQL-backed, or a node's cache in front of one.
//!
//! ```text
//!  look_up(query, at)                                    fetch(version)
//!    │ listed?  /browse/<path>  ──────▶ all of time        │ Location, Content-Location…
//!    │ by time: HEAD /<path>/<at>[/k=v] ─▶ [at, Cache-     │ /<path>/<from>/<uuid>
//!    │                               Valid-Until) or at    │ /download/<uuid>
//!    ▼                                                     ▼
//!  transport: hosts in order; breaker and bulkhead per host; redirects, retries
//!    ▼                                                     ▼
//!  checked against the query                             ETag, length, MD5 checked, then published
//! ```
//!
//! Answers are checked, because each kind of server has faults: it ignores or inverts filters on
//! metadata, lets metadata replace a protocol header of the same name, sends a page of usage with
//! status 200, or serves incomplete uploads. An inconsistent answer is
//! [`Unusable`](super::SourceError::Unusable); an object never gets a wrong name.
//!
//! **Run-dependent objects.** AliceO2 has three modes. Mode 0 asks by time. Mode 1 asks by time for
//! a version with the metadata `runNumber=<run>`: set it in
//! [`Query::metadata`](crate::object::Query). Mode 2 uses the run number as the time: ask at
//! `Timestamp::from_millis(run)`. The source has no special code for any of them.
//!
//! **Spelling of metadata.** HTTP header names have no case, so metadata of a version found by time
//! are taken from its listing. Without listings, their keys have the spelling of the query, or else
//! lower case.

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
mod scan;
mod source;
mod transport;

pub use options::CcdbOptions;
pub use source::CcdbSource;
