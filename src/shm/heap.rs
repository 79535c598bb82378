//! The heap of the process: returns free memory to the system.
//!
//! glibc keeps the memory of freed buffers for later ones, in an arena for each of up to eight threads
//! per core. After requests of some hundred MiB as much stays with the process, and a listing of
//! 100,000 paths leaves 20 to 30 MiB, however long the process is idle.
#![allow(unsafe_code)]

/// Private memory beyond the least so far, from which on free memory of the heap is returned to the
/// system.
pub(crate) const KEPT_FREE_BYTES: u64 = 16 << 20;
/// A return that yields less was in vain: the memory is in use.
const WORTH_BYTES: u64 = 1 << 20;
/// Maximum number of checks between two returns, after returns in vain.
const MAX_PAUSE: u32 = 64;

/// Returns the free memory of the heap to the system.
///
/// It takes some milliseconds, during which other threads may wait to allocate.
fn give_back_free_memory() {
    #[cfg(target_env = "gnu")]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> i32;
        }
        // SAFETY: malloc_trim has no preconditions; it locks each arena itself.
        unsafe {
            malloc_trim(0);
        }
    }
}

/// Private memory of the process that is present, in bytes; 0 if the kernel does not tell.
fn private_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
    kibibytes.map_or(0, |kibibytes: u64| kibibytes << 10)
}

/// Decides when the free memory of the heap is returned.
#[derive(Debug)]
pub(crate) struct HeapTrim {
    /// Private memory at the start or after the last return, or the least since then.
    least_bytes: u64,
    /// Number of checks until the next return.
    pause: u32,
    /// The pause after the next return in vain.
    next_pause: u32,
}

impl HeapTrim {
    pub(crate) fn new() -> Self {
        Self::from_bytes(private_bytes())
    }

    fn from_bytes(least_bytes: u64) -> Self {
        Self { least_bytes, pause: 0, next_pause: 0 }
    }

    /// Returns free memory to the system if private memory has grown, or if `freed` says that much
    /// of it was freed. To be called at intervals, on a blocking thread.
    pub(crate) fn check(&mut self, freed: bool) {
        self.check_by(freed, private_bytes, give_back_free_memory);
    }

    fn check_by(&mut self, freed: bool, measured: impl Fn() -> u64, give_back: impl FnOnce()) {
        let before = measured();
        self.least_bytes = self.least_bytes.min(before);
        let has_grown = before >= self.least_bytes.saturating_add(KEPT_FREE_BYTES);
        self.pause = self.pause.saturating_sub(1);
        if !freed && (!has_grown || self.pause > 0) {
            return;
        }
        give_back();
        let after = measured();
        if before.saturating_sub(after) >= WORTH_BYTES {
            *self = Self::from_bytes(after);
        } else {
            self.next_pause = (2 * self.next_pause).clamp(1, MAX_PAUSE);
            self.pause = self.next_pause;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// A process with memory in use and free memory of its heap, in MiB.
    #[derive(Default)]
    struct Process {
        used: Cell<u64>,
        free: Cell<u64>,
        returns: Cell<u32>,
    }

    impl Process {
        fn check(&self, trim: &mut HeapTrim, freed: bool) -> u32 {
            let before = self.returns.get();
            let measured = || (self.used.get() + self.free.get()) * MIB;
            trim.check_by(freed, measured, || {
                self.returns.set(before + 1);
                self.free.set(0);
            });
            self.returns.get() - before
        }
    }

    #[test]
    fn memory_that_was_freed_is_returned_once_it_is_much() {
        let (process, mut trim) = (Process::default(), HeapTrim::from_bytes(10 * MIB));
        process.used.set(10);
        process.free.set(15);
        assert_eq!(process.check(&mut trim, false), 0);
        process.free.set(16);
        assert_eq!(process.check(&mut trim, false), 1);
        assert_eq!((process.check(&mut trim, false), process.free.get()), (0, 0));
        process.free.set(5);
        assert_eq!((process.check(&mut trim, true), process.free.get()), (1, 0));
    }

    #[test]
    fn memory_that_stays_in_use_is_tried_more_and_more_seldom_until_it_is_freed() {
        let (process, mut trim) = (Process::default(), HeapTrim::from_bytes(0));
        process.used.set(100);
        let tries: u32 = (0..1_000).map(|_| process.check(&mut trim, false)).sum();
        assert!((10..30).contains(&tries), "{tries}");
        process.used.set(0);
        process.free.set(100);
        let tries: u32 = (0..=MAX_PAUSE).map(|_| process.check(&mut trim, false)).sum();
        assert_eq!((tries, process.free.get()), (1, 0));
    }

    #[test]
    fn the_memory_of_many_small_buffers_is_returned() {
        let mut trim = HeapTrim::new();
        let before = private_bytes();
        assert!(before > 0);
        // Every tenth one stays, so that the heap does not shrink at its end.
        let mut buffers: Vec<Vec<u8>> = (0..500_000).map(|n| vec![n as u8; 200]).collect();
        let mut n = 0;
        buffers.retain(|_| {
            n += 1;
            n % 1_000 == 0
        });
        assert!(private_bytes() > before + 64 * MIB);
        trim.check(false);
        let after = private_bytes();
        assert!(cfg!(not(target_env = "gnu")) || after < before + 48 * MIB, "{before} {after}");
        drop(buffers);
    }
}
