//! Columns: map rows to objects.

use std::mem::MaybeUninit;
use std::sync::Arc;

use pyo3::exceptions::{PyIndexError, PyOverflowError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PySlice};

use crate::error;
use crate::state::{ColumnState, State};

/// A column of a table.
#[pyclass(frozen, module = "iovcache")]
pub(crate) struct Column {
    state: Arc<State>,
    place: usize,
}

impl Column {
    pub(crate) fn new(state: Arc<State>, place: usize) -> Self {
        Self { state, place }
    }

    #[inline]
    fn column(&self) -> &ColumnState {
        &self.state.columns[self.place]
    }

    #[inline]
    fn length(&self) -> usize {
        self.column().runs.rows()
    }

    /// The row of an index, which is negative from the end.
    #[inline]
    fn row_of(&self, index: &Bound<'_, PyAny>) -> PyResult<usize> {
        let length = self.length();
        // An index beyond 64 bits is out of range too.
        let row = match index.extract::<isize>() {
            Ok(row) if row < 0 => usize::try_from(row + length.cast_signed()).ok(),
            Ok(row) => usize::try_from(row).ok(),
            Err(error) if error.is_instance_of::<PyOverflowError>(index.py()) => None,
            Err(error) => return Err(error),
        };
        row.filter(|row| *row < length).ok_or_else(|| {
            PyIndexError::new_err(format!("row {index}: the table has {length} rows"))
        })
    }

    fn object(&self, py: Python<'_>, row: usize) -> PyResult<Py<PyAny>> {
        self.state.object(py, self.place, self.column().runs.run_of(row))
    }
}

#[pymethods]
impl Column {
    /// The column's name.
    #[getter]
    fn name(&self) -> &str {
        &self.column().name
    }

    /// The column's object path.
    #[getter]
    fn path(&self) -> &str {
        &self.column().path
    }

    fn __len__(&self) -> usize {
        self.length()
    }

