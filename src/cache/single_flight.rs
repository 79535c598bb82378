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
pub(crate) struct CallLost;

/// All flights under way, by key.
#[derive(Debug)]
pub(crate) struct SingleFlight<K, V> {
    board: Arc<Mutex<CallBoard<K, V>>>,
}

/// Its results come by a channel, its tasks are aborted by their handles.
type CallBoard<K, V> = Board<K, watch::Receiver<Option<V>>, AbortHandle>;

/// Who waits for what. Under a lock of its owner's, so that the model below can use another.
#[derive(Debug)]
struct Board<K, R, T> {
    under_way: HashMap<K, Call<R, T>>,
}

#[derive(Debug)]
struct Call<R, T> {
    /// Tells a flight from its successor under the same key.
    number: u64,
    waiting: usize,
    result: R,
    task: Option<T>,
}

/// What comes of joining.
enum JoinOutcome<V, R> {
    /// It is under way, or has been put on the list just now.
    Waits { number: u64, result: R },
    /// Its result came in just now.
    Landed(V),
}

impl<K: Eq + Hash, R: Clone, T> Board<K, R, T> {
    fn join<V>(
        &mut self,
        key: K,
        landed: impl FnOnce() -> Option<V>,
        begin: impl FnOnce() -> (u64, R),
    ) -> JoinOutcome<V, R> {
        match self.under_way.entry(key) {
            Entry::Occupied(mut entry) => {
                let flight = entry.get_mut();
                flight.waiting += 1;
                let (number, result) = (flight.number, flight.result.clone());
                JoinOutcome::Waits { number, result }
            }
            Entry::Vacant(entry) => {
                if let Some(value) = landed() {
                    return JoinOutcome::Landed(value);
                }
                let (number, result) = begin();
                let flight = Call { number, waiting: 1, result: result.clone(), task: None };
                entry.insert(flight);
                JoinOutcome::Waits { number, result }
            }
        }
    }

    /// The task that does the work of a flight.
    fn start(&mut self, key: &K, number: u64, task: T) {
        if let Some(flight) = self.under_way.get_mut(key).filter(|flight| flight.number == number) {
            flight.task = Some(task);
        }
    }

    /// The work has ended, however it did.
    fn finish(&mut self, key: &K, number: u64) {
        if self.under_way.get(key).is_some_and(|flight| flight.number == number) {
            self.under_way.remove(key);
        }
    }

    /// One waits no longer; if that was the last one, the task that nobody needs.
    fn leave(&mut self, key: &K, number: u64) -> Option<T> {
        let flight = self.under_way.get_mut(key).filter(|flight| flight.number == number)?;
        flight.waiting -= 1;
        match flight.waiting {
            0 => self.under_way.remove(key)?.task,
            _ => None,
        }
    }
}

impl<K, V> Default for SingleFlight<K, V> {
    fn default() -> Self {
        Self { board: Arc::new(Mutex::new(Board { under_way: HashMap::new() })) }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K, V> SingleFlight<K, V>
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
    /// [`CallLost`] if the task ended without a result.
    pub(crate) async fn join<F>(
        &self,
        key: K,
        landed: impl FnOnce() -> Option<V>,
        work: impl FnOnce() -> F,
    ) -> Result<V, CallLost>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut sender = None;
        let begin = || {
            let (tells, result) = watch::channel(None);
            sender = Some(tells);
            (next_number(), result)
        };
        let mut waiter = match lock(&self.board).join(key.clone(), landed, begin) {
            JoinOutcome::Landed(value) => return Ok(value),
            JoinOutcome::Waits { number, result } => {
                Waiter { board: Arc::clone(&self.board), key, number, result }
            }
        };
        if let Some(sender) = sender {
            let (board, key, number) = (Arc::clone(&self.board), waiter.key.clone(), waiter.number);
            let end = CallGuard { board, key, number };
            let future = work();
            // Not under the lock: a runtime that is going down drops the task here and now, and
            // with it the landing, which takes the lock.
            let task = tokio::spawn(async move {
                let value = future.await;
                // Off the list before the result is told: who comes later asks `landed`.
                drop(end);
                sender.send_replace(Some(value));
            });
            lock(&self.board).start(&waiter.key, waiter.number, task.abort_handle());
        }
        match waiter.result.wait_for(Option::is_some).await {
            Ok(value) => value.clone().ok_or(CallLost),
            Err(_) => Err(CallLost),
        }
    }

    /// How many flights are under way.
    #[cfg(test)]
    fn len(&self) -> usize {
        lock(&self.board).under_way.len()
    }
}

fn next_number() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Takes a flight off the list when its task ends, however it ends.
struct CallGuard<K: Eq + Hash, V> {
    board: Arc<Mutex<CallBoard<K, V>>>,
    key: K,
    number: u64,
}

impl<K: Eq + Hash, V> Drop for CallGuard<K, V> {
    fn drop(&mut self) {
        lock(&self.board).finish(&self.key, self.number);
    }
}

/// One who waits for a flight; the last one to go cancels it.
struct Waiter<K: Eq + Hash, V> {
    board: Arc<Mutex<CallBoard<K, V>>>,
    key: K,
    number: u64,
    result: watch::Receiver<Option<V>>,
}

