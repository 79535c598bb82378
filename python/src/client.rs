//! Calls to a service.

use std::sync::Arc;
use std::time::Duration;

use iovcache::Secret;
use iovcache::client::{Client, ClientError, ClientOptions, TableRequest, TlsFiles};
use iovcache::sync::Mutex;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::event::NativeEvent;
use crate::local::{LookUps, Path};
use crate::process::{OwnedByProcess, wait};
use crate::table::NativeTable;
use crate::{arrow, error};

/// A connection to a service; `iovcache.Client` wraps it.
#[pyclass(frozen, module = "iovcache._native")]
pub(crate) struct NativeClient {
    client: Mutex<Option<Arc<OwnedByProcess<Client>>>>,
    look_ups: Mutex<Option<Arc<LookUps>>>,
    /// It never attaches.
    remote: bool,
}

/// Options of `iovcache.connect`.
#[derive(FromPyObject)]
struct Options {
    #[pyo3(item)]
    consumer: String,
    #[pyo3(item)]
    token: Option<String>,
    #[pyo3(item)]
    remote: bool,
    #[pyo3(item)]
    patience_s: f64,
    #[pyo3(item)]
    always_request: bool,
    #[pyo3(item)]
    insecure: bool,
    #[pyo3(item)]
    tls_root_certs: Option<Vec<u8>>,
    #[pyo3(item)]
    cert_chain: Option<Vec<u8>>,
    #[pyo3(item)]
    private_key: Option<Vec<u8>>,
}

impl Options {
    fn into_rust(self) -> PyResult<ClientOptions> {
        let identity = match (self.cert_chain, self.private_key) {
            (None, None) => None,
            (Some(chain), Some(key)) => {
                let key = String::from_utf8(key);
                let key = key.map_err(|_| error::invalid("private_key is no PEM"))?;
                Some((chain, Secret::from(key)))
            }
            _ => return Err(error::invalid("cert_chain and private_key belong together")),
        };
        let patience = Duration::try_from_secs_f64(self.patience_s);
        let patience =
            patience.map_err(|_| error::invalid(&format!("patience is {} s", self.patience_s)))?;
        Ok(ClientOptions {
            consumer: Some(self.consumer),
            token: self.token.map(Secret::from),
            tls: TlsFiles { authority: self.tls_root_certs, identity, domain: None },
            insecure: self.insecure,
            remote: self.remote,
            always_request: self.always_request,
            patience: Some(patience),
        })
    }
}

fn parsed(json: &str) -> PyResult<Value> {
    serde_json::from_str(json).map_err(|error| error::invalid(&error.to_string()))
}

impl NativeClient {
    /// The look-ups of an open client.
    #[inline]
    fn look_ups(&self) -> PyResult<Arc<LookUps>> {
        self.look_ups.lock().clone().ok_or_else(|| error::closed("client"))
    }

    pub(crate) fn client(&self) -> PyResult<Arc<OwnedByProcess<Client>>> {
        self.client.lock().clone().ok_or_else(|| error::closed("client"))
    }
}

#[pymethods]
impl NativeClient {
    /// Connects and requests the status once, so that a wrong address fails here.
    #[staticmethod]
    fn connect(py: Python<'_>, url: &str, options: Options) -> PyResult<Self> {
        let options = options.into_rust()?;
        let remote = options.remote;
        let client = wait(py, async {
            let client = Client::connect_with(url, options).await?;
            let _: Box<RawValue> = client.act("status", &Value::Object(Default::default())).await?;
            Ok(client)
        })?;
        let client = Arc::new(OwnedByProcess::new(client));
        let look_ups = Mutex::new(Some(Arc::new(LookUps::new(py, Arc::clone(&client)))));
        Ok(Self { client: Mutex::new(Some(client)), look_ups, remote })
    }

