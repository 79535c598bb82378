//! Golden files of released versions: the bytes that consumers in all languages read.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::super::layout::{Epoch, MetaHeader};
use super::super::{Pool, PoolOptions};
use super::directory::{Directory, EntryCounts, path_hash};
use super::pins_page::{ConsumerPage, PageLimits, ServicePage, UseSample};
use super::snapshot::{PublishedSnapshot, SnapshotSpan};
use super::timeframe_table::{ColumnPart, ConsumerMark, PublishedTimeframe, TimeframeParts};

const EPOCH: Epoch = Epoch(0x1112_1314_1516_1718);
const GENERATION: u64 = 0x0102_0304_0506_0708;
const PATH: &str = "TPC/Calib/VDriftTgl";

fn golden(name: &str) -> Vec<u8> {
    let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas/golden");
    std::fs::read(folder.join(name)).unwrap()
}

fn spans() -> [SnapshotSpan; 2] {
    let span = |from, until, n: u64| SnapshotSpan {
        from,
        until,
        validity: (from - 5, until + 5),
        header: MetaHeader::managed(n as u16, 4096 + 48 + 64 * n as i64, 9 + n, 100 + n),
    };
    [span(1_000, 2_000, 1), span(3_000, 4_000, 2)]
}

fn snapshot(pool: &Pool) -> PublishedSnapshot {
    let size = PublishedSnapshot::size_bytes(2, PATH).unwrap();
    let snapshot = PublishedSnapshot::publish(pool.reserve(size).unwrap(), PATH, &spans());
    snapshot.confirm(0x21);
    snapshot.confirm_span(1, 0x22);
    snapshot
}

fn pool() -> Pool {
    Pool::new(PoolOptions {
        memory_bytes: 64 << 10,
        first_generation: Some(GENERATION),
        ..PoolOptions::default()
    })
    .unwrap()
}

fn read(file: impl std::os::fd::AsFd, offset: u64, bytes: usize) -> Vec<u8> {
    let mut read = vec![0; bytes];
    assert_eq!(rustix::io::pread(file, &mut read, offset), Ok(bytes));
    read
}

#[test]
fn a_directory_is_byte_for_byte_as_drawn() {
    let counts = EntryCounts { paths: 16, timeframes: 16 };
    let directory = Arc::new(Directory::new(EPOCH, counts).unwrap());
    let pool = pool();
    let snapshot = snapshot(&pool);
    let entry = directory.take(PATH).unwrap();
    entry.name(snapshot.name());
    let ready = directory.take_timeframe(0x0203).unwrap();
    ready.set_ready(snapshot.name());
    let _loading = directory.take_timeframe(0x0204).unwrap();
    let bytes = read(directory.file(), 0, 64 + 32 * 32);
    assert_eq!(bytes, golden("directory.bin"));
    // The expected bytes, written by hand from the drawing.
    let mut drawn = vec![0; 64 + 32 * 32];
    drawn[..8].copy_from_slice(b"IOVDIREC");
    drawn[8] = 1;
    drawn[12] = 16;
    drawn[16..24].copy_from_slice(&EPOCH.0.to_le_bytes());
    drawn[24..32].copy_from_slice(&4096_u64.to_le_bytes());
    (drawn[32], drawn[40]) = (16, 1);
    let at = 64 + 32 * (path_hash(PATH) % 16) as usize;
    drawn[at..at + 8].copy_from_slice(&path_hash(PATH).to_le_bytes());
    drawn[at + 8..at + 16].copy_from_slice(&GENERATION.to_le_bytes());
    // Segment 0, the block after the segment header of 4 KiB.
    drawn[at + 16..at + 24].copy_from_slice(&(1 << 63 | 64_u64).to_le_bytes());
    let ready = 64 + 16 * 32 + 3 * 32;
    (drawn[ready], drawn[ready + 1], drawn[ready + 24], drawn[ready + 28]) = (3, 2, 2, 2);
    drawn[ready + 8..ready + 16].copy_from_slice(&GENERATION.to_le_bytes());
    drawn[ready + 16..ready + 24].copy_from_slice(&(1 << 63 | 64_u64).to_le_bytes());
    let loading = ready + 32;
    (drawn[loading], drawn[loading + 1], drawn[loading + 24], drawn[loading + 28]) = (4, 2, 1, 1);
    assert_eq!(bytes, drawn);
}

