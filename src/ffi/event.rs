//! Descriptors for event loops.

use std::os::fd::AsRawFd as _;

use super::arguments::{borrowed, guarded, place};
use super::local::{LocalHandle, LocalPathHandle, NoticeWords};
use super::status::StatusCode;
use crate::shm::{ChangeNotice, PlaneEvent};

/// A descriptor that becomes readable once. Threads may share a handle.
pub struct PlaneEventHandle {
    event: PlaneEvent,
}

/// Makes a descriptor for a timeframe. It is readable as soon as iovc_timeframe_get need not wait: the
/// table is ready, the service must be asked, or the session has ended.
///
/// @param local      handle of iovc_local_open
/// @param timeframe  id of the timeframe
/// @param event      receives the handle, or null on failure
/// @return IOVC_FAILED_PRECONDITION if the session has ended; IOVC_RESOURCE_EXHAUSTED if the system
///         provides no descriptor or thread
///
/// Then call iovc_timeframe_get with a time limit of 0. If it returns IOVC_DEADLINE_EXCEEDED, the
/// timeframe is being loaded again: make another event.
///
/// The caller owns the event and closes it by iovc_event_close. An event holds no pin. Any number of
/// threads may call this at a time. One thread of the library waits for all events of a session; it
/// uses no CPU time meanwhile.
///
/// # Safety
/// `local` is null or a handle, `event` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_timeframe_event(
    local: *const LocalHandle,
    timeframe: u64,
    event: *mut *mut PlaneEventHandle,
) -> StatusCode {
    guarded(|| {
        // SAFETY: as the caller says.
        let place = unsafe { place(event, "event") }?;
        *place = std::ptr::null_mut();
        // SAFETY: as the caller says.
        let local = unsafe { borrowed(local, "local") }?;
        let event = match local.plane().timeframe_event(timeframe)? {
            Some(event) => event,
            None => PlaneEvent::readable()?,
        };
        *place = Box::into_raw(Box::new(PlaneEventHandle { event }));
        Ok(())
    })
}

/// Makes a descriptor for a change of a path. It is readable when the answer for the path can differ
/// from that at the time of `notice`, or the session has ended; as iovc_local_wait.
///
/// @param path    handle of iovc_local_path
/// @param notice  written by iovc_local_notice
/// @param event   receives the handle, or null on failure; close it by iovc_event_close
/// @return IOVC_FAILED_PRECONDITION if the session has ended; IOVC_RESOURCE_EXHAUSTED if the system
///         provides no descriptor or thread
///
/// # Safety
/// As `iovc_local_notice`; `event` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_local_event(
    path: *const LocalPathHandle,
    notice: *const NoticeWords,
    event: *mut *mut PlaneEventHandle,
) -> StatusCode {
    guarded(|| {
        // SAFETY: as the caller says.
        let place = unsafe { place(event, "event") }?;
        *place = std::ptr::null_mut();
        // SAFETY: as the caller says.
        let path = unsafe { borrowed(path, "path") }?;
        // SAFETY: as the caller says.
        let notice = unsafe { borrowed(notice, "notice") }?;
        let event = path.path().change_event(&ChangeNotice::from_words(notice.words))?;
        *place = Box::into_raw(Box::new(PlaneEventHandle { event }));
        Ok(())
    })
}

/// The descriptor of an event, for epoll, poll or an event loop. Only wait for it to be readable: do
/// not read, write or close it. It stays readable once it is, and is open until iovc_event_close.
/// -1 if `event` is null.
///
/// # Safety
/// `event` is null or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_event_fd(event: *const PlaneEventHandle) -> i32 {
    // SAFETY: as the caller says.
    unsafe { event.as_ref() }.map_or(-1, |event| event.event.as_raw_fd())
}

/// Closes an event and its descriptor. Null is allowed. Remove the descriptor from event loops
/// before. Any thread may call it, also after the end of the session.
///
/// # Safety
/// `event` is null or a handle that was not closed yet.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_event_close(event: *mut PlaneEventHandle) {
    guarded(|| {
        if !event.is_null() {
            // SAFETY: as the caller says, it came from `Box::into_raw` and is not used any more.
            drop(unsafe { Box::from_raw(event) });
        }
        Ok(())
    });
}
