//! Reservations take the bytes of objects whole, and damage to them is found.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

#[cfg(feature = "cache")]
use proptest::prelude::*;

use super::backings::{
    filled, for_each_backing, for_each_mapped_backing, id, mappings_of, pool, private_region,
};
use crate::shm::{Backing, Block, Mappings, MetaHeader, Pool, PoolError, PoolOptions};

#[test]
fn an_object_that_does_not_fit_now_is_distinguished_from_one_that_never_will() {
    let pool = Pool::new(PoolOptions {
        memory_bytes: 256 << 10,
        segment_bytes: 64 << 10,
        ..PoolOptions::default()
    })
    .unwrap();
    assert!(matches!(pool.reserve(256 << 10), Err(PoolError::NeverFits { .. })));
    assert!(matches!(pool.reserve(u64::MAX), Err(PoolError::NeverFits { .. })));
    let largest = pool.usage().largest_free_bytes;
    let all = pool.reserve(largest).unwrap();
    assert!(matches!(pool.reserve(1), Err(PoolError::NoRoom { .. })));
    drop(all);
    // An empty spare segment must not keep the memory from an object of another size.
    drop(pool.reserve(1000).unwrap());
    drop(pool.reserve(largest).unwrap());
    assert_eq!(pool.used_bytes(), 0);
}

#[test]
fn a_spoilt_header_is_found() {
    for_each_mapped_backing(|pool| {
        let block = filled(&pool, &[5; 1000]).publish(id(1));
        pool.check().unwrap();
        let segment = Arc::clone(&pool.segments()[0].0);
        let header = block.meta_header();
        let payload = match header.managed {
            1 => header.handle as usize + 16,
            _ => header.handle as usize,
        };
        for (offset, names) in [(payload - 56, "1100 bytes"), (payload - 16, "no chunk header")] {
            let word = segment.mapping().atomic_u64(offset);
            let right = word.fetch_add(100, Ordering::Relaxed);
            let faults = pool.check().unwrap_err();
            assert!(faults.len() == 1 && faults[0].contains(names), "{faults:?}");
            word.store(right, Ordering::Relaxed);
            pool.check().unwrap();
        }
        assert!(block.is_intact());
        let byte = segment.mapping().atomic_u64(payload + 992);
        let right = byte.fetch_add(1, Ordering::Relaxed);
        assert!(!block.is_intact());
        byte.store(right, Ordering::Relaxed);
    });
}

#[test]
fn bytes_rewritten_after_they_were_settled_are_in_the_checksum() {
    let pool = pool(1 << 20, 1 << 20);
    let mut reservation = pool.reserve(10_000).unwrap();
    reservation.rest_mut(0).fill(1);
    reservation.settle(6_000);
    assert_eq!(reservation.settled().len(), 6_000);
    reservation.rest_mut(5_000).fill(2);
    assert_eq!(reservation.settled().len(), 0);
    let block = reservation.publish(id(1));
    assert!(block.is_intact());
    assert_eq!((block.payload()[4_999], block.payload()[5_000]), (1, 2));
}

#[test]
fn appended_bytes_are_there_whatever_their_number_and_offset() {
    let pool = pool(64 << 20, 64 << 20);
    let bytes: Vec<u8> = (0..20 << 20).map(|n: u32| (n ^ (n >> 8)) as u8).collect();
    // Small ones, more than one piece, and enough to bypass the caches; to the last byte.
    let mut reservation = pool.reserve(bytes.len() as u64).unwrap();
    let mut rest = &bytes[..];
    for length in [0, 5, 300_001, (16 << 20) + 13] {
        let (first, others) = rest.split_at(length);
        reservation.append(first);
        assert_eq!(reservation.settled().len(), bytes.len() - others.len());
        rest = others;
    }
    reservation.append(rest);
    let block = reservation.publish(id(1));
    assert!(block.payload() == bytes && block.is_intact());
    let anew = filled(&pool, &bytes).publish(id(2));
    assert!(anew.payload() == bytes && anew.is_intact());
    assert!(block.payload() == bytes && pool.check().is_ok());
}

#[test]
fn a_system_without_memory_says_so_and_the_pool_goes_on() {
    // /dev/shm holds less than this; a memfd would use the memory of the whole machine.
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let facts = rustix::fs::statvfs("/dev/shm").unwrap();
    let too_many = (facts.f_blocks + 1024) * facts.f_frsize;
    let pool = Pool::new(PoolOptions {
        memory_bytes: 2 * too_many,
        segment_bytes: 64 << 10,
        backing: Backing::Folder(folder.path().join("segments")),
        ..PoolOptions::default()
    })
    .unwrap();
    match pool.reserve(too_many) {
        Err(error @ PoolError::Segment { bytes, .. }) => {
            use crate::error::Coded as _;
            assert!(bytes >= too_many);
            assert!(error.kind().is_transient(), "{error}");
        }
        other => panic!("{other:?}"),
    }
    drop(filled(&pool, b"small").publish(id(1)));
    assert_eq!(pool.check().unwrap().used_bytes, 0);
}

