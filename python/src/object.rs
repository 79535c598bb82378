//! Objects: bytes-like, read-only and pinned.
//!
//! Python's stable interface has a slot for the buffer protocol only since 3.11, but the
//! interpreters accept it since 3.9. So the class is made in two steps: `Pin` has the methods, and
//! `Object`, a subclass built by hand, adds the slot.

use std::ffi::{c_char, c_int, c_void};
use std::ops::Range;
use std::sync::Arc;

use iovcache::sync::Mutex;
use pyo3::exceptions::{PyBufferError, PyTypeError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyMemoryView, PyTuple, PyType};

use crate::holder::Holder;
use crate::plane_object::PlaneObject;
use crate::shared::Shared;

/// The object of a run of rows, with the pin on its bytes.
#[pyclass(frozen, subclass, weakref, module = "iovcache._native", name = "Pin")]
pub(crate) struct Pin {
    /// Keeps the bytes at `address` unchanged.
    holder: Holder,
    path: Arc<str>,
    row_start: usize,
    row_end: usize,
    address: usize,
    length: usize,
}

impl Pin {
    /// `bytes` is the slice that the table in `shared` returned for the run of these rows.
    pub(crate) fn new(
        shared: Arc<Shared>,
        column: &str,
        path: &str,
        rows: Range<usize>,
        bytes: *const [u8],
    ) -> Self {
        let holder = Holder::Table { shared, column: column.to_owned(), row: rows.start };
        Self {
            holder,
            path: path.into(),
            row_start: rows.start,
            row_end: rows.end,
            address: bytes.cast::<u8>().expose_provenance(),
            length: bytes.len(),
        }
    }

    /// An object that was looked up by path and time.
    pub(crate) fn of_plane(object: PlaneObject) -> Self {
        let (bytes, path) = (object.bytes(), object.path());
        let (address, length) = (bytes.as_ptr().expose_provenance(), bytes.len());
        let holder = Holder::Plane(object);
        Self { holder, path, row_start: 0, row_end: 1, address, length }
    }

    /// The object id.
    pub(crate) fn version(&self, py: Python<'_>) -> PyResult<String> {
        self.holder.id(py)
    }

    fn bytes(&self) -> PyResult<&[u8]> {
        self.check()?;
        let address = std::ptr::with_exposed_provenance(self.address);
        // SAFETY: `new` and `of_plane` got them from a slice that `holder` pins, which lives as long
        // as `self`.
        Ok(unsafe { std::slice::from_raw_parts(address, self.length) })
    }

    fn check(&self) -> PyResult<()> {
        self.holder.check()
    }
}

/// Carries a pin to the constructor of the class, which Python code cannot call.
#[pyclass(frozen, module = "iovcache._native")]
struct Seed(Mutex<Option<Pin>>);

#[pymethods]
impl Pin {
    #[new]
    fn from_seed(seed: &Bound<'_, PyAny>) -> PyResult<Self> {
        let seed = seed.cast::<Seed>().ok().and_then(|seed| seed.get().0.lock().take());
        seed.ok_or_else(|| PyTypeError::new_err("objects come from tables: table[\"column\"][row]"))
    }

    /// The object path.
    #[getter]
    fn path(&self) -> &str {
        &self.path
    }

    /// First row, and row after the last one, that this object serves in its table.
    #[getter]
    fn rows(&self) -> (usize, usize) {
        (self.row_start, self.row_end)
    }

    /// The object id, which identifies the version.
    #[getter]
    fn id(&self, py: Python<'_>) -> PyResult<String> {
        self.holder.id(py)
    }

    /// The version's own validity interval: (from, until) in milliseconds, half-open.
    #[getter]
    fn validity(&self, py: Python<'_>) -> PyResult<(i64, i64)> {
        self.holder.validity(py)
    }

    /// Creation time of the version in milliseconds.
    #[getter]
    fn created(&self, py: Python<'_>) -> PyResult<i64> {
        self.holder.record(py, "created")?.extract()
    }

