//! Memory barriers that one process executes for others: `membarrier(2)`.
//!
//! A fence of a consumer between each store to a slot and the load behind it takes longer than the
//! rest of a look-up. With this call the service executes the fence for all of them, once for many
//! blocks that it wants to free.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use libc::c_long;

/// Calls membarrier; `None` if the kernel or a filter of system calls refuses.
fn membarrier(command: c_long) -> Option<c_long> {
    const FLAGS: c_long = 0;
    const CPU: c_long = 0;
    // SAFETY: the call takes three numbers and accesses no memory of this process.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, command, FLAGS, CPU) };
    Some(result).filter(|result| *result >= 0)
}

/// Whether [`for_registered`] works in this process.
pub(crate) fn is_supported() -> bool {
    static SUPPORTED: OnceLock<bool> = OnceLock::new();
    *SUPPORTED.get_or_init(|| {
        let wanted = c_long::from(libc::MEMBARRIER_CMD_GLOBAL_EXPEDITED);
        let commands = membarrier(libc::MEMBARRIER_CMD_QUERY.into()).unwrap_or(0);
        commands & wanted != 0 && for_registered()
    })
}

/// From now on the threads of this process, too, execute the barriers of other processes. Returns
/// whether this succeeded. In a process with several threads, the first call takes some milliseconds.
fn register() -> bool {
    membarrier(libc::MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED.into()).is_some()
}

/// Registers this process for barriers of others, in the background, and sets `is_registered` when it
/// is. Nothing happens where the system refuses.
pub(super) fn register_soon(is_registered: &Arc<AtomicBool>) {
    /// The process that was registered: a forked child is another one.
    static REGISTERED: AtomicU32 = AtomicU32::new(0);
    let process = std::process::id();
    if REGISTERED.load(Ordering::Acquire) == process {
        return is_registered.store(true, Ordering::Release);
    }
    let is_registered = Arc::clone(is_registered);
    let work = move || {
        if register() {
            REGISTERED.store(process, Ordering::Release);
            is_registered.store(true, Ordering::Release);
        }
    };
    // Without a thread, each pin has a fence of its own.
    drop(std::thread::Builder::new().name("iovcache-barrier".into()).spawn(work));
}

/// Executes a full memory barrier in this thread, and in each running thread of each process that is
/// [registered](register). Returns whether this succeeded.
pub(super) fn for_registered() -> bool {
    membarrier(libc::MEMBARRIER_CMD_GLOBAL_EXPEDITED.into()).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_kernel_offers_barriers_a_process_can_register_and_execute_them() {
        // Linux has them since 4.16; a sandbox may refuse them, to both in the same way.
        assert_eq!(is_supported(), register());
        assert_eq!(is_supported(), for_registered());
    }
}
