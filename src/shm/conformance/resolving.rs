//! MetaHeaders resolve to the bytes of their objects, and forged or outdated ones to errors.

use proptest::prelude::*;

use super::backings::{
    filled, for_each_backing, for_each_mapped_backing, id, mappings_of, pool, private_region,
};
use crate::shm::{Block, MetaHeader, Pool, PoolError, PoolOptions, Region, ResolveError};

#[test]
fn published_blocks_resolve_to_their_bytes_in_every_backing() {
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
fn blocks_of_an_earlier_instance_in_a_region_do_not_resolve() {
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
