//! Single flight: concurrent requests for one key share one call.
//!
//! ```text
//!  join(key) ──first──▶ task ──▶ result ──▶ every waiter
//!  join(key) ──later──▶  │ waits
//!  the last waiter is dropped ──▶ the task is cancelled
//! ```
//!
//! The work runs in its own task, so no caller is its leader: when one caller is cancelled, the
//! others still get the result. A failure is shared like a success. The task is aborted only when
//! no waiter is left, so the deadline of a caller also reaches the source.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::sync::Mutex;

/// The task of a call ended without a result: it panicked, or its runtime is shutting down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CallLost;

/// All calls in progress, by key, with result channels and abort handles.
#[derive(Debug)]
pub(crate) struct SingleFlight<K: Eq + Hash, V> {
    calls: SharedCallTable<K, watch::Receiver<Option<V>>, AbortHandle>,
}

type SharedCallTable<K, R, T> = Arc<Mutex<CallTable<K, R, T>>>;

/// A task that can be cancelled.
trait Abort {
    fn abort(&self);
}

impl Abort for AbortHandle {
    fn abort(&self) {
        self.abort();
    }
}

/// The calls in progress, each with the number of its waiters. Generic over channel and task, so
/// that the model below runs this code with threads in place of tasks.
#[derive(Debug)]
struct CallTable<K, R, T> {
    under_way: HashMap<K, Call<R, T>>,
}

/// A call in progress under one key, and the number of those that wait for its result.
#[derive(Debug)]
struct Call<R, T> {
    /// Distinguishes a call from its successor under the same key.
    number: u64,
    waiting: usize,
    result: R,
    task: Option<T>,
}

/// The result of joining a call.
enum JoinOutcome<V, R> {
    /// The call is in progress or has just been added.
    Waits { number: u64, result: R },
    /// The result has just arrived.
    Landed(V),
}

impl<K: Eq + Hash, R: Clone, T> CallTable<K, R, T> {
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

    /// Records the task that does the work of a call.
    fn start(&mut self, key: &K, number: u64, task: T) {
        if let Some(flight) = self.under_way.get_mut(key).filter(|flight| flight.number == number) {
            flight.task = Some(task);
        }
    }

    /// Removes a call whose work has ended, with or without a result.
    fn finish(&mut self, key: &K, number: u64) {
        if self.under_way.get(key).is_some_and(|flight| flight.number == number) {
            self.under_way.remove(key);
        }
    }

    /// Removes one waiter; after the last one returns the task, which is to be aborted.
    fn leave(&mut self, key: &K, number: u64) -> Option<T> {
        let flight = self.under_way.get_mut(key).filter(|flight| flight.number == number)?;
        flight.waiting -= 1;
        match flight.waiting {
            0 => self.under_way.remove(key)?.task,
            _ => None,
        }
    }
}

/// The next step of a caller.
enum JoinStep<V, W> {
    /// The caller waits.
    Waits(W),
    /// The caller has its result.
    Landed(V),
}

/// Joins the call of `key`, or starts it: `begin` makes the channel, and `start` the task, which
/// drops the guard after its work and before it sends the result.
fn join_or_start<K: Clone + Eq + Hash, V, R: Clone, S, T: Abort>(
    calls: &SharedCallTable<K, R, T>,
    key: K,
    landed: impl FnOnce() -> Option<V>,
    begin: impl FnOnce() -> (S, R),
    start: impl FnOnce(S, CallGuard<K, R, T>) -> T,
) -> JoinStep<V, Waiter<K, R, T>> {
    let mut sender = None;
    let begin = || {
        let (tells, result) = begin();
        sender = Some(tells);
        (next_number(), result)
    };
    let joined = calls.lock().join(key.clone(), landed, begin);
    let waiter = match joined {
        JoinOutcome::Landed(value) => return JoinStep::Landed(value),
        JoinOutcome::Waits { number, result } => {
            Waiter { calls: Arc::clone(calls), key, number, result }
        }
    };
    if let Some(sender) = sender {
        let (calls, key, number) = (Arc::clone(calls), waiter.key.clone(), waiter.number);
        // Not under the lock: a runtime that shuts down drops the task at once, and with it the
        // guard, which takes the lock.
        let task = start(sender, CallGuard { calls, key, number });
        waiter.calls.lock().start(&waiter.key, waiter.number, task);
    }
    JoinStep::Waits(waiter)
}

impl<K: Eq + Hash, V> Default for SingleFlight<K, V> {
    fn default() -> Self {
        Self { calls: Arc::new(Mutex::new(CallTable { under_way: HashMap::new() })) }
    }
}

