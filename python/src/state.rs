//! The state of a table while it is open, shared with its columns.
//!
//! ```text
//!  NativeTable ─┐                ┌─▶ Shared: the client's table, which holds the lease
//!               ├─▶ State ─open──┘      ▲
//!  Column ──────┘     │ cache           │
//!                     └─▶ one Object per run
//! ```
//!
//! Closing empties the state. The lease then lasts until the last object in use is destroyed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use iovcache::client::{Client, Table};
use iovcache::sync::Mutex;
use pyo3::prelude::*;

use crate::error;
use crate::object::{Pin, new_object};
use crate::process::OwnedByProcess;
use crate::runs::RunIndex;
use crate::shared::Shared;

/// The part of a column that does not need the open table.
pub(crate) struct ColumnState {
    pub(crate) name: String,
    pub(crate) path: String,
    pub(crate) runs: RunIndex,
    /// The object of each run, after the first access; Python's `None` for null cells.
    cache: Mutex<Vec<Option<Py<PyAny>>>>,
}

/// A table while it is open.
pub(crate) struct State {
    open: Mutex<Option<Arc<Shared>>>,
    closed: AtomicBool,
    pub(crate) columns: Vec<ColumnState>,
    pub(crate) rows: usize,
}

impl State {
    pub(crate) fn new(client: Arc<OwnedByProcess<Client>>, table: Table) -> Self {
        let fields = table.schema().fields().iter();
        let paths = fields.filter_map(|field| field.metadata().get("url").cloned());
        let columns = table.columns().zip(paths).filter_map(|(name, path)| {
            let runs = RunIndex::new(table.column(name).ok()?.ends());
            let cache = Mutex::default();
            Some(ColumnState { name: name.to_owned(), path, runs, cache })
        });
        let (columns, rows) = (columns.collect(), table.rows());
        let open = Mutex::new(Some(Arc::new(Shared::new(client, table))));
        Self { open, closed: AtomicBool::new(false), columns, rows }
    }

    /// The table and lease that its objects keep alive.
    ///
    /// # Errors
    /// `FailedPrecondition` after the table was closed.
    pub(crate) fn shared(&self) -> PyResult<Arc<Shared>> {
        self.open.lock().clone().ok_or_else(|| error::closed("table"))
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// The object of a run; Python's `None` if the cells are null.
    #[inline]
    pub(crate) fn object(&self, py: Python<'_>, column: usize, run: usize) -> PyResult<Py<PyAny>> {
        if self.is_closed() {
            return Err(error::closed("table"));
        }
        if let Some(Some(known)) = self.columns[column].cache.lock().get(run) {
            return Ok(known.clone_ref(py));
        }
        self.new_object(py, column, run)
    }

    #[cold]
    fn new_object(&self, py: Python<'_>, column: usize, run: usize) -> PyResult<Py<PyAny>> {
        let shared = self.shared()?;
        let state = &self.columns[column];
        let table = shared.table.get_anywhere();
        let bytes = table.column(&state.name).and_then(|found| found.run(run));
        let bytes = bytes.map_err(error::of_client)?.map(std::ptr::from_ref);
        let made = match bytes {
            None => py.None(),
            Some(bytes) => {
                let (start, end) = state.runs.bounds(run).unwrap_or_default();
                let pin =
                    Pin::new(Arc::clone(&shared), &state.name, &state.path, start..end, bytes);
                new_object(py, pin)?
            }
        };
        let mut cache = state.cache.lock();
        if self.is_closed() {
            // Closed in the meantime: the object is not cached.
            return Ok(made);
        }
        if cache.len() < state.runs.len() {
            cache.resize_with(state.runs.len(), || None);
        }
        // If another thread has stored an object in the meantime, that one is used.
        Ok(cache[run].get_or_insert(made).clone_ref(py))
    }

    /// Closes the table. Returns whether objects are still in use.
    pub(crate) fn close(&self) -> bool {
        let Some(shared) = self.open.lock().take() else { return false };
        self.closed.store(true, Ordering::Release);
        for column in &self.columns {
            let cached = std::mem::take(&mut *column.cache.lock());
            drop(cached);
        }
        Arc::strong_count(&shared) > 1
    }
}
