//! Segments and regions: which process may map, write and own them, and when they are created and retired.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::backings::{SHMIDS, filled, for_each_backing, id, mappings_of, pool};
use crate::shm::mapping::{MapAccess, Mapping};
use crate::shm::{
    Backing, Block, Epoch, Kind, MapError, Mappings, Pool, PoolError, PoolOptions, Region,
    RegionError, ResolveError, SegmentCreation,
};

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
fn a_segment_retired_in_transit_is_distinguished_from_a_wrong_one() {
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
fn a_listener_for_new_segments_may_use_the_pool() {
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
