//! Handles for the memory of a service, through its attach socket, or of a cache in this process.

use std::borrow::Cow;
use std::ffi::{CString, c_char};
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use super::arguments::{guarded, optional_text, place, text};
use super::status::{CallFailure, StatusCode};
use crate::cache::{Cache, LeaseId};
use crate::error::ErrorKind;
use crate::shm::attach::{Attachment, process_name};
use crate::shm::{Mappings, MetaHeader};
use crate::sync::Mutex;

/// The memory of a service, mapped read-only. Threads may share a handle.
pub struct Attach {
    memory: Memory,
    /// Name of the session as a C string, for `iovc_session`.
    session: CString,
    epoch: CString,
    kept: Mutex<Vec<Arc<Mappings>>>,
    /// The newest of `kept`.
    newest: AtomicPtr<Mappings>,
}

/// The shared memory behind a handle.
enum Memory {
    /// The memory of a service on this node.
    Service(Arc<Attachment>),
    /// The memory of a cache in this process.
    Own { cache: Cache, mappings: Mutex<Arc<Mappings>> },
}

fn c_text(text: &str) -> CString {
    CString::new(text.replace('\0', "?")).unwrap_or_default()
}

impl Attach {
    fn new(memory: Memory, session: &str, epoch: &str) -> Self {
        Self {
            memory,
            session: c_text(session),
            epoch: c_text(epoch),
            kept: Mutex::default(),
            newest: AtomicPtr::default(),
        }
    }

    fn of_service(attachment: Attachment) -> Self {
        let (session, epoch) = (attachment.session().to_owned(), attachment.epoch().to_string());
        Self::new(Memory::Service(Arc::new(attachment)), &session, &epoch)
    }

    pub(super) fn of_cache(cache: Cache) -> Self {
        let epoch = cache.epoch().to_string();
        let mappings = Mutex::new(Arc::new(cache.mappings()));
        Self::new(Memory::Own { cache, mappings }, "", &epoch)
    }

    /// The session with a service; `None` for a cache in this process.
    pub(super) fn attachment(&self) -> Option<&Arc<Attachment>> {
        match &self.memory {
            Memory::Service(attachment) => Some(attachment),
            Memory::Own { .. } => None,
        }
    }

    /// Runs `work` with the current mappings. Pointers that it returns stay mapped: all mappings
    /// that were ever used are kept until [`iovc_unmap_unused`].
    #[inline]
    pub(super) fn with<T>(&self, work: impl FnOnce(&Mappings) -> T) -> T {
        match &self.memory {
            Memory::Service(attachment) => {
                let mappings = attachment.peek();
                self.keep(&mappings);
                work(&mappings)
            }
            Memory::Own { mappings, .. } => {
                let mappings = mappings.lock().clone();
                self.keep(&mappings);
                work(&mappings)
            }
        }
    }

    /// Like [`with`](Self::with), for a header in a segment that is not mapped yet.
    #[cold]
    pub(super) fn with_more<T>(&self, header: &MetaHeader, work: impl FnOnce(&Mappings) -> T) -> T {
        let mappings = match &self.memory {
            Memory::Service(attachment) => attachment.mappings_for(header),
            Memory::Own { cache, mappings } => {
                let fresh = Arc::new(cache.mappings());
                mappings.lock().clone_from(&fresh);
                fresh
            }
        };
        self.keep(&mappings);
        work(&mappings)
    }

    #[inline]
    fn keep(&self, mappings: &Arc<Mappings>) {
        // `newest` points to mappings in `kept`, so no others can have their address.
        if self.newest.load(Ordering::Acquire).cast_const() != Arc::as_ptr(mappings) {
            self.keep_new(mappings);
        }
    }

