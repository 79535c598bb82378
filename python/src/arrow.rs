//! Arrow data in and out through the PyCapsule interface, without a copy.

use std::sync::Arc;

use arrow_array::cast::AsArray as _;
use arrow_array::ffi::{FFI_ArrowArray, FFI_ArrowSchema, from_ffi};
use arrow_array::ffi_stream::FFI_ArrowArrayStream;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, Int64Array, RecordBatch, RecordBatchIterator, make_array};
use arrow_schema::SchemaRef;
use iovcache::index::Timestamps;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyList};

use crate::error;

/// Wraps batches in an `arrow_array_stream` capsule.
pub(crate) fn stream<'py>(
    py: Python<'py>,
    schema: SchemaRef,
    batches: Vec<RecordBatch>,
) -> PyResult<Bound<'py, PyCapsule>> {
    let reader = RecordBatchIterator::new(batches.into_iter().map(Ok), schema);
    let stream = FFI_ArrowArrayStream::new(Box::new(reader));
    PyCapsule::new_with_value(py, stream, c"arrow_array_stream")
}

/// Timestamps in milliseconds from a list of int and None, or from an Arrow array of int64.
pub(crate) fn millis(given: &Bound<'_, PyAny>) -> PyResult<Int64Array> {
    if let Ok(list) = given.cast::<PyList>() {
        let values: Vec<Option<i64>> = list.extract()?;
        return Ok(Int64Array::from(values));
    }
    let array = array(given)?;
    let millis = array.as_primitive_opt::<Int64Type>();
    millis.cloned().ok_or_else(|| error::invalid("the timestamps are not int64"))
}

/// A record batch with the column `timestamp` and a column for each key.
pub(crate) fn rows(
    timestamps: ArrayRef,
    keys: Vec<(String, Bound<'_, PyAny>)>,
) -> PyResult<RecordBatch> {
    let mut columns = vec![("timestamp".to_owned(), timestamps)];
    for (name, values) in keys {
        columns.push((name, array(&values)?));
    }
    let columns = columns.into_iter().map(|(name, array)| (name, array, true));
    RecordBatch::try_from_iter_with_nullable(columns)
        .map_err(|error| error::invalid(&format!("keys: {error}")))
}

/// Imports an object with `__arrow_c_array__`.
fn array(given: &Bound<'_, PyAny>) -> PyResult<ArrayRef> {
    let (schema, array) = given.call_method0("__arrow_c_array__")?.extract()?;
    let (schema, array): (Bound<'_, PyCapsule>, Bound<'_, PyCapsule>) = (schema, array);
    let schema = schema.pointer_checked(Some(c"arrow_schema"))?.cast::<FFI_ArrowSchema>();
    let array = array.pointer_checked(Some(c"arrow_array"))?.cast::<FFI_ArrowArray>();
    // SAFETY: a capsule of this name points to such a structure, and keeps owning it.
    let schema = unsafe { schema.as_ref() };
    // SAFETY: as above; the structure is moved out, and the one left behind is marked as released.
    let array = unsafe { FFI_ArrowArray::from_raw(array.as_ptr()) };
    // SAFETY: both came from one call of `__arrow_c_array__`, by the Arrow C data interface.
    let data = unsafe { from_ffi(array, schema) };
    let data = data.map_err(|error| error::invalid(&format!("not an Arrow array: {error}")))?;
    Ok(make_array(data))
}

/// The timestamps of a request.
///
/// # Errors
/// `InvalidArgument` if there are more than [`Timestamps::MAX_ROWS`].
pub(crate) fn timestamps(array: &Int64Array) -> PyResult<Arc<Timestamps>> {
    if array.len() > Timestamps::MAX_ROWS {
        return Err(error::invalid(&format!(
            "a table has at most {} rows, these are {} timestamps",
            Timestamps::MAX_ROWS,
            array.len()
        )));
    }
    use arrow_array::Array as _;
    Ok(Arc::new(Timestamps::new(array.values().clone(), array.nulls().cloned())))
}
