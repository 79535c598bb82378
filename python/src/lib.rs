//! The native part of the package `iovcache`: the client of the Rust crate, for Python.
//!
//! ```text
//!  iovcache (Python)          _native
//!   Client ───────────────▶ NativeClient ──▶ iovcache::client::Client, on one runtime per process
//!   Table  ───────────────▶ NativeTable  ──▶ iovcache::client::Table: the lease
//!   Column, Object ═══════▶ the same classes: each Object keeps the table's pins alive
//! ```
//!
//! Calls release the GIL, check for signals ten times per second, and end when a handler raises or the
//! call is cancelled. In a forked child no value of the parent is used or destroyed.

mod arrow;
mod attachment;
mod cancellation;
mod client;
mod column;
mod error;
mod event;
mod holder;
mod local;
mod object;
mod plane_object;
mod process;
mod runs;
mod shared;
mod state;
mod table;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// The native classes of `iovcache`; see the Python modules.
#[pymodule(gil_used = false)]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<cancellation::Cancellation>()?;
    module.add_class::<client::NativeClient>()?;
    module.add_class::<table::NativeTable>()?;
    module.add_class::<column::Column>()?;
    module.add_class::<column::Rows>()?;
    module.add_class::<column::Runs>()?;
    module.add_class::<attachment::Attachment>()?;
    module.add_class::<local::Path>()?;
    module.add_class::<event::NativeEvent>()?;
    module.add("Object", object::object_type(module.py())?)?;
    module.add_function(wrap_pyfunction!(milliseconds, module)?)?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))
}

/// A text as milliseconds since the Unix epoch: the same forms as on the command line.
#[pyfunction]
fn milliseconds(text: &str) -> PyResult<i64> {
    let at = iovcache::Timestamp::from_text(text, iovcache::Clock::system().wall());
    at.map(iovcache::Timestamp::as_millis).map_err(|error| PyValueError::new_err(error.to_string()))
}
