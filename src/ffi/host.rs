//! A cache inside a C++ device: there is no daemon, and the device itself owns the objects.

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

/// How long closing a cache waits for its attach socket to end.
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
    /// The texts of `options` are null or end with a 0; `sources` points to `source_count` texts;
    /// `host_memory` is null or fulfils the contract of its type.
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
        self.cache.drain();
        if self.host_memory.is_some() {
            let left = self.cache.leave_held_objects();
            if left > 0 {
                tracing::warn!(
                    left,
                    "objects that tables or timeframes hold stay allocated in the host's memory"
                );
            }
        }
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
                    "objects in the host's memory are still in use: the host must free them"
                );
            }
        }
    }
}

/// Listens at `path`. The socket of a dead process is replaced; a socket in use is an error.
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

/// Makes a cache in this process, with a few threads of its own. Threads may share the handle.
///
/// @param options  options from iovc_cache_options, with at least one source
/// @param cache    receives the handle, or null on failure
///
/// # Safety
/// `options` is null or valid options, `cache` is null or writable.
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

/// Closes a cache: its objects are released, and its attach socket is removed. Null is allowed.
///
/// Attached processes can still read objects that they have resolved, but no header resolves any
/// more. Close the handles of iovc_cache_attach first.
///
/// Objects in memory of the host program that a table or a timeframe still holds are not released:
/// other devices may be reading them by the host's headers. Report timeframes as consumed and release
/// leases first, or they stay allocated as long as the host's memory exists.
///
/// # Safety
/// `cache` is null or a handle that was not closed yet and is not used any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_cache_close(cache: *mut EmbeddedCache) {
    guarded(|| {
        if !cache.is_null() {
            // SAFETY: as the caller says, it came from `Box::into_raw` and is not used any more.
            unsafe { Box::from_raw(cache) }.close();
        }
        Ok(())
    });
}

/// Handle for the memory of a cache, in the same process: it maps no memory again and needs no
/// socket. It is used and closed like a handle of iovc_attach, but is no session.
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

/// Segment or region of a cache, for registration with FairMQ.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct SegmentNumber {
    /// Size in bytes.
    pub size: u64,
    /// Id of the segment or region, unique among those of its kind.
    pub number: u16,
    /// 1: managed segment, 0: unmanaged region.
    pub managed: u8,
}

/// Lists the segments or the region that objects lie in. There are none if the objects lie in
/// memory of the host program.
///
/// @param segments  memory for `capacity` entries; may be null if `capacity` is 0
/// @param count     receives the number of segments, which may exceed `capacity`
///
/// # Safety
/// `cache` is null or a handle, `segments` points to memory for `capacity` entries, `count` is null
/// or writable.
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

/// Reports that a consumer has finished with a timeframe. When all of its consumers have, its
/// objects are released.
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

/// Reports that a consumer has finished with all timeframes below `oldest_possible`, the oldest one
/// that it may still need. The value never decreases: a lower one has no effect.
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

/// Drops a timeframe, even if consumers still wait for it.
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

/// Ends the lease of a table and releases its objects. IOVC_NOT_FOUND if it has ended already.
///
/// @param lease  the lease from iovc_cache_table, also in the table's schema (iovcache.lease)
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

/// State of the cache as JSON, as answered by the Flight action `status`.
///
/// @param json  receives the text; free it with iovc_free_text
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

/// Frees a text returned by this library. Null is allowed.
///
/// # Safety
/// `text` is null or came from iovc_cache_status, and was not freed yet.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_free_text(text: *mut c_char) {
    if !text.is_null() {
        // SAFETY: as the caller says, it came from `CString::into_raw`.
        drop(unsafe { CString::from_raw(text) });
    }
}
