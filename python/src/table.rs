//! A table, and its state shared with columns and objects.
//!
//! ```text
//!  NativeTable ─┐                ┌─▶ Shared: the client's Table, which holds the lease
//!               ├─▶ State ─open──┘      ▲
//!  Column ──────┘     │ cache           │
//!                     └─▶ one Object per run
//! ```
//!
//! Closing empties the state. The lease then lasts until the last object in use is destroyed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray as _;
use arrow_array::types::Int64Type;
use arrow_schema::SchemaRef;
use iovcache::client::{Client, Table};
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyDict};

use crate::column::Column;
use crate::object::{Pin, new_object};
use crate::process::{OwnedByProcess, wait};
use crate::runs::RunIndex;
use crate::{arrow, error};

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Batches = (SchemaRef, Vec<RecordBatch>);

/// A table with its lease. Every object of the table keeps it alive.
pub(crate) struct Shared {
    client: Arc<OwnedByProcess<Client>>,
    pub(crate) table: OwnedByProcess<Table>,
    /// The objects view, after the first request for it.
    objects: Mutex<Option<Batches>>,
}

impl Shared {
    /// The objects view, requested from the service once.
    pub(crate) fn objects(&self, py: Python<'_>) -> PyResult<Batches> {
        if let Some(known) = lock(&self.objects).clone() {
            return Ok(known);
        }
        let objects = wait(py, self.client.get()?.objects(self.table.get()?))?;
        Ok(lock(&self.objects).insert(objects).clone())
    }

    /// The row of the objects view for the run of a column that begins at a given row.
    pub(crate) fn record<'py>(
        &self,
        py: Python<'py>,
        column: &str,
        row: usize,
    ) -> PyResult<Bound<'py, PyDict>> {
        let (_, batches) = self.objects(py)?;
        for batch in &batches {
            let (names, starts) =
                (batch.column_by_name("column"), batch.column_by_name("row_start"));
            let names = names.and_then(|names| names.as_string_opt::<i32>());
            let starts = starts.and_then(|starts| starts.as_primitive_opt::<Int64Type>());
            let (Some(names), Some(starts)) = (names, starts) else { continue };
            let found = (0..batch.num_rows())
                .find(|at| names.value(*at) == column && starts.value(*at) == row as i64);
            if let Some(at) = found {
                return record(py, batch, at);
            }
        }
        Err(error::invalid("the objects view does not have this run"))
    }
}

/// The fields of a row of the objects view that objects expose.
fn record<'py>(py: Python<'py>, batch: &RecordBatch, at: usize) -> PyResult<Bound<'py, PyDict>> {
    let record = PyDict::new(py);
    for name in ["path", "object_id", "cache"] {
        let texts = batch.column_by_name(name).and_then(|column| column.as_string_opt::<i32>());
        if let Some(texts) = texts {
            record.set_item(name, texts.value(at))?;
        }
    }
    for name in ["valid_from", "valid_until", "created"] {
        let numbers = batch.column_by_name(name);
        let numbers = numbers.and_then(|column| column.as_primitive_opt::<Int64Type>());
        if let Some(numbers) = numbers {
            record.set_item(name, numbers.value(at))?;
        }
    }
    let metadata = PyDict::new(py);
    if let Some(map) = batch.column_by_name("metadata").and_then(|one| one.as_map_opt()) {
        let entries = map.value(at);
        let texts = |place| entries.column(place).as_string_opt::<i32>();
        if let (Some(keys), Some(values)) = (texts(0), texts(1)) {
            for (key, value) in keys.iter().zip(values) {
                metadata.set_item(key, value)?;
            }
        }
    }
    record.set_item("metadata", metadata)?;
    Ok(record)
}

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
    rows: usize,
}

impl State {
    /// The table and lease that its objects keep alive.
    ///
    /// # Errors
    /// `FailedPrecondition` after the table was closed.
    pub(crate) fn shared(&self) -> PyResult<Arc<Shared>> {
        lock(&self.open).clone().ok_or_else(|| error::closed("table"))
    }

