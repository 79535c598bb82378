//! Reservations: a timeframe in flight has memory for all its objects before it is registered.
//!
//! ```text
//!  claim ──resident──▶ pin
//!    │ reserved for another timeframe ──▶ shared
//!    ▼ neither
//!  reserve, the largest first ──no room──▶ all of it is released; the registration waits
//!
//!  Reserved  free ──load──▶ being written ──▶ landed, pinned for all that share it
//!             ▲                  │ failed
//!             └──────────────────┘
//! ```
//!
//! A sum of bytes would not suffice: it includes the rests at the ends of segments and the gaps
//! between objects, which fit nothing. A timeframe registered without room would wait for newer
//! ones to be consumed, while their consumers wait for it. If the source does not give the size of
//! each object, nothing can be reserved: the objects then wait for memory like those of a table.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};

use crate::cache::memory::object::{Pin, PinSet};
use crate::cache::memory::pin_request::{PinOutcome, PinRequest};
use crate::cache::memory::residency::Residency;
use crate::object::ObjectId;
use crate::shm::{Pool, PoolError, Reservation};
use crate::sync::Mutex;

/// The reserved memory, by object.
#[derive(Debug)]
pub(crate) struct Reservations {
    residency: Arc<Residency>,
    by_id: Mutex<HashMap<ObjectId, Weak<Reserved>>>,
}

/// Memory reserved for one object that is not resident yet, and its pin once it is.
pub(crate) struct Reserved {
    id: ObjectId,
    size_bytes: u64,
    home: Arc<Reservations>,
    content: Mutex<ReservedState>,
}

/// The content of a reservation. With neither field set it is being written.
#[derive(Debug, Default)]
struct ReservedState {
    reservation: Option<Reservation>,
    landed: Option<Pin>,
}

/// Memory for a load, to be written; it may be empty at first. Dropping it releases the memory and
/// notifies the tasks that wait for memory.
#[derive(Debug)]
pub(crate) struct LoadBuffer {
    reservation: Option<Reservation>,
    /// The reservation that it was taken from.
    place: Option<Arc<Reserved>>,
    residency: Arc<Residency>,
}

/// The objects of one timeframe: each pinned or reserved.
#[derive(Debug, Default)]
pub(crate) struct Claim {
    pins: Arc<PinSet>,
    places: Vec<Arc<Reserved>>,
    /// It holds nothing, because the size of some object is unknown.
    open: bool,
}

/// The objects for which a claim still needs memory.
pub(crate) struct Shortfall {
    claim: Claim,
    /// The ids of objects without a reservation, with their sizes.
    objects: Vec<(ObjectId, u64)>,
}

impl Reservations {
    pub(crate) fn new(residency: Arc<Residency>) -> Arc<Self> {
        Arc::new(Self { residency, by_id: Mutex::default() })
    }

    /// The reservation of an object.
    pub(crate) fn find(&self, id: ObjectId) -> Option<Arc<Reserved>> {
        self.by_id.lock().get(&id)?.upgrade()
    }

    /// Whether nothing is reserved.
    pub(crate) fn is_empty(&self) -> bool {
        self.by_id.lock().is_empty()
    }