    /// The object of a row (negative: from the end), or a list for a slice; `None` for null cells.
    fn __getitem__(&self, py: Python<'_>, key: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        let Ok(slice) = key.cast::<PySlice>() else {
            return self.object(py, self.row_of(key)?);
        };
        let slice = slice.indices(self.length().cast_signed())?;
        let rows = (0..slice.slicelength.cast_signed()).map(|n| slice.start + n * slice.step);
        let objects = rows.map(|row| self.object(py, row.cast_unsigned()));
        let objects = objects.collect::<PyResult<Vec<_>>>()?;
        Ok(PyList::new(py, objects)?.into_any().unbind())
    }

    fn __iter__(&self) -> Rows {
        Rows { state: Arc::clone(&self.state), place: self.place, run: 0, row: 0, object: None }
    }

    /// Whether an object equals these bytes; `None` tests for null cells.
    fn __contains__(&self, py: Python<'_>, wanted: &Bound<'_, PyAny>) -> PyResult<bool> {
        for run in 0..self.column().runs.len() {
            if self.state.object(py, self.place, run)?.bind(py).eq(wanted)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// First row, row after the last one, and object of each run.
    fn runs(&self) -> Runs {
        Runs { state: Arc::clone(&self.state), place: self.place, run: 0 }
    }

    /// The objects of some rows, given as any iterable of integers.
    fn take<'py>(&self, py: Python<'py>, rows: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyList>> {
        let objects = PyList::empty(py);
        for row in rows.try_iter()? {
            objects.append(self.object(py, self.row_of(&row?)?)?)?;
        }
        Ok(objects)
    }

    /// A copy of all rows as one numpy array with one row per table row, the object as `dtype`. All
    /// objects must have the same size, and no cell may be null.
    #[pyo3(signature = (dtype=None))]
    fn numpy<'py>(
        &self,
        py: Python<'py>,
        dtype: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let shared = self.state.shared()?;
        let table = shared.table.get_anywhere();
        let column = table.column(&self.column().name).map_err(error::of_client)?;
        let mut objects = Vec::with_capacity(self.column().runs.len());
        for run in column.runs() {
            let (rows, bytes) = run.map_err(error::of_client)?;
            let null = || error::invalid(&format!("rows {rows:?} are null"));
            objects.push((rows.len(), bytes.ok_or_else(null)?));
        }
        let size = objects.first().map_or(0, |(_, first)| first.len());
        if let Some((_, other)) = objects.iter().find(|(_, other)| other.len() != size) {
            let message =
                format!("objects have {size} and {} bytes: no array has both", other.len());
            return Err(error::invalid(&message));
        }
        let shape = (self.length(), size);
        let array = PyModule::import(py, "numpy")?.call_method1("empty", (shape, "u1"))?;
        let (address, _): (usize, bool) =
            array.getattr("__array_interface__")?.get_item("data")?.extract()?;
        let memory = std::ptr::with_exposed_provenance_mut(address);
        // SAFETY: the array was made above with this many bytes, is contiguous, and is known to this
        // function alone.
        let rows = unsafe { std::slice::from_raw_parts_mut(memory, shape.0 * shape.1) };
        py.detach(|| repeat(&objects, rows));
        for run in 0..self.column().runs.len() {
            let (row, _) = self.column().runs.bounds(run).unwrap_or_default();
            shared.check(&self.column().name, row)?;
        }
        match dtype {
            Some(dtype) => array.call_method1("view", (dtype,)),
            None => Ok(array),
        }
    }

    /// The 40 bytes of the MetaHeader of a row, if its cell names one.
    fn _header<'py>(
        &self,
        py: Python<'py>,
        index: &Bound<'py, PyAny>,
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let row = self.row_of(index)?;
        let shared = self.state.shared()?;
        let column = shared.table.get_anywhere().column(&self.column().name);
        let header = column.map_err(error::of_client)?.header(row);
        Ok(header.map(|header| PyBytes::new(py, &header.to_bytes())))
    }

    /// The MetaHeader of a row (negative: from the end), if its cell names one.
    fn header<'py>(
        &self,
        py: Python<'py>,
        index: &Bound<'py, PyAny>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let Some(bytes) = self._header(py, index)? else { return Ok(None) };
        let module = PyModule::import(py, "iovcache._header")?;
        Ok(Some(module.getattr("MetaHeader")?.call_method1("from_bytes", (bytes,))?))
    }

    fn __repr__(&self) -> String {
        let column = self.column();
        let (rows, runs) = (self.length(), column.runs.len());
        format!("<iovcache.Column {:?}: {}, {rows} rows in {runs} runs>", column.name, column.path)
    }
}

/// Writes each object as often as its run has rows.
fn repeat(objects: &[(usize, &[u8])], rows: &mut [MaybeUninit<u8>]) {
    let mut rest = rows;
    for (count, object) in objects {
        let (run, following) = rest.split_at_mut(count * object.len());
        for row in run.chunks_exact_mut(object.len().max(1)) {
            row.write_copy_of_slice(object);
        }
        rest = following;
    }
}

/// Iterator over the objects of all rows.
#[pyclass(module = "iovcache._native")]
pub(crate) struct Rows {
    state: Arc<State>,
    place: usize,
    run: usize,
    row: usize,
    /// The run's object, with the row after the run's last one.
    object: Option<(usize, Py<PyAny>)>,
}

#[pymethods]
impl Rows {
    fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __next__(&mut self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        if let Some((end, object)) = &self.object
            && self.row < *end
        {
            self.row += 1;
            return Ok(Some(object.clone_ref(py)));
        }
        let Some((_, end)) = self.state.columns[self.place].runs.bounds(self.run) else {
            self.object = None;
            return Ok(None);
        };
        let object = self.state.object(py, self.place, self.run)?;
        self.run += 1;
        self.row += 1;
        self.object = Some((end, object.clone_ref(py)));
        Ok(Some(object))
    }
}

/// Iterator over the runs of a column.
#[pyclass(module = "iovcache._native")]
pub(crate) struct Runs {
    state: Arc<State>,
    place: usize,
    run: usize,
}

#[pymethods]
impl Runs {
    fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __next__(&mut self, py: Python<'_>) -> PyResult<Option<(usize, usize, Py<PyAny>)>> {
        let bounds = self.state.columns[self.place].runs.bounds(self.run);
        let Some((start, end)) = bounds else { return Ok(None) };
        let object = self.state.object(py, self.place, self.run)?;
        self.run += 1;
        Ok(Some((start, end, object)))
    }
}
