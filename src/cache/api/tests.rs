use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arrow_buffer::ScalarBuffer;
use async_trait::async_trait;
use serde_json::{Value, json};

use crate::budget::{Budget, ClientBudget, LimitHolder};
use crate::cache::memory::publish;
use crate::cache::{Answer, Cache, CacheError, Caller, ConsumerLimits};
use crate::error::{Coded as _, ErrorKind};
use crate::index::Timestamps;
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{Md5Sum, ObjectId, ObjectInfo, ObjectPath, Query};
use crate::shm::PoolOptions;
use crate::source::{
    Body, ChainSource, Knowledge, Link, MemorySource, PathSummary, Source, SourceError,
    SourceHealth,
};
use crate::table::{Register, Request, TableBody};

const SIZE: usize = 100_000;

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

/// Version `n` of a path: valid from n to n + 1, all its bytes equal to `n`.
fn version(path: &str, n: u8) -> ObjectInfo {
    ObjectInfo {
        path: ObjectPath::new(path).unwrap(),
        id: ObjectId::from_bytes([n + 1; 16]),
        validity: ValidityInterval::new(at(i64::from(n)), at(i64::from(n) + 1)).unwrap(),
        created: at(i64::from(n) + 1),
        size_bytes: Some(SIZE as u64),
        md5: Some(publish::md5_of(&vec![n; SIZE])),
        metadata: Default::default(),
    }
}

/// A source that can give wrong bytes, or answer look-ups only for single times.
#[derive(Debug, Default)]
struct Tricky {
    memory: MemorySource,
    /// Number of wrong bytes at the end of each body.
    wrong_bytes: AtomicUsize,
    by_time: AtomicBool,
    silent: AtomicBool,
    look_ups: AtomicUsize,
}

#[async_trait]
impl Source for Tricky {
    fn url(&self) -> &str {
        "tricky:"
    }
    fn refresh(&self) -> Duration {
        Duration::ZERO
    }
    async fn look_up(
        &self,
        query: &Query,
        at: Timestamp,
        held: Option<&Arc<ObjectInfo>>,
    ) -> Result<Knowledge, SourceError> {
        self.look_ups.fetch_add(1, Ordering::SeqCst);
        let mut knowledge = self.memory.look_up(query, at, held).await?;
        if self.by_time.load(Ordering::SeqCst) {
            let next = Timestamp::from_millis(at.as_millis() + 1);
            knowledge.span = ValidityInterval::new(at, next).unwrap();
            knowledge.versions.retain(|version| version.validity.contains(at));
        }
        Ok(knowledge)
    }
    async fn fetch(&self, version: &ObjectInfo, body: &mut dyn Body) -> Result<(), SourceError> {
        if self.silent.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        let wrong = self.wrong_bytes.load(Ordering::SeqCst);
        if wrong == 0 {
            return self.memory.fetch(version, body).await;
        }
        body.reserve(SIZE as u64).await.unwrap();
        let spare = body.spare();
        spare.fill(version.id.as_bytes()[0] - 1);
        let end = spare.len();
        spare[end - wrong..].fill(77);
        body.advance(SIZE);
        Ok(())
    }
    fn health(&self) -> Vec<SourceHealth> {
        Vec::new()
    }
    async fn paths(&self, prefix: &str) -> Result<Vec<PathSummary>, SourceError> {
        self.memory.paths(prefix).await
    }
}

/// A cache with room for `objects`, and its source, which has `versions` of A/B.
fn cache(objects: usize, versions: u8) -> (Cache, Arc<Tricky>) {
    let source = Arc::new(Tricky::default());
    for n in 0..versions {
        source.memory.put(version("A/B", n), vec![n; SIZE]);
    }
    let bytes = (objects as u64) * (SIZE as u64 + 4096) + 65_536;
    let memory =
        PoolOptions { memory_bytes: bytes, segment_bytes: bytes, ..PoolOptions::default() };
    let own: Arc<dyn Source> = Arc::clone(&source) as _;
    (Cache::builder().source(own).memory(memory).build().unwrap(), source)
}

fn request(fields: Value) -> Request {
    Request::parse(fields.to_string().as_bytes()).unwrap()
}

fn table(times: &[i64]) -> Value {
    json!({"columns": {"b": "A/B"}, "timestamps": times})
}

async fn ask(cache: &Cache, fields: Value) -> Result<Answer, CacheError> {
    cache.answer(&request(fields), &Caller::default()).await
}

