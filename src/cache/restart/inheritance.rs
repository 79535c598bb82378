//! Inheritance: takes over the objects of the previous process, each after a check.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use super::object_log::{LogRecord, ObjectLog};
use super::state::{DescriptorStore, PREFIX};
use super::timelines::{SavedTimelines, TimelineFiles};
use crate::error::Coded as _;
use crate::object::{ObjectId, ObjectInfo, VersionTimes};
use crate::shm::{Epoch, Kind, Mappings, Pool, PoolError, Reservation};
use crate::sync::{Mutex, MutexGuard};

/// The descriptors left by a previous process.
#[derive(Debug, Default)]
pub struct Inheritance {
    segments: BTreeMap<(u64, u16), (String, OwnedFd)>,
    ledgers: Vec<(u64, OwnedFd)>,
    notes: Vec<OwnedFd>,
    /// The names of the object logs and timeline files.
    names: Vec<String>,
}

impl Inheritance {
    /// Selects the descriptors left by an earlier process of this service; the others are returned.
    pub fn of(
        files: impl IntoIterator<Item = (String, OwnedFd)>,
    ) -> (Self, Vec<(String, OwnedFd)>) {
        let (mut inheritance, mut others) = (Self::default(), Vec::new());
        for (name, file) in files {
            let parts = name.strip_prefix(PREFIX).map(|rest| rest.split('-').collect::<Vec<_>>());
            let epoch = |text: &str| u64::from_str_radix(text, 16).ok();
            match parts.as_deref() {
                Some(["segment", of, id]) if let (Some(of), Ok(id)) = (epoch(of), id.parse()) => {
                    inheritance.segments.insert((of, id), (name, file));
                }
                Some(["ledger", of]) if let Some(of) = epoch(of) => {
                    inheritance.ledgers.push((of, file));
                    inheritance.names.push(name);
                }
                Some(["notes", of, _]) if epoch(of).is_some() => {
                    inheritance.notes.push(file);
                    inheritance.names.push(name);
                }
                _ => others.push((name, file)),
            }
        }
        (inheritance, others)
    }

    /// The saved timelines, if they can be read.
    pub(crate) fn saved_timelines(&self) -> Option<SavedTimelines> {
        TimelineFiles::read(&self.notes)
    }

    /// The objects listed in the object logs.
    pub(crate) fn inherited_objects(
        self,
        descriptor_store: Option<Arc<dyn DescriptorStore>>,
    ) -> InheritedObjects {
        // Each with its index in `by_segment`.
        let mut segments: HashMap<(u64, u16), (Arc<Mappings>, usize)> = HashMap::new();
        let mut names = self.names;
        let mut by_segment: Vec<(String, Vec<Arc<InheritedObject>>)> = Vec::new();
        for (&(epoch, id), (name, file)) in &self.segments {
            let size = rustix::fs::fstat(file).map_or(0, |facts| facts.st_size);
            let size = u64::try_from(size).unwrap_or(0);
            // Only sealed segments are mapped: no other process can truncate them.
            let mapped =
                Mappings::default().with(Kind::Segment, id, size, Epoch(epoch), file.as_fd());
            match mapped {
                Ok(mapped) => {
                    segments.insert((epoch, id), (Arc::new(mapped), by_segment.len()));
                    by_segment.push((name.clone(), Vec::new()));
                }
                Err(error) => {
                    tracing::info!("{name} cannot be used: {}", error.message());
                    names.push(name.clone());
                }
            }
        }
        let mut by_id = HashMap::new();
        for (epoch, file) in &self.ledgers {
            let records = ObjectLog::read(file).unwrap_or_else(|error| {
                tracing::warn!(%error, "an inherited object log cannot be read");
                Vec::new()
            });
            for record in records {
                let place = (*epoch, record.header.segment_id);
                let Some((mapped, place)) = segments.get(&place) else { continue };
                let inherited = Arc::new(InheritedObject { mapped: Arc::clone(mapped), record });
                by_segment[*place].1.push(Arc::clone(&inherited));
                by_id.insert(inherited.record.id, inherited);
            }
        }
        InheritedObjects {
            left: Mutex::new(InheritedState { by_id, by_segment, names }),
            descriptor_store,
        }
    }
}

/// An object of a previous process.
#[derive(Debug)]
pub(crate) struct InheritedObject {
    mapped: Arc<Mappings>,
    pub(crate) record: LogRecord,
}

/// Why an inherited object is not taken over.
#[derive(Debug)]
pub(crate) enum InheritRefusal {
    /// It differs from its record in the object log.
    Damaged(String),
    Pool(PoolError),
}

