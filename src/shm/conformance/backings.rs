//! Pools with each backing, and their readers.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::object::ObjectId;
use crate::shm::host_arena::HostArena;
use crate::shm::{Backing, Mappings, Pool, PoolOptions, Region, Reservation, SegmentCreation};

pub(super) fn id(n: u8) -> ObjectId {
    ObjectId::from_bytes([n; 16])
}

pub(super) fn mappings_of(pool: &Pool) -> Mappings {
    if pool.segments().is_empty() {
        // A host's memory: other processes find it by the host's transport.
        return pool.mappings();
    }
    pool.segments().iter().fold(Mappings::default(), |mappings, shared| {
        let size = shared.size_bytes();
        match shared.file() {
            Some(file) => {
                mappings.with(shared.kind(), shared.id(), size, pool.epoch(), file).unwrap()
            }
            // A range of memory exists only in this process.
            None => pool.mappings(),
        }
    })
}

pub(super) fn filled(pool: &Pool, bytes: &[u8]) -> Reservation {
    let mut reservation = pool.reserve(bytes.len() as u64).unwrap();
    reservation.fill(bytes);
    reservation
}

pub(super) fn pool(memory_bytes: u64, segment_bytes: u64) -> Pool {
    Pool::new(PoolOptions { memory_bytes, segment_bytes, ..PoolOptions::default() }).unwrap()
}

/// Memory of this process, as a region. It outlives the test.
pub(super) fn private_region(length: usize, id: u16) -> Region {
    let words: &mut [[u64; 8]] = vec![[u64::MAX; 8]; length / 64 + 1].leak();
    let start = words.as_mut_ptr().cast::<u8>();
    let start = start.map_addr(|addr| addr.next_multiple_of(64));
    let start = NonNull::new(start).unwrap();
    // SAFETY: `length` bytes from the next multiple of 64 on lie in the leaked memory, which has 64
    // more; nothing else refers to it.
    unsafe { Region::from_range(start, length, id) }.unwrap()
}

/// Runs a test with every backing: memfds, files with names, FairMQ's names, a region in an
/// existing file, a range of memory, a host's memory.
pub(super) fn for_each_backing(test: impl Fn(Pool)) {
    for_each_mapped_backing(&test);
    for managed in [true, false] {
        let arena = HostArena::new(1 << 20, managed);
        test(small_pool(Backing::Host(arena.memory()), None));
    }
}

/// Runs a test with all backings except a host's memory, where the neighbours of a block are
/// unknown.
pub(super) fn for_each_mapped_backing(test: impl Fn(Pool)) {
    let folder = tempfile::tempdir().unwrap();
    let small = small_pool;
    test(small(Backing::Memfd, None));
    test(small(Backing::Folder(folder.path().join("segments")), None));
    let unique = SHMIDS.fetch_add(1, Ordering::Relaxed);
    let shmid = format!("{:08x}c{unique}", std::process::id());
    test(small(
        Backing::FairMq { shmid, first_segment: 3, creation: SegmentCreation::AtStart },
        None,
    ));
    let file = folder.path().join("region");
    std::fs::write(&file, vec![0xAB; 1 << 20]).unwrap();
    test(small(Backing::Memfd, Some(Region::open(&file, 2000).unwrap())));
    test(small(Backing::Memfd, Some(private_region(1 << 20, 7))));
}

pub(super) fn small_pool(backing: Backing, region: Option<Region>) -> Pool {
    let (memory_bytes, segment_bytes, first_generation) = (1 << 20, 128 << 10, None);
    let options = PoolOptions { memory_bytes, segment_bytes, backing, region, first_generation };
    Pool::new(options).unwrap()
}

pub(super) static SHMIDS: AtomicU64 = AtomicU64::new(0);
