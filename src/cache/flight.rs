//! Single flight: of all who want the same thing at the same time, one causes the work.
//!
//! ```text
//!  join(key) ──first──▶ task ──▶ result ──▶ everybody who joined
//!  join(key) ──later──▶  │ waits
//!  the last one who waits goes away ──▶ the task is cancelled
//! ```
//!
//! The work runs in a task of its own, so no caller is its leader: whoever is cancelled, the others
//! still get the result. A failure is shared like a success. Only when nobody waits any more is the
//! task aborted, so that a caller's deadline reaches all the way to the source.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::task::AbortHandle;

/// The task behind a flight ended without a result: it panicked, or its runtime is going down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lost;

/// All flights under way, by key.
#[derive(Debug)]
pub(crate) struct Flights<K, V> {
    under_way: Arc<Mutex<HashMap<K, Flight<V>>>>,
}

#[derive(Debug)]
struct Flight<V> {
    /// Tells a flight from its successor under the same key.
    number: u64,
    waiting: usize,
    result: watch::Receiver<Option<V>>,
    task: Option<AbortHandle>,
}

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Self { under_way: Arc::default() }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K, V> Flights<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Joins the flight of `key`, or starts it with the future that `work` makes.
    ///
    /// `landed` is asked under the lock before a new flight is started: a result that came in just
    /// now is taken instead.
    ///
    /// # Errors
    /// [`Lost`] if the task ended without a result.
    pub(crate) async fn join<F>(
        &self,
        key: K,
        landed: impl FnOnce() -> Option<V>,
        work: impl FnOnce() -> F,
    ) -> Result<V, Lost>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let (mut waiter, sender) = {
            let mut under_way = lock(&self.under_way);
            let flights = Arc::clone(&self.under_way);
            match under_way.entry(key.clone()) {
                Entry::Occupied(mut entry) => {
                    let flight = entry.get_mut();
                    flight.waiting += 1;
                    let (number, result) = (flight.number, flight.result.clone());
                    (Waiter { flights, key, number, result }, None)
                }
                Entry::Vacant(entry) => {
                    if let Some(value) = landed() {
                        return Ok(value);
                    }
                    let (sender, result) = watch::channel(None);
                    let number = next_number();
                    entry.insert(Flight { number, waiting: 1, result: result.clone(), task: None });
                    (Waiter { flights, key, number, result }, Some(sender))
                }
            }
        };
        if let Some(sender) = sender {
            let (flights, key, number) =
                (Arc::clone(&self.under_way), waiter.key.clone(), waiter.number);
            let end = Landing { flights, key, number };
            let future = work();
            // Not under the lock: a runtime that is going down drops the task here and now, and
            // with it the landing, which takes the lock.
            let task = tokio::spawn(async move {
                let value = future.await;
                // Off the list before the result is told: who comes later asks `landed`.
                drop(end);
                sender.send_replace(Some(value));
            });
            if let Some(flight) = lock(&self.under_way).get_mut(&waiter.key)
                && flight.number == waiter.number
            {
                flight.task = Some(task.abort_handle());
            }
        }
        match waiter.result.wait_for(Option::is_some).await {
            Ok(value) => value.clone().ok_or(Lost),
            Err(_) => Err(Lost),
        }
    }

    /// How many flights are under way.
    #[cfg(test)]
    fn len(&self) -> usize {
        lock(&self.under_way).len()
    }
}

fn next_number() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Takes a flight off the list when its task ends, however it ends.
struct Landing<K: Eq + Hash, V> {
    flights: Arc<Mutex<HashMap<K, Flight<V>>>>,
    key: K,
    number: u64,
}

impl<K: Eq + Hash, V> Drop for Landing<K, V> {
    fn drop(&mut self) {
        let mut under_way = lock(&self.flights);
        if under_way.get(&self.key).is_some_and(|flight| flight.number == self.number) {
            under_way.remove(&self.key);
        }
    }
}

/// One who waits for a flight; the last one to go cancels it.
struct Waiter<K: Eq + Hash, V> {
    flights: Arc<Mutex<HashMap<K, Flight<V>>>>,
    key: K,
    number: u64,
    result: watch::Receiver<Option<V>>,
}

impl<K: Eq + Hash, V> Drop for Waiter<K, V> {
    fn drop(&mut self) {
        let abandoned = {
            let mut under_way = lock(&self.flights);
            match under_way.get_mut(&self.key) {
                Some(flight) if flight.number == self.number => {
                    flight.waiting -= 1;
                    if flight.waiting == 0 { under_way.remove(&self.key) } else { None }
                }
                _ => None,
            }
        };
        if let Some(task) = abandoned.and_then(|flight| flight.task) {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn a_thousand_who_want_the_same_cause_it_once() {
        let flights = Arc::new(Flights::<u8, u32>::default());
        let runs = Arc::new(AtomicUsize::new(0));
        let go = Arc::new(Notify::new());
        let waiters: Vec<_> = (0..1000)
            .map(|_| {
                let (flights, runs, go) =
                    (Arc::clone(&flights), Arc::clone(&runs), Arc::clone(&go));
                tokio::spawn(async move {
                    flights
                        .join(
                            7,
                            || None,
                            || async move {
                                runs.fetch_add(1, Ordering::SeqCst);
                                go.notified().await;
                                42
                            },
                        )
                        .await
                })
            })
            .collect();
        while runs.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        go.notify_one();
        for waiter in waiters {
            assert_eq!(waiter.await.unwrap(), Ok(42));
        }
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        assert_eq!(flights.len(), 0);
    }

    #[tokio::test]
    async fn who_started_it_may_go_and_the_others_still_get_the_result() {
        let flights = Arc::new(Flights::<u8, u32>::default());
        let go = Arc::new(Notify::new());
        let first = tokio::spawn({
            let (flights, go) = (Arc::clone(&flights), Arc::clone(&go));
            async move {
                flights
                    .join(
                        1,
                        || None,
                        || async move {
                            go.notified().await;
                            5
                        },
                    )
                    .await
            }
        });
        while flights.len() == 0 {
            tokio::task::yield_now().await;
        }
        let second = tokio::spawn({
            let flights = Arc::clone(&flights);
            async move { flights.join(1, || None, || async { unreachable!() }).await }
        });
        tokio::time::sleep(Duration::from_millis(10)).await;
        first.abort();
        let _ = first.await;
        go.notify_one();
        assert_eq!(second.await.unwrap(), Ok(5));
    }

    #[tokio::test]
    async fn when_nobody_waits_any_more_the_work_is_cancelled() {
        struct Flag(Arc<AtomicUsize>);
        impl Drop for Flag {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let flights = Flights::<u8, u32>::default();
        let dropped = Arc::new(AtomicUsize::new(0));
        let flag = Flag(Arc::clone(&dropped));
        let joined = flights.join(
            1,
            || None,
            || async move {
                let _flag = flag;
                std::future::pending::<u32>().await
            },
        );
        assert!(tokio::time::timeout(Duration::from_millis(10), joined).await.is_err());
        assert_eq!(flights.len(), 0);
        for _ in 0..100 {
            if dropped.load(Ordering::SeqCst) == 1 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the task was not cancelled");
    }

    #[tokio::test]
    async fn a_panic_is_told_to_all_and_forgotten() {
        let flights = Flights::<u8, u32>::default();
        assert_eq!(flights.join(1, || None, || async { panic!("on purpose") }).await, Err(Lost));
        assert_eq!(flights.join(1, || None, || async { 3 }).await, Ok(3));
    }
}
