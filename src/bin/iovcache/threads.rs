//! The threads of the program are made at the start. If the system allows too few of them, the
//! start fails; without this a later request would panic or wait for ever.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use iovcache::sync::{Condvar, Mutex};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::signal::unix::{SignalKind, signal};

use crate::failure::Failure;

/// Threads that read files and make segments. Each thread keeps memory of its own: with tokio's
/// 512, ten thousand small objects take twice the memory.
const MAX_BLOCKING_THREADS: usize = 32;
/// Blocking threads that a service makes at its start.
const FIRST_BLOCKING_THREADS: usize = 4;
/// Threads outside the runtime: the log's, the disk tier's, and one to spare.
const OTHER_THREADS: usize = 3;
/// Time limit for the start of the first blocking threads.
const START_LIMIT: Duration = Duration::from_secs(2);
/// Idle threads are kept: the system may refuse a new one later.
const KEEP_ALIVE: Duration = Duration::from_secs(365 * 24 * 3600);

/// The runtime of a service, or of another command.
///
/// # Errors
/// [`Failure`] if the system does not allow enough threads.
pub(crate) fn runtime(is_service: bool) -> Result<Runtime, Failure> {
    let mut builder = Builder::new_multi_thread();
    if is_service {
        builder.thread_keep_alive(KEEP_ALIVE);
    }
    build(&mut builder, 1 + if is_service { OTHER_THREADS } else { 0 })
}

/// Builds a runtime in a process that has room for `others` more threads.
fn build(builder: &mut Builder, others: usize) -> Result<Runtime, Failure> {
    let workers = workers();
    builder.worker_threads(workers).max_blocking_threads(MAX_BLOCKING_THREADS).enable_all();
    // tokio panics where it cannot make its workers: the threads are tried first.
    try_threads(workers + others)?;
    builder.build().map_err(|error| Failure::io("cannot start", error))
}

/// The runtime for clients on TCP, beside that of the service. Dropped, it ends without waiting for
/// what blocks.
pub(crate) struct NetworkRuntime(Option<Runtime>);

impl NetworkRuntime {
    /// Starts it with its first blocking threads.
    ///
    /// # Errors
    /// [`Failure`] if the system does not allow enough threads.
    pub(crate) async fn start() -> Result<(Self, Handle), Failure> {
        let mut builder = Builder::new_multi_thread();
        builder.thread_keep_alive(KEEP_ALIVE).thread_name("iovcache-net");
        let runtime = build(&mut builder, 1)?;
        let handle = runtime.handle().clone();
        let runtime = Self(Some(runtime));
        let _ = handle.spawn(start_blocking_threads()).await;
        Ok((runtime, handle))
    }
}

impl Drop for NetworkRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Number of worker threads that tokio makes by default.
fn workers() -> usize {
    let named = std::env::var("TOKIO_WORKER_THREADS").ok().and_then(|text| text.parse().ok());
    let possible = || std::thread::available_parallelism().map_or(1, usize::from);
    named.filter(|&count| count > 0).unwrap_or_else(possible)
}

/// Makes `count` threads at the same time and ends them.
///
/// # Errors
/// [`Failure`] if the system does not allow that many threads.
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

/// Makes the first blocking threads; must be called within the runtime. The system may allow fewer
/// of them.
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

/// Turns SIGXFSZ (a file grew beyond `ulimit -f`), which ends the process by default, into an error
/// of the write. Must be called within the runtime.
pub(crate) fn outlive_file_limits() {
    // Once installed, tokio's handler stays installed.
    if let Err(error) = signal(SignalKind::from_raw(libc::SIGXFSZ)) {
        tracing::debug!(%error, "SIGXFSZ keeps its default");
    }
}

/// Threads wait here until the gate opens.
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