#[test]
fn a_snapshot_is_byte_for_byte_as_drawn() {
    let pool = pool();
    let _snapshot = snapshot(&pool);
    let size = PublishedSnapshot::size_bytes(2, PATH).unwrap() as usize;
    let bytes = read(pool.segments()[0].file().unwrap(), 4096 + 64, size);
    assert_eq!(bytes, golden("timeline-snapshot.bin"));
    let mut drawn = vec![0; size];
    drawn[..4].copy_from_slice(b"IOVT");
    (drawn[4], drawn[8], drawn[16], drawn[20]) = (1, 0x21, 2, PATH.len() as u8);
    drawn[64..72].copy_from_slice(&1_000_i64.to_le_bytes());
    drawn[72..80].copy_from_slice(&3_000_i64.to_le_bytes());
    for (n, at) in [(1_u64, 128), (2, 192)] {
        let from = 2_000 * n - 1_000;
        let words = [9 + n, 100 + n, 4144 + 64 * n, n << 16 | 1 << 32, from + 1_000];
        let confirmed = if n == 2 { 0x22 } else { 0 };
        let words = words.into_iter().chain([confirmed, from - 5, from + 1_005]);
        for (place, word) in words.enumerate() {
            let at = at + 8 * place;
            drawn[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
    }
    drawn[256..].copy_from_slice(PATH.as_bytes());
    assert_eq!(bytes, drawn);
}

#[test]
fn a_table_of_a_timeframe_is_byte_for_byte_as_drawn() {
    let pool = pool();
    let column = ColumnPart { runs: 2, nulls: 1, ends: 0, cells: 64, validity: 192 };
    let consumers = ["tracker".to_owned(), "qc".to_owned()];
    let parts = TimeframeParts {
        timeframe: 0x0203,
        registration: 4,
        schema: 5,
        rows: 6,
        objects_bytes: 0x1000,
        columns: &[column],
        consumers: &consumers,
        segments: &[(true, 7), (false, 8)],
        schema_message: b"schema",
        batch_message: b"batch",
        body: &[9; 200],
        intervals: &[[-5, 6], [0, 0]],
    };
    let size = PublishedTimeframe::size_bytes(&parts).unwrap();
    let objects = Arc::new(());
    let table = PublishedTimeframe::publish(pool.reserve(size).unwrap(), &parts, objects);
    table.set_consumer(1, ConsumerMark::Delivered);
    let bytes = read(pool.segments()[0].file().unwrap(), 4096 + 64, size as usize);
    assert_eq!(bytes, golden("timeframe-table.bin"));
    let (schema, message, body, intervals) = (256, 320, 384, 640);
    let mut drawn = vec![0; intervals + 32];
    drawn[..4].copy_from_slice(b"IOVF");
    (drawn[4], drawn[8], drawn[9], drawn[16], drawn[24], drawn[32]) = (1, 3, 2, 4, 5, 6);
    drawn[40..48].copy_from_slice(&(0x1000 + size).to_le_bytes());
    let words = [1, 2, 2, schema, 6, message, 5, body, 200];
    let column = [2, 1, body, body + 64, body + 192, intervals];
    let mut put = |at: usize, words: &[usize]| {
        for (place, word) in words.iter().enumerate() {
            let at = at + 4 * place;
            drawn[at..at + 4].copy_from_slice(&(*word as u32).to_le_bytes());
        }
    };
    put(48, &words);
    put(96, &column);
    put(128, &[0, 0, 184, 7, 0, 0, 1, 0, 191, 2, 0, 0]);
    put(176, &[1 << 16 | 7, 8]);
    drawn[184..193].copy_from_slice(b"trackerqc");
    drawn[schema..schema + 6].copy_from_slice(b"schema");
    drawn[message..message + 5].copy_from_slice(b"batch");
    drawn[body..body + 200].fill(9);
    drawn[intervals..intervals + 8].copy_from_slice(&(-5_i64).to_le_bytes());
    drawn[intervals + 8] = 6;
    assert_eq!(bytes, drawn);
}

#[test]
fn a_pins_page_is_byte_for_byte_as_drawn() {
    let limits = PageLimits {
        quota_bytes: Some(0x0a0b),
        tables_are_requested: true,
        ..PageLimits::default()
    };
    let service = ServicePage::new(limits).unwrap();
    let consumer = ConsumerPage::open(service.file(), ServicePage::BYTES).unwrap();
    let slot = consumer.pin_from(2, &AtomicU64::new(GENERATION), GENERATION, 1).unwrap();
    assert!(consumer.sample(UseSample { entry: 3, span: 4, generation: 0x99 }));
    assert_eq!(consumer.begin_watch(6), Some(0));
    consumer.count_hits(5);
    consumer.count_ask(1);
    let bytes = read(service.file(), 0, 8192 + 32);
    assert_eq!(bytes, golden("pins-page.bin"));
    let mut drawn = vec![0; 8192 + 32];
    drawn[..8].copy_from_slice(b"IOVPINS\0");
    drawn[8] = 2;
    drawn[12..16].copy_from_slice(&15_360_u32.to_le_bytes());
    drawn[16..24].copy_from_slice(&131_072_u64.to_le_bytes());
    (drawn[24], drawn[32], drawn[33], drawn[40], drawn[64], drawn[80]) = (3, 0x0b, 0x0a, 1, 5, 1);
    (drawn[512], drawn[520], drawn[524]) = (0x99, 4, 4);
    drawn[7680] = 7;
    drawn[8208..8216].copy_from_slice(&GENERATION.to_le_bytes());
    assert_eq!((slot, bytes), (2, drawn));
}

#[test]
fn the_hash_of_a_path_is_fnv_1a() {
    // Test vectors of the authors of FNV.
    assert_eq!(path_hash("a"), 0xaf63_dc4c_8601_ec8c);
    assert_eq!(path_hash("foobar"), 0x8594_4171_f739_67e8);
}
