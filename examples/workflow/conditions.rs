//! The device that provides the conditions: it embeds the cache, without a server.
//!
//! ```text
//!  source ──timestamps, runs──▶ register ──▶ table per consumer ──▶ consumers
//!  sink ──oldest possible──▶ consumed                            │ attach socket
//!                            cache ◀─────────────────────────────┘
//! ```

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use arrow_array::RecordBatch;
use iovcache::cache::{CacheError, Caller, PeerPolicy};
use iovcache::shm::PoolOptions;
use iovcache::source::repository::{RepositoryOptions, RepositorySource};
use iovcache::table::{Consumed, Register, Request, rows_from_batches};
use iovcache::{Cache, Coded as _, ErrorKind};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::runtime::{Handle, Runtime};
use tokio_util::sync::CancellationToken;

use crate::channel::{Message, accept, connect, frame, receive, send};
use crate::columns::Column;
use crate::device::{MemoryPoint, Order, Told, on_orders, tell};
use crate::plan::{Plan, Seat};
use crate::{Outcome, PATIENCE};

/// Interval between its status lines.
const TICK: Duration = Duration::from_millis(25);

/// State at the end of the run, and counters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CacheReport {
    pub(crate) pinned_bytes: u64,
    pub(crate) in_flight: u64,
    pub(crate) sessions: u64,
    /// Failures of the consistency check.
    pub(crate) faults: Vec<String>,
    /// Tables that could not be made for live consumers.
    pub(crate) errors: Vec<String>,
    /// Tables whose consumer was gone.
    pub(crate) undelivered: u64,
    pub(crate) loads: u64,
    pub(crate) hits: u64,
    pub(crate) evictions: u64,
    /// Sessions whose process died while it held objects.
    pub(crate) ended_holding: u64,
}

struct Outlet {
    seat: Seat,
    session: String,
    frames: mpsc::Sender<Vec<u8>>,
}

struct Shared {
    cache: Cache,
    plan: Plan,
    handle: Handle,
    /// By name of the consumer.
    outlets: Mutex<BTreeMap<String, Outlet>>,
    errors: Mutex<Vec<String>>,
    undelivered: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn run(plan: &Plan, seat: &Seat) -> Outcome<()> {
    let runtime = Runtime::new()?;
    let source = RepositorySource::open_folder(&plan.repository, RepositoryOptions::default())?;
    let memory = PoolOptions {
        memory_bytes: plan.memory_bytes,
        segment_bytes: plan.segment_bytes,
        ..PoolOptions::default()
    };
    let entered = runtime.enter();
    let cache = Cache::builder().source(Arc::new(source)).memory(memory).build()?;
    let attach = tokio::net::UnixListener::bind(plan.socket("attach"))?;
    let stop = CancellationToken::new();
    runtime.spawn({
        let (cache, stop) = (cache.clone(), stop.clone());
        async move { cache.serve_attach(attach, PeerPolicy::default(), stop).await }
    });
    drop(entered);
    let shared = Arc::new(Shared {
        cache: cache.clone(),
        plan: plan.clone(),
        handle: runtime.handle().clone(),
        outlets: Mutex::default(),
        errors: Mutex::default(),
        undelivered: AtomicU64::new(0),
    });
    accept(&plan.socket("cache"), {
        let shared = Arc::clone(&shared);
        move |seat, session, stream| match session {
            Some(session) => shared.attend_consumer(seat, session, &stream),
            None => shared.attend_source(&stream),
        }
    })?;
    let stopping = Arc::new(AtomicBool::new(false));
    on_orders({
        let stopping = Arc::clone(&stopping);
        move |order| {
            if order == Order::Stop {
                stopping.store(true, Ordering::Release);
            }
        }
    });
    let feedback = connect(&plan.socket("sink"), seat, None)?;
    std::thread::spawn({
        let shared = Arc::clone(&shared);
        move || {
            while let Ok(Some((Message::OldestPossible { timeslice, .. }, _))) = receive(&feedback)
            {
                shared.release_below(timeslice);
            }
        }
    });
    tell(&Told::Ready);
    let began = Instant::now();
    while !stopping.load(Ordering::Acquire) {
        shared.say_how_it_is(began);
        std::thread::sleep(TICK);
    }
    // The last sessions end when the kernel reports the end of their processes.
    let deadline = Instant::now() + PATIENCE / 10;
    let mut report = shared.report();
    while (report.pinned_bytes > 0 || report.sessions > 0 || !report.faults.is_empty())
        && Instant::now() < deadline
    {
        std::thread::sleep(Duration::from_millis(10));
        report = shared.report();
    }
    shared.say_how_it_is(began);
    tell(&Told::Ended(json!(report)));
    stop.cancel();
    cache.close();
    runtime.shutdown_timeout(PATIENCE / 10);
    Ok(())
}

impl Shared {
    fn attend_consumer(&self, seat: Seat, session: String, stream: &UnixStream) {
        let (frames, queue) = mpsc::channel::<Vec<u8>>();
        let device = seat.device.clone();
        // Listed first: once welcomed, the consumer counts as connected. Its tables wait in the
        // queue, so the welcome is the first message.
        lock(&self.outlets).insert(device, Outlet { seat: seat.clone(), session, frames });
        if send(stream, &Message::Welcome, &[]).is_err() {
            let mut outlets = lock(&self.outlets);
            if outlets.get(&seat.device).is_some_and(|outlet| outlet.seat == seat) {
                outlets.remove(&seat.device);
            }
            return;
        }
        // Each consumer has a queue of its own: a slow one delays no other.
        for bytes in queue {
            use std::io::Write as _;
            if (&mut &*stream).write_all(&bytes).is_err() {
                break;
            }
        }
    }

