//! Shared memory beside its floors: resolving, attaching, allocating and freeing, storing.
//!
//! `cargo bench --bench shm`; the results are in `benches/README.md`. `IOVCACHE_BENCH_FOLDER` names
//! a folder for the segments, e.g. with huge pages, for this command alone: `unshare -m sh -c
//! 'mount -t tmpfs -o huge=advise,size=3g none DIR && IOVCACHE_BENCH_FOLDER=DIR cargo bench --bench
//! shm -- "first read"'`. By default segments are memfds.
#![allow(unsafe_code, reason = "the floors are plain pointers")]

mod beside;

use std::alloc::{Layout, alloc, dealloc};
use std::fs::File;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use beside::{beside, beside_timed, wanted};
use criterion::Criterion;
use iovcache::cache::{Caller, PeerPolicy};
use iovcache::client::Attachment;
use iovcache::shm::{
    Backing, Block, Location, Mappings, MetaHeader, Pool, PoolOptions, ResolveError,
};
use iovcache::source::MemorySource;
use iovcache::table::Request;
use iovcache::{Cache, ObjectId, ObjectInfo, ObjectPath, Timestamp, ValidityInterval};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

const HEADERS: usize = 1_000_000;

/// Folder for named segments, if one is set.
fn folder() -> Option<PathBuf> {
    std::env::var_os("IOVCACHE_BENCH_FOLDER").map(PathBuf::from)
}

/// The whole memory in one segment.
fn memory(memory_bytes: u64) -> PoolOptions {
    static POOLS: AtomicUsize = AtomicUsize::new(0);
    let backing = folder().map_or(Backing::Memfd, |folder| {
        Backing::Folder(folder.join(format!("pool-{}", POOLS.fetch_add(1, Ordering::Relaxed))))
    });
    PoolOptions { memory_bytes, segment_bytes: memory_bytes, backing, ..PoolOptions::default() }
}

fn pool(memory_bytes: u64) -> Pool {
    Pool::new(memory(memory_bytes)).unwrap()
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
    /// Like tables: all rows of one object, then those of the next.
    InRuns,
    AtRandom,
    /// At random, over more objects than the processor's caches hold.
    Scattered,
}

/// One million headers of `objects` objects, beside a table of bases by segment plus the handle.
fn resolve(objects: usize, order: Order, aim: f64) {
    let what = match order {
        Order::InRuns => "in runs",
        Order::AtRandom | Order::Scattered => "at random",
    };
    let name = |part| format!("resolve 1,000,000 of {objects} {what}, {part}");
    let [pointers, first_bytes] = ["pointers", "first bytes"].map(name);
    if !wanted(&pointers) && !wanted(&first_bytes) {
        return;
    }
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
                Order::AtRandom | Order::Scattered => (state % objects as u64) as usize,
            };
            blocks[object].meta_header()
        })
        .collect();
    let first = mappings.locate(&headers[0]).unwrap().address;
    let bases = [first.wrapping_sub(headers[0].handle as usize + 16)];
    let plain = |header: &MetaHeader| {
        let base = bases[usize::from(header.segment_id)];
        base.wrapping_add(header.handle as usize + 16)
    };
    // SAFETY: the headers name live blocks in this very mapping.
    let first_byte = |payload: *const u8| u64::from(unsafe { payload.read() });
    // The loops are written out: in a function of their own they compile differently.
    let scattered = order == Order::Scattered;
    // Work per header: the pointer alone, or a read of its first byte as well.
    beside(
        &pointers,
        aim,
        || {
            for header in black_box(&headers) {
                black_box(plain(header));
            }
        },
        || {
            if scattered {
                for found in mappings.locate_scattered(black_box(&headers)) {
                    black_box(found.unwrap().address);
                }
            } else {
                for found in mappings.locate_each(black_box(&headers)) {
                    black_box(found.unwrap().address);
                }
            }
        },
    );
    beside(
        &first_bytes,
        aim,
        || {
            let sum = |sum: u64, header: &MetaHeader| sum + first_byte(plain(header));
            black_box(black_box(&headers).iter().fold(0, sum));
        },
        || {
            let sum = |sum: u64, found: Result<Location, ResolveError>| {
                sum + first_byte(found.unwrap().address)
            };
            black_box(if scattered {
                mappings.locate_scattered(black_box(&headers)).fold(0, sum)
            } else {
                mappings.locate_each(black_box(&headers)).fold(0, sum)
            });
        },
    );
}

fn resolving() {
    resolve(1_000, Order::InRuns, 1.3);
    resolve(1_000, Order::AtRandom, 1.3);
    resolve(200_000, Order::Scattered, 8.0);
}

