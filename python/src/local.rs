//! Look-ups by path and time: in shared memory where the object lies there, else at the service.
//!
//! ```text
//!  Client.get ─▶ Paths: str ─▶ Path ─▶ LocalPath::try_at ──found──▶ Object (a slot of the pins page)
//!                                            │ not there
//!                                            └─▶ Local::ask, without the GIL ─▶ Object (a lease)
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use iovcache::client::{ChangeStep, Client, ClientError, Local, LocalPath, View};
use iovcache::shm::AskReason;
use iovcache::sync::Mutex;
use iovcache::{ObjectId, Timestamp};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyInt, PyList, PyString};

use crate::error;
use crate::event::NativeEvent;
use crate::object::{Pin, new_object};
use crate::plane_object::{PlaneObject, PlaneView};
use crate::process::{OwnedByProcess, wait, wait_blocking};

/// Paths that a client keeps; beyond, all are dropped and looked up anew.
const MAX_PATHS: usize = 65_536;
/// A path, and the places and times of its keys.
type PathRequests<'py> = (Bound<'py, Path>, Vec<(usize, Timestamp)>);

/// The look-ups of one client.
pub(crate) struct LookUps {
    client: Arc<OwnedByProcess<Client>>,
    /// Connected with the first look-up.
    local: Mutex<Option<Arc<OwnedByProcess<Local>>>>,
    /// From `str` to [`Path`].
    paths: Py<PyDict>,
}

/// A time as Python code gives it. Only an exact `int` is converted without a call to Python.
fn millis_of(at: &Bound<'_, PyAny>) -> PyResult<Timestamp> {
    static MOMENT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    if at.is_exact_instance_of::<PyInt>()
        && let Ok(millis) = at.extract::<i64>()
    {
        return Ok(Timestamp::from_millis(millis));
    }
    let py = at.py();
    let moment = MOMENT.get_or_try_init(py, || {
        PyModule::import(py, "iovcache._times")?.getattr("moment").map(Bound::unbind)
    })?;
    Ok(Timestamp::from_millis(moment.bind(py).call1((at, "at"))?.extract()?))
}

/// A time limit in seconds as Python code gives it.
fn duration_of(timeout: &Bound<'_, PyAny>) -> PyResult<Duration> {
    let seconds = PyModule::import(timeout.py(), "iovcache._times")?.getattr("seconds")?;
    let seconds: f64 = seconds.call1((timeout, "timeout"))?.extract()?;
    Duration::try_from_secs_f64(seconds).map_err(|why| error::invalid(&format!("timeout: {why}")))
}

/// A version as Python code names it: an object, its id, or `None`.
fn version_of(known: &Bound<'_, PyAny>) -> PyResult<Option<ObjectId>> {
    if known.is_none() {
        return Ok(None);
    }
    let id: String = match known.cast::<PyString>() {
        Ok(id) => id.extract()?,
        Err(_) => match known.cast::<Pin>() {
            Ok(object) => object.get().version(known.py())?,
            Err(_) => {
                let reason =
                    format!("known is {}; expected an object, its id or None", known.repr()?);
                return Err(error::invalid(&reason));
            }
        },
    };
    let parsed = ObjectId::parse(&id);
    parsed.map(Some).ok_or_else(|| error::invalid(&format!("known is {id:?}, which is no id")))
}

impl LookUps {
    pub(crate) fn new(py: Python<'_>, client: Arc<OwnedByProcess<Client>>) -> Self {
        Self { client, local: Mutex::default(), paths: PyDict::new(py).unbind() }
    }

    /// Drops the paths: they keep the session.
    pub(crate) fn close(&self, py: Python<'_>) {
        self.paths.bind(py).clear();
        drop(self.local.lock().take());
    }

    /// The connection for look-ups; made the first time.
    fn local(&self, py: Python<'_>) -> PyResult<Arc<OwnedByProcess<Local>>> {
        if let Some(known) = &*self.local.lock() {
            return Ok(Arc::clone(known));
        }
        self.client.get()?;
        let client = Arc::clone(&self.client);
        // Two threads may come here at the same time: the client makes one connection for both.
        let local = wait_blocking(py, move || client.get_anywhere().local())?;
        let local = Arc::new(OwnedByProcess::new(local));
        Ok(Arc::clone(self.local.lock().get_or_insert(local)))
    }

