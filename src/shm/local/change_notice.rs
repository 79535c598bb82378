//! Change notices: a consumer waits until the answer for a path can differ, without a call and without
//! CPU time.
//!
//! ```text
//!  consumer   count c (Acquire) │ answer │ count still c? ──yes──▶ sleep until it is not
//!                    ▲               ▲                 ╲
//!                    │               │                  ╲  the kernel compares and sleeps in one step
//!  service           └── count + 1 ◀─┴─ next answer ─────▶ wake
//!                        (Release)
//! ```
//!
//! **No wake-up is lost** (`SYNC(notice)`). The service makes the next answer visible (directory,
//! snapshot, timeline) and raises the count after it, with Release. The consumer loads the count with
//! Acquire before it gets its answer. If the answer that it got is not the newest one, the service
//! raises the count after the consumer has loaded it: otherwise the consumer's Acquire load would
//! have read the raised count, and everything before it would have been visible. So the count is not
//! `c` any more, or will not be: in the first case the kernel does not let the consumer sleep
//! (it compares under the lock under which wakers look for sleepers), in the second case the wake
//! comes after the consumer sleeps.
//!
//! **The count is that of an entry of the directory**, and only rises, also when the entry is given
//! to another path. A consumer loads it before it sees that the entry names a snapshot of its path;
//! so every later change of its path raises it above the loaded value. An entry that is given up
//! raises it, too: its path is not published any more, and waiting consumers ask the service.

use std::sync::atomic::{AtomicU32, Ordering};

use super::super::futex;

/// A count of changes that waiters sleep on.
pub(super) trait ChangeCount {
    fn load(&self, ordering: Ordering) -> u32;
    fn add(&self, ordering: Ordering);
    /// Wakes all that sleep.
    fn wake(&self);
}

impl ChangeCount for AtomicU32 {
    #[inline]
    fn load(&self, ordering: Ordering) -> u32 {
        self.load(ordering)
    }

    fn add(&self, ordering: Ordering) {
        self.fetch_add(1, ordering);
    }

    fn wake(&self) {
        futex::wake_all(self);
    }
}

/// The answer can differ from now on. The next answer is visible before this.
pub(super) fn tell_changed<C: ChangeCount>(count: &C) {
    // SYNC(notice): pairs with the Acquire load in `note`.
    count.add(Ordering::Release);
    count.wake();
}

/// Like [`tell_changed`], for a count that the caller keeps: it is `count` from now on.
pub(super) fn tell(word: &AtomicU32, count: u32) {
    // SYNC(notice): pairs with the Acquire load in `note`.
    word.store(count, Ordering::Release);
    word.wake();
}

/// The count, to be loaded before the answer is looked up.
#[inline]
pub(super) fn note<C: ChangeCount>(count: &C) -> u32 {
    // SYNC(notice): pairs with the Release addition in `tell_changed`.
    count.load(Ordering::Acquire)
}

#[cfg(test)]
mod tests {
    use loom::sync::atomic::{AtomicU32, AtomicU64};
    use loom::sync::{Arc, Condvar, Mutex};
    use loom::thread;

    use super::super::protocol::{StateWord, load_entry, load_state, store_entry, store_state};
    use super::*;

    /// A count, and the kernel's operations for threads that wait for it.
    #[derive(Default)]
    struct ModelCount {
        count: AtomicU32,
        sleepers: Mutex<()>,
        woken: Condvar,
    }

    impl ChangeCount for ModelCount {
        fn load(&self, ordering: Ordering) -> u32 {
            self.count.load(ordering)
        }

        fn add(&self, ordering: Ordering) {
            self.count.fetch_add(1, ordering);
        }

        fn wake(&self) {
            let _sleepers = self.sleepers.lock().unwrap();
            self.woken.notify_all();
        }
    }

    impl ModelCount {
        /// FUTEX_WAIT: compares and sleeps under the lock of those that wake.
        fn sleep(&self, seen: u32) {
            let sleepers = self.sleepers.lock().unwrap();
            if self.count.load(Ordering::Relaxed) == seen {
                drop(self.woken.wait(sleepers).unwrap());
            }
        }
    }

    #[derive(Default)]
    struct Path {
        count: ModelCount,
        entry: [AtomicU64; 2],
    }

    impl Path {
        fn name(&self, answer: u64) {
            store_entry(&self.entry[0], &self.entry[1], (answer, answer));
        }

        fn answer(&self) -> u64 {
            load_entry(&self.entry[0], &self.entry[1]).0
        }