/// A service with one object in a segment of 2 GiB, and its attach socket.
fn serve(folder: &Path, runtime: &Runtime, bytes: Vec<u8>) -> (Cache, PathBuf) {
    let at = Timestamp::from_millis;
    let source = MemorySource::new();
    let info = ObjectInfo {
        path: ObjectPath::new("A/B").unwrap(),
        id: id(1),
        validity: ValidityInterval::new(at(0), at(10)).unwrap(),
        created: at(1),
        size_bytes: None,
        md5: None,
        metadata: Default::default(),
    };
    source.put(info, bytes);
    runtime.block_on(async {
        let source = Arc::new(source);
        let cache = Cache::builder().source(source).memory(memory(2 << 30)).build().unwrap();
        let path = folder.join("attach.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let (served, stop) = (cache.clone(), CancellationToken::new());
        tokio::spawn(async move {
            served.serve_attach(listener, PeerPolicy::default(), stop).await;
        });
        (cache, path)
    })
}

/// From no connection to the first byte of an object.
fn attaching() {
    let (first, again) = ("first attach, a segment of 2 GiB", "first read of 64 MiB");
    if !wanted(first) && !wanted(again) {
        return;
    }
    let runtime = Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let object: Vec<u8> = (0..64 << 20).map(|n| (n * 31) as u8).collect();
    let (cache, path) = serve(folder.path(), &runtime, object);
    let request = Request::parse(br#"{"columns": {"b": "A/B"}, "timestamps": [5]}"#).unwrap();
    let answer = runtime.block_on(cache.answer(&request, &Caller::default())).unwrap();
    let header = answer.pins().pins()[0].meta_header();
    // The floor uses a file of the same size in the same file system.
    let beside_it = self::folder().unwrap_or_else(|| "/dev/shm".into());
    let file = tempfile::Builder::new().prefix("iovcache-bench").tempfile_in(beside_it).unwrap();
    file.as_file().set_len(2 << 30).unwrap();
    beside_timed(
        first,
        2.0,
        || {
            let began = Instant::now();
            let file = File::open(file.path()).unwrap();
            let flags = (ProtFlags::READ, MapFlags::SHARED);
            // SAFETY: a new mapping, unmapped below.
            let base = unsafe { mmap(null_mut(), 2 << 30, flags.0, flags.1, &file, 0) }.unwrap();
            let first = base.cast::<u8>().wrapping_add(4160);
            // SAFETY: the file is at least as long.
            black_box(unsafe { first.read_volatile() });
            let took = began.elapsed();
            // SAFETY: mapped above, and used no more.
            unsafe { munmap(base, 2 << 30) }.unwrap();
            took
        },
        || {
            let began = Instant::now();
            let attachment = Attachment::open(&path, "bench", None).unwrap();
            let mappings = attachment.mappings();
            // SAFETY: `answer` pins the block.
            black_box(unsafe { mappings.resolve(&header) }.unwrap()[0]);
            began.elapsed()
        },
    );
    let read = |bytes: &[u8]| {
        let began = Instant::now();
        let (words, _) = bytes.as_chunks::<8>();
        black_box(words.iter().fold(0, |sum, word| sum ^ u64::from_ne_bytes(*word)));
        began.elapsed()
    };
    // 0.8 times as fast is 1.25 times as long.
    let attached = || Attachment::open(&path, "bench", None).unwrap().mappings();
    let warm = attached();
    // SAFETY: `answer` pins the block.
    let bytes = unsafe { warm.resolve(&header) }.unwrap();
    read(bytes);
    beside_timed(
        again,
        1.25,
        || read(bytes),
        || {
            let mappings = attached();
            // SAFETY: as above.
            read(unsafe { mappings.resolve(&header) }.unwrap())
        },
    );
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
                // SAFETY: inside the memory just allocated.
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

fn storing() {
    const BYTES: usize = 64 << 20;
    let name = "store 64 MiB, with its CRC-32C";
    if !wanted(name) {
        return;
    }
    let pool = pool(256 << 20);
    let object: Vec<u8> = (0..BYTES).map(|n| (n * 31) as u8).collect();
    // Both use one memory: in the segment, and already touched.
    drop(blocks(&pool, 2, &object));
    let mut floor = pool.reserve(BYTES as u64).unwrap();
    // 0.8 times as fast is 1.25 times as long.
    beside(
        name,
        1.25,
        || floor.payload_mut().copy_from_slice(black_box(&object)),
        || {
            let mut place = pool.reserve(BYTES as u64).unwrap();
            place.fill(black_box(&object));
            drop(black_box(place.publish(id(1))));
        },
    );
}

fn main() {
    resolving();
    attaching();
    storing();
    if wanted("take and give 64 KiB") {
        let mut criterion = Criterion::default();
        taking_and_giving(&mut criterion);
        criterion.final_summary();
    }
}