impl InheritedObject {
    /// Whether its record matches this version: the same digest if the source gives one, else the
    /// same path, beginning and creation time. Its bytes are checked on publication.
    fn is(&self, version: &ObjectInfo) -> bool {
        let LogRecord { header, md5, path, times, .. } = &self.record;
        let right = match version.md5 {
            Some(expected) => *md5 == Some(expected),
            None => (path, *times) == (&version.path, VersionTimes::from(version)),
        };
        right && version.size_bytes.is_none_or(|bytes| bytes == header.size)
    }

    /// Copies it into memory from `reserve`, checking its block header and CRC-32C.
    ///
    /// # Errors
    /// [`InheritRefusal`].
    fn copy(
        &self,
        reserve: impl FnOnce(u64) -> Result<Reservation, PoolError>,
    ) -> Result<Reservation, InheritRefusal> {
        let payload = self.payload()?;
        let mut reservation = reserve(payload.len() as u64).map_err(InheritRefusal::Pool)?;
        reservation.append(payload);
        self.check(reservation.crc32c())?;
        Ok(reservation)
    }

    /// Its bytes, located by its block header.
    ///
    /// # Errors
    /// [`InheritRefusal::Damaged`].
    pub(crate) fn payload(&self) -> Result<&[u8], InheritRefusal> {
        let payload = self.mapped.resolve_inherited(&self.record.header);
        payload.map_err(|error| InheritRefusal::Damaged(error.message()))
    }

    /// Checks the CRC-32C of a copy.
    ///
    /// # Errors
    /// [`InheritRefusal::Damaged`].
    pub(crate) fn check(&self, found: u32) -> Result<(), InheritRefusal> {
        let expected = self.record.crc32c;
        if found == expected {
            return Ok(());
        }
        let reason = format!("its CRC-32C is {found:08x}, expected {expected:08x}");
        Err(InheritRefusal::Damaged(reason))
    }
}

/// The inherited objects that are not taken over yet.
#[derive(Debug)]
pub(crate) struct InheritedObjects {
    left: Mutex<InheritedState>,
    descriptor_store: Option<Arc<dyn DescriptorStore>>,
}

/// Objects of the previous process that are not taken over, and the names of its logs and timeline
/// files.
#[derive(Debug, Default)]
struct InheritedState {
    by_id: HashMap<ObjectId, Arc<InheritedObject>>,
    by_segment: Vec<(String, Vec<Arc<InheritedObject>>)>,
    names: Vec<String>,
}

impl InheritedObjects {
    fn left(&self) -> MutexGuard<'_, InheritedState> {
        self.left.lock()
    }

    /// Whether a previous process left no descriptors at all.
    pub(crate) fn is_empty(&self) -> bool {
        let left = self.left();
        left.by_segment.is_empty() && left.names.is_empty()
    }

    /// Number of objects.
    pub(crate) fn len(&self) -> usize {
        self.left().by_id.len()
    }

    /// The inherited object of a version, if there is one.
    pub(crate) fn find(&self, version: &ObjectInfo) -> Option<Arc<InheritedObject>> {
        let left = self.left();
        left.by_id.get(&version.id).filter(|inherited| inherited.is(version)).cloned()
    }

    /// Takes over the objects that fit without eviction. `admit` publishes one, and returns false
    /// to stop. Releases the old segments one by one. Blocks as long as the copying takes.
    pub(crate) fn take_over(&self, pool: &Pool, admit: impl Fn(&LogRecord, Reservation) -> bool) {
        let mut going_on = true;
        loop {
            let Some((name, inherited_objects)) = self.left().by_segment.pop() else { break };
            for inherited in inherited_objects {
                if !going_on {
                    break;
                }
                // If a request has loaded it meanwhile, `admit` pins that one and frees the copy.
                match inherited.copy(|bytes| pool.reserve(bytes)) {
                    Ok(reservation) => going_on = admit(&inherited.record, reservation),
                    Err(InheritRefusal::Pool(_)) => going_on = false,
                    Err(InheritRefusal::Damaged(reason)) => {
                        let (path, id) = (&inherited.record.path, inherited.record.id);
                        tracing::warn!(%path, %id, reason, "an inherited object is not taken over");
                    }
                }
                self.left().by_id.remove(&inherited.record.id);
            }
            self.forget(&name);
        }
        let InheritedState { names, .. } = std::mem::take(&mut *self.left());
        names.iter().for_each(|name| self.forget(name));
    }

    fn forget(&self, name: &str) {
        if let Some(descriptor_store) = &self.descriptor_store {
            descriptor_store.forget(name);
        }
    }
}
