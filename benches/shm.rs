//! Shared memory beside its floors: resolving, taking and giving back, storing.
//!
//! `cargo bench --bench shm`; what came of it stands in `benches/README.md`.
#![allow(unsafe_code, reason = "the floors are plain pointers")]

use std::alloc::{Layout, alloc, dealloc};
use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use iovcache::ObjectId;
use iovcache::shm::{Block, Mappings, MetaHeader, Pool, PoolOptions};

const HEADERS: usize = 1_000_000;

fn pool(memory_bytes: u64) -> Pool {
    let options =
        PoolOptions { memory_bytes, segment_bytes: memory_bytes, ..PoolOptions::default() };
    Pool::new(options).unwrap()
}

fn id(n: usize) -> ObjectId {
    let mut bytes = [0; 16];
    bytes[8..].copy_from_slice(&(n as u64).to_be_bytes());
    ObjectId::from_bytes(bytes)
}

fn blocks(pool: &Pool, count: usize, bytes: &[u8]) -> Vec<Block> {
    let block = |n| {
        let mut reservation = pool.reserve(bytes.len() as u64).unwrap();
        reservation.fill(bytes);
        reservation.publish(id(n))
    };
    (0..count).map(block).collect()
}

fn mapped(pool: &Pool) -> Mappings {
    pool.segments().iter().fold(Mappings::default(), |mappings, shared| {
        let (kind, id, size) = (shared.kind(), shared.id(), shared.size_bytes());
        mappings.with(kind, id, size, pool.epoch(), shared.file().unwrap()).unwrap()
    })
}

/// The order in which headers name their objects.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    /// As tables have them: all rows of one object, then those of the next.
    InRuns,
    AtRandom,
}

/// One million headers of so many objects; each payload's first byte is read.
fn resolve(criterion: &mut Criterion, objects: usize, order: Order) {
    let pool = pool(256 << 20);
    let blocks = blocks(&pool, objects, &[1; 256]);
    let mappings = mapped(&pool);
    let mut state = 88_172_645_463_325_252_u64;
    let headers: Vec<MetaHeader> = (0..HEADERS)
        .map(|row| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let object = match order {
                Order::InRuns => row * objects / HEADERS,
                Order::AtRandom => (state % objects as u64) as usize,
            };
            blocks[object].meta_header()
        })
        .collect();
    // The floor: a table of bases by segment, and the handle added.
    let first = mappings.resolve(&headers[0]).unwrap().as_ptr();
    let bases = [first.wrapping_sub(headers[0].handle as usize + 16)];
    let order = if order == Order::InRuns { ", in runs" } else { "" };
    let mut group = criterion.benchmark_group(format!("resolve {HEADERS} of {objects}{order}"));
    group.throughput(Throughput::Elements(HEADERS as u64)).sample_size(20);
    group.bench_function("plain base[id] + handle", |bench| {
        bench.iter(|| {
            let sum = |sum: u64, header: &MetaHeader| {
                let base = bases[usize::from(header.segment_id)];
                let payload = base.wrapping_add(header.handle as usize + 16);
                // SAFETY: the headers are those of live blocks in this very mapping.
                sum + u64::from(unsafe { payload.read() })
            };
            black_box(&headers).iter().fold(0, sum)
        });
    });
    group.bench_function("Mappings::resolve", |bench| {
        bench.iter(|| {
            let sum = |sum: u64, header: &MetaHeader| {
                sum + u64::from(mappings.resolve(header).unwrap()[0])
            };
            black_box(&headers).iter().fold(0, sum)
        });
    });
    group.finish();
}

fn resolving(criterion: &mut Criterion) {
    resolve(criterion, 1_000, Order::InRuns);
    resolve(criterion, 1_000, Order::AtRandom);
    resolve(criterion, 200_000, Order::AtRandom);
}

fn taking_and_giving(criterion: &mut Criterion) {
    const BYTES: usize = 64 << 10;
    let pool = pool(64 << 20);
    let _keeps_the_segment = blocks(&pool, 10, &[1; 1000]);
    let mut group = criterion.benchmark_group("take and give 64 KiB");
    group.bench_function("malloc, touch, free", |bench| {
        let layout = Layout::from_size_align(BYTES, 16).unwrap();
        bench.iter(|| {
            // SAFETY: the layout is not of size 0.
            let place = unsafe { alloc(layout) };
            for page in (0..BYTES).step_by(4096) {
                // SAFETY: inside of what was just allocated.
                let byte = unsafe { place.add(page) };
                // SAFETY: as above.
                unsafe { byte.write_volatile(1) };
            }
            // SAFETY: allocated above with the same layout.
            unsafe { dealloc(black_box(place), layout) };
        });
    });
    group.bench_function("Pool::reserve, drop", |bench| {
        bench.iter(|| drop(black_box(pool.reserve(BYTES as u64).unwrap())));
    });
    group.finish();
}

fn storing(criterion: &mut Criterion) {
    const BYTES: usize = 64 << 20;
    let pool = pool(256 << 20);
    let object: Vec<u8> = (0..BYTES).map(|n| (n * 31) as u8).collect();
    let mut group = criterion.benchmark_group("store 64 MiB");
    group.throughput(Throughput::Bytes(BYTES as u64)).sample_size(20);
    // The same memory for both: in the segment, and touched.
    drop(blocks(&pool, 2, &object));
    group.bench_function("memcpy into the touched segment", |bench| {
        let mut place = pool.reserve(BYTES as u64).unwrap();
        bench.iter(|| place.payload_mut().copy_from_slice(black_box(&object)));
    });
    group.bench_function("reserve, fill with CRC-32C, publish", |bench| {
        bench.iter_batched(
            || (),
            |()| {
                let mut place = pool.reserve(BYTES as u64).unwrap();
                place.fill(black_box(&object));
                place.publish(id(1))
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(benches, resolving, taking_and_giving, storing);
criterion_main!(benches);
