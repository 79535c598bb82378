//! Look-ups in shared memory, without a request to the service.

use std::ffi::{c_char, c_void};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::arguments::{borrowed, guarded, many, place, places, text};
use super::attach::Attach;
use super::status::{CallFailure, StatusCode};
use super::taken_timeframe::{AcceptedNames, TableObject, TakenTimeframe};
use crate::error::{Coded as _, ErrorKind};
use crate::object::ObjectPath;
use crate::shm::{
    AskReason, ChangeNotice, LocalPlane, OwnedPinnedView, PlanePath, SpanAhead, ViewBatch,
};

/// Look-ups in the shared memory of a service. Threads may share a handle.
pub struct LocalHandle {
    plane: Arc<LocalPlane>,
    /// Names of consumers of timeframes.
    names: AcceptedNames,
}

impl LocalHandle {
    pub(super) fn plane(&self) -> &Arc<LocalPlane> {
        &self.plane
    }

    pub(super) fn names(&self) -> &AcceptedNames {
        &self.names
    }
}

/// A path to look up objects in. It may be used by one thread at a time.
pub struct LocalPathHandle {
    path: PlanePath,
}

impl LocalPathHandle {
    pub(super) fn path(&self) -> &PlanePath {
        &self.path
    }
}

/// Object in shared memory. Its bytes do not change until iovc_view_release.
#[repr(C)]
pub struct LocalView {
    /// Pointer to the first byte.
    pub data: *const c_void,
    /// Size in bytes.
    pub size: usize,
    /// Id of the version: a UUID, most significant byte first.
    pub object_id: [u8; 16],
    /// Start of the version's own validity interval, inclusive, in milliseconds since the Unix
    /// epoch.
    pub valid_from: i64,
    /// End of that interval, exclusive.
    pub valid_until: i64,
    /// Pin of the object; null if there is none.
    pub pin: *const c_void,
    /// Slot of the pin.
    pub slot: u32,
}

/// Number of objects of iovc_local_get_many whose spans are found at a time.
const TOGETHER: usize = ViewBatch::TOGETHER;
/// In place of a slot: the pin is a table with its objects.
const PIN_IS_TABLE: u32 = u32::MAX;

impl LocalView {
    pub(super) const NONE: Self = Self {
        data: std::ptr::null(),
        size: 0,
        object_id: [0; 16],
        valid_from: 0,
        valid_until: 0,
        pin: std::ptr::null(),
        slot: 0,
    };

    fn new(view: OwnedPinnedView) -> Self {
        let (valid_from, valid_until) = view.validity_millis();
        let (data, size, object_id) = (view.as_ptr().cast(), view.len(), *view.id().as_bytes());
        let (pin, slot) = view.into_raw();
        Self { data, size, object_id, valid_from, valid_until, pin: pin.cast(), slot }
    }

    /// An object of a table, which the view keeps.
    pub(super) fn of_table(table: Arc<TakenTimeframe>, object: &TableObject) -> Self {
        let TableObject { location, id, validity: [valid_from, valid_until] } = *object;
        let (data, size, object_id) = (location.address.cast(), location.size, *id.as_bytes());
        let (pin, slot) = (Arc::into_raw(table).cast(), PIN_IS_TABLE);
        Self { data, size, object_id, valid_from, valid_until, pin, slot }
    }
}

/// The state of a path at a moment, for iovc_local_wait.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct NoticeWords {
    /// Opaque.
    pub words: [u64; 2],
}

/// The service must be asked: a request with the id of the session makes it publish the path.
#[cold]
fn ask(reason: AskReason) -> CallFailure {
    let (kind, why) = match reason {
        AskReason::Unpublished => (ErrorKind::Unavailable, "the path is not published"),
        AskReason::Uncovered => (ErrorKind::Unavailable, "nothing is published for this time"),
        AskReason::Unconfirmed => (ErrorKind::Unavailable, "the service has not confirmed it"),
        AskReason::NotResident => (ErrorKind::Unavailable, "the object was evicted"),
        AskReason::NotMapped => (ErrorKind::Unavailable, "its segment is not mapped yet"),
        AskReason::NoSlot => (ErrorKind::ResourceExhausted, "all slots of the session are used"),
        AskReason::Ended => (ErrorKind::FailedPrecondition, "the session is over"),
        AskReason::Forked => (ErrorKind::FailedPrecondition, "the session is the parent's"),
    };
    CallFailure::new(kind, format!("[IOV-7120] ask the service: {why}"))
}