    /// Registers timeframes in order: a timeframe that waits for memory waits only for earlier
    /// ones.
    fn attend_source(self: &Arc<Self>, stream: &UnixStream) {
        if send(stream, &Message::Welcome, &[]).is_err() {
            return;
        }
        while let Ok(Some((Message::Data { timeslice, seats }, table))) = receive(stream) {
            if let Err(error) = self.register(timeslice, &seats, &table) {
                self.error(format!("timeframe {timeslice}: {error}"));
                continue;
            }
            for seat in seats {
                let shared = Arc::clone(self);
                self.handle.spawn(async move {
                    match shared.deliver(timeslice, &seat).await {
                        Ok(true) => {}
                        Ok(false) => _ = shared.undelivered.fetch_add(1, Ordering::Relaxed),
                        Err(error) => {
                            let device = &seat.device;
                            shared.error(format!("timeframe {timeslice} for {device}: {error}"));
                        }
                    }
                });
            }
        }
    }

    fn register(&self, timeslice: u64, seats: &[Seat], table: &[RecordBatch]) -> Outcome<()> {
        let columns = Column::all(&self.plan);
        let columns: BTreeMap<_, _> =
            columns.iter().map(|column| (&column.name, column.request())).collect();
        let consumers: Vec<_> = seats.iter().map(|seat| &seat.device).collect();
        let register = json!({ "columns": columns, "consumers": consumers }).to_string();
        let register = Register::parse(register.as_bytes())?;
        let keys = self.cache.key_names(&register.columns).map_err(|error| error.message())?;
        let rows = rows_from_batches(table, &keys, |_| Ok::<_, CacheError>(()));
        let rows = rows.map_err(|error| error.message())?;
        let registered = self.cache.register(timeslice, rows, &register, None);
        self.handle.block_on(registered).map_err(|error| error.message())?;
        Ok(())
    }

    /// Sends a consumer its table. `false`: the consumer is gone.
    async fn deliver(&self, timeslice: u64, seat: &Seat) -> Result<bool, String> {
        let Some(session) = self.outlet(seat, |outlet| outlet.session.clone()) else {
            return Ok(false);
        };
        let request = json!({
            "timeframe": timeslice,
            "consumer": seat.device,
            "session": session,
            "encoding": "run_end",
            "missing": "null",
        });
        let request = Request::parse(request.to_string().as_bytes()).map_err(|e| e.to_string())?;
        let answer = match self.cache.answer(&request, &Caller::default()).await {
            Ok(answer) => answer,
            Err(error) if is_of_the_dead(&error) => return Ok(false),
            Err(error) => return Err(error.message()),
        };
        let table = answer.to_batches().map_err(|error| error.to_string())?;
        let bytes = frame(&Message::Conditions { timeslice }, &table).map_err(|e| e.to_string())?;
        let sent = self.outlet(seat, |outlet| outlet.frames.send(bytes).is_ok());
        Ok(sent == Some(true))
    }

    fn outlet<T>(&self, seat: &Seat, use_it: impl FnOnce(&Outlet) -> T) -> Option<T> {
        let outlets = lock(&self.outlets);
        outlets.get(&seat.device).filter(|outlet| outlet.seat == *seat).map(use_it)
    }

    /// Handles the sink's report: releases all that is held for these timeslices, for every
    /// consumer.
    fn release_below(&self, oldest_possible: u64) {
        for consumer in self.plan.instances() {
            if let Err(error) = self.cache.consumed(&Consumed::Below { oldest_possible, consumer })
            {
                self.error(error.message());
            }
        }
    }

    fn error(&self, what: String) {
        eprintln!("cache: {what}");
        lock(&self.errors).push(what);
    }

    fn say_how_it_is(&self, began: Instant) {
        let status = self.cache.status();
        let memory = &status.memory;
        let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        tell(&Told::Memory(MemoryPoint {
            millis: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            total_bytes: memory.total_bytes,
            used_bytes: memory.used_bytes,
            pinned_bytes: memory.pinned_bytes,
            in_flight: status.timeframes.len() as u64,
            sessions: status.sessions.len() as u64,
        }));
        tell(&Told::Line(format!(
            "{:.1} of {:.0} MiB pinned · {} timeframes in flight · {} sessions · {} evictions",
            mebibytes(memory.pinned_bytes),
            mebibytes(memory.total_bytes),
            status.timeframes.len(),
            status.sessions.len(),
            status.evictions,
        )));
    }

    fn report(&self) -> CacheReport {
        let (status, counters) = (self.cache.status(), self.cache.counters());
        CacheReport {
            pinned_bytes: status.memory.pinned_bytes,
            in_flight: status.timeframes.len() as u64,
            sessions: status.sessions.len() as u64,
            faults: self.cache.check().err().unwrap_or_default(),
            errors: lock(&self.errors).clone(),
            undelivered: self.undelivered.load(Ordering::Relaxed),
            loads: status.loads,
            hits: status.hits,
            evictions: status.evictions,
            ended_holding: counters.sessions_ended_holding.get(),
        }
    }
}

/// Whether a table failed because its session ended or its consumer no longer waits.
fn is_of_the_dead(error: &CacheError) -> bool {
    matches!(error.kind(), ErrorKind::FailedPrecondition | ErrorKind::NotFound)
}
