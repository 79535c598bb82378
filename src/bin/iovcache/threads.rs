//! The threads of the program, made at the start: where the system allows no more of them, that is
//! an error then, and not a panic or a request that waits for ever later.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use iovcache::sync::{Condvar, Mutex};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

use crate::failure::Failure;

/// Threads that read files and make segments. Each thread keeps memory of its own: with tokio's
/// 512, ten thousand small objects cost twice as much as they need.
const MAX_BLOCKING_THREADS: usize = 32;
/// Of these, threads that a service makes at its start.
const FIRST_BLOCKING_THREADS: usize = 4;
/// Threads beside those of the runtime: the log's, the disk tier's, and one to spare.
const OTHER_THREADS: usize = 3;
/// Longest time that the first blocking threads take to come up.
const START_LIMIT: Duration = Duration::from_secs(2);
/// Idle threads are kept: a thread that was given back may not be had again.
const KEEP_ALIVE: Duration = Duration::from_secs(365 * 24 * 3600);

/// The runtime of a service, or of another command.
pub(crate) fn runtime(is_service: bool) -> Result<Runtime, Failure> {
    let mut builder = Builder::new_multi_thread();
    builder.max_blocking_threads(MAX_BLOCKING_THREADS).enable_all();
    if is_service {
        builder.thread_keep_alive(KEEP_ALIVE);
    }
    let workers = workers();
    builder.worker_threads(workers);
    // tokio panics where it cannot make its workers. So it is tried before.
    try_threads(workers + 1 + if is_service { OTHER_THREADS } else { 0 })?;
    builder.build().map_err(|error| Failure::io("cannot start", error))
}

/// As many as tokio would make by itself.
fn workers() -> usize {
    let named = std::env::var("TOKIO_WORKER_THREADS").ok().and_then(|text| text.parse().ok());
    let possible = || std::thread::available_parallelism().map_or(1, usize::from);
    named.filter(|&count| count > 0).unwrap_or_else(possible)
}

/// Whether `count` threads can be made at a time.
fn try_threads(count: usize) -> Result<(), Failure> {
    let gate = Arc::new(Gate::default());
    let made: io::Result<Vec<_>> = (0..count)
        .map(|_| {
            let gate = Arc::clone(&gate);
            std::thread::Builder::new().stack_size(64 << 10).spawn(move || gate.wait(START_LIMIT))
        })
        .collect();
    gate.open();
    let failed = |error| {
        let what = format!(
            "cannot make {count} threads; raise the limit of processes (ulimit -u, TasksMax=, the \
             container's pids limit)"
        );
        Failure::io(what, error)
    };
    for thread in made.map_err(failed)? {
        let _ = thread.join();
    }
    Ok(())
}

/// Makes the first blocking threads, within the runtime. Fewer than wanted are enough.
pub(crate) async fn start_blocking_threads() {
    let gate = Arc::new(Gate::default());
    let waiting: Vec<_> = (0..FIRST_BLOCKING_THREADS)
        .map(|_| {
            let gate = Arc::clone(&gate);
            tokio::task::spawn_blocking(move || gate.wait(START_LIMIT))
        })
        .collect();
    let mut up = 0;
    for _ in 0..START_LIMIT.as_millis() / 2 {
        up = gate.waiting();
        if up == FIRST_BLOCKING_THREADS {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    gate.open();
    for thread in waiting {
        let _ = thread.await;
    }
    if up < FIRST_BLOCKING_THREADS {
        tracing::warn!(
            threads = up,
            wanted = FIRST_BLOCKING_THREADS,
            "the system allows few threads (ulimit -u, TasksMax=): loading objects takes turns"
        );
    }
}

/// Makes SIGXFSZ (a file grew beyond `ulimit -f`) an error of the write. By default it ends the
/// process. Within the runtime.
pub(crate) fn outlive_file_limits() {
    // Once installed, tokio's handler stays.
    if let Err(error) = signal(SignalKind::from_raw(libc::SIGXFSZ)) {
        tracing::debug!(%error, "SIGXFSZ keeps its default");
    }
}

/// Threads wait here together until it is opened.
#[derive(Debug, Default)]
struct Gate {
    state: Mutex<GateState>,
    opened: Condvar,
}

#[derive(Debug, Default)]
struct GateState {
    waiting: usize,
    is_open: bool,
}

impl Gate {
    fn wait(&self, limit: Duration) {
        let mut state = self.state.lock();
        state.waiting += 1;
        let waited = self.opened.wait_timeout_while(state, limit, |state| !state.is_open);
        drop(waited);
    }

    fn waiting(&self) -> usize {
        self.state.lock().waiting
    }

    fn open(&self) {
        self.state.lock().is_open = true;
        self.opened.notify_all();
    }
}