/// Opens look-ups without requests, by a handle of iovc_attach.
///
/// @param local  receives the handle, or null on failure
/// @return IOVC_FAILED_PRECONDITION if the service does not offer look-ups, or if `attach` is a
///         handle of iovc_cache_attach
///
/// The handle keeps the session alive, also after iovc_detach.
///
/// # Safety
/// `attach` is null or a handle, `local` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_local_open(
    attach: *const Attach,
    local: *mut *mut LocalHandle,
) -> StatusCode {
    guarded(|| {
        // SAFETY: as the caller says.
        let place = unsafe { place(local, "local") }?;
        *place = std::ptr::null_mut();
        // SAFETY: as the caller says.
        let attach = unsafe { borrowed(attach, "attach") }?;
        let plane = attach.attachment().and_then(|session| LocalPlane::new(Arc::clone(session)));
        let Some(plane) = plane else {
            let reason = "[IOV-7121] the service offers no look-ups in shared memory";
            return Err(CallFailure::new(ErrorKind::FailedPrecondition, reason));
        };
        *place = Box::into_raw(Box::new(LocalHandle { plane, names: AcceptedNames::default() }));
        Ok(())
    })
}

/// Closes a handle. Null is allowed. Its paths and views stay valid; the session ends with the last
/// of them.
///
/// # Safety
/// `local` is null or a handle that was not closed yet.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_local_close(local: *mut LocalHandle) {
    guarded(|| {
        if !local.is_null() {
            // SAFETY: as the caller says, it came from `Box::into_raw` and is not used any more.
            drop(unsafe { Box::from_raw(local) });
        }
        Ok(())
    });
}

/// Opens a path for look-ups. No request is sent; the service need not know the path.
///
/// @param path    object path
/// @param handle  receives the handle, or null on failure
///
/// The handle may be used by one thread at a time.
///
/// # Safety
/// `local` is null or a handle, `path` is null or ends with a 0, `handle` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_local_path(
    local: *const LocalHandle,
    path: *const c_char,
    handle: *mut *mut LocalPathHandle,
) -> StatusCode {
    guarded(|| {
        // SAFETY: as the caller says.
        let place = unsafe { place(handle, "handle") }?;
        *place = std::ptr::null_mut();
        // SAFETY: as the caller says.
        let local = unsafe { borrowed(local, "local") }?;
        // SAFETY: as the caller says.
        let path = unsafe { text(path, "path") }?;
        let path = ObjectPath::new(path)
            .map_err(|error| CallFailure::new(ErrorKind::InvalidArgument, error.message()))?;
        *place = Box::into_raw(Box::new(LocalPathHandle { path: local.plane.path(&path) }));
        Ok(())
    })
}

/// Closes a path. Null is allowed. Its views stay valid.
///
/// # Safety
/// `path` is null or a handle that was not closed yet.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_local_path_close(path: *mut LocalPathHandle) {
    guarded(|| {
        if !path.is_null() {
            // SAFETY: as the caller says, it came from `Box::into_raw` and is not used any more.
            drop(unsafe { Box::from_raw(path) });
        }
        Ok(())
    });
}

/// Looks up the object of a path that is valid at a time, in milliseconds since the Unix epoch.
/// Makes no system call.
///
/// @param view  receives the object, pinned until iovc_view_release; pins nothing on failure (any
///              status but IOVC_OK)
/// @return IOVC_UNAVAILABLE if the service must be asked: no object is valid, or it is not in
///         shared memory, or not confirmed. A request for the path that names the session makes the
///         service publish it
///
/// # Safety
/// `path` is null or a handle that no other thread uses during the call, `view` is null or
/// writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_local_get(
    path: *const LocalPathHandle,
    at: i64,
    view: *mut LocalView,
) -> StatusCode {
    guarded(|| {
        // SAFETY: as the caller says.
        let place = unsafe { place(view, "view") }?;
        *place = LocalView::NONE;
        // SAFETY: as the caller says.
        let path = unsafe { borrowed(path, "path") }?;
        *place = LocalView::new(path.path.at(at).map_err(ask)?.into_owned());
        Ok(())
    })
}