    /// A table: columns as (name, JSON), the other fields as one JSON object, timestamps in ms. From
    /// shared memory where all of it lies there.
    fn table(
        &self,
        py: Python<'_>,
        columns: Vec<(String, String)>,
        fields: &str,
        timestamps: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<NativeTable> {
        let owned = self.client()?;
        let client = owned.get()?;
        let mut request = TableRequest::new().fields_json(fields);
        for (name, column) in columns {
            request = request.column_json(&name, &column);
        }
        if let Some(timestamps) = timestamps {
            let timestamps = arrow::millis(timestamps)?;
            request = request.shared_timestamps(arrow::timestamps(&timestamps)?);
        }
        let table = wait(py, client.table(request))?;
        Ok(NativeTable::new(Arc::clone(&owned), table))
    }

    /// The object of a path at a time, from shared memory where it lies there. `None` where nothing
    /// is valid, or if this client never attaches.
    fn get(&self, path: &Bound<'_, PyAny>, at: &Bound<'_, PyAny>) -> PyResult<Option<Py<PyAny>>> {
        let look_ups = self.look_ups()?;
        match self.remote {
            true => Ok(None),
            false => look_ups.path(path)?.get().at(at),
        }
    }

    /// Objects of many (path, time); `None` where nothing is valid.
    fn get_many<'py>(&self, keys: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyList>> {
        self.look_ups()?.get_many(keys)
    }

    /// The handle of a path.
    fn path<'py>(&self, path: &Bound<'py, PyAny>) -> PyResult<Bound<'py, Path>> {
        self.look_ups()?.path(path)
    }

    /// Registers a timeframe with keys as (name, Arrow array); returns the answer's JSON.
    fn register(
        &self,
        py: Python<'_>,
        timeframe: u64,
        timestamps: &Bound<'_, PyAny>,
        keys: Vec<(String, Bound<'_, PyAny>)>,
        about: String,
    ) -> PyResult<String> {
        let owned = self.client()?;
        let client = owned.get()?;
        let batch = arrow::rows(Arc::new(arrow::millis(timestamps)?), keys)?;
        let answer = wait(py, client.register_rows(timeframe, &batch, about))?;
        serde_json::to_string(&answer).map_err(|error| error::invalid(&error.to_string()))
    }

    /// A descriptor that is readable when a timeframe is no longer being loaded; `None` if there is
    /// nothing to wait for.
    fn timeframe_event(&self, py: Python<'_>, timeframe: u64) -> PyResult<Option<NativeEvent>> {
        let owned = self.client()?;
        let event = wait(py, owned.get()?.timeframe_event(timeframe))?;
        Ok(event.map(NativeEvent::new))
    }

    /// Reports the timeframe of a table as consumed.
    fn report_consumed(&self, py: Python<'_>, table: &NativeTable) -> PyResult<()> {
        let owned = self.client()?;
        let client = owned.get()?;
        match table.consumption() {
            Some(consumption) => wait(py, client.report_consumed(consumption)),
            None => Err(error::invalid("it is no table of a timeframe for a consumer")),
        }
    }

    /// Calls an action with a JSON body; returns the answer's JSON.
    fn act(&self, py: Python<'_>, name: &str, body: &str) -> PyResult<String> {
        let owned = self.client()?;
        let client = owned.get()?;
        let body = parsed(body)?;
        let answer: Box<RawValue> = wait(py, client.act(name, &body))?;
        Ok(answer.get().to_owned())
    }

    /// The paths at or below a prefix, each with its number of versions.
    fn paths(&self, py: Python<'_>, prefix: &str) -> PyResult<Vec<(String, u64)>> {
        let owned = self.client()?;
        let paths = wait(py, owned.get()?.paths(prefix))?;
        Ok(paths.into_iter().map(|entry| (entry.path, entry.objects)).collect())
    }

    /// A copy of the object of a path at a time, transferred over the wire in chunks.
    fn read<'py>(&self, py: Python<'py>, path: &str, at: i64) -> PyResult<Bound<'py, PyBytes>> {
        let owned = self.client()?;
        let client = owned.get()?;
        let bytes = wait(py, async {
            let mut bytes = Vec::new();
            let take = |piece: &[u8]| {
                bytes.extend_from_slice(piece);
                Ok(())
            };
            client.chunks(path, at, take).await?;
            Ok::<_, ClientError>(bytes)
        })?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// Whether the client is closed.
    #[getter]
    fn closed(&self) -> bool {
        self.client.lock().is_none()
    }

    /// Closes the connection. The session ends with its last table and object.
    fn close(&self, py: Python<'_>) {
        let client = self.client.lock().take();
        let look_ups = self.look_ups.lock().take();
        if let Some(look_ups) = look_ups {
            look_ups.close(py);
        }
        // Ending a session joins its thread, which needs no GIL.
        py.detach(|| drop(client));
    }
}
