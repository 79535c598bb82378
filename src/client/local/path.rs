//! Handles for local look-ups: those of a client, and a path of it.

use std::cell::OnceCell;
use std::fmt;
use std::sync::Arc;

use super::shared::LocalShared;
use super::view::View;
use crate::client::error::ClientError;
use crate::interval::Timestamp;
use crate::object::ObjectPath;
use crate::shm::{AskReason, LocalPlane, LookUpCounts, PlanePath};

/// Local look-ups of a client. Clones share the session.
#[derive(Debug, Clone)]
pub struct Local(Arc<LocalShared>);

impl Local {
    pub(super) fn new(shared: Arc<LocalShared>) -> Self {
        Self(shared)
    }

    /// A path to look up objects in. No request is sent; the service need not know the path.
    ///
    /// # Errors
    /// [`ClientError::Argument`] if `path` is not an object path.
    pub fn path(&self, path: &str) -> Result<LocalPath, ClientError> {
        let path = ObjectPath::new(path)
            .map_err(|error| ClientError::Argument { reason: format!("{path:?}: {error}") })?;
        Ok(LocalPath { first: PlaneStep::new(&self.0, &path), shared: Arc::clone(&self.0), path })
    }

    /// Objects of several paths and times, in the given order; `None` where no object is valid.
    /// Objects that are not in shared memory are requested, with one request per path.
    ///
    /// # Errors
    /// As [`LocalPath::at`].
    pub fn get_many<'a>(
        &self,
        keys: &[(&'a LocalPath, Timestamp)],
    ) -> Result<Vec<Option<View<'a>>>, ClientError> {
        let mut views: Vec<Option<View<'a>>> = Vec::with_capacity(keys.len());
        let mut asked: Vec<(&'a LocalPath, Vec<usize>)> = Vec::new();
        for (place, (path, at)) in keys.iter().enumerate() {
            let view = path.find(*at)?;
            if view.is_none() {
                match asked.iter_mut().find(|(other, _)| other.path == path.path) {
                    Some((_, places)) => places.push(place),
                    None => asked.push((path, vec![place])),
                }
            }
            views.push(view);
        }
        for (path, places) in asked {
            let times = places.iter().map(|place| keys[*place].1.as_millis()).collect();
            let objects = path.ask(times)?;
            for (place, object) in places.into_iter().zip(objects) {
                views[place] = object;
            }
        }
        Ok(views)
    }

    /// Counts of look-ups in this session; zeros before it is attached.
    pub fn counts(&self) -> LookUpCounts {
        self.0.plane.load().as_ref().map(|plane| plane.counts()).unwrap_or_default()
    }
}

/// A path to look up objects in. It is used by one thread; a clone is cheap.
pub struct LocalPath {
    shared: Arc<LocalShared>,
    path: ObjectPath,
    first: PlaneStep,
}

/// The path in the plane of one session, linked to those of later sessions. Views borrow from each,
/// so all are kept until the handle is dropped.
struct PlaneStep {
    plane: Option<(Arc<LocalPlane>, PlanePath)>,
    next: OnceCell<Box<PlaneStep>>,
}

impl PlaneStep {
    fn new(shared: &LocalShared, path: &ObjectPath) -> Self {
        let plane = shared.plane.load_full();
        let plane = plane.map(|plane| {
            let in_plane = plane.path(path);
            (plane, in_plane)
        });
        Self { plane, next: OnceCell::new() }
    }
}

impl Clone for LocalPath {
    fn clone(&self) -> Self {
        let shared = Arc::clone(&self.shared);
        Self { first: PlaneStep::new(&shared, &self.path), shared, path: self.path.clone() }
    }
}

impl fmt::Debug for LocalPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LocalPath({})", self.path)
    }
}

impl LocalPath {
    /// The object path.
    pub fn path(&self) -> &ObjectPath {
        &self.path
    }

    fn last(&self) -> &PlaneStep {
        let mut step = &self.first;
        while let Some(next) = step.next.get() {
            step = next;
        }
        step
    }

    /// The object that is valid at `at`; `None` if none is. Makes no request if the object is in
    /// shared memory and the service has confirmed it. Otherwise the service is asked, which takes
    /// as long as a table and blocks this thread.
    ///
    /// # Errors
    /// The error of the service; [`ClientError::ForkedProcess`].
    #[inline]
    pub fn at(&self, at: Timestamp) -> Result<Option<View<'_>>, ClientError> {
        match self.find(at)? {
            Some(view) => Ok(Some(view)),
            None => Ok(self.ask(vec![at.as_millis()])?.pop().flatten()),
        }
    }

    /// The object that is valid at `at`, if it is in shared memory and the service has confirmed
    /// it. Makes no request and never blocks.
    ///
    /// # Errors
    /// The reason why the service must be asked.
    #[inline]
    pub fn try_at(&self, at: Timestamp) -> Result<View<'_>, AskReason> {
        match &self.last().plane {
            Some((_, path)) => path.at(at.as_millis()).map(View::pinned),
            None => Err(AskReason::Ended),
        }
    }

    /// The object; `None` if it is not in shared memory.
    #[inline]
    fn find(&self, at: Timestamp) -> Result<Option<View<'_>>, ClientError> {
        match self.try_at(at) {
            Ok(view) => Ok(Some(view)),
            Err(AskReason::Forked) => Err(ClientError::ForkedProcess),
            Err(_) => Ok(None),
        }
    }

    /// Requests the objects of several times from the service.
    #[cold]
    fn ask(&self, times: Vec<i64>) -> Result<Vec<Option<View<'_>>>, ClientError> {
        let objects = self.shared.ask(&self.path, times);
        // The session may have changed meanwhile: it is the first one, or that of a restarted
        // service.
        let last = self.last();
        let plane = self.shared.plane.load();
        let known = last.plane.as_ref().map(|(plane, _)| Arc::as_ptr(plane));
        if plane.is_some() && plane.as_ref().map(Arc::as_ptr) != known {
            let _ = last.next.set(Box::new(PlaneStep::new(&self.shared, &self.path)));
        }
        Ok(objects?.into_iter().map(|object| object.map(View::asked)).collect())
    }
}
