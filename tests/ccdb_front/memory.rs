//! Bodies are sent from shared memory, and are pinned exactly as long.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use iovcache::server::{ListenOptions, Listeners, ServeOptions};
use iovcache::shm::PoolOptions;
use iovcache::source::MemorySource;
use iovcache::{Cache, ObjectId, ObjectInfo, ObjectPath, Timestamp, ValidityInterval};
use tokio::sync::oneshot;

use super::common::until;
use super::raw::get;

const SIZE: usize = 24 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_body_is_pinned_while_it_is_sent_and_not_longer_and_the_end_waits_for_it() {
    let source = MemorySource::new();
    let at = Timestamp::from_millis;
    let version = ObjectInfo {
        path: ObjectPath::new("A/Map").unwrap(),
        id: ObjectId::from_bytes([1; 16]),
        validity: ValidityInterval::new(at(0), at(100)).unwrap(),
        created: at(1),
        size_bytes: None,
        md5: None,
        metadata: Default::default(),
    };
    let target = format!("/A/Map/0/{}", version.id);
    let bytes: Vec<u8> = (0..SIZE).map(|n| (n / 7) as u8).collect();
    source.put(version, bytes.clone());
    let memory = PoolOptions { memory_bytes: 64 << 20, ..PoolOptions::default() };
    let cache = Cache::builder().source(Arc::new(source)).memory(memory).build().unwrap();
    let listeners = Listeners::bind(&ListenOptions {
        ccdb: Some("127.0.0.1:0".parse().unwrap()),
        ..ListenOptions::default()
    })
    .await
    .unwrap();
    let address = listeners.ccdb_url().unwrap().trim_start_matches("http://").to_owned();
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(iovcache::server::run(
        listeners,
        cache.clone(),
        ServeOptions::default(),
        async { drop(stopped.await) },
        || {},
    ));
    let pinned = || cache.status().memory.pinned_bytes;
    let not_pinned = || until("the pin to go", || (pinned() == 0).then_some(()));
    let head = format!("GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let beginning = || {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        stream.read_exact(&mut [0; 100]).unwrap();
        stream
    };
    tokio::task::block_in_place(|| {
        // A client that disconnects in the middle.
        let leaving = beginning();
        assert!(pinned() >= SIZE as u64);
        assert_eq!(cache.check(), Ok(()));
        drop(leaving);
        not_pinned();
        // One that reads everything: the checksum is computed, since the source provides none.
        let answer = get(&address, &target, &[]);
        assert!(answer.body == bytes);
        assert_eq!(answer.get("Content-MD5").map(str::len), Some(32));
        not_pinned();
        assert_eq!(cache.check(), Ok(()));
        // A slow one, while the service is told to stop.
        let mut slow = beginning();
        stop.send(()).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        let mut rest = Vec::new();
        slow.read_to_end(&mut rest).unwrap();
        assert!(rest.ends_with(&bytes[bytes.len() - 1_000_000..]));
        assert!(rest.len() > SIZE);
    });
    running.await.unwrap().unwrap();
    assert_eq!(pinned(), 0);
    assert_eq!(cache.counters().ccdb_sent_bytes.get(), 3 * SIZE as u64);
}
