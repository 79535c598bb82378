//! Look-ups in shared memory, without a call.

use std::ffi::{c_char, c_void};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::arguments::{borrowed, guarded, many, place, places, text};
use super::attach::Attach;
use super::status::{CallFailure, StatusCode};
use crate::error::{Coded as _, ErrorKind};
use crate::object::ObjectPath;
use crate::shm::{AskReason, ChangeNotice, LocalPlane, OwnedPinnedView, PlanePath};

/// Look-ups in the shared memory of a service. Any number of threads may use one at the same time.
pub struct LocalHandle {
    plane: Arc<LocalPlane>,
}

/// A path to look up in. One thread at a time uses it.
pub struct LocalPathHandle {
    path: PlanePath,
}

/// An object in shared memory, which stays what it is until iovc_view_release.
#[repr(C)]
pub struct LocalView {
    /// The first byte.
    pub data: *const c_void,
    /// Number of bytes.
    pub size: usize,
    /// The version's id: a UUID, most significant byte first.
    pub object_id: [u8; 16],
    /// The version's own validity interval, in milliseconds since the Unix epoch: from here,
    pub valid_from: i64,
    /// to here, which is not inside.
    pub valid_until: i64,
    /// What pins it; null where it pins nothing.
    pub pin: *const c_void,
    /// A part of the pin.
    pub slot: u32,
}

impl LocalView {
    const NONE: Self = Self {
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
}

/// A state of a path, from which changes are told apart.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct NoticeWords {
    /// What it is a state of.
    pub words: [u64; 2],
}

/// The service has to be asked: a request that names the session has the path published.
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

/// Look-ups by a handle of iovc_attach, without a call.
///
/// @param local  where the handle goes; null is written if it fails
/// @return IOVC_FAILED_PRECONDITION where the service does not offer look-ups, or by a handle of
///         iovc_cache_attach
///
/// It keeps the session, also after iovc_detach.
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
        *place = Box::into_raw(Box::new(LocalHandle { plane }));
        Ok(())
    })
}

/// Gives a handle back. Null is allowed. Paths and views of it stay what they are; the session ends
/// with the last of all.
///
/// # Safety
/// `local` is null or a handle that was not given back yet.
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

/// A path to look up in. Makes no call; the service need not know the path.
///
/// @param path    the object path
/// @param handle  where the handle goes; null is written if it fails
///
/// One thread at a time may use it.
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

/// Gives a path back. Null is allowed. Its views stay what they are.
///
/// # Safety
/// `path` is null or a handle that was not given back yet.
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

/// The object of a path that is valid at a time, in milliseconds since the Unix epoch. Makes no
/// system call.
///
/// @param view  where it goes; it pins the object until iovc_view_release. Without one (any status
///              but IOVC_OK) it pins nothing
/// @return IOVC_UNAVAILABLE where the service has to be asked: nothing is valid, or it does not lie
///         in shared memory, or is not confirmed. A request for the path that names the session has
///         it published
///
/// # Safety
/// `path` is null or a handle that no other thread uses meanwhile, `view` is null or writable.
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

/// The objects of a path at many times.
///
/// @param at     `count` times
/// @param views  room for as many; those that are not found pin nothing, and have null as `pin`
/// @param found  how many were found; may be null
/// @return IOVC_OK also where some were not found: the service is to be asked for them
///
/// # Safety
/// As `iovc_local_get`; `at` leads to `count` times, `views` to room for as many, `found` is null
/// or writable.
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
        for (place, at) in places.iter_mut().zip(times) {
            *place = match path.path.at(*at) {
                Ok(view) => {
                    pinned += 1;
                    LocalView::new(view.into_owned())
                }
                Err(_) => LocalView::NONE,
            };
        }
        // SAFETY: as the caller says.
        if let Some(found) = unsafe { found.as_mut() } {
            *found = pinned;
        }
        Ok(())
    })
}

/// The state of a path, for iovc_local_wait. Where it is taken before an object is looked up, in
/// shared memory or at the service, no change after that look-up is missed.
///
/// @return IOVC_UNAVAILABLE where changes cannot be waited for: the path is not published. A request
///         for it that names the session has it published
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

/// Waits until the answer for a path can be another one than when `notice` was taken. Blocks this
/// thread, and uses no CPU time meanwhile.
///
/// @param notice         what iovc_local_notice has written
/// @param timeout_millis time limit; less than 0: none
/// @param changed        whether the answer can be another one; false after the time limit
/// @return IOVC_FAILED_PRECONDITION once the session is over
///
/// A path whose source answers for single times alone can have changed after a second.
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

/// Ends the pin of a view; what it points to may not be read any more. A view that pins nothing, and
/// null, are allowed. Any thread may do it.
///
/// # Safety
/// `view` is null or leads to a view that iovc_local_get or iovc_local_get_many has written, and
/// no copy of it was released.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_view_release(view: *mut LocalView) {
    guarded(|| {
        // SAFETY: as the caller says.
        let Some(view) = (unsafe { view.as_mut() }) else { return Ok(()) };
        let LocalView { pin, slot, .. } = std::mem::replace(view, LocalView::NONE);
        if !pin.is_null() {
            // SAFETY: as the caller says, `into_raw` gave both, and nobody has released them.
            unsafe { OwnedPinnedView::release_raw(pin.cast(), slot) };
        }
        Ok(())
    });
}
