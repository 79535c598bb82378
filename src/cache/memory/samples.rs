//! Small objects in a small memory, for tests.

use std::sync::Arc;

use crate::cache::memory::object::Pin;
use crate::cache::memory::publish::{Description, Verified};
use crate::cache::memory::residency::Residency;
use crate::interval::Timestamp;
use crate::object::{Md5Sum, ObjectId, ObjectPath, VersionTimes};
use crate::shm::{Pool, PoolOptions};

/// Memory taken by each object.
pub(crate) const CHARGED_BYTES: u64 = 4096;
pub(crate) const OBJECT_BYTES: u64 = CHARGED_BYTES - 64;

/// Memory for this many objects.
pub(crate) fn home(objects: usize) -> Arc<Residency> {
    // One page for the head of the segment, and one page with unused bytes at its end.
    let bytes = (objects as u64 + 2) * CHARGED_BYTES;
    let options =
        PoolOptions { memory_bytes: bytes, segment_bytes: bytes, ..PoolOptions::default() };
    Residency::new(Pool::new(options).unwrap(), Arc::default(), None)
}

pub(crate) fn id(n: usize) -> ObjectId {
    ObjectId::from_bytes((n as u128).to_be_bytes())
}

/// The object `n`, loaded if it is not resident.
pub(crate) fn object(home: &Arc<Residency>, n: usize) -> Pin {
    home.pin(id(n)).unwrap_or_else(|| {
        let mut freed = home.reserve(OBJECT_BYTES).unwrap();
        freed.fill(&[n as u8; OBJECT_BYTES as usize]);
        let md5 = Some(Md5Sum([n as u8; 16]));
        let path = ObjectPath::new("A/B").unwrap();
        let times = VersionTimes { from: Timestamp::default(), created: Timestamp::default() };
        let description = Description { id: id(n), path, times, size_bytes: None, md5 };
        // Given as by a source: tests of reservations and links need no real digest.
        home.admit(Verified::check(description, freed, md5).unwrap())
    })
}