/// Looks up the objects of a path at several times.
///
/// @param at     `count` times, in milliseconds since the Unix epoch
/// @param views  memory for `count` views; those of objects not found pin nothing and have a null
///               `pin`
/// @param found  receives the number of objects found; may be null
/// @return IOVC_OK even if some were not found: ask the service for those
///
/// # Safety
/// As `iovc_local_get`; `at` points to `count` times, `views` to memory for `count` views, `found`
/// is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_local_get_many(
    path: *const LocalPathHandle,
    at: *const i64,
    count: usize,
    views: *mut LocalView,
    found: *mut usize,
) -> StatusCode {
    guarded(|| {
        // SAFETY: as the caller says.
        let path = unsafe { borrowed(path, "path") }?;
        // SAFETY: as the caller says.
        let times = unsafe { many(at, count, "at") }?;
        // SAFETY: as the caller says.
        let places = unsafe { places(views, count, "views") }?;
        let mut pinned = 0;
        let mut batch = ViewBatch::default();
        for (places, times) in places.chunks_mut(TOGETHER).zip(times.chunks(TOGETHER)) {
            let mut ahead = [SpanAhead::default(); TOGETHER];
            ahead.iter_mut().zip(times).for_each(|(ahead, at)| *ahead = path.path.ahead(*at));
            batch.renew();
            for ((place, at), ahead) in places.iter_mut().zip(times).zip(ahead) {
                *place = match path.path.at_ahead(*at, ahead, &mut batch) {
                    Ok(view) => {
                        pinned += 1;
                        LocalView::new(view.into_owned())
                    }
                    Err(_) => LocalView::NONE,
                };
            }
        }
        // SAFETY: as the caller says.
        if let Some(found) = unsafe { found.as_mut() } {
            *found = pinned;
        }
        Ok(())
    })
}

/// The state of a path, for iovc_local_wait. Take it before the object is looked up, in shared memory
/// or at the service: then no change after that look-up is missed.
///
/// @return IOVC_UNAVAILABLE if the path is not published. A request for it with the id of the session
///         makes the service publish it
///
/// # Safety
/// `path` is null or a handle that no other thread uses meanwhile, `notice` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_local_notice(
    path: *const LocalPathHandle,
    notice: *mut NoticeWords,
) -> StatusCode {
    guarded(|| {
        // SAFETY: as the caller says.
        let place = unsafe { place(notice, "notice") }?;
        *place = NoticeWords { words: [0; 2] };
        // SAFETY: as the caller says.
        let path = unsafe { borrowed(path, "path") }?;
        place.words = path.path.notice().map_err(ask)?.to_words();
        Ok(())
    })
}

/// Waits until the answer for a path can differ from that at the time of `notice`. Blocks the thread
/// without using CPU time.
///
/// @param notice         written by iovc_local_notice
/// @param timeout_millis time limit; less than 0: none
/// @param changed        true: the answer can differ; false: the time limit has passed
/// @return IOVC_FAILED_PRECONDITION if the session has ended
///
/// If the source of a path answers for single times only, the answer can differ after one second.
///
/// # Safety
/// As `iovc_local_notice`; `changed` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_local_wait(
    path: *const LocalPathHandle,
    notice: *const NoticeWords,
    timeout_millis: i64,
    changed: *mut bool,
) -> StatusCode {
    guarded(|| {
        // SAFETY: as the caller says.
        let place = unsafe { place(changed, "changed") }?;
        *place = false;
        // SAFETY: as the caller says.
        let path = unsafe { borrowed(path, "path") }?;
        // SAFETY: as the caller says.
        let notice = unsafe { borrowed(notice, "notice") }?;
        let timeout = u64::try_from(timeout_millis).ok().map(Duration::from_millis);
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let notice = ChangeNotice::from_words(notice.words);
        *place = path.path.wait_change(&notice, deadline).map_err(ask)?;
        Ok(())
    })
}

/// Unpins the object of a view; its bytes may not be read afterwards. Null, and a view that pins
/// nothing, are allowed. Any thread may call it.
///
/// # Safety
/// `view` is null or points to a view written by iovc_local_get, iovc_local_get_many or
/// iovc_timeframe_object, no copy of which was released.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_view_release(view: *mut LocalView) {
    guarded(|| {
        // SAFETY: as the caller says.
        let Some(view) = (unsafe { view.as_mut() }) else { return Ok(()) };
        let LocalView { pin, slot, .. } = std::mem::replace(view, LocalView::NONE);
        match slot {
            _ if pin.is_null() => {}
            // SAFETY: as the caller says, `of_table` gave both, and they were not released yet.
            PIN_IS_TABLE => drop(unsafe { Arc::from_raw(pin.cast::<TakenTimeframe>()) }),
            // SAFETY: as the caller says, `into_raw` gave both, and they were not released yet.
            _ => unsafe { OwnedPinnedView::release_raw(pin.cast(), slot) },
        }
        Ok(())
    });
}
