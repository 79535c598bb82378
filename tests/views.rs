//! A view is a pin: the bytes of a table stay unchanged while other objects need its memory.
//!
//! Each kind of view is kept over evictions: 4,000 by default, or `IOVCACHE_EVICTIONS` (the nightly
//! tests: 1,000,000). Every byte of every view is compared, again and again.

mod in_process;

use std::path::PathBuf;
use std::sync::Arc;

use in_process::url_of;
use iovcache::client::{Attachment, Client, ClientOptions, LocalPath, Table, TableRequest, View};
use iovcache::shm::PoolOptions;
use iovcache::source::{MemorySource, PathPolicy, PolicySource};
use iovcache::table::CellKind;
use iovcache::{Cache, ObjectId, ObjectInfo, ObjectPath, Timestamp, ValidityInterval};

/// Objects of 60 KiB in 1 MiB of memory: one in four fits.
const OBJECTS: usize = 64;
const BYTES: usize = 60 << 10;
/// Number of objects loaded by one request: they fit beside the kept views.
const TOGETHER: usize = 7;
const MEMORY_BYTES: u64 = 1 << 20;

fn path(number: usize) -> String {
    format!("A/N{number}")
}

/// No two objects have an equal byte at the same place.
fn bytes_of(number: usize) -> Vec<u8> {
    (0..BYTES).map(|at| (number * 7 + at * 31 + at / 251) as u8).collect()
}

fn evictions() -> u64 {
    let wanted = std::env::var("IOVCACHE_EVICTIONS").ok();
    wanted.map_or(4_000, |wanted| wanted.parse().expect("IOVCACHE_EVICTIONS is a number"))
}

struct Service {
    cache: Cache,
    url: String,
    attach: PathBuf,
    _folder: tempfile::TempDir,
}

async fn serve() -> Service {
    let at = Timestamp::from_millis;
    let source = MemorySource::new();
    for number in 0..OBJECTS {
        let info = ObjectInfo {
            path: ObjectPath::new(&path(number)).unwrap(),
            id: ObjectId::from_bytes([number as u8 + 1; 16]),
            validity: ValidityInterval::new(at(0), at(1_000_000)).unwrap(),
            created: at(1),
            size_bytes: None,
            md5: None,
            metadata: Default::default(),
        };
        source.put(info, bytes_of(number));
    }
    let memory = PoolOptions {
        memory_bytes: MEMORY_BYTES,
        segment_bytes: MEMORY_BYTES / 2,
        ..PoolOptions::default()
    };
    // By itself this source says that no answer is used twice, so no look-up finds one in shared memory.
    let refresh = Some(std::time::Duration::from_secs(3600));
    let policy = PathPolicy { prefix: "A".to_owned(), refresh, ..PathPolicy::default() };
    let source = PolicySource::new(Arc::new(source), [policy].into_iter().collect());
    let cache = Cache::builder().source(Arc::new(source)).memory(memory).build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let socket = in_process::serve(cache.clone(), folder.path()).await;
    let (url, attach) = (url_of(&socket), socket.with_file_name("attach.sock"));
    Service { cache, url, attach, _folder: folder }
}

fn request(number: usize) -> TableRequest {
    TableRequest::new().column("v", path(number)).timestamps([5])
}

/// Compares every byte of a table.
fn check(table: &Table, number: usize) {
    let column = table.column("v").unwrap();
    let expected = bytes_of(number);
    assert_eq!(column.get(0).unwrap(), Some(&expected[..]), "object {number}");
    for run in column.runs() {
        assert_eq!(run.unwrap().1, Some(&expected[..]), "object {number}");
    }
}

/// The object of a path, pinned without a request, once the service has published the path.
fn local_view(path: &LocalPath) -> View<'_> {
    let at = Timestamp::from_millis(5);
    for _ in 0..1_000 {
        // Asks the service if the path is not published yet, or its object is not in memory.
        drop(path.at(at).unwrap());
        if let Ok(view) = path.try_at(at) {
            return view;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("{path:?} is not found in shared memory: {:?}", path.try_at(at).map(|_| ()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_kind_of_view_stays_what_it_is_over_evictions() {
    let service = serve().await;
    let client = Client::connect(&service.url).await.unwrap();
    let remote = ClientOptions { remote: true, ..ClientOptions::default() };
    let remote = Client::connect_with(&service.url, remote).await.unwrap();
    // One table per kind: three with cells of MetaHeaders, one with rows that the client joins, one
    // with bytes.
    let mut views: Vec<(usize, Table)> = Vec::new();
    for (number, cell) in [CellKind::Binary, CellKind::Struct, CellKind::O2].into_iter().enumerate()
    {
        views.push((number, client.table(request(number).cell(cell)).await.unwrap()));
    }
    let joined = TableRequest::new().column("v", path(3)).timestamps(0..30_000);
    views.push((3, client.table(joined).await.unwrap()));
    views.push((4, remote.table(request(4)).await.unwrap()));
    // The slices themselves, as kept by a caller, with the tables that they borrow from.
    let slices: Vec<(usize, &[u8])> = views
        .iter()
        .map(|(number, table)| (*number, table.column("v").unwrap().get(0).unwrap().unwrap()))
        .collect();
    // Views of look-ups: a slot of the session's page is their pin, there is no lease.
    let local = client.local().unwrap();
    let paths = [5, 6].map(|number| local.path(&path(number)).unwrap());
    let look_up = || (local_view(&paths[0]), local_view(&paths[1]).into_owned());
    let (borrowed, owned) = tokio::task::block_in_place(look_up);
    let header = views[0].1.column("v").unwrap().header(0).unwrap();
    // A client that holds no lease: a copy is right, or an error.
    let other = Attachment::open(&service.attach, "other", None).unwrap();
    let wanted = service.cache.status().evictions + evictions();
    let mut round = 0;
    while service.cache.status().evictions < wanted {
        for first in (8..OBJECTS).step_by(TOGETHER) {
            let numbers = first..first + TOGETHER;
            let request = numbers.clone().fold(TableRequest::new(), |request, number| {
                request.column(path(number), path(number))
            });
            let table = client.table(request.timestamps([5])).await.unwrap();
            let gone = table.column(&path(first)).unwrap().header(0).unwrap();
            drop(table);
            if let Ok(copy) = other.mappings_for(&gone).read(&gone) {
                assert_eq!(copy, bytes_of(first), "a copy of object {first}");
            }
        }
        if round % 8 == 0 {
            for (number, table) in &views {
                check(table, *number);
            }
            for (number, slice) in &slices {
                assert_eq!(*slice, bytes_of(*number), "the slice of object {number}");
            }
            assert_eq!(*borrowed, bytes_of(5), "the view of a look-up");
            assert_eq!(*owned, bytes_of(6), "the view of a look-up that borrows nothing");
            assert!(borrowed.is_live() && owned.is_live());
            assert_eq!(other.mappings_for(&header).read(&header).unwrap(), bytes_of(0));
        }
        round += 1;
    }
    for (number, table) in &views {
        check(table, *number);
    }
    assert_eq!((&*borrowed, &*owned), (&bytes_of(5)[..], &bytes_of(6)[..]));
    drop((borrowed, owned));
    drop(slices);
    drop(views);
    for _ in 0..1_000 {
        if service.cache.status().memory.pinned_bytes == 0 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("{} bytes stay pinned", service.cache.status().memory.pinned_bytes);
}