impl<K: Eq + Hash, V> Drop for Waiter<K, V> {
    fn drop(&mut self) {
        let abandoned = lock(&self.board).leave(&self.key, self.number);
        if let Some(task) = abandoned {
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
        let single_flight = Arc::new(SingleFlight::<u8, u32>::default());
        let runs = Arc::new(AtomicUsize::new(0));
        let go = Arc::new(Notify::new());
        let waiters: Vec<_> = (0..1000)
            .map(|_| {
                let (single_flight, runs, go) =
                    (Arc::clone(&single_flight), Arc::clone(&runs), Arc::clone(&go));
                tokio::spawn(async move {
                    single_flight
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
        assert_eq!(single_flight.len(), 0);
    }

    #[tokio::test]
    async fn who_started_it_may_go_and_the_others_still_get_the_result() {
        let single_flight = Arc::new(SingleFlight::<u8, u32>::default());
        let go = Arc::new(Notify::new());
        let first = tokio::spawn({
            let (single_flight, go) = (Arc::clone(&single_flight), Arc::clone(&go));
            async move {
                single_flight
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
        while single_flight.len() == 0 {
            tokio::task::yield_now().await;
        }
        let second = tokio::spawn({
            let single_flight = Arc::clone(&single_flight);
            async move { single_flight.join(1, || None, || async { unreachable!() }).await }
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
        let single_flight = SingleFlight::<u8, u32>::default();
        let dropped = Arc::new(AtomicUsize::new(0));
        let flag = Flag(Arc::clone(&dropped));
        let joined = single_flight.join(
            1,
            || None,
            || async move {
                let _flag = flag;
                std::future::pending::<u32>().await
            },
        );
        assert!(tokio::time::timeout(Duration::from_millis(10), joined).await.is_err());
        assert_eq!(single_flight.len(), 0);
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
        let single_flight = SingleFlight::<u8, u32>::default();
        assert_eq!(
            single_flight.join(1, || None, || async { panic!("on purpose") }).await,
            Err(CallLost)
        );
        assert_eq!(single_flight.join(1, || None, || async { 3 }).await, Ok(3));
    }

    /// The bookkeeping under loom: a leader that is cancelled, a follower that stays, and the work.
    mod model {
        use loom::sync::atomic::{AtomicBool, AtomicU64};
        use loom::sync::{Arc, Mutex};
        use loom::thread;

        use super::super::*;
        use std::sync::atomic::Ordering;

        /// What a flight has come to.
        #[derive(Default)]
        struct Work {
            told: AtomicBool,
            aborted: AtomicBool,
        }

        struct Sky {
            board: Mutex<Board<u8, Arc<Work>, Arc<Work>>>,
            /// The value is there for whoever comes later.
            landed: AtomicBool,
            next: AtomicU64,
            tasks: Mutex<Vec<thread::JoinHandle<()>>>,
        }

        impl Sky {
            /// As [`SingleFlight::join`], up to where it waits: `None`: it has the value.
            fn join(sky: &Arc<Self>) -> Option<(u64, Arc<Work>)> {
                let mut begins = false;
                let landed = || sky.landed.load(Ordering::Acquire).then_some(());
                let begin = || {
                    begins = true;
                    (sky.next.fetch_add(1, Ordering::Relaxed), Arc::default())
                };
                let joined = sky.board.lock().unwrap().join(1, landed, begin);
                let JoinOutcome::Waits { number, result } = joined else { return None };
                if begins {
                    let (own, work) = (Arc::clone(sky), Arc::clone(&result));
                    let task = thread::spawn(move || {
                        // An abort takes the task at its next step, and it lands all the same.
                        if work.aborted.load(Ordering::Acquire) {
                            return own.board.lock().unwrap().finish(&1, number);
                        }
                        own.landed.store(true, Ordering::Release);
                        own.board.lock().unwrap().finish(&1, number);
                        work.told.store(true, Ordering::Release);
                    });
                    sky.tasks.lock().unwrap().push(task);
                    sky.board.lock().unwrap().start(&1, number, Arc::clone(&result));
                }
                Some((number, result))
            }

            fn leave(&self, number: u64) {
                let abandoned = self.board.lock().unwrap().leave(&1, number);
                if let Some(work) = abandoned {
                    work.aborted.store(true, Ordering::Release);
                }
            }
        }

        #[test]
        fn who_stays_gets_the_result_although_the_leader_is_cancelled() {
            // All orders would take hours; those with three interruptions at most take seconds.
            let mut orders = loom::model::Builder::new();
            orders.preemption_bound = Some(3);
            orders.check(|| {
                let sky = Arc::new(Sky {
                    board: Mutex::new(Board { under_way: HashMap::new() }),
                    landed: AtomicBool::new(false),
                    next: AtomicU64::new(0),
                    tasks: Mutex::new(Vec::new()),
                });
                let leader = thread::spawn({
                    let sky = Arc::clone(&sky);
                    move || {
                        if let Some((number, _)) = Sky::join(&sky) {
                            sky.leave(number);
                        }
                    }
                });
                let stays = Sky::join(&sky);
                leader.join().unwrap();
                // Whoever began a task has listed it by now.
                let tasks = std::mem::take(&mut *sky.tasks.lock().unwrap());
                tasks.into_iter().for_each(|task| task.join().unwrap());
                match stays {
                    None => assert!(sky.landed.load(Ordering::Acquire)),
                    Some((number, work)) => {
                        assert!(!work.aborted.load(Ordering::Acquire), "somebody waits for it");
                        assert!(work.told.load(Ordering::Acquire));
                        sky.leave(number);
                    }
                }
                assert!(sky.board.lock().unwrap().under_way.is_empty());
            });
        }
    }
}
