//! Pin requests: versions to pin, and the outcome for each.

use std::sync::Arc;

use crate::cache::memory::object::{Pin, VersionMatch};
use crate::cache::memory::residency::Residency;
use crate::object::{ObjectId, ObjectInfo};

/// The result for one version.
pub(crate) enum PinOutcome {
    /// Its object.
    Same(Pin),
    /// An object with the same id and other bytes.
    Other(Pin),
    /// An object with the same id whose bytes are not known to be those of the version.
    Unverified(Pin),
    /// The object is not in memory.
    Nothing,
}

impl PinOutcome {
    pub(crate) fn new(pin: Option<Pin>, version: &ObjectInfo) -> Self {
        let Some(pin) = pin else { return Self::Nothing };
        match pin.match_of(version) {
            VersionMatch::Same => Self::Same(pin),
            VersionMatch::Other => Self::Other(pin),
            VersionMatch::Unverified => Self::Unverified(pin),
        }
    }
}

/// Versions to pin, each id once.
pub(crate) trait PinRequest: Sync {
    /// Number of versions.
    fn len(&self) -> usize;

    fn id(&self, number: usize) -> ObjectId;

    fn info(&self, number: usize) -> &Arc<ObjectInfo>;

    /// Pins the resident ones of `numbers` and reports the outcome of each to `found`, in order.
    /// `found` must not drop a pin: their bytes are counted after the last one.
    fn pin_each(
        &self,
        residency: &Residency,
        numbers: impl Iterator<Item = usize>,
        found: impl FnMut(usize, PinOutcome),
    );
}

impl PinRequest for [Arc<ObjectInfo>] {
    fn len(&self) -> usize {
        self.len()
    }

    fn id(&self, number: usize) -> ObjectId {
        self[number].id
    }

    fn info(&self, number: usize) -> &Arc<ObjectInfo> {
        &self[number]
    }

    fn pin_each(
        &self,
        residency: &Residency,
        numbers: impl Iterator<Item = usize>,
        mut found: impl FnMut(usize, PinOutcome),
    ) {
        let mut pinning = residency.pinning();
        for number in numbers {
            let pin = pinning.by_id(self[number].id);
            found(number, PinOutcome::new(pin, &self[number]));
        }
    }
}