    /// The handle of a path.
    ///
    /// # Errors
    /// `InvalidArgument` if it is no object path.
    pub(crate) fn path<'py>(&self, path: &Bound<'py, PyAny>) -> PyResult<Bound<'py, Path>> {
        let py = path.py();
        let Ok(path) = path.cast::<PyString>() else {
            return Err(error::invalid(&format!("the path is {}; expected a str", path.repr()?)));
        };
        let paths = self.paths.bind(py);
        if let Some(known) = paths.get_item(path)? {
            return Ok(known.cast_into::<Path>()?);
        }
        let made = Bound::new(py, Path::new(self, path)?)?;
        if paths.len() >= MAX_PATHS {
            paths.clear();
        }
        paths.set_item(path, &made)?;
        Ok(made)
    }

    /// Objects of many (path, time) pairs. Those that are not in shared memory are requested
    /// together, one request per path.
    pub(crate) fn get_many<'py>(&self, keys: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyList>> {
        let py = keys.py();
        let found = PyList::empty(py);
        let mut asked: BTreeMap<String, PathRequests<'py>> = BTreeMap::new();
        let expected = |given: &Bound<'_, PyAny>| match given.repr() {
            Ok(given) => error::invalid(&format!("keys: got {given}; expected (path, time) pairs")),
            Err(error) => error,
        };
        for (place, key) in keys.try_iter().map_err(|_| expected(keys))?.enumerate() {
            let key = key?;
            let pair: PyResult<(Bound<'_, PyAny>, Bound<'_, PyAny>)> = key.extract();
            let (path, at) = pair.map_err(|_| expected(&key))?;
            let (path, at) = (self.path(&path)?, millis_of(&at)?);
            let object = path.get().find(py, at)?;
            if object.is_none() {
                let text = path.get().path.to_string();
                let (_, places) = asked.entry(text).or_insert_with(|| (path, Vec::new()));
                places.push((place, at));
            }
            found.append(object)?;
        }
        for (path, places) in asked.into_values() {
            let times: Vec<Timestamp> = places.iter().map(|(_, at)| *at).collect();
            let objects = path.get().ask(py, &times)?;
            for ((place, _), object) in places.into_iter().zip(objects) {
                found.set_item(place, object)?;
            }
        }
        Ok(found)
    }
}

/// A path to look up in.
#[pyclass(frozen, module = "iovcache")]
pub(crate) struct Path {
    client: Arc<OwnedByProcess<Client>>,
    local: Arc<OwnedByProcess<Local>>,
    path: Arc<str>,
    /// For one thread at a time. Nothing blocks while it is locked.
    in_plane: OwnedByProcess<Mutex<LocalPath>>,
}

impl Path {
    fn new(look_ups: &LookUps, path: &Bound<'_, PyString>) -> PyResult<Self> {
        let text: String = path.extract()?;
        let local = look_ups.local(path.py())?;
        let in_plane = local.get()?.path(&text).map_err(error::of_client)?;
        Ok(Self {
            client: Arc::clone(&look_ups.client),
            local,
            path: text.into(),
            in_plane: OwnedByProcess::new(Mutex::new(in_plane)),
        })
    }

    fn object(&self, py: Python<'_>, view: PlaneView, at: Timestamp) -> PyResult<Py<PyAny>> {
        let (client, path) = (Arc::clone(&self.client), Arc::clone(&self.path));
        let at = at.as_millis();
        new_object(py, Pin::of_plane(PlaneObject::new(client, view, path, at)))
    }

