//! An object that was looked up by path and time, with its pin.

use std::sync::Arc;

use iovcache::client::{Client, ClientError, TableRequest, View};
use iovcache::sync::Mutex;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::error;
use crate::process::{OwnedByProcess, wait};
use crate::shared::record;

/// The column of a request for the facts about a version.
const COLUMN: &str = "object";

/// An object that was looked up, with its pin.
pub(crate) struct PlaneObject {
    client: Arc<OwnedByProcess<Client>>,
    view: PlaneView,
    path: Arc<str>,
    at: i64,
    /// The row of the objects view, once it was requested.
    record: Mutex<Option<Py<PyDict>>>,
}

/// A view. One that the service was asked for holds a lease, which a forked child must not end.
pub(crate) enum PlaneView {
    Local(View<'static>),
    Asked(OwnedByProcess<View<'static>>),
}

impl PlaneView {
    fn view(&self) -> &View<'static> {
        match self {
            Self::Local(view) => view,
            Self::Asked(view) => view.get_anywhere(),
        }
    }
}

impl PlaneObject {
    /// The object of `path` at `at`, in ms since the Unix epoch.
    pub(crate) fn new(
        client: Arc<OwnedByProcess<Client>>,
        view: PlaneView,
        path: Arc<str>,
        at: i64,
    ) -> Self {
        Self { client, view, path, at, record: Mutex::new(None) }
    }

    /// The bytes. They stay unchanged as long as the object lives.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.view.view()
    }

    pub(crate) fn path(&self) -> Arc<str> {
        Arc::clone(&self.path)
    }

    /// # Errors
    /// `Stale` in a forked child, once the service has given the object up.
    pub(crate) fn check(&self) -> PyResult<()> {
        match self.view.view().is_live() {
            true => Ok(()),
            false => Err(error::stale(0)),
        }
    }

    pub(crate) fn id(&self) -> String {
        self.view.view().id().to_string()
    }

    /// From and until in milliseconds.
    pub(crate) fn validity(&self) -> (i64, i64) {
        let validity = self.view.view().validity();
        (validity.from().as_millis(), validity.until().as_millis())
    }

    /// The row of the objects view for this version.
    ///
    /// # Errors
    /// `FailedPrecondition` where the service has another version for this time by now.
    pub(crate) fn record<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        if let Some(known) = &*self.record.lock() {
            return Ok(known.bind(py).clone());
        }
        let client = self.client.get()?;
        let request = TableRequest::new().column(COLUMN, &*self.path).timestamps([self.at]);
        let (_, batches) = wait(py, async {
            let table = client.table(request).await?;
            client.objects(&table).await
        })?;
        let changed = || error::of_client(ClientError::Changed);
        let row = batches.iter().find(|batch| batch.num_rows() > 0).ok_or_else(changed)?;
        let made = record(py, row, 0)?;
        if made.as_any().get_item("object_id")?.extract::<String>()? != self.id() {
            return Err(changed());
        }
        *self.record.lock() = Some(made.clone().unbind());
        Ok(made)
    }
}