/// The newest objects of threads that create and free them, each with the byte that fills it.
type NewObjects = std::sync::Mutex<Vec<(MetaHeader, u8)>>;

/// Creates and frees objects of one byte each, and reads each while it is held.
fn write_objects(
    pool: &Pool,
    mappings: &Mappings,
    objects: &NewObjects,
    thread: u8,
    until: Instant,
) {
    let mut n = 0_u64;
    while Instant::now() < until {
        n += 1;
        let size = (n * 7919) % 3000 + 1;
        let byte = (n as u8).wrapping_mul(2).wrapping_add(thread);
        let block = filled(pool, &vec![byte; size as usize]).publish(id(byte));
        let header = block.meta_header();
        let mut list = objects.lock().unwrap();
        list.push((header, byte));
        if list.len() > 4 {
            list.remove(0);
        }
        drop(list);
        // With a lease: as long as the block is held, all bytes are valid.
        if let Ok(bytes) = mappings.resolved(&header) {
            assert!(bytes.len() == size as usize);
            assert!(bytes.iter().all(|&found| found == byte));
        }
    }
}

/// Reads objects without a lease, like a consumer in another process. Returns how many were read
/// whole, and how many were stale before they could be read.
fn read_objects(mappings: &Mappings, objects: &NewObjects, until: Instant) -> (u64, u64) {
    /// Reads byte by byte.
    fn copied(bytes: &[u8]) -> Vec<u8> {
        // SAFETY: each is a byte of the slice; volatile, since its writer may be writing it.
        bytes.iter().map(|byte| unsafe { std::ptr::from_ref(byte).read_volatile() }).collect()
    }

    let (mut read, mut stale) = (0, 0);
    while Instant::now() < until {
        let Some((header, byte)) = objects.lock().unwrap().first().copied() else { continue };
        let Ok(bytes) = mappings.resolved(&header) else {
            stale += 1;
            continue;
        };
        let bytes = copied(bytes);
        if mappings.still_valid(&header) {
            assert!(bytes.iter().all(|&found| found == byte), "{header:?}");
            read += 1;
        }
    }
    (read, stale)
}

/// Threads create and free objects while others read them with and without a lease.
#[test]
fn no_reader_gets_half_of_one_object_and_half_of_another() {
    for_each_backing(|pool| {
        // So that consumers need no new segment meanwhile.
        let keeps: Vec<Block> =
            (0..7).map_while(|_| Some(filled(&pool, &[0; 100_000]).publish(id(0)))).collect();
        let mappings = mappings_of(&pool);
        drop(keeps);
        let objects = NewObjects::default();
        let until = Instant::now() + Duration::from_millis(150);
        let (read, stale) = std::thread::scope(|scope| {
            for thread in 1..3_u8 {
                let (pool, mappings, objects) = (&pool, &mappings, &objects);
                scope.spawn(move || write_objects(pool, mappings, objects, thread, until));
            }
            scope.spawn(|| read_objects(&mappings, &objects, until)).join().unwrap()
        });
        assert!(read + stale > 0);
        assert_eq!(pool.check().unwrap().used_bytes, 0);
    });
}

proptest! {
    /// If the pool says that payloads fit together, they can be reserved whatever was there before.
    #[cfg(feature = "cache")]
    #[test]
    fn payloads_that_can_be_held_together_fit_into_an_empty_pool(
        mut sizes in proptest::collection::vec(1..40_000_u64, 1..40),
        segment_kib in 8..64_u64,
        memory_kib in 64..256_u64,
        fixed in any::<bool>(),
    ) {
        let pool = Pool::new(PoolOptions {
            memory_bytes: memory_kib << 10,
            segment_bytes: segment_kib << 10,
            region: fixed.then(|| private_region((memory_kib << 10) as usize, 3)),
            ..PoolOptions::default()
        })
        .unwrap();
        let before: Vec<_> = (0..10).map_while(|n| pool.reserve(n * 3_000).ok()).collect();
        drop(before);
        pool.give_back_empty_segments();
        let told = pool.can_hold_together(sizes.iter().copied());
        sizes.sort_unstable_by_key(|size| std::cmp::Reverse(*size));
        let taken: Vec<_> = sizes.iter().map_while(|size| pool.reserve(*size).ok()).collect();
        prop_assert_eq!(told, taken.len() == sizes.len());
    }
}
