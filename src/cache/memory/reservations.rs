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
//! then found no room would wait for newer ones to be consumed, and their consumers for it. Where the
//! source does not tell the size of each object there can be no such promise: then nothing is held, and
//! the objects wait for memory as those of a table do.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::cache::memory::object::{Pin, PinSet};
use crate::cache::memory::pin_request::{PinOutcome, PinRequest};
use crate::cache::memory::residency::Residency;
use crate::object::ObjectId;
use crate::shm::{Pool, PoolError, Reservation};

/// Rooms that are kept, by what they are for.
#[derive(Debug)]
pub(crate) struct Reservations {
    residency: Arc<Residency>,
    by_id: Mutex<HashMap<ObjectId, Weak<Reserved>>>,
}

/// Room for one object that is not in memory yet, and its pin once it is.
pub(crate) struct Reserved {
    id: ObjectId,
    size_bytes: u64,
    home: Arc<Reservations>,
    content: Mutex<ReservedState>,
}

/// What a place holds. Neither: it is being written.
#[derive(Debug, Default)]
struct ReservedState {
    reservation: Option<Reservation>,
    landed: Option<Pin>,
}

/// Memory in somebody's hands, to be written; at first there may be none. Dropped, it goes back, and
/// whoever waits for memory hears of it.
#[derive(Debug)]
pub(crate) struct LoadBuffer {
    reservation: Option<Reservation>,
    /// Where it is from.
    place: Option<Arc<Reserved>>,
    residency: Arc<Residency>,
}

/// All that one timeframe needs: pinned, or with its place.
#[derive(Debug, Default)]
pub(crate) struct Claim {
    pins: Arc<PinSet>,
    places: Vec<Arc<Reserved>>,
    /// It holds nothing: the size of some object is not known.
    open: bool,
}

/// What is missing to a claim.
pub(crate) struct Shortfall {
    claim: Claim,
    /// What needs a place of its own, and its size.
    objects: Vec<(ObjectId, u64)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Reservations {
    pub(crate) fn new(residency: Arc<Residency>) -> Arc<Self> {
        Arc::new(Self { residency, by_id: Mutex::default() })
    }

    /// The place that is kept for an object.
    pub(crate) fn find(&self, id: ObjectId) -> Option<Arc<Reserved>> {
        lock(&self.by_id).get(&id)?.upgrade()
    }

    /// Whether none is kept.
    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.by_id).is_empty()
    }

    /// Claims what is there: pins what is resident, shares the places of others. The rest takes
    /// memory.
    pub(crate) fn claim(&self, versions: &(impl PinRequest + ?Sized)) -> Result<Claim, Shortfall> {
        let mut pins = Vec::with_capacity(versions.len());
        let mut objects = Vec::new();
        let (mut places, mut others, mut open) = (Vec::new(), Vec::new(), false);
        versions.pin_each(&self.residency, 0..versions.len(), |number, found| {
            let id = versions.id(number);
            match found {
                PinOutcome::Same(pin) => pins.push(pin),
                // It is there already: only its digest has to be computed.
                PinOutcome::Unverified(pin) => {
                    open = true;
                    others.push(pin);
                }
                found => {
                    // An object of other bytes makes room for it.
                    if let PinOutcome::Other(pin) = found {
                        others.push(pin);
                    }
                    match (self.find(id), versions.info(number).size_bytes) {
                        (Some(place), _) => places.push(place),
                        (None, Some(size_bytes)) => objects.push((id, size_bytes)),
                        (None, None) => open = true,
                    }
                }
            }
        });
        drop(others);
        let claim = Claim { pins: Arc::new(PinSet::new(pins)), places, open };
        match objects.is_empty() {
            true => Ok(claim.kept()),
            false => Err(Shortfall { claim, objects }),
        }
    }

    /// Takes the memory that is lacking, all of it or none, if need be at the cost of candidates.
    /// `None`: there is no room beside what is pinned and reserved. A new segment takes its time.
    ///
    /// # Errors
    /// What the pool says else.
    pub(crate) fn take(self: &Arc<Self>, shortfall: Shortfall) -> Result<Option<Claim>, PoolError> {
        let Shortfall { mut claim, mut objects } = shortfall;
        let bytes = objects.iter().map(|(_, size_bytes)| Pool::charge(*size_bytes));
        let bytes = bytes.fold(self.residency.unevictable_bytes(), u64::saturating_add);
        if bytes > self.residency.pool().total_bytes() {
            // Nothing has to be evicted to know that.
            return Ok(None);
        }
        // What is large finds room only before what is small has been spread.
        objects.sort_unstable_by_key(|(_, size_bytes)| std::cmp::Reverse(*size_bytes));
        for (id, size_bytes) in objects {
            match self.place(id, size_bytes) {
                Ok(place) => claim.places.push(place),
                Err(PoolError::NoRoom { .. }) => return Ok(None),
                // What others let go of may do where the system gives nothing more.
                Err(error @ PoolError::Segment { .. }) => {
                    drop(claim);
                    let others = self.residency.unevictable_bytes() > 0;
                    return if others { Ok(None) } else { Err(error) };
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Some(claim.kept()))
    }

    /// The place of an object: the one that is kept for it, or a new one.
    fn place(self: &Arc<Self>, id: ObjectId, size_bytes: u64) -> Result<Arc<Reserved>, PoolError> {
        if let Some(place) = self.find(id) {
            return Ok(place);
        }
        let reservation = Some(self.residency.reserve(size_bytes)?);
        let content = Mutex::new(ReservedState { reservation, landed: None });
        let place = Arc::new(Reserved { id, size_bytes, home: Arc::clone(self), content });
        let mut by_id = lock(&self.by_id);
        let other = by_id.get(&id).and_then(Weak::upgrade);
        if other.is_none() {
            by_id.insert(id, Arc::downgrade(&place));
        }
        drop(by_id);
        Ok(other.unwrap_or(place))
    }

    /// Room for a payload of this size: the one that is kept at `place`, or other.
    ///
    /// # Errors
    /// [`PoolError`].
    pub(crate) fn room(
        &self,
        place: Option<&Arc<Reserved>>,
        size_bytes: u64,
    ) -> Result<LoadBuffer, PoolError> {
        match self.kept_room(place, size_bytes) {
            Some(room) => Ok(room),
            None => {
                let reservation = Some(self.residency.reserve(size_bytes)?);
                Ok(LoadBuffer { reservation, place: None, residency: Arc::clone(&self.residency) })
            }
        }
    }

    /// Room in the segments that are there: it takes no time.
    pub(crate) fn room_now(&self, size_bytes: u64) -> Option<LoadBuffer> {
        let reservation = Some(self.residency.reserve_now(size_bytes)?);
        Some(LoadBuffer { reservation, place: None, residency: Arc::clone(&self.residency) })
    }

    /// The room that is kept at `place`, if it is for a payload of this size.
    pub(crate) fn kept_room(
        &self,
        place: Option<&Arc<Reserved>>,
        size_bytes: u64,
    ) -> Option<LoadBuffer> {
        let (reservation, place) = (Some(place?.take(size_bytes)?), place.map(Arc::clone));
        Some(LoadBuffer { reservation, place, residency: Arc::clone(&self.residency) })
    }

    /// None yet.
    pub(crate) fn no_room(&self) -> LoadBuffer {
        LoadBuffer { reservation: None, place: None, residency: Arc::clone(&self.residency) }
    }

    /// All pins that places hold.
    pub(crate) fn pin_sets(&self) -> Vec<Arc<PinSet>> {
        let places: Vec<Arc<Reserved>> =
            lock(&self.by_id).values().filter_map(Weak::upgrade).collect();
        let pins = places.iter().filter_map(|place| lock(&place.content).landed.clone());
        vec![Arc::new(PinSet::new(pins.collect()))]
    }
}

impl LoadBuffer {
    /// The size of the payload; `None`: there is no room.
    pub(crate) fn size_bytes(&self) -> Option<u64> {
        self.reservation.as_ref().map(Reservation::size_bytes)
    }

    /// The payload from `offset` on, to be written.
    pub(crate) fn rest_mut(&mut self, offset: usize) -> &mut [u8] {
        match &mut self.reservation {
            Some(reservation) => reservation.rest_mut(offset),
            None => &mut [],
        }
    }

    /// The first `count` bytes are written for good.
    pub(crate) fn settle(&mut self, count: usize) {
        if let Some(reservation) = &mut self.reservation {
            reservation.settle(count);
        }
    }

    /// What is settled so far.
    pub(crate) fn settled(&self) -> &[u8] {
        self.reservation.as_ref().map_or(&[], Reservation::settled)
    }

    /// Writes `bytes` behind what is settled; the CRC-32C of all that is.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Option<u32> {
        let reservation = self.reservation.as_mut()?;
        reservation.append(bytes);
        Some(reservation.crc32c())
    }

    /// What was written, for good.
    pub(crate) fn into_reservation(mut self) -> Option<Reservation> {
        self.reservation.take()
    }
}

