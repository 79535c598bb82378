//! Locks without poison, used by the whole crate in place of those of `std::sync`.
//!
//! `lock`, `read` and `write` return the guard. If a thread panics while it holds a lock, the data
//! stays as that thread left it, and the next holder continues with it. This is safe here: critical
//! sections are short, call no code of embedders, and panic only on a bug, which is reported where
//! it happens. One failed request must not fail every later request that needs the same lock,
//! and `iovcache status --check` finds sums that are wrong.
//!
//! With the feature `loom`, the tests of the library use loom's locks and atomics instead, so that
//! the models of protocols between threads run the code of the service. The feature changes nothing
//! outside of these tests. `atomic` is for the files that such a model covers. `Arc` stays that of
//! `std`: loom has no `Weak`.

use std::time::{Duration, Instant};

#[cfg(all(test, feature = "loom"))]
use loom::sync as backend;
#[cfg(not(all(test, feature = "loom")))]
use std::sync as backend;

pub use backend::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};
use std::sync::PoisonError;

/// Atomics, for files that a model covers.
#[cfg(feature = "cache")]
pub(crate) mod atomic {
    pub(crate) use super::backend::atomic::{
        AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64,
    };
    pub(crate) use std::sync::atomic::Ordering;
}

/// A mutex without poison.
#[derive(Debug, Default)]
pub struct Mutex<T>(backend::Mutex<T>);

impl<T> Mutex<T> {
    /// A mutex that protects `data`.
    pub fn new(data: T) -> Self {
        Self(backend::Mutex::new(data))
    }

    /// Waits until no other thread holds the lock, and takes it.
    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The data, once the lock is no longer shared.
    pub fn into_inner(self) -> T {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A lock for many readers or one writer, without poison.
#[derive(Debug, Default)]
pub struct RwLock<T>(backend::RwLock<T>);

impl<T> RwLock<T> {
    /// A lock that protects `data`.
    pub fn new(data: T) -> Self {
        Self(backend::RwLock::new(data))
    }

    /// Waits until no thread writes.
    #[inline]
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no thread reads or writes.
    #[inline]
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A condition that threads wait for under a [`Mutex`].
#[derive(Debug, Default)]
pub struct Condvar(backend::Condvar);

impl Condvar {
    /// A condition that no thread waits for.
    pub fn new() -> Self {
        Self::default()
    }

    /// Wakes one thread.
    pub fn notify_one(&self) {
        self.0.notify_one();
    }

    /// Wakes all threads.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }

    /// Waits to be woken. Spurious wake-ups are possible.
    pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.0.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits to be woken, for at most `limit`. Spurious wake-ups are possible.
    pub fn wait_timeout<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        limit: Duration,
    ) -> MutexGuard<'a, T> {
        self.0.wait_timeout(guard, limit).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Waits for at most `limit` until `condition` no longer holds.
    pub fn wait_timeout_while<'a, T>(
        &self,
        mut guard: MutexGuard<'a, T>,
        limit: Duration,
        mut condition: impl FnMut(&mut T) -> bool,
    ) -> MutexGuard<'a, T> {
        let began = Instant::now();
        while condition(&mut guard) {
            let Some(left) = limit.checked_sub(began.elapsed()).filter(|left| !left.is_zero())
            else {
                break;
            };
            guard = self.wait_timeout(guard, left);
        }
        guard
    }
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    #[test]
    fn a_panic_of_a_holder_leaves_the_data_as_it_is() {
        let (mutex, rw_lock) = (Arc::new(Mutex::new(1)), Arc::new(RwLock::new(1)));
        let panics = thread::spawn({
            let (mutex, rw_lock) = (Arc::clone(&mutex), Arc::clone(&rw_lock));
            move || {
                let (mut first, mut second) = (mutex.lock(), rw_lock.write());
                (*first, *second) = (2, 2);
                panic!("on purpose");
            }
        });
        panics.join().unwrap_err();
        assert_eq!((*mutex.lock(), *rw_lock.read()), (2, 2));
        assert_eq!(Arc::into_inner(mutex).unwrap().into_inner(), 2);
    }

    #[test]
    fn a_wait_for_a_condition_ends_when_it_comes_or_at_the_limit() {
        let shared = Arc::new((Mutex::new(false), Condvar::new()));
        let sets = thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                *shared.0.lock() = true;
                shared.1.notify_all();
            }
        });
        let is_unset = |set: &mut bool| !*set;
        let guard = shared.1.wait_timeout_while(shared.0.lock(), Duration::from_secs(60), is_unset);
        assert!(*guard);
        drop(guard);
        sets.join().unwrap();
        *shared.0.lock() = false;
        let limit = Duration::from_millis(5);
        assert!(!*shared.1.wait_timeout_while(shared.0.lock(), limit, is_unset));
    }
}
