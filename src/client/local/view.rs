//! Objects that were looked up.

use std::fmt;
use std::ops::Deref;

use super::shared::{RequestedBytes, RequestedObject};
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::ObjectId;
use crate::shm::{OwnedPinnedView, PinnedView};

/// Bytes of an object. They stay in place until the view is dropped.
///
/// ```no_run
/// # fn main() -> Result<(), iovcache::client::ClientError> {
/// # let runtime = tokio::runtime::Runtime::new().unwrap();
/// # let client = runtime.block_on(iovcache::client::Client::connect("grpc://127.0.0.1:50051"))?;
/// let drift = client.local()?.path("TPC/Calib/VDriftTgl")?;
/// if let Some(view) = drift.at(iovcache::Timestamp::from_millis(1_700_000_000_000))? {
///     println!("{} bytes of version {}", view.len(), view.id());
/// }
/// # Ok(())
/// # }
/// ```
pub struct View<'a>(ViewBytes<'a>);

enum ViewBytes<'a> {
    Pinned(PinnedView<'a>),
    Owned(OwnedPinnedView),
    /// In a box: it is larger than the others.
    Asked(Box<RequestedObject>),
}

impl<'a> View<'a> {
    #[inline]
    pub(super) fn pinned(view: PinnedView<'a>) -> Self {
        Self(ViewBytes::Pinned(view))
    }

    pub(super) fn asked(object: RequestedObject) -> Self {
        Self(ViewBytes::Asked(Box::new(object)))
    }

    /// Id of the version.
    pub fn id(&self) -> ObjectId {
        match &self.0 {
            ViewBytes::Pinned(view) => view.id(),
            ViewBytes::Owned(view) => view.id(),
            ViewBytes::Asked(object) => object.id,
        }
    }

    /// The version's own validity interval, in milliseconds since the Unix epoch.
    pub fn validity(&self) -> ValidityInterval {
        let (from, until) = match &self.0 {
            ViewBytes::Pinned(view) => view.validity_millis(),
            ViewBytes::Owned(view) => view.validity_millis(),
            ViewBytes::Asked(object) => object.validity,
        };
        let [from, until] = [from, until].map(Timestamp::from_millis);
        // A service publishes valid intervals only; an empty one would be unknown.
        ValidityInterval::new(from, until).unwrap_or(ValidityInterval::ALL)
    }

    /// Whether its bytes are those of the object. Always true in the process that looked it up; in a
    /// forked child, which has no part in the pin, as long as the object is in memory.
    pub fn is_live(&self) -> bool {
        match &self.0 {
            ViewBytes::Pinned(view) => view.is_live(),
            ViewBytes::Owned(view) => view.is_live(),
            ViewBytes::Asked(object) => match &object.bytes {
                RequestedBytes::Leased(bytes) => bytes.is_live(),
                RequestedBytes::Copied(_) => true,
            },
        }
    }

    /// Whether it was found in shared memory, without asking the service.
    #[inline]
    pub fn is_local(&self) -> bool {
        !matches!(self.0, ViewBytes::Asked(_))
    }

    /// Like `self`, without borrowing from the path.
    pub fn into_owned(self) -> View<'static> {
        View(match self.0 {
            ViewBytes::Pinned(view) => ViewBytes::Owned(view.into_owned()),
            ViewBytes::Owned(view) => ViewBytes::Owned(view),
            ViewBytes::Asked(object) => ViewBytes::Asked(object),
        })
    }
}

impl Deref for View<'_> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match &self.0 {
            ViewBytes::Pinned(view) => view,
            ViewBytes::Owned(view) => view,
            ViewBytes::Asked(object) => match &object.bytes {
                RequestedBytes::Leased(bytes) => bytes,
                RequestedBytes::Copied(bytes) => bytes,
            },
        }
    }
}

impl fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "View({} bytes of {})", self.len(), self.id())
    }
}
