//! A cache within this process: many simultaneous requests, memory that is too small, leases that
//! expire. After each test everything must add up.

mod attached;
mod consumers;
mod places;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use iovcache::cache::{Answer, CacheError, Caller, ConsumerLimits, SlowConsumer};
use iovcache::error::{Coded, ErrorKind};
use iovcache::index::Timestamps;
use iovcache::shm::attach::Attachment;
use iovcache::shm::{PoolOptions, ResolveError};
use iovcache::source::{
    Body, Knowledge, MemorySource, PathSummary, Source, SourceError, SourceHealth,
};
use iovcache::table::{CellValue, Consumed, Register, Request, column_runs};
use iovcache::{
    Cache, Clock, ObjectId, ObjectInfo, ObjectPath, Query, Timestamp, ValidityInterval,
};
use tokio::sync::Semaphore;

fn version(path: &str, n: u8, from: i64, until: i64) -> ObjectInfo {
    let [from, until, created] = [from, until, i64::from(n)].map(Timestamp::from_millis);
    let mut id = [n; 16];
    id[..8].copy_from_slice(&path.bytes().fold(7_u64, |h, b| h * 31 + u64::from(b)).to_be_bytes());
    ObjectInfo {
        path: ObjectPath::new(path).unwrap(),
        id: ObjectId::from_bytes(id),
        validity: ValidityInterval::new(from, until).unwrap(),
        created,
        size_bytes: None,
        md5: None,
        metadata: Default::default(),
    }
}

/// The bytes of a version, in any place.
fn bytes_of(path: &str, n: u8, size: usize) -> Vec<u8> {
    let mut bytes = format!("{path} {n} ").into_bytes();
    bytes.resize(size, n);
    bytes
}

/// A source that counts its requests, and answers after a pause.
#[derive(Debug, Default)]
struct Slow {
    memory: MemorySource,
    pause: Duration,
    /// Answers only for the requested time.
    by_time: bool,
    /// Current look-ups, and their maximum.
    under_way: AtomicU64,
    most: AtomicU64,
    look_ups: AtomicU64,
    fetches: AtomicU64,
    /// Objects of this path are fetched once there is a permit; without one the fetch fails after
    /// its memory was reserved.
    held_back: Option<(ObjectPath, Arc<Semaphore>)>,
    /// The size of objects of this path is not announced.
    untold: Option<ObjectPath>,
}

#[async_trait]
impl Source for Slow {
    fn url(&self) -> &str {
        self.memory.url()
    }
    fn refresh(&self) -> Duration {
        Duration::from_secs(3600)
    }
    async fn look_up(
        &self,
        query: &Query,
        at: Timestamp,
        held: Option<&Arc<ObjectInfo>>,
    ) -> Result<Knowledge, SourceError> {
        self.look_ups.fetch_add(1, Ordering::SeqCst);
        let under_way = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(under_way, Ordering::SeqCst);
        tokio::time::sleep(self.pause).await;
        self.under_way.fetch_sub(1, Ordering::SeqCst);
        let mut knowledge = self.memory.look_up(query, at, held).await?;
        if self.by_time {
            let next = Timestamp::from_millis(at.as_millis() + 1);
            knowledge.span = ValidityInterval::new(at, next).unwrap();
            knowledge.versions.retain(|version| version.validity.contains(at));
        }
        if self.untold.as_ref() == Some(&query.path) {
            for version in &mut knowledge.versions {
                Arc::make_mut(version).size_bytes = None;
            }
        }
        Ok(knowledge)
    }
    async fn fetch(&self, version: &ObjectInfo, body: &mut dyn Body) -> Result<(), SourceError> {
        self.fetches.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(self.pause).await;
        if let Some((path, permits)) = &self.held_back
            && *path == version.path
        {
            body.reserve(version.size_bytes.unwrap()).await.unwrap();
            if let Err(reason) = permits.try_acquire() {
                let (url, what) = (self.url().to_owned(), path.to_string());
                return Err(SourceError::Down { url, what, reason: reason.to_string() });
            }
        }
        self.memory.fetch(version, body).await
    }
    fn health(&self) -> Vec<SourceHealth> {
        self.memory.health()
    }
    async fn paths(&self, prefix: &str) -> Result<Vec<PathSummary>, SourceError> {
        self.memory.paths(prefix).await
    }
}

fn slow(pause_ms: u64, paths: &[&str], size: usize) -> Arc<Slow> {
    let source = Slow { pause: Duration::from_millis(pause_ms), ..Slow::default() };
    for path in paths {
        for n in 0..4 {
            let (from, until) = (i64::from(n) * 10, i64::from(n) * 10 + 10);
            source.memory.put(version(path, n, from, until), bytes_of(path, n, size));
        }
    }
    Arc::new(source)
}