    /// The object of a run; Python's `None` if the cells are null.
    #[inline]
    pub(crate) fn object(&self, py: Python<'_>, column: usize, run: usize) -> PyResult<Py<PyAny>> {
        if self.closed.load(Ordering::Acquire) {
            return Err(error::closed("table"));
        }
        if let Some(Some(known)) = lock(&self.columns[column].cache).get(run) {
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
        let bytes = bytes.map_err(error::of_client)?;
        let made = match bytes.map(|bytes| (bytes.as_ptr(), bytes.len())) {
            None => py.None(),
            Some((address, length)) => {
                let pin = Pin::new(Arc::clone(&shared), state, run, address, length);
                new_object(py, pin)?
            }
        };
        let mut cache = lock(&state.cache);
        if self.closed.load(Ordering::Acquire) {
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
    fn close(&self) -> bool {
        let Some(shared) = lock(&self.open).take() else { return false };
        self.closed.store(true, Ordering::Release);
        for column in &self.columns {
            let cached = std::mem::take(&mut *lock(&column.cache));
            drop(cached);
        }
        Arc::strong_count(&shared) > 1
    }
}

/// A table; `iovcache.Table` wraps it.
#[pyclass(frozen, module = "iovcache._native")]
pub(crate) struct NativeTable {
    state: Arc<State>,
    metadata: HashMap<String, String>,
}

impl NativeTable {
    pub(crate) fn new(client: Arc<OwnedByProcess<Client>>, table: Table) -> Self {
        let fields = table.schema().fields().iter();
        let paths = fields.filter_map(|field| field.metadata().get("url").cloned());
        let columns = table.columns().zip(paths).filter_map(|(name, path)| {
            let runs = RunIndex::new(table.column(name).ok()?.ends());
            let cache = Mutex::default();
            Some(ColumnState { name: name.to_owned(), path, runs, cache })
        });
        let (columns, rows) = (columns.collect(), table.rows());
        let metadata = table.schema().metadata().clone();
        let table = OwnedByProcess::new(table);
        let shared = Arc::new(Shared { client, table, objects: Mutex::default() });
        let open = Mutex::new(Some(shared));
        let state = State { open, closed: AtomicBool::new(false), columns, rows };
        Self { state: Arc::new(state), metadata: metadata.into() }
    }
}

#[pymethods]
impl NativeTable {
    /// Number of rows.
    #[getter]
    fn rows(&self) -> usize {
        self.state.rows
    }

    /// The columns of objects, in order.
    fn columns(&self) -> Vec<(String, Column)> {
        let columns = self.state.columns.iter().enumerate();
        columns
            .map(|(place, column)| {
                (column.name.clone(), Column::new(Arc::clone(&self.state), place))
            })
            .collect()
    }

    /// A value of the schema's metadata.
    fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// The table as an Arrow stream.
    fn arrow(&self) -> PyResult<ArrowStream> {
        let shared = self.state.shared()?;
        let table = shared.table.get()?;
        Ok(ArrowStream { batches: (Arc::clone(table.schema()), table.batches().to_vec()) })
    }

    /// The objects view as an Arrow stream.
    fn objects(&self, py: Python<'_>) -> PyResult<ArrowStream> {
        Ok(ArrowStream { batches: self.state.shared()?.objects(py)? })
    }

    /// Whether the table is closed.
    #[getter]
    fn closed(&self) -> bool {
        self.state.closed.load(Ordering::Acquire)
    }

    /// Closes the table. Returns whether objects are still in use.
    fn close(&self) -> bool {
        self.state.close()
    }
}

/// Batches for any library that supports the Arrow C stream interface.
#[pyclass(frozen, module = "iovcache._native")]
pub(crate) struct ArrowStream {
    batches: Batches,
}

#[pymethods]
impl ArrowStream {
    #[pyo3(signature = (requested_schema=None))]
    fn __arrow_c_stream__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyCapsule>> {
        // The interface allows a request for another schema to be ignored.
        drop(requested_schema);
        let (schema, batches) = self.batches.clone();
        arrow::stream(py, schema, batches)
    }
}
