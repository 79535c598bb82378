//! Descriptors for event loops.

use std::os::fd::AsRawFd as _;

use iovcache::client::PlaneEvent;
use iovcache::sync::Mutex;
use pyo3::prelude::*;

use crate::error;

/// A descriptor that becomes readable once, and stays readable.
#[pyclass(frozen, module = "iovcache._native")]
pub(crate) struct NativeEvent {
    event: Mutex<Option<PlaneEvent>>,
}

impl NativeEvent {
    pub(crate) fn new(event: PlaneEvent) -> Self {
        Self { event: Mutex::new(Some(event)) }
    }
}

#[pymethods]
impl NativeEvent {
    /// The descriptor, open until `close`.
    fn fileno(&self) -> PyResult<i32> {
        let event = self.event.lock();
        event.as_ref().map(|event| event.as_raw_fd()).ok_or_else(|| error::closed("event"))
    }

    /// Closes the descriptor.
    fn close(&self) {
        drop(self.event.lock().take());
    }
}
