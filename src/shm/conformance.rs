//! Conformance tests: properties that hold for every backing, between a pool and its readers.
//!
//! The consumer's side is tested twice: with segments mapped like in a consumer, and with the
//! pool's own mappings, its counterpart within one process.
#![allow(unsafe_code)]

use std::os::fd::AsFd as _;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::host_arena::HostArena;
use super::mapping::{MapAccess, Mapping};
use super::{
    Backing, Block, Epoch, Kind, MapError, Mappings, MetaHeader, Pool, PoolError, PoolOptions,
    Region, RegionError, Reservation, ResolveError, SegmentCreation,
};
use crate::object::ObjectId;

fn id(n: u8) -> ObjectId {
    ObjectId::from_bytes([n; 16])
}

fn mappings_of(pool: &Pool) -> Mappings {
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

fn filled(pool: &Pool, bytes: &[u8]) -> Reservation {
    let mut reservation = pool.reserve(bytes.len() as u64).unwrap();
    reservation.fill(bytes);
    reservation
}

fn pool(memory_bytes: u64, segment_bytes: u64) -> Pool {
    Pool::new(PoolOptions { memory_bytes, segment_bytes, ..PoolOptions::default() }).unwrap()
}

/// Memory of this process, as a region. It outlives the test.
fn private_region(length: usize, id: u16) -> Region {
    let words: &mut [[u64; 8]] = vec![[u64::MAX; 8]; length / 64 + 1].leak();
    let start = words.as_mut_ptr().cast::<u8>();
    let start = start.map_addr(|addr| addr.next_multiple_of(64));
    let start = NonNull::new(start).unwrap();
    // SAFETY: `length` bytes from the next multiple of 64 on lie in what was leaked, which has 64
    // more; nothing else refers to it.
    unsafe { Region::from_range(start, length, id) }.unwrap()
}

/// Runs a test with every backing: memfds, files with names, FairMQ's names, a region in an
/// existing file, a range of memory, a host's memory.
fn for_each_backing(test: impl Fn(Pool)) {
    for_each_mapped_backing(&test);
    for managed in [true, false] {
        let arena = HostArena::new(1 << 20, managed);
        test(small_pool(Backing::Host(arena.memory()), None));
    }
}

/// Runs a test with all backings except a host's memory, where the neighbours of a block are
/// unknown.
fn for_each_mapped_backing(test: impl Fn(Pool)) {
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

fn small_pool(backing: Backing, region: Option<Region>) -> Pool {
    let (memory_bytes, segment_bytes, first_generation) = (1 << 20, 128 << 10, None);
    let options = PoolOptions { memory_bytes, segment_bytes, backing, region, first_generation };
    Pool::new(options).unwrap()
}

static SHMIDS: AtomicU64 = AtomicU64::new(0);

#[test]
fn what_is_published_resolves_to_its_bytes_in_every_backing() {
    for_each_backing(|pool| {
        let objects: Vec<Vec<u8>> =
            [0, 1, 63, 64, 65, 5000].iter().map(|&size| vec![size as u8; size]).collect();
        let blocks: Vec<_> =
            objects.iter().zip(0..).map(|(bytes, n)| filled(&pool, bytes).publish(id(n))).collect();
        for mappings in [mappings_of(&pool), pool.mappings()] {
            for (n, (block, bytes)) in blocks.iter().zip(&objects).enumerate() {
                let header = block.meta_header();
                assert_eq!(mappings.resolved(&header), Ok(&bytes[..]));
                assert_eq!(mappings.object_id(&header), Ok(id(n as u8)));
                assert_eq!(block.payload(), bytes);
                assert!(block.is_intact() && mappings.still_valid(&header));
                assert_eq!(block.payload().as_ptr().addr() % 64, 0);
            }
        }
        let report = pool.check().unwrap();
        assert_eq!(report.used_bytes, blocks.iter().map(|b| b.charged_bytes()).sum::<u64>());
        drop(blocks);
        assert_eq!(pool.check().unwrap().used_bytes, 0);
    });
}

#[test]
fn many_are_resolved_as_each_is_wherever_they_lie_and_whatever_is_forged() {
    let pool = pool(64 << 20, 32 << 20);
    let bytes = vec![7; 300 << 10];
    let large = |n| filled(&pool, &bytes[n..]).publish(id(n as u8));
    let small = |n| filled(&pool, &bytes[..n]).publish(id(n as u8));
    let scattered: Vec<_> = (0..100).map(large).collect();
    let close: Vec<_> = (0..100).map(small).collect();
    let gone = large(100);
    let stale = gone.meta_header();
    drop(gone);
    let mappings = mappings_of(&pool);
    for blocks in [&scattered[..], &close[..], &scattered[..10], &[]] {
        let mut headers: Vec<_> = blocks.iter().map(Block::meta_header).collect();
        let payloads: Vec<_> = blocks.iter().map(Block::payload).collect();
        let located = mappings.locate_many(&headers).unwrap();
        assert!(located.iter().map(|found| found.size).eq(payloads.iter().map(|one| one.len())));
        for (header, bytes) in headers.iter().zip(payloads) {
            assert_eq!(mappings.resolved(header), Ok(bytes));
            assert_eq!(mappings.read(header).as_deref(), Ok(bytes));
        }
        // Prefetching is harmless for any bytes.
        let forged = [
            stale,
            MetaHeader { handle: i64::MAX, ..stale },
            MetaHeader { handle: i64::MIN, ..stale },
            MetaHeader { segment_id: u16::MAX, ..stale },
            MetaHeader { managed: 0, region_id: 9, ..stale },
            MetaHeader { managed: 2, ..stale },
        ];
        for (place, forged) in (0..headers.len()).step_by(7).zip(forged.iter().cycle()) {
            headers[place] = *forged;
        }
        let each = headers.iter().map(|header| mappings.locate(header));
        assert!(mappings.locate_each(&headers).eq(each.clone()));
        assert!(mappings.locate_scattered(&headers).eq(each));
    }
}

#[test]
fn a_block_that_was_given_up_is_stale_even_when_its_place_is_taken_anew() {
    for_each_backing(|pool| {
        let keep = filled(&pool, b"keeps the segment").publish(id(9));
        let block = filled(&pool, b"old").publish(id(1));
        let mappings = mappings_of(&pool);
        let header = block.meta_header();
        let expected = header.hint;
        drop(block);
        assert_eq!(mappings.resolved(&header), Err(ResolveError::Stale { expected, found: 0 }));
        assert!(!mappings.still_valid(&header));
        let anew = filled(&pool, b"new").publish(id(2));
        assert_eq!(anew.meta_header().handle, header.handle);
        let found = anew.generation();
        assert_eq!(mappings.resolved(&header), Err(ResolveError::Stale { expected, found }));
        drop(keep);
    });
}

#[test]
fn a_block_is_stale_while_it_is_being_filled() {
    let options = PoolOptions { memory_bytes: 1 << 20, ..PoolOptions::default() };
    let pool = Pool::new(options).unwrap();
    let first = filled(&pool, &[0xFF; 1000]).publish(id(1));
    let _second = filled(&pool, b"keeps the segment").publish(id(2));
    let header = first.meta_header();
    drop(first);
    let mappings = mappings_of(&pool);
    let mut half = pool.reserve(1000).unwrap();
    half.payload_mut()[..10].fill(1);
    let forged = MetaHeader { hint: u64::MAX, ..header };
    assert!(matches!(mappings.resolved(&forged), Err(ResolveError::Stale { found: 0, .. })));
}

#[test]
fn each_field_of_a_header_is_checked() {
    let pool = Pool::new(PoolOptions { memory_bytes: 1 << 20, ..PoolOptions::default() });
    let pool = pool.unwrap();
    let block = filled(&pool, b"right").publish(id(1));
    let (mappings, right) = (mappings_of(&pool), block.meta_header());
    let error = |header: MetaHeader| mappings.resolved(&header).unwrap_err();
    let mut wrong = right;
    wrong.segment_id = 77;
    assert_eq!(error(wrong), ResolveError::UnknownSegment { id: 77 });
    let mut wrong = right;
    wrong.managed = 0;
    assert_eq!(error(wrong), ResolveError::UnknownRegion { id: 0 });
    let mut wrong = right;
    wrong.managed = 2;
    assert_eq!(error(wrong), ResolveError::BadManagedFlag { got: 2 });
    for handle in [right.handle + 1, right.handle + 16, right.handle - 8] {
        let wrong = MetaHeader { handle, ..right };
        assert_eq!(error(wrong), ResolveError::Misaligned { handle });
    }
    for handle in [i64::MIN, -16, i64::MAX, i64::MAX - 15, 48, 4096 - 16, (1 << 20) + 48] {
        let wrong = MetaHeader { handle, ..right };
        assert!(
            matches!(
                error(wrong),
                ResolveError::OutOfBounds { .. } | ResolveError::Misaligned { .. }
            ),
            "{handle}"
        );
    }
    for size in [u64::MAX, u64::MAX - 4159, 1 << 20, 1 << 63] {
        let wrong = MetaHeader { size, ..right };
        assert!(matches!(error(wrong), ResolveError::OutOfBounds { .. }), "{size}");
    }
    let wrong = MetaHeader { size: 4, ..right };
    assert_eq!(error(wrong), ResolveError::WrongSize { expected: 4, found: 5 });
    for hint in [0, right.hint.wrapping_add(1)] {
        let wrong = MetaHeader { hint, ..right };
        assert!(matches!(error(wrong), ResolveError::Stale { .. }));
    }
    assert_eq!(mappings.resolved(&right), Ok(&b"right"[..]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_forged_header_is_a_danger(seed in any::<u64>(), in_a_region in any::<bool>()) {
        let pool = Pool::new(PoolOptions {
            memory_bytes: 64 << 10,
            segment_bytes: 16 << 10,
            region: in_a_region.then(|| private_region(64 << 10, 3)),
            ..PoolOptions::default()
        })
        .unwrap();
        let blocks: Vec<_> =
            (0..20).map(|n| filled(&pool, &vec![n; usize::from(n) * 50]).publish(id(n))).collect();
        let mappings = mappings_of(&pool);
        let mut state = seed | 1;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for _ in 0..20_000 {
            let mut header = blocks[(random() % 20) as usize].meta_header();
            let other = blocks[(random() % 20) as usize].meta_header();
            let extreme = [0, 1, u64::MAX, 1 << 63, (1 << 63) - 1, 16 << 10, u64::MAX - 4096];
            let extreme = extreme[(random() % 7) as usize];
            // Plausible forgeries, and random ones.
            match random() % 8 {
                0 => header.handle = other.handle,
                1 => header.handle = header.handle.wrapping_add(64 * (random() % 512) as i64),
                2 => header.handle = extreme.cast_signed(),
                3 => header.size = extreme,
                4 => header.size = header.size.wrapping_add(random() % 128).wrapping_sub(64),
                5 => (header.managed, header.region_id) = (other.managed ^ 1, other.segment_id),
                6 => header.segment_id = random() as u16 % 8,
                _ => {
                    let mut bytes = header.to_bytes();
                    for _ in 0..=random() % 3 {
                        bytes[(random() % 40) as usize] = random() as u8;
                    }
                    header = MetaHeader::from_array(&bytes);
                }
            }
            mappings.prefetch(&header);
            if let Ok(found) = mappings.resolved(&header) {
                let real = blocks.iter().find(|block| block.generation() == header.hint);
                prop_assert_eq!(real.map(|block| block.payload()), Some(found));
            }
        }
    }
}

#[test]
fn a_file_that_is_not_what_was_announced_is_not_mapped() {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    let pool = Pool::new(PoolOptions { memory_bytes: 1 << 20, ..PoolOptions::default() });
    let pool = pool.unwrap();
    let _block = filled(&pool, b"x").publish(id(1));
    let shared = pool.segments().remove(0);
    let (file, size, none) = (shared.file().unwrap(), shared.size_bytes(), Mappings::default());
    let add = |id, size, epoch| none.with(Kind::Segment, id, size, epoch, file);
    assert!(matches!(add(0, size + 1, pool.epoch()), Err(MapError::Unlike { .. })));
    assert!(matches!(add(1, size, pool.epoch()), Err(MapError::Unlike { what: "the id", .. })));
    let other = Epoch(pool.epoch().0 ^ 1);
    assert!(matches!(add(0, size, other), Err(MapError::Unlike { what: "the epoch", .. })));
    let loose = memfd_create(c"loose", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&loose, 8192).unwrap();
    let added = none.with(Kind::Segment, 0, 8192, pool.epoch(), loose.as_fd());
    assert!(matches!(added, Err(MapError::Unlike { what: "the magic", .. })));
    // Everything is right except the seals.
    let mut copy = vec![0; size as usize];
    rustix::io::pread(file, &mut copy, 0).unwrap();
    let loose = memfd_create(c"loose", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&loose, size).unwrap();
    rustix::io::pwrite(&loose, &copy, 0).unwrap();
    let added = none.with(Kind::Segment, 0, size, pool.epoch(), loose.as_fd());
    assert!(matches!(added, Err(MapError::NotSealed { id: 0 })));
}

#[test]
fn a_consumer_can_neither_write_nor_truncate_a_segment() {
    let pool = Pool::new(PoolOptions { memory_bytes: 1 << 20, ..PoolOptions::default() });
    let pool = pool.unwrap();
    let _block = filled(&pool, b"x").publish(id(1));
    let shared = pool.segments().remove(0);
    let file = shared.file().unwrap();
    assert!(rustix::fs::ftruncate(file, 0).is_err());
    assert!(rustix::io::pwrite(file, b"spoilt", 4096).is_err());
    let length = shared.size_bytes() as usize;
    assert!(Mapping::of_file(file, length, MapAccess::ReadWrite).is_err());
}

#[test]
fn an_empty_segment_goes_back_and_a_sweep_lets_it_go() {
    let pool = Pool::new(PoolOptions {
        memory_bytes: 1 << 20,
        segment_bytes: 64 << 10,
        ..PoolOptions::default()
    })
    .unwrap();
    let small = filled(&pool, b"stays").publish(id(1));
    let large = filled(&pool, &vec![1; 500 << 10]).publish(id(2));
    let mappings = mappings_of(&pool);
    assert_eq!((pool.usage().segments, mappings.len()), (2, 2));
    let gone = large.meta_header();
    drop(large);
    assert_eq!(pool.usage().segments, 1);
    let swept = mappings.swept();
    assert_eq!(swept.len(), 1);
    assert!(matches!(mappings.resolved(&gone), Err(ResolveError::Stale { .. })));
    assert!(matches!(swept.resolved(&gone), Err(ResolveError::UnknownSegment { .. })));
    assert_eq!(swept.resolved(&small.meta_header()), Ok(&b"stays"[..]));
}

#[test]
fn what_does_not_fit_is_told_from_what_never_will() {
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
fn segments_that_fairmq_is_to_know_are_all_there_from_the_start_and_stay() {
    let unique = SHMIDS.fetch_add(1, Ordering::Relaxed);
    let shmid = format!("{:08x}c{unique}", std::process::id());
    let creation = SegmentCreation::AtStart;
    let backing = Backing::FairMq { shmid: shmid.clone(), first_segment: 8, creation };
    let (memory_bytes, segment_bytes) = (300 << 10, 128 << 10);
    let pool =
        Pool::new(PoolOptions { memory_bytes, segment_bytes, backing, ..PoolOptions::default() })
            .unwrap();
    let seen = || pool.segments().iter().map(|one| (one.id(), one.size_bytes())).collect();
    let all: Vec<_> = seen();
    assert_eq!(all, [(8, 128 << 10), (9, 128 << 10), (10, 44 << 10)]);
    let usage = pool.usage();
    assert_eq!(usage.largest_free_bytes, (124 << 10) - 64 - 64); // no block reaches the last 16 bytes
    // Nothing larger than a segment ever fits; no segment is created or retired for it.
    let larger = pool.reserve(usage.largest_free_bytes + 1);
    assert!(matches!(larger, Err(PoolError::NeverFits { .. })));
    let whole = [(); 2].map(|()| pool.reserve(usage.largest_free_bytes).unwrap());
    assert!(matches!(pool.reserve(100 << 10), Err(PoolError::NoRoom { .. })));
    drop(whole);
    let left: Vec<_> = seen();
    assert_eq!(left, all);
    assert_eq!(pool.check().unwrap().used_bytes, 0);
    drop(pool);
    assert!((8..11).all(|id| !std::fs::exists(format!("/dev/shm/fmq_{shmid}_m_{id}")).unwrap()));
}

#[test]
fn no_descriptor_that_a_consumer_gets_can_write() {
    for_each_backing(|pool| {
        let block = filled(&pool, b"mine").publish(id(1));
        for shared in pool.segments() {
            let Some(file) = shared.file() else { continue };
            assert!(rustix::io::pwrite(file, b"spoilt", 4096).is_err(), "{shared:?}");
            assert!(rustix::fs::ftruncate(file, 0).is_err(), "{shared:?}");
            let length = shared.size_bytes() as usize;
            assert!(Mapping::of_file(file, length, MapAccess::ReadWrite).is_err(), "{shared:?}");
        }
        assert!(block.is_intact());
    });
}

#[test]
fn the_last_bytes_of_a_segment_can_be_taken_and_none_behind_them() {
    for_each_mapped_backing(|pool| {
        let largest = pool.usage().largest_free_bytes;
        let block = filled(&pool, &vec![3; largest as usize]).publish(id(1));
        let others = (1..pool.segments().len()).map(|_| pool.reserve(largest).unwrap());
        let others: Vec<_> = others.collect();
        let header = block.meta_header();
        for mappings in [mappings_of(&pool), pool.mappings()] {
            assert_eq!(mappings.resolved(&header).map(<[u8]>::len), Ok(largest as usize));
            let longer = MetaHeader { size: largest + 65, ..header };
            assert!(matches!(mappings.resolved(&longer), Err(ResolveError::OutOfBounds { .. })));
        }
        assert!(matches!(pool.reserve(largest), Err(PoolError::NoRoom { .. })));
        drop((block, others));
        assert_eq!(pool.usage().largest_free_bytes, largest);
        pool.check().unwrap();
    });
}

#[test]
fn what_an_earlier_instance_left_in_a_region_does_not_resolve() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("region");
    std::fs::write(&file, vec![0; 64 << 10]).unwrap();
    let open = || {
        let region = Some(Region::open(&file, 9).unwrap());
        Pool::new(PoolOptions { region, ..PoolOptions::default() }).unwrap()
    };
    let earlier = open();
    let block = filled(&earlier, &[1; 5000]).publish(id(1));
    let header = block.meta_header();
    // A crash: nothing is freed. Only the lock is gone.
    let copy = std::fs::read(&file).unwrap();
    drop(block);
    drop(earlier);
    std::fs::write(&file, copy).unwrap();
    let later = open();
    let mappings = mappings_of(&later);
    assert!(matches!(mappings.resolved(&header), Err(ResolveError::Stale { found: 0, .. })));
    // Not even when its memory is partly reused.
    let _other = filled(&later, &[2; 100]).publish(id(2));
    let _another = filled(&later, &[3; 100]).publish(id(3));
    assert!(matches!(mappings.resolved(&header), Err(ResolveError::Stale { .. })));
}

#[test]
fn a_region_belongs_to_one_service() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("region");
    std::fs::write(&file, vec![0; 4096]).unwrap();
    let first = Region::open(&file, 1).unwrap();
    assert!(matches!(Region::open(&file, 2), Err(RegionError::Taken { .. })));
    drop(first);
    Region::open(&file, 2).unwrap();
    std::fs::write(&file, [0; 127]).unwrap();
    let error = Region::open(&file, 1).unwrap_err();
    assert!(matches!(error, RegionError::TooSmall { got_bytes: 127 }));
    assert!(matches!(Region::open(folder.path(), 1), Err(RegionError::Open { .. })));
}

#[test]
fn a_file_with_holes_becomes_a_region_without() {
    use std::os::unix::fs::MetadataExt as _;
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = folder.path().join("region");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(1 << 20).unwrap();
    assert_eq!(file.metadata().unwrap().blocks(), 0);
    let _region = Region::open(&path, 1).unwrap();
    assert_eq!(file.metadata().unwrap().blocks() * 512, 1 << 20);
}

#[test]
fn a_segment_that_was_given_back_on_its_way_is_told_from_a_wrong_one() {
    for backing in [None, Some("segments")] {
        let folder = tempfile::tempdir().unwrap();
        let backing = match backing {
            None => Backing::Memfd,
            Some(name) => Backing::Folder(folder.path().join(name)),
        };
        let segment_bytes = 16 << 10;
        let options = PoolOptions { segment_bytes, backing, ..PoolOptions::default() };
        let pool = Pool::new(options).unwrap();
        let _keeps = filled(&pool, b"x").publish(id(1));
        let large = filled(&pool, &[1; 100_000]).publish(id(2));
        let shared = pool.segments().pop().unwrap();
        // Its descriptor is in flight to a consumer; another process would hold it.
        let file = shared.file().unwrap().try_clone_to_owned().unwrap();
        let (number, size) = (shared.id(), shared.size_bytes());
        drop(shared);
        drop(large);
        let none = Mappings::default();
        let added = none.with(Kind::Segment, number, size, pool.epoch(), file.as_fd());
        assert!(matches!(added, Err(MapError::Retired { id: 1 })), "{added:?}");
    }
}

#[test]
fn an_object_that_comes_and_goes_makes_one_segment_not_many() {
    // The memory is smaller than the segment size, so there is a single smaller segment.
    let pool = pool(1 << 20, 512 << 20);
    for _ in 0..10 {
        let block = filled(&pool, b"again").publish(id(1));
        assert_eq!(block.meta_header().segment_id, 0);
    }
    assert_eq!(pool.usage().segments, 1);
}

#[test]
fn at_most_one_empty_segment_is_kept() {
    let pool = pool(1 << 20, 64 << 10);
    let blocks: Vec<Block> = (0..10).map(|n| filled(&pool, &[n; 50_000]).publish(id(n))).collect();
    assert_eq!(pool.usage().segments, 10);
    let listed = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&listed);
    pool.on_new_segment(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
    });
    drop(blocks);
    assert_eq!(pool.usage().segments, 1);
    assert_eq!(listed.load(Ordering::Relaxed), 0);
    drop(pool.reserve(300_000).unwrap());
    assert_eq!(listed.load(Ordering::Relaxed), 1);
}

#[test]
fn whoever_hears_of_a_new_segment_may_use_the_pool() {
    let pool = pool(1 << 20, 64 << 10);
    let inner = pool.clone();
    let heard = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&heard);
    pool.on_new_segment(move |shared| {
        assert!(inner.segments().iter().any(|one| one.id() == shared.id()));
        drop(inner.reserve(10).unwrap());
        told.store(true, Ordering::Relaxed);
    });
    drop(pool.reserve(10).unwrap());
    assert!(heard.load(Ordering::Relaxed));
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
fn what_is_written_again_after_it_was_settled_has_the_checksum_of_what_it_is() {
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
fn what_is_appended_is_there_however_much_it_is_and_wherever_it_begins() {
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
fn nobody_ever_reads_half_of_one_object_and_half_of_another() {
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

#[test]
fn a_backing_that_cannot_be_had_says_what_can_be_done() {
    use crate::error::{Coded as _, ErrorKind};
    let folder = tempfile::tempdir().unwrap();
    let with = |backing| Pool::new(PoolOptions { backing, ..PoolOptions::default() });
    let segments = folder.path().join("segments");
    let first = with(Backing::Folder(segments.clone())).unwrap();
    let error = with(Backing::Folder(segments)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert!(error.message().contains(&format!("process {}", std::process::id())));
    let error = with(Backing::FairMq {
        shmid: "../x".into(),
        first_segment: 0,
        creation: SegmentCreation::AtStart,
    })
    .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    drop(first);
}

proptest! {
    /// If the pool says that payloads fit together, they can be reserved whatever was there before.
    #[cfg(feature = "cache")]
    #[test]
    fn what_can_be_held_together_is_what_an_empty_pool_takes(
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
