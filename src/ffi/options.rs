//! Options of an embedded cache.

use std::ffi::c_char;
use std::path::Path;
use std::sync::Arc;

use super::arguments::{many, optional_text, text};
use super::host_memory::HostMemoryFunctions;
use super::status::CallFailure;

use crate::error::ErrorKind;
use crate::interval::Timestamp;
use crate::object::CreationLimits;
use crate::shm::{
    Backing, HostMemory, PoolOptions, Region, SegmentCreation, shmid_of_session, shmid_of_text,
};
use crate::source::{self, ChainSource, HeaderSource, Link, Source, SourceOptions};

/// Options of a cache. Take the defaults from iovc_cache_options, then change members.
#[repr(C)]
pub struct CacheOptions {
    /// URLs of the sources, asked in this order: `http(s)://host:port` (CCDB), `file:///folder`,
    /// `s3://bucket/prefix`; `URL#PREFIX,PREFIX` restricts a source to some paths.
    pub sources: *const *const c_char,
    /// Number of sources.
    pub source_count: usize,
    /// Total shared memory in bytes. Default: 4 GiB.
    pub memory_bytes: u64,
    /// Size of a segment in bytes. Default: 512 MiB.
    pub segment_bytes: u64,
    /// Path at which to make the attach socket, a Unix socket for other processes. Null: no socket.
    pub attach_path: *const c_char,
    /// Existing shared-memory file, e.g. a region that FairMQ made, to hold the objects instead of
    /// segments. Its content is overwritten. Null: none.
    pub region_path: *const c_char,
    /// Id of the region in FairMQ.
    pub region_id: u16,
    /// Id of a FairMQ session: segments get the names of its managed segments. Given as the 8
    /// hexadecimal digits of these names, or as the decimal number that FairMQ's --shmid takes (a
    /// number of 8 digits needs a leading 0). Null: segments have no names.
    pub fairmq_shmid: *const c_char,
    /// Id of the first segment; lower ids are FairMQ's own segments.
    pub fairmq_segment: u16,
    /// Maximum number of timeframes in flight; further registrations wait. Default: 4096.
    pub max_timeframes: usize,
    /// Name of a FairMQ session (its --session), as an alternative to fairmq_shmid. Null: none.
    pub fairmq_session: *const c_char,
    /// Memory of this program to hold the objects instead of segments. Null: none. The structure is
    /// copied.
    pub host_memory: *const HostMemoryFunctions,
    /// Whether AliceO2's flattened map of headers follows each object and counts in its size: for
    /// each header `key NUL value NUL`, then the length of the whole map as int32, then
    /// `$HEADER$ NUL`. The headers are the object's metadata, ETag, Valid-From, Valid-Until and
    /// Created, and Content-Length and Content-MD5 of the object alone. Default: false.
    pub append_headers: bool,
    /// Versions created after this time are ignored, in ms. Default: INT64_MAX, no limit.
    pub not_after: i64,
    /// Versions created before this time are ignored, in ms. Default: INT64_MIN, no limit.
    pub not_before: i64,
    /// Maximum bytes that one consumer may pin; each object counts once. Default: UINT64_MAX, no
    /// limit.
    pub quota_bytes: u64,
}

/// Default options.
#[unsafe(no_mangle)]
pub extern "C" fn iovc_cache_options() -> CacheOptions {
    let memory = PoolOptions::default();
    CacheOptions {
        sources: std::ptr::null(),
        source_count: 0,
        memory_bytes: memory.memory_bytes,
        segment_bytes: memory.segment_bytes,
        attach_path: std::ptr::null(),
        region_path: std::ptr::null(),
        region_id: 0,
        fairmq_shmid: std::ptr::null(),
        fairmq_segment: 0,
        max_timeframes: 4_096,
        fairmq_session: std::ptr::null(),
        host_memory: std::ptr::null(),
        append_headers: false,
        not_after: i64::MAX,
        not_before: i64::MIN,
        quota_bytes: u64::MAX,
    }
}

