//! Segments made anew whose names other programs have removed.

use std::ffi::{c_int, c_void};
use std::io;

use super::arguments::{borrowed, guarded, place};
use super::host::{EmbeddedCache, SegmentNumber};
use super::status::StatusCode;

/// Registry in which devices look up segments by number, such as FairMQ's management segment. The
/// functions are called on the thread that calls iovc_cache_renew, and must not call into the cache.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct SegmentRegistry {
    /// First argument of both functions.
    pub context: *mut c_void,
    /// Registers a new segment before objects are placed in it. Returns 0 on success; after any
    /// other value the segment is not used. Null: segments need no registration.
    pub add:
        Option<unsafe extern "C" fn(context: *mut c_void, segment: *const SegmentNumber) -> c_int>,
    /// Removes a segment whose name or head was lost. Null: nothing is removed.
    pub remove: Option<unsafe extern "C" fn(context: *mut c_void, number: u16)>,
}

/// Result of iovc_cache_renew, in segments.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Renewal {
    /// Found lost since the last call.
    pub lost: usize,
    /// Created in place of lost ones.
    pub made: usize,
    /// Lost ones that are not replaced yet, because tables still hold their objects. A later call
    /// replaces them.
    pub waiting: usize,
}

impl SegmentRegistry {
    fn add(&self, number: u16, size: u64) -> io::Result<()> {
        let Some(add) = self.add else { return Ok(()) };
        let segment = SegmentNumber { size, number, managed: 1 };
        // SAFETY: the host's own function; the segment outlives the call.
        match unsafe { add(self.context, &raw const segment) } {
            0 => Ok(()),
            status => {
                let message = format!("segment {number} was not registered: status {status}");
                Err(io::Error::other(message))
            }
        }
    }

    fn remove(&self, number: u16) {
        if let Some(remove) = self.remove {
            // SAFETY: the host's own function.
            unsafe { remove(self.context, number) };
        }
    }
}

/// Makes segments with names of FairMQ anew, under fresh numbers, whose files another program has
/// removed or reset (`fairmq-shmmonitor --cleanup`, `--reset-content`). A device calls this from time
/// to time, such as once a second: it costs a system call per segment if none is lost.
///
/// Objects of lost segments are loaded anew when they are requested. Timeframes in flight are issued
/// anew: the next iovc_cache_table gives headers of other segments. Tables that were given out before
/// can be read where they are mapped, until they are consumed or released; devices that do not have
/// them mapped, and all after a reset, are told that their headers are stale.
///
/// @param registry  registry of the segments; null: there is none
/// @param renewal   receives what was done, also on failure; may be null
///
/// # Safety
/// `cache` is null or a handle, `registry` is null or valid, `renewal` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_cache_renew(
    cache: *const EmbeddedCache,
    registry: *const SegmentRegistry,
    renewal: *mut Renewal,
) -> StatusCode {
    guarded(|| {
        let mut unused = Renewal::default();
        let renewal = if renewal.is_null() { &raw mut unused } else { renewal };
        // SAFETY: as the caller says.
        let told = unsafe { place(renewal, "renewal") }?;
        *told = Renewal::default();
        // SAFETY: as the caller says.
        let host = unsafe { borrowed(cache, "cache") }?;
        // SAFETY: as the caller says.
        let registry = unsafe { registry.as_ref() };
        // Timeframes that are issued anew are loaded by its threads.
        let _inside = host.runtime.enter();
        let renewed = host.cache.renew_lost_segments_with(&|number, size| {
            registry.map_or(Ok(()), |registry| registry.add(number, size))
        });
        for lost in &renewed.lost {
            tracing::error!("{lost}");
            if let Some(registry) = registry {
                registry.remove(lost.id);
            }
        }
        *told = Renewal {
            lost: renewed.lost.len(),
            made: renewed.made.len(),
            waiting: host.cache.segments_to_renew(),
        };
        renewed.error.map_or(Ok(()), |error| Err(error.into()))
    })
}
