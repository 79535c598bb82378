//! A cache inside of a device in C++: no daemon, the device itself owns the objects.

use std::ffi::{CString, c_char};
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use super::arguments::{borrowed, guarded, many, optional_text, place, text};
use super::attach::Attach;
use super::status::{CallFailure, StatusCode};
use crate::cache::{Cache, LeaseId, PeerPolicy};
use crate::error::ErrorKind;
use crate::shm::{Backing, PoolOptions, Region};
use crate::source::{self, ChainSource, Link, SourceOptions};
use crate::table::Consumed;

/// How long a cache that is closed waits for its attach socket to end.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// What a cache is made with. Begin with iovc_cache_options, then set what differs.
#[repr(C)]
pub struct CacheOptions {
    /// Where objects come from, asked in order: `http(s)://host:port` (CCDB), `file:///folder`,
    /// `s3://bucket/prefix`; `URL#PREFIX,PREFIX` for some paths only.
    pub sources: *const *const c_char,
    /// How many they are.
    pub source_count: usize,
    /// Bytes of shared memory in all. Default: 4 GiB.
    pub memory_bytes: u64,
    /// Bytes of one segment. Default: 512 MiB.
    pub segment_bytes: u64,
    /// Where other processes attach: a Unix socket that is made there. Null: nowhere.
    pub attach_path: *const c_char,
    /// An existing shared-memory file, e.g. a region that FairMQ made, into which the objects go
    /// instead of into segments. What it held is lost. Null: none.
    pub region_path: *const c_char,
    /// Its id, as FairMQ knows it.
    pub region_id: u16,
    /// Segments get the names of FairMQ's managed segments of this session: the first 8
    /// hexadecimal digits of SHA-256 of user and session. Null: they have no names.
    pub fairmq_shmid: *const c_char,
    /// The id of the first of them; those below are FairMQ's own.
    pub fairmq_segment: u16,
    /// How many timeframes can be in flight; who registers one more waits. Default: 4096.
    pub max_timeframes: usize,
}

/// A cache in this process.
pub struct EmbeddedCache {
    pub(super) cache: Cache,
    pub(super) runtime: Runtime,
    attach_path: Option<PathBuf>,
    stop: CancellationToken,
    serving: Option<tokio::task::JoinHandle<()>>,
}

impl EmbeddedCache {
    /// # Safety
    /// The texts of `options` are null or end with a 0; `sources` leads to `source_count` of them.
    unsafe fn open(options: &CacheOptions) -> Result<Self, CallFailure> {
        let io = |what: &str, error: io::Error| {
            CallFailure::new(ErrorKind::Unavailable, format!("[IOV-7110] {what}: {error}"))
        };
        // SAFETY: as the caller says.
        let sources = unsafe { many(options.sources, options.source_count, "sources") }?;
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
        // SAFETY: as above.
        let region = unsafe { optional_text(options.region_path, "region_path") }?;
        let region = region.map(|path| Region::open(Path::new(path), options.region_id));
        // SAFETY: as above.
        let backing = match unsafe { optional_text(options.fairmq_shmid, "fairmq_shmid") }? {
            None => Backing::Memfd,
            Some(shmid) => {
                Backing::FairMq { shmid: shmid.to_owned(), first_segment: options.fairmq_segment }
            }
        };
        let memory = PoolOptions {
            memory_bytes: options.memory_bytes,
            segment_bytes: options.segment_bytes,
            backing,
            region: region.transpose()?,
            first_generation: None,
        };
        // SAFETY: as above.
        let attach_path = unsafe { optional_text(options.attach_path, "attach_path") }?;
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(2).thread_name("iovcache").enable_all().build();
        let runtime = runtime.map_err(|error| io("threads cannot be started", error))?;
        let inside = runtime.enter();
        let cache = Cache::builder()
            .source(Arc::new(ChainSource::new(links, Vec::new())))
            .memory(memory)
            .max_timeframes(options.max_timeframes)
            .build()?;
        let stop = CancellationToken::new();
        let serving = attach_path.map(|path| {
            let listener = listen(Path::new(path)).map_err(|error| io(path, error))?;
            let listener = tokio::net::UnixListener::from_std(listener);
            let listener = listener.map_err(|error| io(path, error))?;
            cache.tell_attach_path(&listener);
            let (cache, stop) = (cache.clone(), stop.clone());
            let serve =
                async move { cache.serve_attach(listener, PeerPolicy::default(), stop).await };
            Ok::<_, CallFailure>(runtime.spawn(serve))
        });
        let serving = serving.transpose()?;
        drop(inside);
        let attach_path = attach_path.map(PathBuf::from);
        Ok(Self { cache, runtime, attach_path, stop, serving })
    }

    fn close(mut self) {
        self.cache.close();
        self.stop.cancel();
        if let Some(serving) = self.serving.take() {
            let ended = async { tokio::time::timeout(CLOSE_LIMIT, serving).await };
            let _ = self.runtime.block_on(ended);
        }
        if let Some(path) = &self.attach_path {
            let _ = std::fs::remove_file(path);
        }
        self.runtime.shutdown_timeout(CLOSE_LIMIT);
    }
}

/// Listens at `path`. A socket that a dead process left there is taken over, one that is in use is
/// not.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => match UnixStream::connect(path) {
            Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path)?;
                UnixListener::bind(path)?
            }
            _ => return Err(error),
        },
        other => other?,
    };
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The options that hold where nothing else is set.
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
    }
}

