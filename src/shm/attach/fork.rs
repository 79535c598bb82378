//! Fork handling of attach sockets: the session stays with the parent, and a child cannot use it.
//!
//! ```text
//!  parent: attach socket ── fork ──▶ child: generation + 1, and each attach socket replaced by an
//!                                           unconnected socket under the same number
//! ```
//!
//! A child inherits the descriptors of its parent. With an open attach socket it would keep the
//! parent's session, and so all its pins, alive after the parent's death; and a destructor in the
//! child would end the parent's session. The handler runs in the child before `fork` returns. It
//! calls only async-signal-safe functions.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd as _, RawFd};
use std::sync::Once;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU64, Ordering};

/// Number of forks between the first process that attached and this one.
static GENERATION: AtomicU64 = AtomicU64::new(0);
/// The descriptors to replace, in a list that only grows; slots are reused.
static SOCKETS: AtomicPtr<ForkSlot> = AtomicPtr::new(std::ptr::null_mut());

const FREE: RawFd = -1;

/// A slot for a descriptor that a forked child closes. Slots are never freed, so that the child can
/// walk them without a lock.
struct ForkSlot {
    descriptor: AtomicI32,
    next: *const ForkSlot,
}

/// Identifies this process among its forks: the value differs after each fork.
#[inline]
pub fn process_generation() -> u64 {
    GENERATION.load(Ordering::Relaxed)
}

/// An attach socket that a forked child must not keep. Dropping it unregisters the descriptor.
#[derive(Debug)]
pub(super) struct ForkGuard {
    slot: &'static AtomicI32,
    generation: u64,
}

impl ForkGuard {
    pub(super) fn new(socket: impl AsFd) -> Self {
        install();
        let descriptor = socket.as_fd().as_raw_fd();
        Self { slot: take_slot(descriptor), generation: process_generation() }
    }

    /// Whether this process is a fork of the one that opened the socket.
    #[inline]
    pub(super) fn is_forked(&self) -> bool {
        self.generation != process_generation()
    }
}

impl Drop for ForkGuard {
    fn drop(&mut self) {
        self.slot.store(FREE, Ordering::Release);
    }
}

fn slots() -> impl Iterator<Item = &'static ForkSlot> {
    let mut next = SOCKETS.load(Ordering::Acquire).cast_const();
    std::iter::from_fn(move || {
        // SAFETY: null, or a slot that was leaked below and is never freed.
        let slot = unsafe { next.as_ref() }?;
        next = slot.next;
        Some(slot)
    })
}

fn take_slot(descriptor: RawFd) -> &'static AtomicI32 {
    let free = slots().find(|slot| {
        let taken =
            slot.descriptor.compare_exchange(FREE, descriptor, Ordering::AcqRel, Ordering::Relaxed);
        taken.is_ok()
    });
    if let Some(slot) = free {
        return &slot.descriptor;
    }
    let slot = Box::leak(Box::new(ForkSlot {
        descriptor: AtomicI32::new(descriptor),
        next: std::ptr::null(),
    }));
    let place: *mut ForkSlot = slot;
    let mut head = SOCKETS.load(Ordering::Acquire);
    loop {
        // SAFETY: no other thread knows the slot before it is published below.
        unsafe { (*place).next = head };
        match SOCKETS.compare_exchange(head, place, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: leaked above, so it lives for ever.
            Ok(_) => return unsafe { &(*place).descriptor },
            Err(newer) => head = newer,
        }
    }
}

fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: the handler is async-signal-safe and does not panic. It can only fail for want of
        // memory; a child then keeps its copies of the sockets until it ends.
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    });
}

extern "C" fn in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
    for slot in slots() {
        let descriptor = slot.descriptor.load(Ordering::Acquire);
        if descriptor == FREE {
            continue;
        }
        // SAFETY: makes a socket of this process's own.
        let nowhere =
            unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
        if nowhere < 0 {
            // Even without a spare descriptor, the child's copy is closed.
            // SAFETY: the number is that of the child's copy of the socket.
            unsafe { libc::close(descriptor) };
            continue;
        }
        // SAFETY: both are open; the child's copy of the parent's socket is closed by this.
        unsafe { libc::dup3(nowhere, descriptor, libc::O_CLOEXEC) };
        // SAFETY: made above, and known to nothing else.
        unsafe { libc::close(nowhere) };
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_child_has_no_copy_of_the_socket_and_knows_that_it_is_one() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let guard = ForkGuard::new(&ours);
        assert!(!guard.is_forked());
        let mut pipe = [0; 2];
        // SAFETY: room for two descriptors.
        assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
        // SAFETY: the child calls only functions that are allowed between fork and exit.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let byte = u8::from(guard.is_forked());
            // SAFETY: one byte of its own.
            unsafe { libc::write(pipe[1], (&raw const byte).cast(), 1) };
            // The child lives until it is killed, like a worker that survives its parent.
            loop {
                // SAFETY: waits for a signal.
                unsafe { libc::pause() };
            }
        }
        let mut forked = 9_u8;
        // SAFETY: one byte of room.
        assert_eq!(unsafe { libc::read(pipe[0], (&raw mut forked).cast(), 1) }, 1);
        assert_eq!(forked, 1);
        // The parent's end is the last one: the peer sees the hang-up although the child lives.
        drop(guard);
        drop(ours);
        let end = theirs.read(&mut [0; 1]);
        // SAFETY: our own child.
        unsafe { libc::kill(child, libc::SIGKILL) };
        // SAFETY: our own child; its status is of no interest.
        unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
        assert_eq!(end.unwrap(), 0);
    }
}
