//! Tables, and their Arrow data.

use std::collections::HashMap;
use std::sync::Arc;

use iovcache::client::{Client, Consumption, Table};
use pyo3::prelude::*;
use pyo3::types::PyCapsule;

use crate::arrow;
use crate::column::Column;
use crate::process::OwnedByProcess;
use crate::shared::Batches;
use crate::state::State;

/// A table; `iovcache.Table` wraps it.
#[pyclass(frozen, module = "iovcache._native")]
pub(crate) struct NativeTable {
    state: Arc<State>,
    metadata: HashMap<String, String>,
    is_local: bool,
    /// To be reported when the table of a timeframe is not needed any more.
    consumption: Option<Consumption>,
}

impl NativeTable {
    pub(crate) fn new(client: Arc<OwnedByProcess<Client>>, table: Table) -> Self {
        let (metadata, is_local) = (table.schema().metadata().clone().into(), table.is_local());
        let consumption = table.consumption().cloned();
        let state = Arc::new(State::new(client, table));
        Self { state, metadata, is_local, consumption }
    }

    /// The timeframe and its consumer; `None` if it is no table of a timeframe for a consumer.
    pub(crate) fn consumption(&self) -> Option<&Consumption> {
        self.consumption.as_ref()
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

    /// Whether it was taken from shared memory without a request.
    #[getter]
    fn local(&self) -> bool {
        self.is_local
    }

    /// The table as an Arrow stream.
    fn arrow(&self) -> PyResult<ArrowStream> {
        let shared = self.state.shared()?;
        let table = shared.table.get()?;
        Ok(ArrowStream { batches: (Arc::clone(table.schema()), table.batches().to_vec()) })
    }

    /// The objects view as an Arrow stream.
    fn objects(&self, py: Python<'_>) -> PyResult<ArrowStream> {
        Ok(ArrowStream { batches: self.state.shared()?.objects(py)?.batches() })
    }

    /// Whether the table is closed.
    #[getter]
    fn closed(&self) -> bool {
        self.state.is_closed()
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
