//! Waiting for a word of shared memory, without CPU time.
//!
//! The word lies in memory that another process writes; a reader's mapping can be read-only. A second
//! word, of this process, wakes the same wait when its session ends.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::thread::ClockId;
use rustix::thread::futex::{Flags, Wait, WaitFlags, WaitPtr, WaitvFlags, wait, waitv, wake};
use rustix::time::Timespec;

/// Longest wait on a kernel that cannot wait for two words at a time (before 5.16).
const SLICE: Duration = Duration::from_millis(250);

/// Like [`SLICE`], for many words of other processes.
const MANY_SLICE: Duration = Duration::from_millis(20);

/// Wakes all processes that wait for a word.
#[cfg_attr(not(feature = "cache"), allow(dead_code, reason = "the service's side"))]
pub(super) fn wake_all(word: &AtomicU32) {
    // Not private: waiters are in other processes. There is no error for a mapped word.
    let _ = wake(word, Flags::empty(), i32::MAX.cast_unsigned());
}

/// Wakes the threads of this process that wait for a word of their own.
pub(super) fn wake_own(word: &AtomicU32) {
    let _ = wake(word, Flags::PRIVATE, i32::MAX.cast_unsigned());
}

fn waiter(word: &AtomicU32, seen: u32, flags: WaitFlags) -> Wait {
    let mut waiter = Wait::new();
    waiter.val = u64::from(seen);
    waiter.uaddr = WaitPtr::new(word.as_ptr().cast());
    waiter.flags = flags;
    waiter
}

/// A time on CLOCK_MONOTONIC.
fn monotonic(at: Instant) -> Timespec {
    let left = at.saturating_duration_since(Instant::now());
    let now = rustix::time::clock_gettime(ClockId::Monotonic);
    let nanos = now.tv_nsec + i64::from(left.subsec_nanos());
    let seconds = i64::try_from(left.as_secs()).unwrap_or(i64::MAX);
    Timespec {
        tv_sec: now.tv_sec.saturating_add(seconds).saturating_add(nanos / 1_000_000_000),
        tv_nsec: nanos % 1_000_000_000,
    }
}

/// Waits until `shared`, of another process, is not `seen.0`, or `own`, of this process, is not
/// `seen.1`; at most until `deadline`. Can return without either: the caller looks again. Returns at a
/// signal, too.
pub(super) fn wait_either(
    (shared, own): (&AtomicU32, &AtomicU32),
    seen: (u32, u32),
    deadline: Option<Instant>,
) {
    let both = [
        waiter(shared, seen.0, WaitFlags::SIZE_U32),
        waiter(own, seen.1, WaitFlags::SIZE_U32 | WaitFlags::PRIVATE),
    ];
    wait_all((shared, seen.0), &both, deadline);
}

/// Like [`wait_either`], for a word of another process and its value, and words of this process that
/// are 0.
pub(super) fn wait_any(
    (shared, seen): (&AtomicU32, u32),
    own: &[&AtomicU32],
    deadline: Option<Instant>,
) {
    let own = own.iter().map(|word| waiter(word, 0, WaitFlags::SIZE_U32 | WaitFlags::PRIVATE));
    let all: Vec<Wait> =
        [waiter(shared, seen, WaitFlags::SIZE_U32)].into_iter().chain(own).collect();
    wait_all((shared, seen), &all, deadline);
}

/// Like [`wait_either`], for at most 127 words of other processes, each with its value.
pub(super) fn wait_many<'a>(
    shared: impl Iterator<Item = (&'a AtomicU32, u32)>,
    (own, seen): (&AtomicU32, u32),
    deadline: Option<Instant>,
) {
    let shared = shared.map(|(word, seen)| waiter(word, seen, WaitFlags::SIZE_U32));
    let own_waiter = waiter(own, seen, WaitFlags::SIZE_U32 | WaitFlags::PRIVATE);
    let all: Vec<Wait> = [own_waiter].into_iter().chain(shared).collect();
    let until = deadline.map(monotonic);
    let waited = waitv(&all, WaitvFlags::empty(), until.as_ref(), ClockId::Monotonic);
    if let Err(Errno::NOSYS | Errno::PERM) = waited {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let slice = (all.len() > 1).then_some(MANY_SLICE);
        let limit = left.into_iter().chain(slice).min().map(monotonic_length);
        let _ = wait(own, Flags::PRIVATE, seen, limit.as_ref());
    }
}

fn wait_all((shared, seen): (&AtomicU32, u32), all: &[Wait], deadline: Option<Instant>) {
    let until = deadline.map(monotonic);
    let waited = waitv(all, WaitvFlags::empty(), until.as_ref(), ClockId::Monotonic);
    // Woken, changed, a signal, or too late: the caller sees which.
    if let Err(Errno::NOSYS | Errno::PERM) = waited {
        wait_slice(shared, seen, deadline);
    }
}

/// Waits for the shared word alone, for a short time. The caller checks the other one afterwards.
fn wait_slice(shared: &AtomicU32, seen: u32, deadline: Option<Instant>) {
    let left = deadline.map_or(SLICE, |at| at.saturating_duration_since(Instant::now()));
    let limit = monotonic_length(left.min(SLICE));
    let _ = wait(shared, Flags::empty(), seen, Some(&limit));
}

fn monotonic_length(length: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(length.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(length.subsec_nanos()),
    }
}

/// A word of this process that is 0 until its session ends.
#[derive(Debug, Default)]
pub(super) struct EndWord(AtomicU32);

impl EndWord {
    /// Says that the session is over, and wakes those that wait.
    pub(super) fn set(&self) {
        self.0.store(1, Ordering::Release);
        wake_own(&self.0);
    }

    #[inline]
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire) != 0
    }

    pub(super) fn word(&self) -> &AtomicU32 {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_wait_ends_when_either_word_changes_or_at_its_deadline() {
        let words = Arc::new([AtomicU32::new(5), AtomicU32::new(0)]);
        let soon = || Some(Instant::now() + Duration::from_millis(30));
        let began = Instant::now();
        wait_either((&words[0], &words[1]), (5, 0), soon());
        assert!(began.elapsed() >= Duration::from_millis(29));
        wait_either((&words[0], &words[1]), (4, 0), None);
        wait_either((&words[0], &words[1]), (5, 1), None);
        for changed in 0..2 {
            let (before, other) = (words[0].load(Ordering::Acquire), Arc::clone(&words));
            let changer = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(20));
                other[changed].fetch_add(1, Ordering::Release);
                match changed {
                    0 => wake_all(&other[0]),
                    _ => wake_own(&other[1]),
                }
            });
            while words[0].load(Ordering::Acquire) == before
                && words[1].load(Ordering::Acquire) == 0
            {
                wait_either((&words[0], &words[1]), (before, 0), None);
            }
            changer.join().unwrap();
        }
    }

    #[test]
    fn where_the_kernel_waits_for_one_word_only_the_wait_is_short() {
        let word = AtomicU32::new(5);
        let began = Instant::now();
        wait_slice(&word, 5, None);
        assert!(began.elapsed() >= SLICE - Duration::from_millis(1));
        wait_slice(&word, 4, None);
        wait_slice(&word, 5, Some(began));
        assert!(began.elapsed() < 4 * SLICE);
    }
}
