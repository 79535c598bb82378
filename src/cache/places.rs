//! Memory for timeframes in flight: whoever is let in has the places for all that it needs.
//!
//! ```text
//!  claim ──resident──▶ pin
//!    │ another's place ──▶ shared
//!    ▼ neither
//!  reserve, the largest first ──no room──▶ all of it goes back; whoever registers waits
//!
//!  place   free ──load──▶ being written ──▶ landed, pinned for all who share it
//!           ▲                  │ failed
//!           └──────────────────┘
//! ```
//!
//! A sum of bytes could not promise that: what is left over at the ends of segments, and between
//! objects that stay where they are, counts in it and holds nothing. A timeframe that was let in and
//! then found no room would wait for newer ones to be consumed, and their consumers for it. Objects
//! whose size the source does not tell have no place; they wait for memory as those of a table do.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::residency::Residency;
use super::resident::{Pin, PinSet};
use crate::object::{ObjectId, ObjectInfo};
use crate::shm::{Pool, PoolError, Reservation};

/// Rooms that are kept, by what they are for.
#[derive(Debug)]
pub(crate) struct Places {
    residency: Arc<Residency>,
    by_id: Mutex<HashMap<ObjectId, Weak<Place>>>,
}

/// Room for one object that is not in memory yet, and its pin once it is.
pub(crate) struct Place {
    id: ObjectId,
    size_bytes: u64,
    home: Arc<Places>,
    content: Mutex<Content>,
}

/// What a place holds. Neither: it is being written.
#[derive(Debug, Default)]
struct Content {
    reservation: Option<Reservation>,
    landed: Option<Pin>,
}

/// All that one timeframe needs, as far as it is known: pinned, or with its place.
#[derive(Debug, Default)]
pub(crate) struct Claim {
    pins: Arc<PinSet>,
    places: Vec<Arc<Place>>,
    /// Of these nobody knows how large they are.
    unknown: usize,
}

/// What is missing to a claim.
pub(crate) struct Lacking {
    claim: Claim,
    /// What needs a place of its own, and its size.
    objects: Vec<(ObjectId, u64)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Places {
    pub(crate) fn new(residency: Arc<Residency>) -> Arc<Self> {
        Arc::new(Self { residency, by_id: Mutex::default() })
    }

    /// The place that is kept for an object.
    pub(crate) fn find(&self, id: ObjectId) -> Option<Arc<Place>> {
        lock(&self.by_id).get(&id)?.upgrade()
    }

    /// Whether none is kept.
    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.by_id).is_empty()
    }

    /// Claims what is there: pins what is resident, shares the places of others. The rest takes
    /// memory.
    pub(crate) fn claim(&self, versions: &[Arc<ObjectInfo>]) -> Result<Claim, Lacking> {
        let tick = self.residency.tick();
        let mut pins = Vec::with_capacity(versions.len());
        let mut objects = Vec::new();
        let (mut places, mut unknown) = (Vec::new(), 0);
        for version in versions {
            if let Some(pin) = self.residency.pin_at(version.id, tick) {
                pins.push(pin);
            } else if let Some(place) = self.find(version.id) {
                places.push(place);
            } else if let Some(size_bytes) = version.size_bytes {
                objects.push((version.id, size_bytes));
            } else {
                unknown += 1;
            }
        }
        let claim = Claim { pins: Arc::new(PinSet::new(pins)), places, unknown };
        match objects.is_empty() {
            true => Ok(claim),
            false => Err(Lacking { claim, objects }),
        }
    }

    /// Takes the memory that is lacking, all of it or none, if need be at the cost of candidates.
    /// `None`: there is no room beside what is pinned and reserved. A new segment takes its time.
    ///
    /// # Errors
    /// What the pool says else.
    pub(crate) fn take(self: &Arc<Self>, lacking: Lacking) -> Result<Option<Claim>, PoolError> {
        let Lacking { mut claim, mut objects } = lacking;
        let bytes = objects.iter().map(|(_, size_bytes)| Pool::charge(*size_bytes));
        let bytes = bytes.fold(self.residency.unevictable_bytes(), u64::saturating_add);
        if bytes > self.residency.pool().total_bytes() {
            // Nothing has to be evicted to know that.
            return Ok(None);
        }
        // What is large finds room only before what is small has been spread.
        objects.sort_unstable_by_key(|(_, size_bytes)| std::cmp::Reverse(*size_bytes));
        for (id, size_bytes) in objects {
            let reservation = match self.residency.reserve(size_bytes) {
                Ok(reservation) => Some(reservation),
                Err(PoolError::NoRoom { .. }) => return Ok(None),
                Err(error) => return Err(error),
            };
            let content = Mutex::new(Content { reservation, landed: None });
            let place = Arc::new(Place { id, size_bytes, home: Arc::clone(self), content });
            lock(&self.by_id).insert(id, Arc::downgrade(&place));
            claim.places.push(place);
        }
        Ok(Some(claim))
    }

    /// All pins that places hold.
    pub(crate) fn pin_sets(&self) -> Vec<Arc<PinSet>> {
        let places: Vec<Arc<Place>> =
            lock(&self.by_id).values().filter_map(Weak::upgrade).collect();
        let pins = places.iter().filter_map(|place| lock(&place.content).landed.clone());
        vec![Arc::new(PinSet::new(pins.collect()))]
    }
}

impl Claim {
    /// Whether everything is pinned.
    pub(crate) fn is_resident(&self) -> bool {
        self.places.is_empty() && self.unknown == 0
    }

    /// What it pins by itself.
    pub(crate) fn pins(&self) -> &Arc<PinSet> {
        &self.pins
    }
}

impl Place {
    /// The room, for a payload of this size.
    pub(crate) fn take(&self, size_bytes: u64) -> Option<Reservation> {
        // The source may have another idea of the size than it had.
        if size_bytes != self.size_bytes {
            return None;
        }
        lock(&self.content).reservation.take()
    }

    /// The load came to nothing: the room is kept for the next one.
    pub(crate) fn give_back(&self, reservation: Reservation) {
        if reservation.size_bytes() != self.size_bytes {
            return;
        }
        let mut content = lock(&self.content);
        if content.landed.is_none() && content.reservation.is_none() {
            content.reservation = Some(reservation);
        }
    }

    /// The object is there. It stays as long as anybody has this place.
    pub(crate) fn land(&self, pin: &Pin) {
        let content = Content { reservation: None, landed: Some(pin.clone()) };
        let before = std::mem::replace(&mut *lock(&self.content), content);
        drop(before);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        {
            let mut by_id = lock(&self.home.by_id);
            // Meanwhile another may be kept for the same object: then that is not ours.
            if by_id.get(&self.id).is_some_and(|place| place.strong_count() == 0) {
                by_id.remove(&self.id);
            }
        }
        let Content { reservation, landed } = std::mem::take(&mut *lock(&self.content));
        let had_room = reservation.is_some();
        drop((reservation, landed));
        if had_room {
            self.home.residency.ring();
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Place({} bytes for {})", self.size_bytes, self.id)
    }
}