fn cache_over(source: Arc<dyn Source>, memory_bytes: u64) -> Cache {
    let memory = PoolOptions { memory_bytes, segment_bytes: 1 << 20, ..PoolOptions::default() };
    Cache::builder().source(source).memory(memory).build().unwrap()
}

fn request(json: &str) -> Request {
    Request::parse(json.as_bytes()).unwrap()
}

async fn ask(cache: &Cache, json: &str) -> Result<Answer, CacheError> {
    cache.answer(&request(json), &Caller::default()).await
}

/// The bytes of the cells' objects.
fn resolved(answer: &Answer) -> Vec<Option<Vec<u8>>> {
    let pins = answer.pins();
    let mut rows = Vec::new();
    for batch in answer.to_batches().unwrap() {
        let mut start = 0;
        for (end, cell) in column_runs(batch.column(0)).unwrap().iter() {
            let bytes = match cell {
                CellValue::Header(header) => {
                    let pin = pins.pins().iter().find(|pin| pin.meta_header() == header);
                    Some(pin.unwrap().payload().to_vec())
                }
                _ => None,
            };
            rows.extend(std::iter::repeat_n(bytes, end - start));
            start = end;
        }
    }
    rows
}

/// Checks that no object is pinned once background work is done.
fn nothing_is_pinned(cache: &Cache) {
    for _ in 0..1000 {
        if cache.status().memory.pinned_bytes == 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("{:?}", cache.status());
}

/// Checks that everything adds up once background work is done.
fn add_up(cache: &Cache) {
    let mut checked = cache.check();
    for _ in 0..1000 {
        if checked.is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
        checked = cache.check();
    }
    checked.unwrap();
    let memory = cache.status().memory;
    assert_eq!(memory.used_bytes + memory.free_bytes, memory.total_bytes);
    assert!(memory.pinned_bytes <= memory.used_bytes);
}

async fn get(cache: &Cache, timeframe: u64, consumer: &str) -> Result<Answer, CacheError> {
    ask(cache, &format!(r#"{{"timeframe": {timeframe}, "consumer": "{consumer}"}}"#)).await
}

fn done(cache: &Cache, timeframe: u64, consumer: &str) -> Vec<u64> {
    let consumer = consumer.to_owned();
    cache.consumed(&Consumed::One { timeframe, consumer }).unwrap().dropped
}

async fn until_counted(what: &str, counted: impl Fn() -> u64, expected: u64) {
    for _ in 0..1000 {
        if counted() == expected {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{what}: {}, expected {expected}", counted());
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_requests_for_one_object_cause_one_look_up_and_one_load() {
    let source = slow(30, &["A/B"], 1000);
    let cache = cache_over(Arc::clone(&source) as Arc<dyn Source>, 4 << 20);
    let asked: Vec<_> = (0..500)
        .map(|n| {
            let cache = cache.clone();
            tokio::spawn(async move {
                let at = 10 + n % 10;
                let json = format!(r#"{{"columns": {{"b": "A/B"}}, "timestamps": [{at}]}}"#);
                let answer = ask(&cache, &json).await.unwrap();
                assert_eq!(resolved(&answer), [Some(bytes_of("A/B", 1, 1000))]);
                cache.release(answer.lease());
            })
        })
        .collect();
    for one in asked {
        one.await.unwrap();
    }
    assert_eq!(source.fetches.load(Ordering::SeqCst), 1);
    // At most one per distinct timestamp: each was unknown when it was requested.
    assert!(source.look_ups.load(Ordering::SeqCst) <= 10);
    nothing_is_pinned(&cache);
    add_up(&cache);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn with_four_times_the_memory_wanted_all_are_served_and_nothing_is_lost() {
    let paths: Vec<String> = (0..8).map(|n| format!("Path{n}/X")).collect();
    let names: Vec<&str> = paths.iter().map(String::as_str).collect();
    // 8 paths x 4 versions x 250 kB in 2 MiB.
    let source = slow(1, &names, 250_000);
    let cache = cache_over(source, 2 << 20);
    let asked: Vec<_> = (0..16_u64)
        .map(|worker| {
            let (cache, paths) = (cache.clone(), paths.clone());
            tokio::spawn(async move {
                let mut state = worker + 1;
                for _ in 0..25 {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
                    let path = &paths[(state >> 33) as usize % paths.len()];
                    let n = (state >> 40) as u8 % 4;
                    let at = i64::from(n) * 10 + 5;
                    let json = format!(
                        r#"{{"columns": {{"x": "{path}"}}, "timestamps": [{at}], "wait_ms": 50000}}"#
                    );
                    let answer = ask(&cache, &json).await.unwrap();
                    assert_eq!(resolved(&answer), [Some(bytes_of(path, n, 250_000))]);
                    tokio::task::yield_now().await;
                    let lease = answer.lease().clone();
                    drop(answer);
                    assert!(cache.release(&lease));
                }
            })
        })
        .collect();
    for one in asked {
        one.await.unwrap();
    }
    let status = cache.status();
    assert!(status.evictions > 0, "{status:?}");
    nothing_is_pinned(&cache);
    add_up(&cache);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_cache_that_is_busy_is_checked_again_and_again_and_nothing_is_made_up() {
    let paths: Vec<String> = (0..8).map(|n| format!("Path{n}/X")).collect();
    let names: Vec<&str> = paths.iter().map(String::as_str).collect();
    let cache = cache_over(slow(0, &names, 250_000), 2 << 20);
    let over = tokio_util::sync::CancellationToken::new();
    let asking: Vec<_> = (0..8_usize)
        .map(|worker| {
            let (cache, paths, over) = (cache.clone(), paths.clone(), over.clone());
            tokio::spawn(async move {
                for step in worker.. {
                    let path = &paths[step * 5 % paths.len()];
                    let json = format!(r#"{{"columns": {{"x": "{path}"}}, "timestamps": [5]}}"#);
                    let answer = ask(&cache, &json).await.unwrap();
                    tokio::task::yield_now().await;
                    let lease = answer.lease().clone();
                    if step % 2 == 0 {
                        drop(answer);
                    }
                    assert!(cache.release(&lease));
                    if over.is_cancelled() {
                        return;
                    }
                }
            })
        })
        .collect();
    for round in 0..40 {
        let found = cache.check_running(round % 8 == 0).await;
        assert_eq!(found.faults, [""; 0], "{found:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    over.cancel();
    for one in asking {
        one.await.unwrap();
    }
    add_up(&cache);
}

/// Each table needs three fifths of the memory, and half of that is needed by another table too.
#[tokio::test(flavor = "multi_thread")]
async fn tables_that_each_lack_what_the_other_has_do_not_wait_for_each_other() {
    let source = slow(1, &["A/A", "B/B", "C/C"], 600_000);
    let cache = cache_over(source, 2 << 20);
    let asked: Vec<_> = (0..12)
        .map(|n| {
            let cache = cache.clone();
            tokio::spawn(async move {
                let (one, two) = [("A/A", "B/B"), ("B/B", "C/C"), ("C/C", "A/A")][n % 3];
                let columns = format!(r#"{{"one": "{one}", "two": "{two}"}}"#);
                let json =
                    format!(r#"{{"columns": {columns}, "timestamps": [5], "wait_ms": 50000}}"#);
                let answer = ask(&cache, &json).await.unwrap();
                tokio::time::sleep(Duration::from_millis(2)).await;
                let lease = answer.lease().clone();
                drop(answer);
                cache.release(&lease);
            })
        })
        .collect();
    for one in asked {
        one.await.unwrap();
    }
    add_up(&cache);
}

#[tokio::test]
async fn a_lease_without_an_owner_expires_and_can_be_renewed() {
    let clock = Clock::manual(Timestamp::from_millis(0));
    let cache = Cache::builder()
        .source(slow(0, &["A/B"], 1000))
        .memory(PoolOptions { memory_bytes: 4 << 20, ..PoolOptions::default() })
        .clock(clock.clone())
        .lease_limit(Duration::from_millis(100))
        .build()
        .unwrap();
    let answer = ask(&cache, r#"{"columns": {"b": "A/B"}, "timestamps": [5]}"#).await.unwrap();
    let lease = answer.lease().clone();
    drop(answer);
    clock.advance(Duration::from_millis(99));
    assert_eq!(cache.renew(&lease).unwrap(), Some(Duration::from_millis(100)));
    clock.advance(Duration::from_millis(99));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(cache.status().memory.pinned_bytes > 0);
    clock.advance(Duration::from_millis(2));
    for _ in 0..1000 {
        if cache.status().memory.pinned_bytes == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    nothing_is_pinned(&cache);
    let error = cache.renew(&lease).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    add_up(&cache);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeframe_is_dropped_when_the_last_consumer_is_done_and_its_id_is_free_again() {
    let cache = cache_over(slow(5, &["A/B"], 1000), 4 << 20);
    let register =
        Register::parse(br#"{"columns": {"b": "A/B"}, "consumers": ["x", "y"]}"#).unwrap();
    let times = || [Some(5), Some(15), None].into_iter().collect::<Timestamps>();
    let answer = cache.register(42, times(), &register, None).await.unwrap();
    assert_eq!((answer.rows, answer.objects), (3, 2));
    let json = |name: &str| format!(r#"{{"timeframe": 42, "consumer": "{name}"}}"#);
    for name in ["x", "y"] {
        let answer = ask(&cache, &json(name)).await.unwrap();
        let rows = resolved(&answer);
        assert_eq!(rows[1], Some(bytes_of("A/B", 1, 1000)));
        assert_eq!(rows[2], None);
    }
    assert_eq!(cache.timeframes()[0].state.name(), "delivered");
    add_up(&cache);
    let one = |name: &str| Consumed::One { timeframe: 42, consumer: name.to_owned() };
    assert_eq!(cache.consumed(&one("x")).unwrap().dropped, [0_u64; 0]);
    // A second report is accepted; a request for the table afterwards is an error.
    assert_eq!(cache.consumed(&one("x")).unwrap().dropped, [0_u64; 0]);
    let error = ask(&cache, &json("x")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    let error = ask(&cache, &json("z")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(cache.consumed(&one("y")).unwrap().dropped, [42]);
    nothing_is_pinned(&cache);
    add_up(&cache);
    let other = [Some(25)].into_iter().collect::<Timestamps>();
    assert_eq!(cache.register(42, other, &register, None).await.unwrap().rows, 1);
    cache.drop_timeframe(42).unwrap();
    add_up(&cache);
}

#[tokio::test(flavor = "multi_thread")]
async fn registrations_beyond_the_limit_wait_in_order_until_a_timeframe_is_consumed() {
    // Each timeframe needs 600 kB of 2 MiB: three fit.
    let source = slow(1, &["A/A", "B/B"], 600_000);
    let memory =
        PoolOptions { memory_bytes: 2 << 20, segment_bytes: 2 << 20, ..PoolOptions::default() };
    let cache = Cache::builder().source(source).memory(memory).max_timeframes(3).build().unwrap();
    let register = |path: &str| {
        let json = format!(r#"{{"columns": {{"x": "{path}"}}, "consumers": ["c"]}}"#);
        Register::parse(json.as_bytes()).unwrap()
    };
    let at = |at: i64| [Some(at)].into_iter().collect::<Timestamps>();
    let short = Some(Duration::from_millis(50));
    for (id, time) in [(1, 5), (2, 15), (3, 25)] {
        cache.register(id, at(time), &register("A/A"), None).await.unwrap();
    }
    // Refused by the number of timeframes, though its objects are loaded already.
    let error = cache.register(4, at(5), &register("A/A"), short).await.unwrap_err();
    assert_eq!((error.kind(), error.code().0), (ErrorKind::Unavailable, 5014));
    // A repeated registration with the same content does not wait.
    cache.register(3, at(25), &register("A/A"), short).await.unwrap();
    let done = |id| Consumed::One { timeframe: id, consumer: "c".to_owned() };
    let first = tokio::spawn({
        let (cache, register) = (cache.clone(), register("B/B"));
        async move { cache.register(5, at(5), &register, None).await }
    });
    tokio::time::sleep(Duration::from_millis(30)).await;
    let second = tokio::spawn({
        let (cache, register) = (cache.clone(), register("A/A"));
        async move { cache.register(6, at(5), &register, None).await }
    });
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert!(!first.is_finished() && !second.is_finished());
    cache.consumed(&done(1)).unwrap();
    assert_eq!(first.await.unwrap().unwrap().timeframe, 5);
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert!(!second.is_finished());
    cache.consumed(&done(2)).unwrap();
    assert_eq!(second.await.unwrap().unwrap().timeframe, 6);
    // By memory: 3, 5 and 6 need three objects; a fourth does not fit, though a place is free.
    cache.consumed(&done(3)).unwrap();
    cache.register(7, at(15), &register("B/B"), None).await.unwrap();
    cache.consumed(&done(6)).unwrap();
    cache.register(8, at(25), &register("B/B"), None).await.unwrap();
    for id in [5, 7, 8] {
        let json = format!(r#"{{"timeframe": {id}, "consumer": "c"}}"#);
        ask(&cache, &json).await.unwrap();
        cache.consumed(&done(id)).unwrap();
    }
    nothing_is_pinned(&cache);
    add_up(&cache);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_watermark_of_a_consumer_never_goes_back() {
    let cache = cache_over(slow(0, &["A/B"], 10), 4 << 20);
    let register = Register::parse(br#"{"columns": {"b": "A/B"}, "consumers": ["x"]}"#).unwrap();
    let times = || [Some(5)].into_iter().collect::<Timestamps>();
    for id in [1, 2, 3] {
        cache.register(id, times(), &register, None).await.unwrap();
    }
    let below = |oldest_possible| Consumed::Below { oldest_possible, consumer: "x".to_owned() };
    assert_eq!(cache.consumed(&below(3)).unwrap().dropped, [1, 2]);
    assert_eq!(cache.consumed(&below(1)).unwrap().dropped, [0_u64; 0]);
    let late = cache.register(2, times(), &register, None).await.unwrap();
    assert_eq!(late.state, "consumed");
    assert_eq!(cache.timeframes().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_reaches_all_the_way_to_the_source() {
    let source = slow(60_000, &["A/B"], 10);
    let cache = cache_over(Arc::clone(&source) as Arc<dyn Source>, 4 << 20);
    let json = r#"{"columns": {"b": "A/B"}, "timestamps": [5], "wait_ms": 50}"#;
    let error = ask(&cache, json).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    // No request waits any more: a new one starts a new load instead of joining the one that hangs.
    let error = ask(&cache, json).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert_eq!(source.look_ups.load(Ordering::SeqCst), 2);
    add_up(&cache);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_end_nothing_is_taken_and_nothing_is_held() {
    let cache = cache_over(slow(0, &["A/B"], 10), 4 << 20);
    let json = r#"{"columns": {"b": "A/B"}, "timestamps": [5]}"#;
    drop(ask(&cache, json).await.unwrap());
    cache.close();
    let error = ask(&cache, json).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    nothing_is_pinned(&cache);
    add_up(&cache);
    let status = cache.status();
    assert_eq!((status.objects, status.memory.used_bytes), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_tells_single_times_is_asked_for_many_at_once() {
    let source = slow(50, &["A/B"], 100);
    let source = Arc::new(Slow { by_time: true, ..Arc::into_inner(source).unwrap() });
    let cache = cache_over(Arc::clone(&source) as Arc<dyn Source>, 8 << 20);
    let times: Vec<String> = (0..40).map(|at| at.to_string()).collect();
    let json = format!(r#"{{"columns": {{"c": "A/B"}}, "timestamps": [{}]}}"#, times.join(","));
    let answer = ask(&cache, &json).await.unwrap();
    for (at, bytes) in resolved(&answer).into_iter().enumerate() {
        assert_eq!(bytes, Some(bytes_of("A/B", (at / 10) as u8, 100)), "at {at}");
    }
    assert_eq!(source.look_ups.load(Ordering::SeqCst), 40);
    assert_eq!(source.most.load(Ordering::SeqCst), 16, "so many at once, and no more");
}

#[tokio::test(flavor = "multi_thread")]
async fn ascending_requests_do_not_wait_at_the_border_and_others_prefetch_nothing() {
    for by_time in [false, true] {
        let source = Arc::new(Slow { by_time, ..Arc::into_inner(slow(0, &["A/B"], 100)).unwrap() });
        let cache = cache_over(Arc::clone(&source) as Arc<dyn Source>, 8 << 20);
        let register =
            Register::parse(br#"{"columns": {"b": "A/B"}, "consumers": ["x"]}"#).unwrap();
        let mut next = 0;
        let mut at = async |millis: i64| {
            next += 1;
            let times = [Some(millis)].into_iter().collect::<Timestamps>();
            cache.register(next, times, &register, None).await.unwrap();
            let rows = resolved(&get(&cache, next, "x").await.unwrap());
            assert_eq!(rows, [Some(bytes_of("A/B", (millis / 10) as u8, 100))]);
            done(&cache, next, "x");
        };
        // Standing still, and back and forth: only the requested versions are loaded.
        for millis in [1, 1, 1, 5, 1, 5, 1] {
            at(millis).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(source.fetches.load(Ordering::SeqCst), 1);
        // Forwards: the next version is loaded before it is requested.
        for millis in [2, 4, 6, 8] {
            at(millis).await;
        }
        until_counted("the next", || source.fetches.load(Ordering::SeqCst), 2).await;
        at(10).await;
        assert_eq!(source.fetches.load(Ordering::SeqCst), 2, "it was there already");
        add_up(&cache);
    }
}