    /// Pins the resident objects and shares existing reservations.
    ///
    /// # Errors
    /// [`Shortfall`] with the objects that need memory.
    pub(crate) fn claim(&self, versions: &(impl PinRequest + ?Sized)) -> Result<Claim, Shortfall> {
        let mut pins = Vec::with_capacity(versions.len());
        let mut objects = Vec::new();
        let (mut places, mut others, mut open) = (Vec::new(), Vec::new(), false);
        versions.pin_each(&self.residency, 0..versions.len(), |number, found| {
            let id = versions.id(number);
            match found {
                PinOutcome::Same(pin) => pins.push(pin),
                // The object is resident: only its digest has to be computed.
                PinOutcome::Unverified(pin) => {
                    open = true;
                    others.push(pin);
                }
                found => {
                    // It is replaced if the new one has other bytes.
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

    /// Reserves the missing memory, all of it or none, evicting objects if necessary. `None`: there
    /// is no room beside pinned and reserved memory. Creating a segment takes time.
    ///
    /// # Errors
    /// Other errors of the pool.
    pub(crate) fn take(self: &Arc<Self>, shortfall: Shortfall) -> Result<Option<Claim>, PoolError> {
        let Shortfall { mut claim, mut objects } = shortfall;
        let bytes = objects.iter().map(|(_, size_bytes)| Pool::charge(*size_bytes));
        let bytes = bytes.fold(self.residency.unevictable_bytes(), u64::saturating_add);
        if bytes > self.residency.pool().total_bytes() {
            // Without this check, objects would be evicted in vain.
            return Ok(None);
        }
        // Large objects fit only before small ones are spread over the segments.
        objects.sort_unstable_by_key(|(_, size_bytes)| std::cmp::Reverse(*size_bytes));
        for (id, size_bytes) in objects {
            match self.place(id, size_bytes) {
                Ok(place) => claim.places.push(place),
                Err(PoolError::NoRoom { .. }) => return Ok(None),
                // If the system gives no more memory, that released by others may suffice.
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

    /// The reservation of an object: the existing one, or a new one.
    fn place(self: &Arc<Self>, id: ObjectId, size_bytes: u64) -> Result<Arc<Reserved>, PoolError> {
        if let Some(place) = self.find(id) {
            return Ok(place);
        }
        let reservation = Some(self.residency.reserve(size_bytes)?);
        let content = Mutex::new(ReservedState { reservation, landed: None });
        let place = Arc::new(Reserved { id, size_bytes, home: Arc::clone(self), content });
        let mut by_id = self.by_id.lock();
        let other = by_id.get(&id).and_then(Weak::upgrade);
        if other.is_none() {
            by_id.insert(id, Arc::downgrade(&place));
        }
        drop(by_id);
        Ok(other.unwrap_or(place))
    }

    /// Memory for a payload of this size: the one reserved at `place`, or other memory.
    ///
    /// # Errors
    /// [`PoolError`].
    pub(crate) fn freed(
        &self,
        place: Option<&Arc<Reserved>>,
        size_bytes: u64,
    ) -> Result<LoadBuffer, PoolError> {
        match self.kept_room(place, size_bytes) {
            Some(freed) => Ok(freed),
            None => {
                let reservation = Some(self.residency.reserve(size_bytes)?);
                Ok(LoadBuffer { reservation, place: None, residency: Arc::clone(&self.residency) })
            }
        }
    }

    /// Memory in existing segments, which takes no time.
    pub(crate) fn room_now(&self, size_bytes: u64) -> Option<LoadBuffer> {
        let reservation = Some(self.residency.reserve_now(size_bytes)?);
        Some(LoadBuffer { reservation, place: None, residency: Arc::clone(&self.residency) })
    }

    /// The memory reserved at `place`, if it is for a payload of this size.
    pub(crate) fn kept_room(
        &self,
        place: Option<&Arc<Reserved>>,
        size_bytes: u64,
    ) -> Option<LoadBuffer> {
        let (reservation, place) = (Some(place?.take(size_bytes)?), place.map(Arc::clone));
        Some(LoadBuffer { reservation, place, residency: Arc::clone(&self.residency) })
    }

    /// An empty buffer.
    pub(crate) fn no_room(&self) -> LoadBuffer {
        LoadBuffer { reservation: None, place: None, residency: Arc::clone(&self.residency) }
    }

    /// The pins held by all reservations.
    pub(crate) fn pin_sets(&self) -> Vec<Arc<PinSet>> {
        let places: Vec<Arc<Reserved>> =
            self.by_id.lock().values().filter_map(Weak::upgrade).collect();
        let pins = places.iter().filter_map(|place| place.content.lock().landed.clone());
        vec![Arc::new(PinSet::new(pins.collect()))]
    }
}

impl LoadBuffer {
    /// The size of the payload; `None` if there is no memory yet.
    pub(crate) fn size_bytes(&self) -> Option<u64> {
        self.reservation.as_ref().map(Reservation::size_bytes)
    }

    /// The payload from `offset` on, for writing.
    pub(crate) fn rest_mut(&mut self, offset: usize) -> &mut [u8] {
        match &mut self.reservation {
            Some(reservation) => reservation.rest_mut(offset),
            None => &mut [],
        }
    }

    /// Maps the pages of the payload for writing, `length` bytes from `offset` on.
    pub(crate) fn map_pages(&self, offset: usize, length: usize) {
        if let Some(reservation) = &self.reservation {
            reservation.map_pages(offset, length);
        }
    }

    /// Marks the first `count` bytes as final.
    pub(crate) fn settle(&mut self, count: usize) {
        if let Some(reservation) = &mut self.reservation {
            reservation.settle(count);
        }
    }

    /// The final bytes.
    pub(crate) fn settled(&self) -> &[u8] {
        self.reservation.as_ref().map_or(&[], Reservation::settled)
    }

    /// Appends `bytes` to the final bytes and returns the CRC-32C of all of them.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Option<u32> {
        let reservation = self.reservation.as_mut()?;
        reservation.append(bytes);
        Some(reservation.crc32c())
    }

    /// The written memory, for publication.
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
        self.residency.notify_freed();
    }
}

impl Claim {
    /// An incomplete claim holds nothing, since its timeframe must not hold memory while it waits.
    fn kept(self) -> Self {
        if self.open { Self { open: true, ..Self::default() } } else { self }
    }

    /// Whether everything is pinned.
    pub(crate) fn is_resident(&self) -> bool {
        self.places.is_empty() && !self.open
    }

    /// Whether it holds nothing, because the size of some object is unknown.
    pub(crate) fn is_open(&self) -> bool {
        self.open
    }

    /// Its own pins.
    pub(crate) fn pins(&self) -> &Arc<PinSet> {
        &self.pins
    }
}

impl Reserved {
    fn take(&self, size_bytes: u64) -> Option<Reservation> {
        // The size from the source may have changed since the reservation.
        if size_bytes != self.size_bytes {
            return None;
        }
        self.content.lock().reservation.take()
    }

    /// Keeps the memory of a failed load for the next one.
    fn give_back(&self, mut reservation: Reservation) {
        reservation.unsettle();
        let mut content = self.content.lock();
        if content.landed.is_none() && content.reservation.is_none() {
            content.reservation = Some(reservation);
        }
    }

    /// Stores the pin of the loaded object, which stays resident as long as the reservation.
    pub(crate) fn land(&self, pin: &Pin) {
        let content = ReservedState { reservation: None, landed: Some(pin.clone()) };
        let before = std::mem::replace(&mut *self.content.lock(), content);
        let had_room = before.reservation.is_some();
        drop(before);
        if had_room {
            self.home.residency.notify_freed();
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        {
            let mut by_id = self.home.by_id.lock();
            // There may be a new reservation for the same object by now, which stays.
            if by_id.get(&self.id).is_some_and(|place| place.strong_count() == 0) {
                by_id.remove(&self.id);
            }
        }
        let ReservedState { reservation, landed } = std::mem::take(&mut *self.content.lock());
        let had_room = reservation.is_some();
        drop((reservation, landed));
        if had_room {
            self.home.residency.notify_freed();
        }
    }
}

impl fmt::Debug for Reserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Place({} bytes for {})", self.size_bytes, self.id)
    }
}