        /// The next answer, for a consumer that knows `answer`.
        fn changed(&self, answer: u64) -> u64 {
            loop {
                let seen = note(&self.count);
                let now = self.answer();
                if now != answer {
                    return now;
                }
                self.count.sleep(seen);
            }
        }
    }

    #[test]
    fn a_consumer_that_waits_for_a_change_always_sees_it() {
        // Loom reports a deadlock if the wake-up is lost.
        loom::model(|| {
            let path = Arc::new(Path::default());
            path.name(1);
            let service = Arc::clone(&path);
            let service = thread::spawn(move || {
                service.name(2);
                tell_changed(&service.count);
            });
            assert_eq!(path.changed(1), 2);
            service.join().unwrap();
        });
    }

    /// Explores all orders with at most three preemptions: these models have many steps.
    fn bounded(model: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(model);
    }

    #[test]
    fn the_last_of_two_changes_is_always_seen() {
        bounded(|| {
            let path = Arc::new(Path::default());
            path.name(1);
            let service = Arc::clone(&path);
            let service = thread::spawn(move || {
                for answer in [2, 3] {
                    service.name(answer);
                    tell_changed(&service.count);
                }
            });
            let mut answer = 1;
            while answer != 3 {
                answer = path.changed(answer);
            }
            service.join().unwrap();
        });
    }

    #[test]
    fn all_that_wait_are_woken_by_one_change() {
        bounded(|| {
            let path = Arc::new(Path::default());
            path.name(1);
            let waiters = [0, 1].map(|_| {
                let path = Arc::clone(&path);
                thread::spawn(move || assert_eq!(path.changed(1), 2))
            });
            path.name(2);
            tell_changed(&path.count);
            waiters.into_iter().for_each(|waiter| waiter.join().unwrap());
        });
    }

    /// The entry of a timeframe: its state stands in a word of its own.
    #[derive(Default)]
    struct Timeframe {
        count: ModelCount,
        /// 1: loading, 2: ready, 0: dropped.
        state: AtomicU32,
        entry: [AtomicU64; 2],
    }

    impl StateWord for AtomicU32 {
        fn load(&self, ordering: Ordering) -> u32 {
            self.load(ordering)
        }

        fn store(&self, state: u32, ordering: Ordering) {
            self.store(state, ordering);
        }
    }

    impl Timeframe {
        fn words(&self) -> (&AtomicU64, &AtomicU64) {
            (&self.entry[0], &self.entry[1])
        }

        fn set(&self, state: u32, generation: u64) {
            store_state(&self.state, self.words(), (state, (generation, generation)));
            tell_changed(&self.count);
        }

        /// Generation of the table, or 0 if the timeframe is dropped.
        fn awaited(&self) -> u64 {
            loop {
                let seen = note(&self.count);
                match load_state(&self.state, self.words()) {
                    (1, _) => self.count.sleep(seen),
                    (2, (generation, _)) => return generation,
                    _ => return 0,
                }
            }
        }
    }

    #[test]
    fn a_consumer_that_waits_for_a_timeframe_always_gets_its_table() {
        bounded(|| {
            let timeframe = Arc::new(Timeframe::default());
            timeframe.set(1, 0);
            let waiters = [0, 1].map(|_| {
                let timeframe = Arc::clone(&timeframe);
                thread::spawn(move || assert_eq!(timeframe.awaited(), 7))
            });
            timeframe.set(2, 7);
            waiters.into_iter().for_each(|waiter| waiter.join().unwrap());
        });
    }

    #[test]
    fn a_consumer_that_waits_for_a_timeframe_that_is_dropped_wakes() {
        bounded(|| {
            let timeframe = Arc::new(Timeframe::default());
            timeframe.set(1, 0);
            let service = Arc::clone(&timeframe);
            let service = thread::spawn(move || {
                service.set(2, 7);
                service.set(0, 0);
            });
            // Its generation can be that of no table any more: the block decides.
            assert!([0, 7].contains(&timeframe.awaited()));
            service.join().unwrap();
        });
    }

    #[test]
    fn a_path_that_is_given_up_wakes_those_that_wait_though_its_entry_goes_to_another() {
        loom::model(|| {
            let path = Arc::new(Path::default());
            path.name(1);
            let service = Arc::clone(&path);
            let service = thread::spawn(move || {
                service.name(0);
                tell_changed(&service.count);
                // Another path takes the entry, and names its own snapshot.
                service.name(9);
            });
            assert_ne!(path.changed(1), 1);
            service.join().unwrap();
        });
    }
}
