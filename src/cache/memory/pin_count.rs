//! The count of an object's pins: who is the first, who was the last.
//!
//! ```text
//!  pin    0 ─▶ 1: its bytes count as pinned       n ─▶ n + 1: nothing else
//!  unpin  1 ─▶ 0: they do not, and it can go      n ─▶ n - 1: nothing else
//! ```
//!
//! Whoever pins holds the object already, by an `Arc`; so a count of 0 frees nothing by itself. Generic
//! over the word, so that the models below run the very same code under loom.

use std::sync::atomic::{AtomicU32, Ordering};

/// An atomic count.
pub(crate) trait PinCount {
    /// Adds one; gives what it was.
    fn up(&self) -> u32;
    /// Takes one away; gives what it was.
    fn down(&self) -> u32;
}

impl PinCount for AtomicU32 {
    fn up(&self) -> u32 {
        // SYNC(pins): the last to unpin sees all that those before it did with the object.
        self.fetch_add(1, Ordering::AcqRel)
    }
    fn down(&self) -> u32 {
        // SYNC(pins): as above.
        self.fetch_sub(1, Ordering::AcqRel)
    }
}

/// One pin more; `first` is called by the first of them.
pub(crate) fn pin(pins: &impl PinCount, first: impl FnOnce()) {
    if pins.up() == 0 {
        first();
    }
}

/// One pin less; `last` is called by the last of them.
pub(crate) fn unpin(pins: &impl PinCount, last: impl FnOnce()) {
    if pins.down() == 1 {
        last();
    }
}

#[cfg(test)]
mod tests {
    use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
    use loom::sync::{Arc, Mutex};
    use loom::thread;

    use super::*;

    const BYTES: u64 = 64;

    impl PinCount for AtomicU32 {
        fn up(&self) -> u32 {
            self.fetch_add(1, Ordering::AcqRel)
        }
        fn down(&self) -> u32 {
            self.fetch_sub(1, Ordering::AcqRel)
        }
    }

    /// A residency of one object.
    #[derive(Default)]
    struct Home {
        pinned_bytes: AtomicU64,
        /// The object, while it is a candidate: as the map of the residency has it.
        candidate: Mutex<Option<Arc<Object>>>,
        gone: AtomicU32,
    }

    struct Object {
        pins: AtomicU32,
        /// Whether it is a candidate; written under the lock, read without.
        listed: AtomicBool,
        home: Arc<Home>,
    }

    impl Drop for Object {
        fn drop(&mut self) {
            assert_eq!(self.pins.load(Ordering::Acquire), 0, "a pinned object went");
            assert_eq!(self.home.gone.up(), 0, "it went twice");
        }
    }

    impl Home {
        fn pin(&self, object: &Object) {
            pin(&object.pins, || {
                self.pinned_bytes.fetch_add(BYTES, Ordering::AcqRel);
            });
        }

        fn unpin(&self, object: &Arc<Object>) {
            unpin(&object.pins, || {
                let before = self.pinned_bytes.fetch_sub(BYTES, Ordering::AcqRel);
                assert!(before >= BYTES, "below zero");
                if object.listed.load(Ordering::Acquire) {
                    return;
                }
                let mut candidate = self.candidate.lock().unwrap();
                if candidate.is_none() {
                    *candidate = Some(Arc::clone(object));
                    object.listed.store(true, Ordering::Release);
                }
            });
        }

        /// Pins it if it is there.
        fn find(&self) -> Option<Arc<Object>> {
            let candidate = self.candidate.lock().unwrap();
            let object = candidate.clone()?;
            self.pin(&object);
            drop(candidate);
            Some(object)
        }

        fn evict(&self) {
            let mut candidate = self.candidate.lock().unwrap();
            let evicted = candidate.take();
            if let Some(object) = &evicted {
                object.listed.store(false, Ordering::Release);
            }
            drop(candidate);
            drop(evicted);
        }
    }

    /// Every order in which threads are interrupted three times at most: what goes wrong between so
    /// few of them goes wrong with two, as a rule, and all orders would take hours.
    fn few_switches(model: impl Fn() + Send + Sync + 'static) {
        let mut orders = loom::model::Builder::new();
        orders.preemption_bound = Some(3);
        orders.check(model);
    }

    fn pinned_object() -> (Arc<Home>, Arc<Object>) {
        let home = Arc::new(Home::default());
        let (pins, listed) = (AtomicU32::new(0), AtomicBool::new(false));
        let object = Arc::new(Object { pins, listed, home: Arc::clone(&home) });
        home.pin(&object);
        (home, object)
    }

    #[test]
    fn bytes_count_once_however_many_pin_and_unpin_at_once() {
        few_switches(|| {
            let (home, object) = pinned_object();
            let others: Vec<_> = (0..2)
                .map(|_| {
                    let (home, object) = (Arc::clone(&home), Arc::clone(&object));
                    thread::spawn(move || {
                        home.pin(&object);
                        home.unpin(&object);
                    })
                })
                .collect();
            home.unpin(&object);
            others.into_iter().for_each(|other| other.join().unwrap());
            assert_eq!(home.pinned_bytes.load(Ordering::Acquire), 0);
            assert!(home.candidate.lock().unwrap().is_some(), "it is a candidate");
            home.evict();
            drop(object);
            assert_eq!(home.gone.load(Ordering::Acquire), 1);
        });
    }

    #[test]
    fn what_is_pinned_anew_while_it_is_let_go_and_evicted_does_not_go() {
        few_switches(|| {
            let (home, object) = pinned_object();
            let finds = thread::spawn({
                let home = Arc::clone(&home);
                move || {
                    if let Some(object) = home.find() {
                        assert_eq!(home.gone.load(Ordering::Acquire), 0);
                        home.unpin(&object);
                    }
                }
            });
            let evicts = thread::spawn({
                let home = Arc::clone(&home);
                move || home.evict()
            });
            home.unpin(&object);
            drop(object);
            finds.join().unwrap();
            evicts.join().unwrap();
            assert_eq!(home.pinned_bytes.load(Ordering::Acquire), 0);
            // A candidate, or gone; never neither.
            let listed = u32::from(home.candidate.lock().unwrap().is_some());
            assert_eq!(listed + home.gone.load(Ordering::Acquire), 1);
            home.evict();
        });
    }
}
