//! One runtime per process, calls that signals interrupt, and values that a forked child does not
//! touch.

use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::Duration;

use iovcache::client::ClientError;
use iovcache::shm::attach::process_generation;
use pyo3::prelude::*;
use tokio::runtime::{Builder, Runtime};

use crate::{cancellation, error};

/// Interval at which a waiting call checks for signals.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(100);

struct OfProcess {
    generation: u64,
    runtime: Runtime,
}

/// The runtime of this process. A parent's runtime is abandoned: its threads do not run here.
fn runtime() -> PyResult<&'static Runtime> {
    static CURRENT: AtomicPtr<OfProcess> = AtomicPtr::new(std::ptr::null_mut());
    let generation = process_generation();
    loop {
        let current = CURRENT.load(Ordering::Acquire);
        // SAFETY: null, or leaked below and never freed.
        if let Some(known) = unsafe { current.as_ref() }
            && known.generation == generation
        {
            return Ok(&known.runtime);
        }
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("iovcache")
            .enable_all()
            .build()
            .map_err(|error| {
                let what = "cannot start a thread".to_owned();
                error::of_client(ClientError::Io { what, error })
            })?;
        let new = Box::into_raw(Box::new(OfProcess { generation, runtime }));
        if CURRENT.compare_exchange(current, new, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            // SAFETY: made above, and published nowhere.
            drop(unsafe { Box::from_raw(new) });
        }
    }
}

/// Runs a call to its end without the GIL. It is dropped when a signal handler raises, or when the
/// [`Cancellation`](crate::cancellation::Cancellation) that it runs under is cancelled.
pub(crate) fn wait<T: Send>(
    py: Python<'_>,
    call: impl Future<Output = Result<T, ClientError>> + Send,
) -> PyResult<T> {
    let runtime = runtime()?;
    let token = cancellation::token();
    let mut call = std::pin::pin!(token.run_until_cancelled(call));
    loop {
        let turn = py.detach(|| {
            runtime.block_on(async { tokio::time::timeout(SIGNAL_INTERVAL, &mut call).await })
        });
        match turn {
            Ok(Some(answered)) => return answered.map_err(error::of_client),
            Ok(None) => return Err(cancellation::cancelled()),
            Err(_) => py.check_signals()?,
        }
    }
}

/// Like [`wait`], for a call that blocks its thread. A call that is cancelled leaves its thread behind.
pub(crate) fn wait_blocking<T: Send + 'static>(
    py: Python<'_>,
    call: impl FnOnce() -> Result<T, ClientError> + Send + 'static,
) -> PyResult<T> {
    wait(py, async {
        let answer = tokio::task::spawn_blocking(call).await;
        answer.unwrap_or(Err(ClientError::Closed { what: "thread of the call" }))
    })
}

/// Runs code that may start tasks, for instance a destructor.
fn within_runtime<T>(work: impl FnOnce() -> T) -> T {
    match runtime() {
        Ok(runtime) => {
            let _entered = runtime.enter();
            work()
        }
        Err(_) => work(),
    }
}

/// A value with connections and locks of the process that created it. A forked child neither uses
/// nor destroys it.
#[derive(Debug)]
pub(crate) struct OwnedByProcess<T> {
    value: ManuallyDrop<T>,
    generation: u64,
}

impl<T> OwnedByProcess<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { value: ManuallyDrop::new(value), generation: process_generation() }
    }

    pub(crate) fn is_forked(&self) -> bool {
        self.generation != process_generation()
    }

    /// # Errors
    /// `ForkedProcess` in a forked child of the process that created it.
    pub(crate) fn get(&self) -> PyResult<&T> {
        match self.is_forked() {
            true => Err(error::of_client(ClientError::ForkedProcess)),
            false => Ok(&self.value),
        }
    }

    /// The value in any process, for code that only reads memory.
    pub(crate) fn get_anywhere(&self) -> &T {
        self.value.deref()
    }
}

impl<T> Drop for OwnedByProcess<T> {
    fn drop(&mut self) {
        if !self.is_forked() {
            // SAFETY: dropped once, here, and not used afterwards.
            within_runtime(|| unsafe { ManuallyDrop::drop(&mut self.value) });
        }
    }
}
