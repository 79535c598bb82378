//! A cache inside of a device in C++: no daemon, the device itself owns the objects.

use std::ffi::{CString, c_char};
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use super::arguments::{borrowed, guarded, optional_text, place, places, text};
use super::attach::Attach;
use super::options::CacheOptions;
use super::status::{CallFailure, StatusCode};
use crate::cache::{Cache, ConsumerLimits, LeaseId, PeerPolicy};
use crate::error::ErrorKind;
use crate::shm::HostMemory;
use crate::shm::attach::SharedKind;
use crate::table::Consumed;

/// How long a cache that is closed waits for its attach socket to end.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// A cache in this process.
pub struct EmbeddedCache {
    pub(super) cache: Cache,
    pub(super) runtime: Runtime,
    host_memory: Option<HostMemory>,
    attach_path: Option<PathBuf>,
    stop: CancellationToken,
    serving: Option<tokio::task::JoinHandle<()>>,
}

impl EmbeddedCache {
    /// # Safety
    /// The texts of `options` are null or end with a 0; `sources` leads to `source_count` of them;
    /// `host_memory` is null or as said there.
    unsafe fn open(options: &CacheOptions) -> Result<Self, CallFailure> {
        let io = |what: &str, error: io::Error| {
            CallFailure::new(ErrorKind::Unavailable, format!("[IOV-7110] {what}: {error}"))
        };
        // SAFETY: as the caller says.
        let source = unsafe { options.source() }?;
        // SAFETY: as the caller says.
        let (memory, host_memory) = unsafe { options.memory() }?;
        // SAFETY: as the caller says.
        let attach_path = unsafe { optional_text(options.attach_path, "attach_path") }?;
        let quota_bytes = (options.quota_bytes != u64::MAX).then_some(options.quota_bytes);
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(2).thread_name("iovcache").enable_all().build();
        let runtime = runtime.map_err(|error| io("threads cannot be started", error))?;
        let inside = runtime.enter();
        let cache = Cache::builder()
            .source(source)
            .memory(memory)
            .creation_limits(options.creation_limits())
            .consumer_limits(ConsumerLimits { quota_bytes, ..ConsumerLimits::default() })
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
        Ok(Self { cache, runtime, host_memory, attach_path, stop, serving })
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
        drop(self.cache);
        if let Some(memory) = self.host_memory {
            let left = memory.detach(CLOSE_LIMIT);
            if left > 0 {
                tracing::warn!(
                    left,
                    "objects in the host's memory are still in use: it has to free them"
                );
            }
        }
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

/// A segment or region of a cache, as it is to be registered with FairMQ.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct SegmentNumber {
    /// All of it, in bytes.
    pub size: u64,
    /// Its number among those of its kind.
    pub number: u16,
    /// 1: managed segment, 0: unmanaged region.
    pub managed: u8,
}

/// The segments or the region that objects lie in: none where that is the memory of the host.
///
/// @param segments  place for `capacity` of them; may be null if that is 0
/// @param count     how many there are, also if that is more than `capacity`
///
/// # Safety
/// `cache` is null or a handle, `segments` leads to `capacity` places, `count` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_cache_segments(
    cache: *const EmbeddedCache,
    segments: *mut SegmentNumber,
    capacity: usize,
    count: *mut usize,
) -> StatusCode {
    guarded(|| {
        // SAFETY: as the caller says.
        let count = unsafe { place(count, "count") }?;
        *count = 0;
        // SAFETY: as the caller says.
        let host = unsafe { borrowed(cache, "cache") }?;
        // SAFETY: as the caller says.
        let places = unsafe { places(segments, capacity, "segments") }?;
        let known = host.cache.segments().segments;
        *count = known.len();
        for (place, entry) in places.iter_mut().zip(known) {
            let managed = u8::from(entry.kind == SharedKind::Segment);
            *place = SegmentNumber { size: entry.size, number: entry.id, managed };
        }
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
