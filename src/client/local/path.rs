//! Handles for local look-ups: those of a client, and a path of it.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use super::shared::LocalShared;
use super::view::View;
use crate::client::error::ClientError;
use crate::interval::Timestamp;
use crate::object::ObjectPath;
use crate::shm::{
    AskReason, ChangeNotice, EventError, LocalPlane, LookUpCounts, PlaneEvent, PlanePath,
    SpanAhead, ViewBatch,
};

/// Number of objects of [`Local::get_many`] whose spans are found at a time.
const TOGETHER: usize = ViewBatch::TOGETHER;

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
        let path = object_path(path)?;
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
        let mut asked_paths: HashMap<&ObjectPath, usize> = HashMap::new();
        // Each look-up without a free slot looks at all of them.
        let mut is_full = false;
        let mut batch = ViewBatch::default();
        for (begin, group) in (0..).step_by(TOGETHER).zip(keys.chunks(TOGETHER)) {
            let mut ahead = [SpanAhead::default(); TOGETHER];
            ahead.iter_mut().zip(group).for_each(|(ahead, (path, at))| *ahead = path.ahead(*at));
            batch.renew();
            for (number, ((path, at), ahead)) in group.iter().zip(ahead).enumerate() {
                let found = match is_full {
                    true => Err(AskReason::NoSlot),
                    false => path.try_at_ahead(*at, ahead, &mut batch),
                };
                let reason = match found {
                    Ok(view) => {
                        views.push(Some(view));
                        continue;
                    }
                    Err(AskReason::Forked) => return Err(ClientError::ForkedProcess),
                    Err(reason) => reason,
                };
                is_full |= reason == AskReason::NoSlot;
                let place = *asked_paths.entry(&path.path).or_insert(asked.len());
                if place == asked.len() {
                    asked.push((path, Vec::new()));
                }
                asked[place].1.push(begin + number);
                views.push(None);
            }
        }
        for (path, places) in asked {
            let times = places.iter().map(|place| keys[*place].1.as_millis()).collect();
            let objects = path.ask(times, None)?;
            for (place, object) in places.into_iter().zip(objects) {
                views[place] = object;
            }
        }
        Ok(views)
    }

    /// Asks the service for the objects of a path at some times, in their order; `None` where nothing
    /// is valid. Does not look into shared memory first: for a caller whose
    /// [`try_at`](LocalPath::try_at) found nothing, and that must not block its thread.
    ///
    /// # Errors
    /// As [`LocalPath::at`].
    ///
    /// # Panics
    /// Outside of a tokio runtime with a timer.
    pub async fn ask(
        &self,
        path: &str,
        times: &[Timestamp],
    ) -> Result<Vec<Option<View<'static>>>, ClientError> {
        let path = object_path(path)?;
        let times = times.iter().map(|at| at.as_millis()).collect();
        let objects = self.0.ask_async(&path, times).await?;
        Ok(objects.into_iter().map(|object| object.map(View::asked)).collect())
    }

    /// Counts of look-ups in this session; zeros before it is attached.
    pub fn counts(&self) -> LookUpCounts {
        self.0.plane.load().as_ref().map(|plane| plane.counts()).unwrap_or_default()
    }
}

fn object_path(path: &str) -> Result<ObjectPath, ClientError> {
    ObjectPath::new(path)
        .map_err(|error| ClientError::Argument { reason: format!("{path:?}: {error}") })
}

/// A path to look up objects in. It is used by one thread; a clone is cheap.
pub struct LocalPath {
    pub(super) shared: Arc<LocalShared>,
    pub(super) path: ObjectPath,
    first: PlaneStep,
}

/// The path in the plane of one session, linked to those of later sessions. Views borrow from each,
/// so all are kept until the handle is dropped.
pub(super) struct PlaneStep {
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

    /// A step of its own, in the plane of the same session.
    pub(super) fn of_same_session(&self, path: &ObjectPath) -> Self {
        let plane = self.plane.as_ref().map(|(plane, _)| (Arc::clone(plane), plane.path(path)));
        Self { plane, next: OnceCell::new() }
    }

