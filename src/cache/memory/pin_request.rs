//! Versions that a caller wants pinned, and what memory holds of each.

use std::sync::Arc;

use crate::cache::memory::object::{Likeness, Pin};
use crate::cache::memory::residency::Residency;
use crate::object::{ObjectId, ObjectInfo};

/// What was found of a version.
pub(crate) enum PinOutcome {
    /// Its object.
    Same(Pin),
    /// An object of the same id, and of other bytes.
    Other(Pin),
    /// An object of the same id whose digest is not known, and the source gives one.
    Unverified(Pin),
    /// It is not in memory.
    Nothing,
}

impl PinOutcome {
    pub(crate) fn new(pin: Option<Pin>, version: &ObjectInfo) -> Self {
        let Some(pin) = pin else { return Self::Nothing };
        match pin.likeness(version) {
            Likeness::Same => Self::Same(pin),
            Likeness::Other => Self::Other(pin),
            Likeness::Unverified => Self::Unverified(pin),
        }
    }
}

/// Versions, each id once.
pub(crate) trait PinRequest: Sync {
    /// How many.
    fn len(&self) -> usize;

    fn id(&self, number: usize) -> ObjectId;

    fn info(&self, number: usize) -> &Arc<ObjectInfo>;

    /// Pins those of `numbers` that are resident; `found` is told of each, in order. It must not drop
    /// a pin: their bytes are counted when all are told.
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