/// Checks that at most one of these options is given.
fn check_one_place(options: &[(&str, bool)]) -> Result<(), CallFailure> {
    let mut given = options.iter().filter(|(_, is_given)| *is_given).map(|(name, _)| name);
    let (Some(one), Some(other)) = (given.next(), given.next()) else { return Ok(()) };
    let message =
        format!("[IOV-7113] {other} and {one} exclude each other: objects have one place");
    Err(CallFailure::new(ErrorKind::InvalidArgument, message))
}

impl CacheOptions {
    /// # Errors
    /// If no source is given, or one cannot be opened.
    ///
    /// # Safety
    /// `sources` points to `source_count` texts that end with a 0.
    pub(super) unsafe fn source(&self) -> Result<Arc<dyn Source>, CallFailure> {
        // SAFETY: as the caller says.
        let sources = unsafe { many(self.sources, self.source_count, "sources") }?;
        let mut links = Vec::with_capacity(sources.len());
        for &url in sources {
            // SAFETY: as above.
            let (url, prefixes) = source::split_prefixes(unsafe { text(url, "a source") }?);
            let source = source::open(url, &SourceOptions::default())?;
            links.push(Link { source, prefixes });
        }
        if links.is_empty() {
            return Err(crate::cache::BuildError::NoSource.into());
        }
        let chain = Arc::new(ChainSource::new(links, Vec::new()));
        Ok(if self.append_headers { Arc::new(HeaderSource::new(chain)) } else { chain })
    }

    /// Memory of the cache, and the host's memory if that is used.
    ///
    /// # Errors
    /// If more than one kind of memory is given, or the memory cannot be used.
    ///
    /// # Safety
    /// The texts are null or end with a 0; `host_memory` is null or fulfils the contract of its
    /// type.
    pub(super) unsafe fn memory(&self) -> Result<(PoolOptions, Option<HostMemory>), CallFailure> {
        // SAFETY: as the caller says.
        let region = unsafe { optional_text(self.region_path, "region_path") }?;
        // SAFETY: as the caller says.
        let shmid = unsafe { optional_text(self.fairmq_shmid, "fairmq_shmid") }?;
        // SAFETY: as the caller says.
        let session = unsafe { optional_text(self.fairmq_session, "fairmq_session") }?;
        // SAFETY: as the caller says.
        let functions = unsafe { self.host_memory.as_ref() };
        check_one_place(&[
            ("region_path", region.is_some()),
            ("fairmq_shmid", shmid.is_some()),
            ("fairmq_session", session.is_some()),
            ("host_memory", functions.is_some()),
        ])?;
        // SAFETY: as the caller says.
        let host = functions.map(|functions| unsafe { functions.memory() }).transpose()?;
        let shmid = match (session, shmid) {
            (Some(session), _) => Some(shmid_of_session(session)),
            (None, Some(shmid)) => Some(shmid_of_text(shmid).map_err(|error| {
                let message = format!("[IOV-7114] fairmq_shmid: {error}");
                CallFailure::new(ErrorKind::InvalidArgument, message)
            })?),
            (None, None) => None,
        };
        let backing = match (&host, shmid) {
            (Some(host), _) => Backing::Host(host.clone()),
            (None, Some(shmid)) => Backing::FairMq {
                shmid,
                first_segment: self.fairmq_segment,
                creation: SegmentCreation::AtStart,
            },
            (None, None) => Backing::Memfd,
        };
        let region = region.map(|path| Region::open(Path::new(path), self.region_id));
        let memory = PoolOptions {
            memory_bytes: self.memory_bytes,
            segment_bytes: self.segment_bytes,
            backing,
            region: region.transpose()?,
            first_generation: None,
        };
        Ok((memory, host))
    }

    /// Limits on the creation time of the versions considered.
    pub(super) fn creation_limits(&self) -> CreationLimits {
        let limit =
            |millis: i64, none: i64| (millis != none).then(|| Timestamp::from_millis(millis));
        CreationLimits {
            not_before: limit(self.not_before, i64::MIN),
            not_after: limit(self.not_after, i64::MAX),
        }
    }
}
