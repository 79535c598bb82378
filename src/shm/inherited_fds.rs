//! Inherited descriptors: listening sockets and kept segments that the service manager passes to
//! this process (sd_listen_fds(3)).
#![allow(unsafe_code)]

use std::os::fd::{BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

/// The first inherited descriptor.
const FIRST: RawFd = 3;

/// The descriptors that `$LISTEN_FDS` passes to this process, each with its name from
/// `$LISTEN_FDNAMES`. Only the first call returns them.
pub fn inherited_files() -> Vec<(String, OwnedFd)> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    // They are for another process if the pid differs.
    if number("LISTEN_PID") != Some(std::process::id()) || TAKEN.swap(true, Ordering::SeqCst) {
        return Vec::new();
    }
    let count = number("LISTEN_FDS").and_then(|count| RawFd::try_from(count).ok()).unwrap_or(0);
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let mut files = Vec::new();
    for number in FIRST..FIRST.saturating_add(count) {
        let name = names.next().filter(|name| !name.is_empty()).unwrap_or("unknown").to_owned();
        // SAFETY: only asked about, and the kernel says if it is not open.
        let asked = unsafe { BorrowedFd::borrow_raw(number) };
        if fcntl_getfd(asked).is_err() {
            continue;
        }
        // Child processes must not inherit it.
        let _ = fcntl_setfd(asked, FdFlags::CLOEXEC);
        // SAFETY: it is open, by the protocol it is this process's, and it has no other owner here:
        // they are given out once.
        files.push((name, unsafe { OwnedFd::from_raw_fd(number) }));
    }
    files
}