    #[inline]
    fn in_plane(&self) -> Result<&PlanePath, AskReason> {
        self.plane.as_ref().map(|(_, path)| path).ok_or(AskReason::Ended)
    }

    pub(super) fn notice(&self) -> Result<ChangeNotice, AskReason> {
        self.in_plane()?.notice()
    }

    pub(super) fn change_event(&self, notice: &ChangeNotice) -> Result<PlaneEvent, EventError> {
        self.in_plane().map_err(EventError::Ask)?.change_event(notice)
    }

    pub(super) fn wait_change(
        &self,
        notice: &ChangeNotice,
        deadline: Option<Instant>,
    ) -> Result<bool, AskReason> {
        self.in_plane()?.wait_change(notice, deadline)
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

    #[inline]
    pub(super) fn last(&self) -> &PlaneStep {
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
    #[inline(always)]
    pub fn at(&self, at: Timestamp) -> Result<Option<View<'_>>, ClientError> {
        match self.try_at(at) {
            Ok(view) => Ok(Some(view)),
            Err(reason) => match self.ask_one(at, reason, None) {
                Ok(view) => Ok(view.map(|view| *view)),
                Err(error) => Err(*error),
            },
        }
    }

    /// The object that is valid at `at`, if it is in shared memory and the service has confirmed
    /// it. Makes no request and never blocks.
    ///
    /// # Errors
    /// The reason why the service must be asked.
    #[inline(always)]
    pub fn try_at(&self, at: Timestamp) -> Result<View<'_>, AskReason> {
        self.last().in_plane()?.at(at.as_millis()).map(View::pinned)
    }

    /// The span of a time, for [`try_at_ahead`](Self::try_at_ahead).
    #[inline]
    fn ahead(&self, at: Timestamp) -> SpanAhead {
        let in_plane = self.last().in_plane();
        in_plane.map_or_else(|_| SpanAhead::default(), |path| path.ahead(at.as_millis()))
    }

    /// Like [`try_at`](Self::try_at), for a time whose span was found.
    #[inline]
    fn try_at_ahead<'a>(
        &'a self,
        at: Timestamp,
        ahead: SpanAhead,
        batch: &mut ViewBatch<'a>,
    ) -> Result<View<'a>, AskReason> {
        self.last().in_plane()?.at_ahead(at.as_millis(), ahead, batch).map(View::pinned)
    }

    /// Requests the object of one time, which is not in shared memory for this reason.
    #[cold]
    #[inline(never)]
    pub(super) fn ask_one(
        &self,
        at: Timestamp,
        reason: AskReason,
        deadline: Option<Instant>,
    ) -> Result<Option<Box<View<'_>>>, Box<ClientError>> {
        if matches!(reason, AskReason::Forked) {
            return Err(Box::new(ClientError::ForkedProcess));
        }
        let object = self.ask(vec![at.as_millis()], deadline).map_err(Box::new)?.pop();
        Ok(object.flatten().map(Box::new))
    }

    /// Requests the objects of several times from the service.
    #[cold]
    fn ask(
        &self,
        times: Vec<i64>,
        deadline: Option<Instant>,
    ) -> Result<Vec<Option<View<'_>>>, ClientError> {
        let objects = self.shared.ask(&self.path, times, deadline);
        self.follow_session();
        Ok(objects?.into_iter().map(|object| object.map(View::asked)).collect())
    }

    /// Uses the plane of the current session. The session can change with a request: it is the first
    /// one, or that of a restarted service.
    pub fn follow_session(&self) {
        let last = self.last();
        let plane = self.shared.plane.load();
        let known = last.plane.as_ref().map(|(plane, _)| Arc::as_ptr(plane));
        if plane.is_some() && plane.as_ref().map(Arc::as_ptr) != known {
            let _ = last.next.set(Box::new(PlaneStep::new(&self.shared, &self.path)));
        }
    }
}