    #[cold]
    fn keep_new(&self, mappings: &Arc<Mappings>) {
        let mut kept = self.kept.lock();
        if !kept.iter().any(|known| Arc::ptr_eq(known, mappings)) {
            kept.push(Arc::clone(mappings));
        }
        self.newest.store(Arc::as_ptr(mappings).cast_mut(), Ordering::Release);
    }
}

/// Attaches to a service through its socket. The path is `iovcache.attach` in the metadata of each
/// table, and `attach` in the line that a service writes when it is ready. Blocks for at most 10 s.
///
/// @param path      path of the attach socket
/// @param consumer  name of this consumer; null or empty: "process-" and the process id
/// @param token     token of the service; null if it requires none
/// @param attach    receives the handle, or null on failure
///
/// The handle is a session of the service. The session ends when the handle and those that
/// iovc_local_open made from it are closed, or when the process ends in any way; the service then
/// releases everything that it holds for the session.
///
/// # Safety
/// `path`, `consumer` and `token` are null or end with a 0; `attach` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_attach(
    path: *const c_char,
    consumer: *const c_char,
    token: *const c_char,
    attach: *mut *mut Attach,
) -> StatusCode {
    guarded(|| {
        // SAFETY: as the caller says.
        let place = unsafe { place(attach, "attach") }?;
        *place = std::ptr::null_mut();
        // SAFETY: as the caller says.
        let path = unsafe { text(path, "path") }?;
        // SAFETY: as the caller says.
        let (consumer, token) = unsafe { names(consumer, token) }?;
        let attachment = Attachment::open_local(Path::new(path), &consumer, token)?;
        *place = Box::into_raw(Box::new(Attach::of_service(attachment)));
        Ok(())
    })
}

/// Attaches through a connected socket, e.g. one that was passed to a sandboxed process.
///
/// @param socket  connected Unix stream socket; the library takes it over and closes it, also on
///                failure
///
/// # Safety
/// As `iovc_attach`; `socket` is an open descriptor that no other code uses or closes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_attach_socket(
    socket: i32,
    consumer: *const c_char,
    token: *const c_char,
    attach: *mut *mut Attach,
) -> StatusCode {
    guarded(|| {
        if socket < 0 {
            let reason = format!("[IOV-7104] {socket} is not a descriptor");
            return Err(CallFailure::new(ErrorKind::InvalidArgument, reason));
        }
        // SAFETY: as the caller says, it is open and passed to this function.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        // SAFETY: as the caller says.
        let place = unsafe { place(attach, "attach") }?;
        *place = std::ptr::null_mut();
        // SAFETY: as the caller says.
        let (consumer, token) = unsafe { names(consumer, token) }?;
        let attachment = Attachment::of_stream(UnixStream::from(socket), &consumer, token)?;
        *place = Box::into_raw(Box::new(Attach::of_service(attachment)));
        Ok(())
    })
}

/// # Safety
/// As [`optional_text`].
unsafe fn names<'a>(
    consumer: *const c_char,
    token: *const c_char,
) -> Result<(Cow<'a, str>, Option<&'a str>), CallFailure> {
    // SAFETY: as the caller says.
    let consumer = unsafe { optional_text(consumer, "consumer") }?.filter(|name| !name.is_empty());
    let consumer = consumer.map_or_else(|| Cow::from(process_name()), Cow::from);
    // SAFETY: as the caller says.
    let token = unsafe { optional_text(token, "token") }?;
    Ok((consumer, token))
}

/// Closes a handle: its session ends, and its memory is unmapped. Null is allowed.
///
/// Afterwards, neither the handle nor a pointer resolved through it may be used.
///
/// # Safety
/// `attach` is null or a handle that was not closed yet.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_detach(attach: *mut Attach) {
    guarded(|| {
        if !attach.is_null() {
            // SAFETY: as the caller says, it came from `Box::into_raw` and is not used any more.
            drop(unsafe { Box::from_raw(attach) });
        }
        Ok(())
    });
}