    /// The object, if it lies in shared memory and the service has confirmed it. Makes no call.
    #[inline]
    pub(crate) fn find(&self, py: Python<'_>, at: Timestamp) -> PyResult<Option<Py<PyAny>>> {
        let found = {
            let in_plane = self.in_plane.get()?.lock();
            in_plane.try_at(at).map(View::into_owned)
        };
        match found {
            Ok(view) => Ok(Some(self.object(py, PlaneView::Local(view), at)?)),
            Err(AskReason::Forked) => Err(error::of_client(ClientError::ForkedProcess)),
            Err(_) => Ok(None),
        }
    }

    /// Asks the service for the objects of some times; `None` where nothing is valid.
    pub(crate) fn ask(
        &self,
        py: Python<'_>,
        times: &[Timestamp],
    ) -> PyResult<Vec<Option<Py<PyAny>>>> {
        let local = self.local.get()?;
        let asked = wait(py, local.ask(&self.path, times))?;
        // The service may have come back meanwhile, with another session.
        self.in_plane.get()?.lock().follow_session();
        let objects = asked.into_iter().zip(times).map(|(view, at)| {
            let view = view.map(|view| PlaneView::Asked(OwnedByProcess::new(view)));
            view.map(|view| self.object(py, view, *at)).transpose()
        });
        objects.collect()
    }
}

#[pymethods]
impl Path {
    /// The object path.
    #[getter]
    fn path(&self) -> &str {
        &self.path
    }

    /// The object at a time; `None` where nothing is valid. The service is asked if it does not lie
    /// in shared memory.
    pub(crate) fn at(&self, at: &Bound<'_, PyAny>) -> PyResult<Option<Py<PyAny>>> {
        let (py, at) = (at.py(), millis_of(at)?);
        match self.find(py, at)? {
            Some(object) => Ok(Some(object)),
            None => Ok(self.ask(py, &[at])?.pop().flatten()),
        }
    }

    /// The object at a time if it lies in shared memory and the service has confirmed it, else
    /// `None`. Makes no call.
    fn try_at(&self, at: &Bound<'_, PyAny>) -> PyResult<Option<Py<PyAny>>> {
        self.find(at.py(), millis_of(at)?)
    }

    /// Waits until the object at a time is another one than `known` (`None`: nothing is valid), or
    /// for `timeout` seconds; whether it is another one. A change before the call counts too.
    #[pyo3(signature = (at, known, timeout=None))]
    fn changed(
        &self,
        at: &Bound<'_, PyAny>,
        known: &Bound<'_, PyAny>,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        let (py, at, known) = (at.py(), millis_of(at)?, version_of(known)?);
        let timeout = timeout.map(duration_of).transpose()?;
        // Its own handle: others look up meanwhile.
        let mut path = self.in_plane.get()?.lock().clone();
        wait(py, path.changed_async(at, known, timeout))
    }

    /// A descriptor that is readable when the object at a time can be another one than `known`; `None`
    /// if it is another one now.
    fn change_event(
        &self,
        at: &Bound<'_, PyAny>,
        known: &Bound<'_, PyAny>,
    ) -> PyResult<Option<NativeEvent>> {
        let (py, at, known) = (at.py(), millis_of(at)?, version_of(known)?);
        let path = self.in_plane.get()?.lock().clone();
        let event = wait_blocking(py, move || path.change_event(at, known))?;
        Ok(event.map(NativeEvent::new))
    }

    /// One step of a wait for a change: whether the object at a time is another one than `known`; if
    /// not, the event to wait for, or `None` where the service must be asked again after a pause.
    fn _change_step(
        &self,
        at: &Bound<'_, PyAny>,
        known: &Bound<'_, PyAny>,
    ) -> PyResult<(bool, Option<NativeEvent>)> {
        let (py, at, known) = (at.py(), millis_of(at)?, version_of(known)?);
        let mut path = self.in_plane.get()?.lock().clone();
        Ok(match wait(py, path.change_step(at, known))? {
            ChangeStep::Changed => (true, None),
            ChangeStep::Event(event) => (false, Some(NativeEvent::new(event))),
            ChangeStep::Ask(_) => (false, None),
        })
    }

    fn __repr__(&self) -> String {
        format!("<iovcache.Path {}>", self.path)
    }
}