impl<K, V> SingleFlight<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Joins the call of `key`, or starts it with the future that `work` makes.
    ///
    /// `landed` is called under the lock before a new call starts: a result that has just arrived
    /// is returned instead.
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
        let start = |sender: watch::Sender<Option<V>>, guard: CallGuard<_, _, _>| {
            let future = work();
            let task = tokio::spawn(async move {
                let value = future.await;
                // Removed before the result is sent: later callers find it through `landed`.
                drop(guard);
                sender.send_replace(Some(value));
            });
            task.abort_handle()
        };
        let joined = join_or_start(&self.calls, key, landed, || watch::channel(None), start);
        let mut waiter = match joined {
            JoinStep::Landed(value) => return Ok(value),
            JoinStep::Waits(waiter) => waiter,
        };
        match waiter.result.wait_for(Option::is_some).await {
            Ok(value) => value.clone().ok_or(CallLost),
            Err(_) => Err(CallLost),
        }
    }

    /// Number of calls in progress.
    #[cfg(all(test, not(feature = "loom")))]
    fn len(&self) -> usize {
        self.calls.lock().under_way.len()
    }
}

fn next_number() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Removes a call when its task ends, with or without a result.
struct CallGuard<K: Eq + Hash, R: Clone, T> {
    calls: SharedCallTable<K, R, T>,
    key: K,
    number: u64,
}

impl<K: Eq + Hash, R: Clone, T> Drop for CallGuard<K, R, T> {
    fn drop(&mut self) {
        self.calls.lock().finish(&self.key, self.number);
    }
}

/// A waiter for a call; dropping the last waiter cancels the task.
struct Waiter<K: Eq + Hash, R: Clone, T: Abort> {
    calls: SharedCallTable<K, R, T>,
    key: K,
    number: u64,
    result: R,
}

impl<K: Eq + Hash, R: Clone, T: Abort> Drop for Waiter<K, R, T> {
    fn drop(&mut self) {
        let abandoned = self.calls.lock().leave(&self.key, self.number);
        if let Some(task) = abandoned {
            task.abort();
        }
    }
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn a_thousand_callers_of_one_key_start_one_call() {
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
    async fn the_first_caller_may_be_cancelled_and_the_others_still_get_the_result() {
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
    async fn the_work_is_cancelled_when_its_last_waiter_is_gone() {
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
}

/// One caller that is cancelled, one that stays, and the work of both, under loom.
#[cfg(all(test, feature = "loom"))]
mod loom_model {
    use std::sync::atomic::Ordering;

    use loom::thread;

    use super::*;
    use crate::sync::atomic::AtomicBool;

    /// The outcome of a call. Stands for its channel and its task.
    #[derive(Default)]
    struct Work {
        told: AtomicBool,
        aborted: AtomicBool,
    }

    impl Abort for Arc<Work> {
        fn abort(&self) {
            self.aborted.store(true, Ordering::Release);
        }
    }

    struct Calls {
        calls: SharedCallTable<u8, Arc<Work>, Arc<Work>>,
        /// The value is available to later callers.
        landed: AtomicBool,
        tasks: Mutex<Vec<thread::JoinHandle<()>>>,
    }

    type Joined = JoinStep<(), Waiter<u8, Arc<Work>, Arc<Work>>>;

    impl Calls {
        /// Like [`SingleFlight::join`] up to the wait, with a thread as the task.
        fn join(calls: &Arc<Self>) -> Joined {
            let landed = || calls.landed.load(Ordering::Acquire).then_some(());
            let begin = || {
                let work = Arc::<Work>::default();
                (Arc::clone(&work), work)
            };
            let start = |work: Arc<Work>, guard| {
                let (own, task) = (Arc::clone(calls), Arc::clone(&work));
                let thread = thread::spawn(move || {
                    // An aborted task ends at its next step; if it is past that, it delivers its
                    // result.
                    if task.aborted.load(Ordering::Acquire) {
                        return drop(guard);
                    }
                    own.landed.store(true, Ordering::Release);
                    drop(guard);
                    task.told.store(true, Ordering::Release);
                });
                calls.tasks.lock().push(thread);
                work
            };
            join_or_start(&calls.calls, 1, landed, begin, start)
        }
    }

    #[test]
    fn a_caller_that_stays_gets_the_result_although_the_first_is_cancelled() {
        // All orders would take hours; those with at most three preemptions take seconds.
        let mut orders = loom::model::Builder::new();
        orders.preemption_bound = Some(3);
        orders.check(|| {
            let calls = Arc::new(Calls {
                calls: Arc::new(Mutex::new(CallTable { under_way: HashMap::new() })),
                landed: AtomicBool::new(false),
                tasks: Mutex::default(),
            });
            let leader = thread::spawn({
                let calls = Arc::clone(&calls);
                move || drop(Calls::join(&calls))
            });
            let stays = Calls::join(&calls);
            leader.join().unwrap();
            // By now every started task is in the list.
            let tasks = std::mem::take(&mut *calls.tasks.lock());
            tasks.into_iter().for_each(|task| task.join().unwrap());
            match stays {
                JoinStep::Landed(()) => assert!(calls.landed.load(Ordering::Acquire)),
                JoinStep::Waits(waiter) => {
                    assert!(!waiter.result.aborted.load(Ordering::Acquire), "a caller waits");
                    assert!(waiter.result.told.load(Ordering::Acquire));
                }
            }
            assert!(calls.calls.lock().under_way.is_empty());
        });
    }
}