    /// The version's metadata.
    #[getter]
    fn metadata<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.holder.record(py, "metadata")
    }

    /// Always true.
    #[getter]
    fn readonly(&self) -> bool {
        true
    }

    /// Number of bytes.
    #[getter]
    fn nbytes(&self) -> usize {
        self.length
    }

    fn __len__(&self) -> usize {
        self.length
    }

    fn __bool__(&self) -> bool {
        self.length > 0
    }

    /// A copy of the bytes.
    fn __bytes__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, self.bytes()?))
    }

    /// A copy of the bytes.
    fn tobytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        self.__bytes__(py)
    }

    /// The bytes as hexadecimal digits.
    fn hex(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        Ok(PyMemoryView::from(slf)?.call_method0("hex")?.unbind())
    }

    /// One byte, or a memoryview of a slice.
    fn __getitem__<'py>(
        slf: &Bound<'py, Self>,
        key: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        PyMemoryView::from(slf)?.get_item(key)
    }

    /// The bytes as a read-only numpy array, without a copy.
    #[pyo3(signature = (dtype=None))]
    fn numpy<'py>(
        slf: &Bound<'py, Self>,
        dtype: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let numpy = PyModule::import(slf.py(), "numpy")?;
        match dtype {
            Some(dtype) => numpy.call_method1("frombuffer", (slf, dtype)),
            None => numpy.call_method1("frombuffer", (slf, "u1")),
        }
    }

    fn __eq__<'py>(slf: &Bound<'py, Self>, other: &Bound<'py, PyAny>) -> PyResult<Py<PyAny>> {
        let py = slf.py();
        let own = slf.get();
        let equal = if let Ok(other) = other.cast::<Pin>() {
            own.bytes()? == other.get().bytes()?
        } else if let Ok(other) = other.cast::<PyBytes>() {
            own.bytes()? == other.as_bytes()
        } else if let Ok(other) = PyMemoryView::from(other) {
            return Ok(PyMemoryView::from(slf)?.eq(other)?.into_pyobject(py)?.to_owned().into());
        } else {
            return Ok(py.NotImplemented());
        };
        Ok(equal.into_pyobject(py)?.to_owned().into_any().unbind())
    }

    fn __hash__(&self, py: Python<'_>) -> PyResult<isize> {
        // Equal to the hash of equal bytes.
        PyBytes::new(py, self.bytes()?).hash()
    }

    /// Pickles a copy of the bytes: a pin belongs to this process.
    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<(Py<PyAny>, (Bound<'py, PyBytes>,))> {
        Ok((py.get_type::<PyBytes>().into_any().unbind(), (self.__bytes__(py)?,)))
    }

    fn __repr__(&self) -> String {
        format!("<iovcache.Object {} of {} bytes>", self.path, self.length)
    }

    fn _repr_html_(&self, py: Python<'_>) -> PyResult<String> {
        let bytes = self.bytes()?;
        let start = &bytes[..bytes.len().min(64)];
        let shown: String = start
            .iter()
            .map(|&byte| match byte {
                b'<' | b'>' | b'&' => '·',
                byte if byte.is_ascii_graphic() || byte == b' ' => char::from(byte),
                _ => '·',
            })
            .collect();
        let more = if bytes.len() > start.len() { "…" } else { "" };
        let described = match (self.id(py), self.validity(py)) {
            (Ok(id), Ok((from, until))) => {
                format!(
                    "<tr><th>id</th><td>{id}</td></tr><tr><th>valid</th><td>{from} to {until} ms</td></tr>"
                )
            }
            _ => String::new(),
        };
        Ok(format!(
            "<table><tr><th>object</th><td>{}</td></tr>{described}\
             <tr><th>bytes</th><td>{}</td></tr><tr><th>begins</th><td><code>{shown}{more}</code></td></tr></table>",
            self.path, self.length
        ))
    }
}