/// Id of the session, for the field "session" of requests: the objects of such a request stay
/// pinned while this process lives. Empty for a handle of iovc_cache_attach; null if `attach` is
/// null. Valid as long as the handle.
///
/// # Safety
/// `attach` is null or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_session(attach: *const Attach) -> *const c_char {
    // SAFETY: as the caller says.
    unsafe { attach.as_ref() }.map_or(std::ptr::null(), |attach| attach.session.as_ptr())
}

/// Epoch of the service instance, as in `iovcache.epoch` of its tables. It changes with each
/// restart, and headers of an earlier epoch do not resolve. Null if `attach` is null. Valid as long
/// as the handle.
///
/// # Safety
/// `attach` is null or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_epoch(attach: *const Attach) -> *const c_char {
    // SAFETY: as the caller says.
    unsafe { attach.as_ref() }.map_or(std::ptr::null(), |attach| attach.epoch.as_ptr())
}

/// Checks whether the service is still connected. If it is not (IOVC_UNAVAILABLE), resolved objects
/// stay readable, and iovc_attach makes a new session when the service is back.
///
/// # Safety
/// `attach` is null or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_check(attach: *const Attach) -> StatusCode {
    guarded(|| {
        // SAFETY: as the caller says.
        let attach = unsafe { super::arguments::borrowed(attach, "attach") }?;
        match &attach.memory {
            Memory::Service(attachment) => match attachment.over() {
                None => Ok(()),
                Some(why) => Err(CallFailure::new(ErrorKind::Unavailable, why)),
            },
            Memory::Own { .. } => Ok(()),
        }
    })
}

/// Ends the lease of a table that was requested for this session. It pins the objects of the table
/// no longer; data read through pointers to them is valid only if iovc_still_valid confirms it
/// afterwards. The service does not answer: a lease that has ended already is no error.
///
/// @param lease  the lease in the table's schema (iovcache.lease)
/// @return IOVC_UNAVAILABLE if the service is gone; for a handle of iovc_cache_attach,
///         IOVC_NOT_FOUND if there is no such lease
///
/// # Safety
/// `attach` is null or a handle, `lease` is null or ends with a 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_release(attach: *const Attach, lease: *const c_char) -> StatusCode {
    guarded(|| {
        // SAFETY: as the caller says.
        let attach = unsafe { super::arguments::borrowed(attach, "attach") }?;
        // SAFETY: as the caller says.
        let lease = unsafe { text(lease, "lease") }?;
        match &attach.memory {
            Memory::Service(attachment) if attachment.release(lease) => Ok(()),
            Memory::Service(_) => {
                Err(CallFailure::new(ErrorKind::Unavailable, "[IOV-7112] the service is gone"))
            }
            Memory::Own { cache, .. } if cache.release(&LeaseId::from(lease)) => Ok(()),
            Memory::Own { .. } => Err(CallFailure::new(
                ErrorKind::NotFound,
                "[IOV-7111] there is no such lease any more",
            )),
        }
    })
}

/// Unmaps segments that the service has removed. They stay mapped until this call, so that a late
/// read through a pointer finds old bytes and does not end the process.
///
/// Call it while no thread reads through a pointer to a released object.
///
/// # Safety
/// `attach` is null or a handle; no thread reads through a pointer to a released object.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_unmap_unused(attach: *const Attach) -> StatusCode {
    guarded(|| {
        // SAFETY: as the caller says.
        let attach = unsafe { super::arguments::borrowed(attach, "attach") }?;
        match &attach.memory {
            Memory::Service(attachment) => attachment.sweep(),
            Memory::Own { cache, mappings } => *mappings.lock() = Arc::new(cache.mappings()),
        }
        // The current mappings are kept from here on, so that none is dropped in between.
        attach.with(|_| {
            attach.kept.lock().retain(|kept| {
                Arc::as_ptr(kept) == attach.newest.load(Ordering::Acquire).cast_const()
            })
        });
        Ok(())
    })
}
