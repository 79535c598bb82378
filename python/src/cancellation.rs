//! Cancellation of the calls of a thread.

use std::cell::RefCell;

use pyo3::exceptions::asyncio::CancelledError;
use pyo3::prelude::*;
use tokio_util::sync::CancellationToken;

thread_local! {
    /// That of the call which runs in this thread, if it has one.
    static CURRENT: RefCell<Option<CancellationToken>> = const { RefCell::new(None) };
}

/// Cancels the waits of one call, which runs in another thread.
#[pyclass(frozen, module = "iovcache._native")]
pub(crate) struct Cancellation {
    token: CancellationToken,
}

#[pymethods]
impl Cancellation {
    #[new]
    fn new() -> Self {
        Self { token: CancellationToken::new() }
    }

    /// Calls `work`, unless this is cancelled. As soon as it is, the waits of `work` raise
    /// `CancelledError`.
    fn run(&self, work: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        if self.token.is_cancelled() {
            return Err(cancelled());
        }
        let before = CURRENT.replace(Some(self.token.clone()));
        let answer = work.call0();
        CURRENT.set(before);
        Ok(answer?.unbind())
    }

    /// Ends the wait of the call, and those that it begins later.
    fn cancel(&self) {
        self.token.cancel();
    }
}

/// The token of the call that runs in this thread: one that is never cancelled by default.
pub(crate) fn token() -> CancellationToken {
    CURRENT.with_borrow(|current| current.clone().unwrap_or_default())
}

/// The exception for a cancelled call.
pub(crate) fn cancelled() -> PyErr {
    CancelledError::new_err("the call is cancelled")
}