impl Drop for LoadBuffer {
    fn drop(&mut self) {
        let Some(reservation) = self.reservation.take() else { return };
        match &self.place {
            Some(place) => place.give_back(reservation),
            None => drop(reservation),
        }
        self.residency.ring();
    }
}

impl Claim {
    /// Who would wait for memory must not hold any meanwhile.
    fn kept(self) -> Self {
        if self.open { Self { open: true, ..Self::default() } } else { self }
    }

    /// Whether everything is pinned.
    pub(crate) fn is_resident(&self) -> bool {
        self.places.is_empty() && !self.open
    }

    /// Whether it holds nothing, because the size of some object is not known.
    pub(crate) fn is_open(&self) -> bool {
        self.open
    }

    /// What it pins by itself.
    pub(crate) fn pins(&self) -> &Arc<PinSet> {
        &self.pins
    }
}

impl Reserved {
    fn take(&self, size_bytes: u64) -> Option<Reservation> {
        // The source may have another idea of the size than it had.
        if size_bytes != self.size_bytes {
            return None;
        }
        lock(&self.content).reservation.take()
    }

    /// The load came to nothing: the room is kept for the next one.
    fn give_back(&self, mut reservation: Reservation) {
        reservation.unsettle();
        let mut content = lock(&self.content);
        if content.landed.is_none() && content.reservation.is_none() {
            content.reservation = Some(reservation);
        }
    }

    /// The object is there. It stays as long as anybody has this place.
    pub(crate) fn land(&self, pin: &Pin) {
        let content = ReservedState { reservation: None, landed: Some(pin.clone()) };
        let before = std::mem::replace(&mut *lock(&self.content), content);
        let had_room = before.reservation.is_some();
        drop(before);
        if had_room {
            self.home.residency.ring();
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        {
            let mut by_id = lock(&self.home.by_id);
            // Meanwhile another may be kept for the same object: then that is not ours.
            if by_id.get(&self.id).is_some_and(|place| place.strong_count() == 0) {
                by_id.remove(&self.id);
            }
        }
        let ReservedState { reservation, landed } = std::mem::take(&mut *lock(&self.content));
        let had_room = reservation.is_some();
        drop((reservation, landed));
        if had_room {
            self.home.residency.ring();
        }
    }
}

impl fmt::Debug for Reserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Place({} bytes for {})", self.size_bytes, self.id)
    }
}