/// Waits until nothing is pinned: a load that has just ended keeps its pin a moment longer.
async fn nothing_is_pinned(cache: &Cache) {
    let began = Instant::now();
    while cache.0.residency.pinned_bytes() > 0 {
        assert!(began.elapsed() < Duration::from_secs(2), "an object stays pinned");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Checks the invariants once loads that have just ended have dropped their pins.
async fn adds_up(cache: &Cache) {
    let began = Instant::now();
    while let Err(faults) = cache.check() {
        assert!(began.elapsed() < Duration::from_secs(2), "{faults:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn entry(version: &ObjectInfo) -> Value {
    json!({
        "path": version.path, "object_id": version.id, "valid_from": version.validity.from(),
        "valid_until": version.validity.until(), "created": version.created,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_selects_versions_and_never_describes_one() {
    for by_time in [false, true] {
        let (cache, source) = cache(8, 4);
        // A version selected by a lock is served even if another version hides it today.
        let newer = ObjectInfo {
            id: ObjectId::from_bytes([99; 16]),
            validity: ValidityInterval::new(at(0), at(4)).unwrap(),
            created: at(50),
            md5: None,
            ..version("A/B", 1)
        };
        source.memory.put(newer, vec![99; SIZE]);
        source.by_time.store(by_time, Ordering::SeqCst);
        let locked = |entry: Value| {
            let mut fields = table(&[1]);
            fields["lock"] = json!([entry]);
            fields
        };
        let good = entry(&version("A/B", 1));
        let answer = ask(&cache, locked(good.clone())).await.unwrap();
        assert_eq!(answer.pins().pins()[0].payload(), vec![1; SIZE], "by time: {by_time}");
        let changed = |field: &str, value: Value| {
            let mut entry = good.clone();
            entry[field] = value;
            locked(entry)
        };
        // Metadata in the request is ignored: that of the source counts.
        let forged = changed("metadata", json!({"source_id": "elsewhere"}));
        let answer = ask(&cache, forged).await.unwrap();
        assert_eq!(answer.pins().pins()[0].payload(), vec![1; SIZE]);
        for (field, value) in
            [("valid_until", json!(9)), ("valid_from", json!(0)), ("size", json!(7))]
        {
            let error = ask(&cache, changed(field, value)).await.unwrap_err();
            // With look-up by time, a version with a wrong start is not found.
            let kinds = [ErrorKind::InvalidArgument, ErrorKind::NotFound];
            assert!(kinds.contains(&error.kind()), "{field}, by time: {by_time}: {error}");
        }
        let unknown = changed("object_id", json!("6ba7b810-9dad-11d1-80b4-00c04fd430c8"));
        let error = ask(&cache, unknown).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.message().contains("6ba7b810"), "{}", error.message());
        adds_up(&cache).await;
    }
}

/// Versions of A/B, as (source, from, until, created); the place in the list is the number.
const OF_SOURCES: [(usize, i64, i64, i64); 5] =
    [(0, 10, 20, 1), (0, 15, 30, 3), (1, 0, 90, 9), (1, 25, 60, 8), (2, 0, 99, 5)];

/// A cache over three sources in order, with these versions.
fn cache_of_sources(by_time: bool) -> Cache {
    let sources: [Arc<Tricky>; 3] = Default::default();
    for (n, (source, from, until, created)) in OF_SOURCES.iter().enumerate() {
        let info = ObjectInfo {
            validity: ValidityInterval::new(at(*from), at(*until)).unwrap(),
            created: at(*created),
            ..version("A/B", n as u8)
        };
        sources[*source].memory.put(info, vec![n as u8; SIZE]);
        sources[*source].by_time.store(by_time, Ordering::SeqCst);
    }
    let link = |source| Link { source: source as Arc<dyn Source>, prefixes: Vec::new() };
    let chain = ChainSource::new(sources.map(link).into(), Vec::new());
    Cache::builder().source(Arc::new(chain)).build().unwrap()
}

/// The id of the object of each row of a table with one column.
fn ids_of(answer: &Answer) -> Vec<ObjectId> {
    let TableBody::Rows { columns, .. } = &answer.content.body else { panic!("no rows") };
    let column = &columns[0];
    let cell = |row: usize| column.rows.runs_within(row..row + 1)[0].cell.unwrap();
    let rows = 0..column.rows.len();
    rows.map(|row| answer.content.objects.id(column.cells[cell(row) as usize].object)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_sources_a_lock_and_a_limit_select_as_a_table_does() {
    for by_time in [false, true] {
        let cache = cache_of_sources(by_time);
        let served = async |fields: Value| ids_of(&ask(&cache, fields).await.unwrap());
        let times = [0, 9, 10, 14, 15, 19, 20, 29, 30, 59, 60, 89, 90, 98];
        let right = served(table(&times)).await;
        let ids = [2, 2, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 4, 4].map(|n| version("A/B", n).id);
        assert_eq!(right, ids);
        let lock: Vec<Value> = OF_SOURCES
            .iter()
            .enumerate()
            .filter(|(_, (_, _, _, created))| *created != 8)
            .map(|(n, (_, from, until, created))| {
                let info = version("A/B", n as u8);
                json!({
                    "path": "A/B", "object_id": info.id, "valid_from": from, "valid_until": until,
                    "created": created,
                })
            })
            .collect();
        let mut locked = table(&times);
        locked["lock"] = json!(lock);
        assert_eq!(served(locked).await, right, "by time: {by_time}");
        // One version at a time, with a limit of the query's own.
        let mut query = Query::all(ObjectPath::new("A/B").unwrap());
        query.limits.not_after = Some(at(100));
        for (time, id) in times.iter().zip(&right) {
            let found = cache.version_at(&query, at(*time), Duration::from_secs(10)).await;
            assert_eq!(found.unwrap().unwrap().version.id, *id, "{time}, by time: {by_time}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_the_source_does_not_describe_are_never_published() {
    let (cache, source) = cache(8, 4);
    source.wrong_bytes.store(1, Ordering::SeqCst);
    let error = ask(&cache, table(&[2])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.message().contains("MD5"), "{}", error.message());
    assert_eq!(cache.0.residency.objects(), 0);
    source.wrong_bytes.store(0, Ordering::SeqCst);
    let answer = ask(&cache, table(&[2])).await.unwrap();
    assert_eq!(answer.pins().pins()[0].payload(), vec![2; SIZE]);
    adds_up(&cache).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_of_other_bytes_is_replaced_once_it_is_not_pinned() {
    let (cache, source) = cache(8, 1);
    // First the source gives no digest, later other bytes.
    source.memory.put(ObjectInfo { md5: None, ..version("A/B", 0) }, vec![200; SIZE]);
    let answer = ask(&cache, table(&[0])).await.unwrap();
    assert_eq!(answer.pins().pins()[0].payload(), vec![200; SIZE]);
    source.memory.put(version("A/B", 0), vec![0; SIZE]);
    let error = ask(&cache, table(&[0])).await.unwrap_err();
    assert!(matches!(error, CacheError::TwoContents { .. }), "{error}");
    cache.release(answer.lease());
    drop(answer);
    let answer = ask(&cache, table(&[0])).await.unwrap();
    assert_eq!(answer.pins().pins()[0].payload(), vec![0; SIZE]);
    cache.release(answer.lease());
    drop(answer);
    nothing_is_pinned(&cache).await;
    adds_up(&cache).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_waits_for_memory_holds_none_and_lets_others_pass() {
    let (cache, _source) = cache(4, 10);
    let mut pinning = table(&[0, 1]);
    pinning["consumer"] = json!("calm");
    let calm = ask(&cache, pinning).await.unwrap();
    let pinned = cache.0.residency.pinned_bytes();
    let waiting = tokio::spawn({
        let cache = cache.clone();
        async move {
            let mut fields = table(&[2, 3, 4]);
            fields["wait_ms"] = json!(6_000);
            ask(&cache, fields).await
        }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    for n in [5, 6, 7] {
        let began = Instant::now();
        let mut fields = table(&[n]);
        fields["wait_ms"] = json!(3_000);
        let answer = ask(&cache, fields).await.unwrap();
        cache.release(answer.lease());
        drop(answer);
        assert!(began.elapsed() < Duration::from_secs(2));
        // A retry pins for a moment; so does a load that has just ended.
        while cache.0.residency.pinned_bytes() != pinned {
            assert!(began.elapsed() < Duration::from_secs(2), "a waiting request holds nothing");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    cache.release(calm.lease());
    drop(calm);
    let answer = waiting.await.unwrap().unwrap();
    assert_eq!(answer.pins().pins().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_found_no_room_is_told_what_all_of_it_needs() {
    let (cache, _source) = cache(4, 10);
    let _calm = ask(&cache, table(&[0, 1])).await.unwrap();
    let mut fields = table(&[2, 3, 4]);
    fields["wait_ms"] = json!(300);
    let error = ask(&cache, fields).await.unwrap_err();
    match error {
        CacheError::MemoryPinned { needed_bytes, pinned_bytes, .. } => {
            assert!(needed_bytes >= 3 * SIZE as u64, "{needed_bytes}");
            assert!(pinned_bytes >= 2 * SIZE as u64, "{pinned_bytes}");
        }
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_is_checked_before_anything_is_loaded() {
    let source = Arc::new(Tricky::default());
    (0..8).for_each(|n| source.memory.put(version("A/B", n), vec![n; SIZE]));
    let limits = ConsumerLimits { quota_bytes: Some(250_000), ..ConsumerLimits::default() };
    let own: Arc<dyn Source> = Arc::clone(&source) as _;
    let cache = Cache::builder().source(own).consumer_limits(limits).build().unwrap();
    let ask_as = |times: &[i64]| {
        let mut fields = table(times);
        fields["consumer"] = json!("one");
        ask(&cache, fields)
    };
    let held = ask_as(&[0, 1]).await.unwrap();
    let error = ask_as(&[1, 2, 3]).await.unwrap_err();
    assert!(matches!(error, CacheError::OverQuota { .. }), "{error}");
    assert_eq!(cache.0.residency.objects(), 2, "no object was loaded for it");
    assert!(ask_as(&[0, 1]).await.is_ok(), "an object that it holds counts once");
    drop(held);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_without_an_object_are_counted_by_runs() {
    let (cache, _source) = cache(4, 2);
    let rows = i32::MAX - 1;
    let one_run = Timestamps::new(vec![5_000], None).with_ends(ScalarBuffer::from(vec![rows]));
    let columns: serde_json::Map<String, Value> =
        (0..200).map(|n| (format!("c{n}"), json!(format!("No/P{n}")))).collect();
    let register = json!({"columns": columns, "consumers": []}).to_string();
    let register = Register::parse(register.as_bytes()).unwrap();
    let began = Instant::now();
    cache.register(1, one_run, &register, None).await.unwrap();
    let error = ask(&cache, json!({"timeframe": 1})).await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(5));
    let CacheError::Missing { columns } = error else { panic!("{error}") };
    let first = &columns[0];
    assert_eq!((first.rows, first.first, first.last), (rows as u64, at(5_000), at(5_000)));
    assert_eq!(columns.len(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_times_columns_are_charged_to_the_client_that_asks() {
    let (cache, _source) = cache(4, 2);
    let times: Vec<i64> = (0..100_000).map(|n| n % 2).collect();
    let columns: serde_json::Map<String, Value> =
        (0..20).map(|n| (format!("c{n}"), json!("A/B"))).collect();
    let fields = json!({"columns": columns, "timestamps": times});
    let budget = Budget::new(16 << 20);
    let caller = Caller { budget: budget.client("one"), ..Caller::default() };
    let error = cache.answer(&request(fields), &caller).await.unwrap_err();
    let CacheError::Budget(over) = &error else { panic!("{error}") };
    assert_eq!((over.holder, error.kind()), (LimitHolder::Client, ErrorKind::ResourceExhausted));
    assert_eq!(budget.used_bytes(), 0, "the charge of a refused request is returned");
    let caller = Caller { budget: Budget::new(1 << 30).client("one"), ..caller };
    let answer = cache.answer(&request(table(&times)), &caller).await.unwrap();
    assert!(caller.budget.used_bytes() >= 100_000 * 12);
    assert!(cache.release(&answer.lease().clone()));
    drop(answer);
    assert_eq!(caller.budget.used_bytes(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_without_versions_is_not_asked_for_at_each_timestamp() {
    let (cache, source) = cache(4, 2);
    source.by_time.store(true, Ordering::SeqCst);
    let times: Vec<i64> = (0..1_000).map(|n| n * 1_000).collect();
    let fields = json!({"columns": {"x": "No/Where"}, "timestamps": times, "missing": "null"});
    let error = ask(&cache, fields).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(source.look_ups.load(Ordering::SeqCst) <= 40);
    // A few are asked for one by one.
    let fields =
        json!({"columns": {"x": "No/Where"}, "timestamps": times[..20], "missing": "null"});
    assert_eq!(ask(&cache, fields).await.unwrap().rows(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeframe_that_a_stream_consumes_before_it_comes_is_not_held() {
    let (cache, _source) = cache(4, 4);
    let template = Request::parse_template(br#"{"columns": {"b": "A/B"}}"#).unwrap();
    let exchange = cache.exchange(template).unwrap();
    let times = |n: i64| Timestamps::new(vec![n], None);
    exchange.expect(7);
    exchange.expect(8);
    exchange.consumed(&[7]);
    drop(exchange.answer(7, times(1)).await.unwrap());
    nothing_is_pinned(&cache).await;
    drop(exchange.answer(8, times(2)).await.unwrap());
    assert!(cache.0.residency.pinned_bytes() > 0);
    // Requested again, it is held again.
    drop(exchange.answer(7, times(1)).await.unwrap());
    exchange.consumed(&[8]);
    assert!(cache.0.residency.pinned_bytes() > 0);
    exchange.consumed(&[7]);
    nothing_is_pinned(&cache).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_that_failed_begins_anew() {
    let (cache, source) = cache(4, 4);
    let (lease, _) = cache.open_lease(&ClientBudget::default()).unwrap();
    let caller = Caller::default();
    let far = request(table(&[1, 100]));
    assert!(cache.poll(&far, &lease, &caller).await.is_err(), "no version is valid at 100");
    source.memory.put(
        ObjectInfo {
            validity: ValidityInterval::new(at(100), at(101)).unwrap(),
            id: ObjectId::from_bytes([40; 16]),
            md5: None::<Md5Sum>,
            ..version("A/B", 1)
        },
        vec![9; SIZE],
    );
    // An answer of the same millisecond would still be fresh.
    tokio::time::sleep(Duration::from_millis(2)).await;
    let began = Instant::now();
    while !cache.poll(&far, &lease, &caller).await.unwrap().done {
        assert!(began.elapsed() < Duration::from_secs(10), "its load never began");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(cache.0.residency.pinned_bytes() >= 2 * SIZE as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn loads_in_the_background_do_not_keep_a_cache_alive() {
    let (cache, source) = cache(4, 4);
    source.silent.store(true, Ordering::SeqCst);
    let register = Register::parse(br#"{"columns": {"b": "A/B"}, "consumers": ["x"]}"#).unwrap();
    cache.register(1, Timestamps::new(vec![1], None), &register, None).await.unwrap();
    let (lease, _) = cache.open_lease(&ClientBudget::default()).unwrap();
    cache.poll(&request(table(&[2])), &lease, &Caller::default()).await.unwrap();
    let gone = Arc::downgrade(&cache.0);
    drop(cache);
    assert_eq!(gone.strong_count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeframe_that_is_dropped_is_in_no_list_and_not_loading() {
    let (cache, _source) = cache(4, 4);
    let register = Register::parse(br#"{"columns": {"b": "A/B"}, "consumers": ["x"]}"#).unwrap();
    cache.register(1, Timestamps::new(vec![1], None), &register, None).await.unwrap();
    let timeframe = cache.0.timeframes.get(1).unwrap();
    assert!(timeframe.status().is_some());
    cache.drop_timeframe(1).unwrap();
    assert!(timeframe.status().is_none());
    assert!(cache.timeframes().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_are_charged_to_their_client_until_they_end() {
    let (cache, _) = cache(4, 4);
    let budget = Budget::new(4 << 20);
    let greedy = budget.client("greedy");
    let caller = Caller { budget: greedy.clone(), ..Caller::default() };
    let table = request(table(&[1, 2]));
    let mut leases = Vec::new();
    let refused = loop {
        match cache.answer(&table, &caller).await {
            Ok(answer) => leases.push(answer.lease().clone()),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, CacheError::Budget(_)), "{refused}");
    assert_eq!(refused.kind(), ErrorKind::ResourceExhausted);
    assert!((100..2_000).contains(&leases.len()), "{}", leases.len());
    let refused = loop {
        match cache.open_lease(&greedy) {
            Ok((lease, _)) => leases.push(lease),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, CacheError::Budget(_)), "{refused}");
    // Another client, and the same one after a release.
    cache.open_lease(&budget.client("other")).unwrap();
    assert!(leases[..4].iter().all(|lease| cache.release(lease)));
    leases.push(cache.answer(&table, &caller).await.unwrap().lease().clone());
    let ended = leases.iter().filter(|lease| cache.release(lease)).count();
    assert_eq!(ended, leases.len() - 4);
    assert_eq!(greedy.used_bytes(), 0);
}
