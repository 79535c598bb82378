//! Synchronisation of blocks: the four steps by which a generation guards the bytes of its block.
//!
//! ```text
//!  service   claim: 0, fence │ write bytes │ publish: g (Release) │ … │ give up: 0 (Release)
//!                                                 │
//!  consumer                                       ▼
//!                            seen: g? (Acquire) │ read bytes │ fence, seen again: still g?
//! ```
//!
//! A reader with a lease reads between publication and giving up, and needs only [`seen`]. A reader
//! without a lease may see the memory reused while it reads: [`seen_again`] detects this, because
//! the writer has claimed the place before. Generic over the word, so that the model below runs the
//! same code under loom.

use std::sync::atomic::{AtomicU64, Ordering, fence};

/// An atomic word with its fence.
pub(super) trait Word {
    fn load(&self, ordering: Ordering) -> u64;
    fn store(&self, value: u64, ordering: Ordering);
    fn fence(ordering: Ordering);
}

impl Word for AtomicU64 {
    #[inline]
    fn load(&self, ordering: Ordering) -> u64 {
        self.load(ordering)
    }
    #[inline]
    fn store(&self, value: u64, ordering: Ordering) {
        self.store(value, ordering);
    }
    #[inline]
    fn fence(ordering: Ordering) {
        fence(ordering);
    }
}

/// Claims a place: nothing resolves there, whatever its bytes were. Must precede the first write to
/// it.
pub(super) fn claim<W: Word>(generation: &W) {
    generation.store(0, Ordering::Relaxed);
    // SYNC(give-up): a thread that sees one of the following writes, and then executes a fence,
    // sees every generation zeroed before; pairs with the fence in `seen_again`.
    W::fence(Ordering::Release);
}

/// Publishes a block whose bytes are all written.
pub(super) fn publish<W: Word>(generation: &W, value: u64) {
    // SYNC(publish): pairs with the Acquire load in `seen`.
    generation.store(value, Ordering::Release);
}

/// Invalidates a block. Must precede the release of its place to the allocator, whose lock passes
/// the place on to the next claim.
pub(super) fn give_up<W: Word>(generation: &W) {
    generation.store(0, Ordering::Release);
}

/// Invalidates a block in memory that another program may have overwritten: only if its generation
/// still stands there.
pub(super) fn give_up_own(generation: &AtomicU64, own: u64) {
    let _ = generation.compare_exchange(own, 0, Ordering::Release, Ordering::Relaxed);
}

/// The generation, to be compared before the bytes are read.
#[inline]
pub(super) fn seen<W: Word>(generation: &W) -> u64 {
    // SYNC(publish): pairs with the Release store in `publish`.
    generation.load(Ordering::Acquire)
}

/// The generation, to be compared after the bytes were read: if it is unchanged, the bytes read
/// were those of the object.
#[inline]
pub(super) fn seen_again<W: Word>(generation: &W) -> u64 {
    // SYNC(give-up): pairs with the fence in `claim`.
    W::fence(Ordering::Acquire);
    generation.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use loom::sync::atomic::{AtomicU64, fence};
    use loom::sync::{Arc, Mutex};
    use loom::thread;

    use super::*;

    impl Word for AtomicU64 {
        fn load(&self, ordering: Ordering) -> u64 {
            self.load(ordering)
        }
        fn store(&self, value: u64, ordering: Ordering) {
            self.store(value, ordering);
        }
        fn fence(ordering: Ordering) {
            fence(ordering);
        }
    }

    /// A place in shared memory. The payload is two words, so that it can be mixed from two
    /// objects.
    #[derive(Default)]
    struct Place {
        generation: AtomicU64,
        /// Start of another block when the place is divided differently.
        other_generation: AtomicU64,
        payload: [AtomicU64; 2],
        /// The allocator's lock.
        free: Mutex<bool>,
    }

    impl Place {
        fn write(&self, value: u64) {
            for word in &self.payload {
                word.store(value, Ordering::Relaxed);
            }
        }

        fn read(&self) -> [u64; 2] {
            [self.payload[0].load(Ordering::Relaxed), self.payload[1].load(Ordering::Relaxed)]
        }
    }

    #[test]
    fn a_reader_that_sees_the_generation_sees_all_of_the_payload() {
        loom::model(|| {
            let place = Arc::new(Place::default());
            let service = thread::spawn({
                let place = Arc::clone(&place);
                move || {
                    claim(&place.generation);
                    place.write(7);
                    publish(&place.generation, 1);
                }
            });
            if seen(&place.generation) == 1 {
                assert_eq!(place.read(), [7, 7]);
            }
            service.join().unwrap();
        });
    }

    #[test]
    fn a_reader_that_sees_the_generation_again_has_read_that_object_alone() {
        loom::model(|| {
            let place = Arc::new(Place::default());
            claim(&place.generation);
            place.write(7);
            publish(&place.generation, 1);
            // One thread gives the block up, another claims its place, with its header elsewhere.
            let gives = thread::spawn({
                let place = Arc::clone(&place);
                move || {
                    give_up(&place.generation);
                    *place.free.lock().unwrap() = true;
                }
            });
            let takes = thread::spawn({
                let place = Arc::clone(&place);
                move || {
                    if *place.free.lock().unwrap() {
                        claim(&place.other_generation);
                        place.write(8);
                        publish(&place.other_generation, 2);
                    }
                }
            });
            if seen(&place.generation) == 1 {
                let read = place.read();
                if seen_again(&place.generation) == 1 {
                    assert_eq!(read, [7, 7]);
                }
            }
            gives.join().unwrap();
            takes.join().unwrap();
        });
    }
}