/// Python's C struct `Py_buffer`; its layout has not changed since before 3.9.
#[repr(C)]
struct Buffer {
    buf: *mut c_void,
    obj: *mut ffi::PyObject,
    len: isize,
    itemsize: isize,
    readonly: c_int,
    ndim: c_int,
    format: *mut c_char,
    shape: *mut isize,
    strides: *mut isize,
    suboffsets: *mut isize,
    internal: *mut c_void,
}

const WRITABLE: c_int = 0x1;
const FORMAT: c_int = 0x4;
const ND: c_int = 0x8;
const STRIDES: c_int = 0x10 | ND;

/// Fills in a view of an object's bytes; the view holds a reference to the object.
unsafe extern "C" fn get_buffer(
    object: *mut ffi::PyObject,
    view: *mut Buffer,
    flags: c_int,
) -> c_int {
    // SAFETY: the interpreter calls slots with the thread attached.
    let py = unsafe { Python::assume_attached() };
    // SAFETY: the interpreter passes an instance of the class that has this slot.
    let object = unsafe { Bound::from_borrowed_ptr(py, object) };
    // SAFETY: a view to be filled in; its fields are plain.
    let view = unsafe { &mut *view };
    view.obj = std::ptr::null_mut();
    let pin = match object.cast::<Pin>() {
        Ok(pin) => pin.get(),
        Err(error) => return failed(py, error.into()),
    };
    if flags & WRITABLE != 0 {
        return failed(py, PyBufferError::new_err("objects are read-only"));
    }
    if let Err(error) = pin.check() {
        return failed(py, error);
    }
    view.buf = std::ptr::with_exposed_provenance_mut(pin.address);
    view.len = pin.length.cast_signed();
    view.itemsize = 1;
    view.readonly = 1;
    view.ndim = 1;
    view.format = if flags & FORMAT != 0 { c"B".as_ptr().cast_mut() } else { std::ptr::null_mut() };
    view.shape = if flags & ND != 0 { &raw mut view.len } else { std::ptr::null_mut() };
    let strided = flags & STRIDES == STRIDES;
    view.strides = if strided { &raw mut view.itemsize } else { std::ptr::null_mut() };
    view.suboffsets = std::ptr::null_mut();
    view.internal = std::ptr::null_mut();
    view.obj = object.clone().into_ptr();
    0
}

fn failed(py: Python<'_>, error: PyErr) -> c_int {
    error.restore(py);
    -1
}

/// The class `iovcache.Object`.
pub(crate) fn object_type(py: Python<'_>) -> PyResult<Bound<'_, PyType>> {
    static TYPE: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let made = TYPE.get_or_try_init(py, || {
        let get_buffer: unsafe extern "C" fn(*mut ffi::PyObject, *mut Buffer, c_int) -> c_int =
            get_buffer;
        let mut slots = [
            ffi::PyType_Slot { slot: ffi::Py_bf_getbuffer, pfunc: get_buffer as *mut c_void },
            ffi::PyType_Slot { slot: 0, pfunc: std::ptr::null_mut() },
        ];
        let mut spec = ffi::PyType_Spec {
            name: c"iovcache.Object".as_ptr(),
            basicsize: 0,
            itemsize: 0,
            flags: ffi::Py_TPFLAGS_DEFAULT as _,
            slots: slots.as_mut_ptr(),
        };
        let bases = PyTuple::new(py, [py.get_type::<Pin>()])?;
        // SAFETY: name and function are static; the interpreter copies the rest. The size is that
        // of the base class, whose constructor makes the instances.
        let made = unsafe { ffi::PyType_FromSpecWithBases(&raw mut spec, bases.as_ptr()) };
        // SAFETY: a new reference, or null with an exception set.
        let made = unsafe { Bound::from_owned_ptr_or_err(py, made) }?;
        Ok::<_, PyErr>(made.cast_into::<PyType>()?.unbind())
    })?;
    Ok(made.bind(py).clone())
}

/// The Python object of a pin.
pub(crate) fn new_object(py: Python<'_>, pin: Pin) -> PyResult<Py<PyAny>> {
    Ok(object_type(py)?.call1((Seed(Mutex::new(Some(pin))),))?.unbind())
}