/// Makes a cache in this process, with a few threads of its own. Any number of threads may use it.
///
/// @param options  as iovc_cache_options gave them, with at least one source
/// @param cache    where the handle goes; null is written if it fails
///
/// # Safety
/// `options` is null or as said, `cache` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_cache_open(
    options: *const CacheOptions,
    cache: *mut *mut EmbeddedCache,
) -> StatusCode {
    guarded(|| {
        // SAFETY: as the caller says.
        let place = unsafe { place(cache, "cache") }?;
        *place = std::ptr::null_mut();
        // SAFETY: as the caller says.
        let options = unsafe { borrowed(options, "options") }?;
        // SAFETY: as the caller says.
        *place = Box::into_raw(Box::new(unsafe { EmbeddedCache::open(options) }?));
        Ok(())
    })
}

/// Ends a cache: all that it held is let go, its attach socket is gone. Null is allowed.
///
/// Processes that have attached can read on what they have resolved; nothing resolves any more.
/// Handles of iovc_cache_attach are to be given back before.
///
/// # Safety
/// `cache` is null or a handle that was not given back yet and that nobody uses any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_cache_close(cache: *mut EmbeddedCache) {
    guarded(|| {
        if !cache.is_null() {
            // SAFETY: as the caller says, it came from `Box::into_raw` and nobody uses it any more.
            unsafe { Box::from_raw(cache) }.close();
        }
        Ok(())
    });
}

/// The cache's memory for this very process: nothing is mapped a second time, and no socket is
/// needed. It is used and given back like a handle of iovc_attach, but is no session.
///
/// # Safety
/// `cache` is null or a handle, `attach` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_cache_attach(
    cache: *const EmbeddedCache,
    attach: *mut *mut Attach,
) -> StatusCode {
    guarded(|| {
        // SAFETY: as the caller says.
        let place = unsafe { place(attach, "attach") }?;
        *place = std::ptr::null_mut();
        // SAFETY: as the caller says.
        let host = unsafe { borrowed(cache, "cache") }?;
        *place = Box::into_raw(Box::new(Attach::of_cache(host.cache.clone())));
        Ok(())
    })
}

/// A consumer is done with a timeframe. When all of its consumers are, its objects are let go.
///
/// # Safety
/// `cache` is null or a handle, `consumer` is null or ends with a 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_cache_consumed(
    cache: *const EmbeddedCache,
    timeframe: u64,
    consumer: *const c_char,
) -> StatusCode {
    guarded(|| {
        // SAFETY: as the caller says.
        let host = unsafe { borrowed(cache, "cache") }?;
        // SAFETY: as the caller says.
        let consumer = unsafe { text(consumer, "consumer") }?.to_owned();
        host.cache.consumed(&Consumed::One { timeframe, consumer })?;
        Ok(())
    })
}

/// A consumer is done with all timeframes below `oldest_possible`. That never goes back.
///
/// # Safety
/// `cache` is null or a handle, `consumer` is null or ends with a 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_cache_oldest_possible(
    cache: *const EmbeddedCache,
    consumer: *const c_char,
    oldest_possible: u64,
) -> StatusCode {
    guarded(|| {
        // SAFETY: as the caller says.
        let host = unsafe { borrowed(cache, "cache") }?;
        // SAFETY: as the caller says.
        let consumer = unsafe { text(consumer, "consumer") }?.to_owned();
        host.cache.consumed(&Consumed::Below { consumer, oldest_possible })?;
        Ok(())
    })
}

/// Drops a timeframe, whoever still waits for it.
///
/// # Safety
/// `cache` is null or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_cache_drop_timeframe(
    cache: *const EmbeddedCache,
    timeframe: u64,
) -> StatusCode {
    guarded(|| {
        // SAFETY: as the caller says.
        let host = unsafe { borrowed(cache, "cache") }?;
        host.cache.drop_timeframe(timeframe)?;
        Ok(())
    })
}

/// Lets go what a table holds. IOVC_NOT_FOUND if it was let go already.
///
/// @param lease  as iovc_cache_table gave it; it stands in the table's schema too (iovcache.lease)
///
/// # Safety
/// `cache` is null or a handle, `lease` is null or ends with a 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_cache_release(
    cache: *const EmbeddedCache,
    lease: *const c_char,
) -> StatusCode {
    guarded(|| {
        // SAFETY: as the caller says.
        let host = unsafe { borrowed(cache, "cache") }?;
        // SAFETY: as the caller says.
        let lease = unsafe { text(lease, "lease") }?;
        if host.cache.release(&LeaseId::from(lease)) {
            return Ok(());
        }
        Err(CallFailure::new(ErrorKind::NotFound, "[IOV-7111] there is no such lease any more"))
    })
}

/// What the cache holds, as JSON: the form of the Flight action `status`.
///
/// @param json  where the text goes; to be given back with iovc_free_text
///
/// # Safety
/// `cache` is null or a handle, `json` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_cache_status(
    cache: *const EmbeddedCache,
    json: *mut *mut c_char,
) -> StatusCode {
    guarded(|| {
        // SAFETY: as the caller says.
        let place = unsafe { place(json, "json") }?;
        *place = std::ptr::null_mut();
        // SAFETY: as the caller says.
        let host = unsafe { borrowed(cache, "cache") }?;
        let status = serde_json::to_string(&host.cache.status());
        let internal = |error: &dyn std::fmt::Display| {
            CallFailure::new(ErrorKind::Internal, format!("[IOV-9002] {error}"))
        };
        let status = status.map_err(|error| internal(&error))?;
        *place = CString::new(status).map_err(|error| internal(&error))?.into_raw();
        Ok(())
    })
}

/// Gives a text of this library back. Null is allowed.
///
/// # Safety
/// `text` is null or came from iovc_cache_status, and was not given back yet.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_free_text(text: *mut c_char) {
    if !text.is_null() {
        // SAFETY: as the caller says, it came from `CString::into_raw`.
        drop(unsafe { CString::from_raw(text) });
    }
}
