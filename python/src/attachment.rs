//! The attach socket, for programs that request tables by other means.

use std::path::PathBuf;
use std::sync::Arc;

use iovcache::shm::MetaHeader;
use iovcache::shm::attach;
use iovcache::sync::Mutex;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::error;
use crate::process::OwnedByProcess;

/// A session with a service on this node. Pins of the session last until it ends.
#[pyclass(frozen, module = "iovcache")]
pub(crate) struct Attachment {
    attachment: Mutex<Option<Arc<OwnedByProcess<attach::Attachment>>>>,
    session: String,
    epoch: String,
}

#[pymethods]
impl Attachment {
    /// Attaches through the socket at `path`.
    #[new]
    #[pyo3(signature = (path, consumer, token=None))]
    fn open(py: Python<'_>, path: PathBuf, consumer: &str, token: Option<&str>) -> PyResult<Self> {
        let attachment = py.detach(|| attach::Attachment::open(&path, consumer, token));
        let attachment = attachment.map_err(error::of_attach)?;
        let (session, epoch) = (attachment.session().to_owned(), attachment.epoch().to_string());
        let attachment = Mutex::new(Some(Arc::new(OwnedByProcess::new(attachment))));
        Ok(Self { attachment, session, epoch })
    }

    /// The name of the session, for use in requests.
    #[getter]
    fn session(&self) -> &str {
        &self.session
    }

    /// The id of the service's instance.
    #[getter]
    fn epoch(&self) -> &str {
        &self.epoch
    }

    /// Why the session ended; `None` while it lasts.
    #[getter]
    fn over(&self) -> Option<String> {
        match &*self.attachment.lock() {
            Some(open) if open.is_forked() => {
                Some("the session is the parent process's".to_owned())
            }
            Some(open) => open.get_anywhere().over(),
            None => Some("it is closed".to_owned()),
        }
    }

    /// A copy of the object that a cell of 40 bytes names. A cell pins no object, so the bytes are
    /// copied first and then the copy is checked.
    fn read<'py>(&self, py: Python<'py>, cell: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        let header = MetaHeader::from_bytes(cell);
        let header = header.map_err(|error| error::invalid(&error.to_string()))?;
        let open = self.attachment.lock().clone().ok_or_else(|| error::closed("attachment"))?;
        let attachment = open.get()?;
        let bytes = py.detach(|| attachment.mappings_for(&header).read(&header));
        let bytes = bytes.map_err(error::of_resolve)?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// Ends the session.
    fn close(&self, py: Python<'_>) {
        let open = self.attachment.lock().take();
        py.detach(|| drop(open));
    }

    fn __enter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __exit__(
        &self,
        py: Python<'_>,
        _kind: &Bound<'_, PyAny>,
        _error: &Bound<'_, PyAny>,
        _trace: &Bound<'_, PyAny>,
    ) {
        self.close(py);
    }
}
