//! A client's table with its lease, kept alive by every object of the table.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray as _;
use arrow_array::types::Int64Type;
use arrow_schema::SchemaRef;
use iovcache::client::{Client, Table};
use iovcache::sync::Mutex;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::error;
use crate::process::{OwnedByProcess, wait};

pub(crate) type Batches = (SchemaRef, Vec<RecordBatch>);

/// A table with its lease. The open table and each of its objects keep it alive.
pub(crate) struct Shared {
    client: Arc<OwnedByProcess<Client>>,
    pub(crate) table: OwnedByProcess<Table>,
    /// The objects view, after the first request for it.
    objects: Mutex<Option<Arc<ObjectsView>>>,
}

impl Shared {
    pub(crate) fn new(client: Arc<OwnedByProcess<Client>>, table: Table) -> Self {
        Self { client, table: OwnedByProcess::new(table), objects: Mutex::new(None) }
    }

    /// In a forked child no object is pinned: each read checks that the block of a row's cell still
    /// holds the object.
    ///
    /// # Errors
    /// `Stale` if it does not.
    pub(crate) fn check(&self, column: &str, row: usize) -> PyResult<()> {
        if !self.table.is_forked() {
            return Ok(());
        }
        let table = self.table.get_anywhere();
        match table.column(column).map_err(error::of_client)?.header(row) {
            Some(header) if !table.is_live(&header) => Err(error::stale(header.hint)),
            _ => Ok(()),
        }
    }

    /// The objects view, requested from the service once.
    pub(crate) fn objects(&self, py: Python<'_>) -> PyResult<Arc<ObjectsView>> {
        if let Some(known) = self.objects.lock().clone() {
            return Ok(known);
        }
        let (schema, batches) = wait(py, self.client.get()?.objects(self.table.get()?))?;
        let objects = Arc::new(ObjectsView::new(schema, batches));
        Ok(Arc::clone(self.objects.lock().insert(objects)))
    }
}

/// The objects view of a table: one row per run.
pub(crate) struct ObjectsView {
    schema: SchemaRef,
    batches: Vec<RecordBatch>,
    /// Column name and first row of a run → batch and row in it.
    places: HashMap<String, HashMap<i64, (usize, usize)>>,
}

impl ObjectsView {
    fn new(schema: SchemaRef, batches: Vec<RecordBatch>) -> Self {
        let mut places: HashMap<String, HashMap<i64, (usize, usize)>> = HashMap::new();
        for (number, batch) in batches.iter().enumerate() {
            let names = batch.column_by_name("column").and_then(|one| one.as_string_opt::<i32>());
            let starts = batch.column_by_name("row_start");
            let starts = starts.and_then(|starts| starts.as_primitive_opt::<Int64Type>());
            let (Some(names), Some(starts)) = (names, starts) else { continue };
            for at in 0..batch.num_rows() {
                let column = places.entry(names.value(at).to_owned()).or_default();
                column.insert(starts.value(at), (number, at));
            }
        }
        Self { schema, batches, places }
    }

    pub(crate) fn batches(&self) -> Batches {
        (Arc::clone(&self.schema), self.batches.clone())
    }

    /// The row for the run of a column that begins at a given row of the table.
    pub(crate) fn record<'py>(
        &self,
        py: Python<'py>,
        column: &str,
        row: usize,
    ) -> PyResult<Bound<'py, PyDict>> {
        let place = self.places.get(column).and_then(|starts| starts.get(&(row as i64)));
        let &(batch, at) =
            place.ok_or_else(|| error::invalid("the objects view does not have this run"))?;
        record(py, &self.batches[batch], at)
    }
}

/// The fields of a row of the objects view that objects expose.
pub(crate) fn record<'py>(
    py: Python<'py>,
    batch: &RecordBatch,
    at: usize,
) -> PyResult<Bound<'py, PyDict>> {
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
