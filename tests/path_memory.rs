//! Private memory of paths that were requested once.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use iovcache::cache::Caller;
use iovcache::source::repository::{
    Durability, NewVersion, RepositoryOptions, RepositorySource, RepositoryWriter,
};
use iovcache::table::TableRequest;
use iovcache::{Cache, ObjectPath, Timestamp, ValidityInterval};

/// The allocator of the system, which counts the bytes that are allocated at present.
struct CountingAllocator;

static ALLOCATED: AtomicI64 = AtomicI64::new(0);

fn count(bytes: usize, sign: i64) {
    ALLOCATED.fetch_add(sign * bytes as i64, Ordering::Relaxed);
}

// SAFETY: all calls are passed on to the allocator of the system.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        // SAFETY: the caller fulfils the conditions of this function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        count(layout.size(), -1);
        // SAFETY: the caller fulfils the conditions of this function.
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(layout.size(), -1);
        count(size, 1);
        // SAFETY: the caller fulfils the conditions of this function.
        unsafe { System.realloc(place, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const PATHS: usize = 3_000;
const VERSIONS: usize = 10;
/// Paths that are requested first, so that memory with a limit of its own is not counted: the watches
/// of 16,384 folders.
const WARMED_PATHS: usize = 1_600;
/// Maximum bytes of a path with [`VERSIONS`] versions, one of them loaded, and of the schema of its
/// column.
const BYTES_PER_PATH: i64 = 6_500;

fn path(n: usize) -> ObjectPath {
    ObjectPath::new(&format!("Detector/Group{}/Calibration{n}", n / 100)).unwrap()
}

/// Stores versions, each with metadata of its own.
fn fill(root: &Path) {
    let writer = RepositoryWriter::new(root).unwrap().with_durability(Durability::Batch);
    let mut batch = writer.batch();
    for n in 0..PATHS * VERSIONS {
        let from = (n % VERSIONS) as i64 * 1_000;
        let [from, until] = [from, from + 1_000].map(Timestamp::from_millis);
        let version = NewVersion {
            path: path(n / VERSIONS),
            validity: ValidityInterval::new(from, until).unwrap(),
            created: Timestamp::from_millis(n as i64),
            id: None,
            file_name: "object.root".to_owned(),
            metadata: [("runNumber".to_owned(), n.to_string())].into(),
        };
        batch.put(&version, &mut &n.to_le_bytes()[..]).unwrap();
    }
    batch.commit().unwrap();
}

async fn request(cache: &Cache, paths: std::ops::Range<usize>) {
    for first in paths.step_by(100) {
        let mut request = TableRequest::new().timestamps([5_500]);
        for n in first..first + 100 {
            request = request.column(format!("c{n}"), path(n).as_str());
        }
        let answer = cache.answer(&request.build().unwrap(), &Caller::default()).await.unwrap();
        assert_eq!(answer.to_batches().unwrap()[0].num_columns(), 100);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_of_ten_versions_that_was_requested_once_takes_a_few_kilobytes() {
    // Syncing 30,000 files of a disk takes longer than the test.
    let memory = Path::new("/dev/shm");
    let folder = match memory.is_dir() {
        true => tempfile::tempdir_in(memory).unwrap(),
        false => tempfile::tempdir().unwrap(),
    };
    fill(folder.path());
    let options = RepositoryOptions { refresh: Duration::from_secs(3600) };
    let source = RepositorySource::open_folder(folder.path(), options).unwrap();
    let cache = Cache::builder().source(Arc::new(source)).build().unwrap();
    request(&cache, 0..WARMED_PATHS).await;
    let before = ALLOCATED.load(Ordering::Relaxed);
    request(&cache, WARMED_PATHS..PATHS).await;
    let bytes = ALLOCATED.load(Ordering::Relaxed) - before;
    let each = bytes / (PATHS - WARMED_PATHS) as i64;
    println!("{each} bytes per path");
    assert!(each < BYTES_PER_PATH, "{each} bytes per path of {VERSIONS} versions");
}
