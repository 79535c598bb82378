//! A cache beside a model of it: after any sequence of steps both hold the same objects.
//!
//! The model records only the holders of each object. After each step the pinned bytes of the cache
//! equal those of the model's live holders, per session and in total; used and free bytes add up;
//! every pin has a holder ([`Cache::check`]). A failing sequence is shrunk and printed with its
//! seed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use iovcache::cache::{CacheError, Caller, LeaseId};
use iovcache::error::Coded as _;
use iovcache::index::Timestamps;
use iovcache::shm::attach::Attachment;
use iovcache::shm::{Pool, PoolOptions};
use iovcache::source::MemorySource;
use iovcache::table::{Consumed, Prefetch, Register, Request};
use iovcache::{Cache, Clock, ObjectId, ObjectInfo, ObjectPath, Timestamp, ValidityInterval};
use proptest::prelude::*;
use tokio_util::sync::CancellationToken;

const PATHS: u8 = 4;
const VERSIONS: u8 = 8;
const OBJECT_BYTES: usize = 100_000;
/// Number of objects that fit: ten into each of two segments.
const ROOM: usize = 20;
const LEASE: Duration = Duration::from_millis(100);
const CONSUMERS: [&str; 3] = ["x", "y", "z"];
/// Time limit of the cache's background work.
const PATIENCE: Duration = Duration::from_secs(10);

/// A path and a version, by number.
type Object = (u8, u8);

#[derive(Debug, Clone)]
enum Step {
    Register { timeframe: u64, paths: u8, version: u8, consumers: u8 },
    Get { timeframe: u64, consumer: usize, session: Option<usize> },
    Table { object: Object, session: Option<usize> },
    Release { lease: usize },
    Consume { timeframe: u64, consumer: usize },
    OldestPossible { consumer: usize, timeframe: u64 },
    Drop { timeframe: u64 },
    Die { session: usize },
    ComeBack { session: usize },
    Expire { millis: u64 },
    Evict { path: u8 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let consumer = 0..CONSUMERS.len();
    let session = || prop::option::of(0..CONSUMERS.len());
    let object = (0..PATHS, 0..VERSIONS);
    let step = prop_oneof![
        4 => (0..6_u64, 1..1_u8 << PATHS, 0..VERSIONS, 0..8_u8).prop_map(
            |(timeframe, paths, version, consumers)| {
                Step::Register { timeframe, paths, version, consumers }
            }
        ),
        6 => (0..6_u64, consumer.clone(), session())
            .prop_map(|(timeframe, consumer, session)| Step::Get { timeframe, consumer, session }),
        3 => (object, session()).prop_map(|(object, session)| Step::Table { object, session }),
        2 => (0..8_usize).prop_map(|lease| Step::Release { lease }),
        5 => (0..6_u64, consumer.clone())
            .prop_map(|(timeframe, consumer)| Step::Consume { timeframe, consumer }),
        1 => (consumer, 0..4_u64)
            .prop_map(|(consumer, timeframe)| Step::OldestPossible { consumer, timeframe }),
        1 => (0..6_u64).prop_map(|timeframe| Step::Drop { timeframe }),
        2 => (0..CONSUMERS.len()).prop_map(|session| Step::Die { session }),
        3 => (0..CONSUMERS.len()).prop_map(|session| Step::ComeBack { session }),
        2 => (1..150_u64).prop_map(|millis| Step::Expire { millis }),
        2 => (0..PATHS).prop_map(|path| Step::Evict { path }),
    ];
    prop::collection::vec(step, 1..60)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Delivered,
    Consumed,
}

#[derive(Debug, Clone)]
struct Timeframe {
    content: (u8, u8, u8),
    objects: BTreeSet<Object>,
    consumers: BTreeMap<usize, State>,
}

#[derive(Debug, Clone)]
struct Lease {
    id: LeaseId,
    session: Option<usize>,
    reader: Option<(u64, usize)>,
    expires: Option<u64>,
    objects: BTreeSet<Object>,
}

/// The holders and their objects.
#[derive(Debug, Default)]
struct Model {
    now: u64,
    sessions: BTreeSet<usize>,
    timeframes: BTreeMap<u64, Timeframe>,
    leases: Vec<Lease>,
    watermarks: BTreeMap<usize, u64>,
}

impl Model {
    fn pinned(&self) -> BTreeSet<Object> {
        let timeframes = self.timeframes.values().flat_map(|timeframe| &timeframe.objects);
        timeframes.chain(self.leases.iter().flat_map(|lease| &lease.objects)).copied().collect()
    }

    fn pinned_by(&self, session: usize) -> BTreeSet<Object> {
        let leases = self.leases.iter().filter(|lease| lease.session == Some(session));
        leases.flat_map(|lease| &lease.objects).copied().collect()
    }

    fn fits(&self, more: &BTreeSet<Object>) -> bool {
        self.pinned().union(more).count() <= ROOM
    }

    fn remove(&mut self, timeframe: u64) {
        self.timeframes.remove(&timeframe);
        self.leases.retain(|lease| lease.reader.is_none_or(|(id, _)| id != timeframe));
    }

    /// `consumer` has consumed `timeframe`.
    fn consume(&mut self, timeframe: u64, consumer: usize) {
        let Some(entry) = self.timeframes.get_mut(&timeframe) else { return };
        entry.consumers.insert(consumer, State::Consumed);
        self.leases.retain(|lease| lease.reader != Some((timeframe, consumer)));
        if entry.consumers.values().all(|state| *state == State::Consumed) {
            self.remove(timeframe);
        }
    }

    fn expire(&mut self) {
        self.leases.retain(|lease| lease.expires.is_none_or(|at| at > self.now));
    }
}

fn path(number: u8) -> String {
    format!("Model/Path{number}")
}

fn source() -> MemorySource {
    let source = MemorySource::new();
    for number in 0..PATHS {
        for version in 0..VERSIONS {
            let [from, until] = [version, version + 1].map(|n| i64::from(n) * 10);
            let [from, until] = [from, until].map(Timestamp::from_millis);
            let info = ObjectInfo {
                path: ObjectPath::new(&path(number)).unwrap(),
                id: ObjectId::from_bytes([number * VERSIONS + version + 1; 16]),
                validity: ValidityInterval::new(from, until).unwrap(),
                created: Timestamp::from_millis(1),
                size_bytes: None,
                md5: None,
                metadata: Default::default(),
            };
            source.put(info, vec![version; OBJECT_BYTES]);
        }
    }
    source
}

/// The cache and the handles of its users.
struct Real {
    cache: Cache,
    clock: Clock,
    sockets: tempfile::TempDir,
    sessions: BTreeMap<usize, Attachment>,
}

fn json_columns(paths: u8) -> String {
    let chosen = (0..PATHS).filter(|number| paths & (1 << number) != 0);
    let columns: Vec<String> =
        chosen.map(|number| format!(r#""c{number}": "{}""#, path(number))).collect();
    format!("{{{}}}", columns.join(", "))
}

impl Real {
    fn new() -> Self {
        let clock = Clock::manual(Timestamp::from_millis(0));
        let memory =
            PoolOptions { memory_bytes: 2 << 20, segment_bytes: 1 << 20, ..PoolOptions::default() };
        let cache = Cache::builder()
            .source(Arc::new(source()))
            .memory(memory)
            .clock(clock.clone())
            .lease_limit(LEASE)
            .build()
            .unwrap();
        let sockets = tempfile::tempdir().unwrap();
        let listener = tokio::net::UnixListener::bind(sockets.path().join("attach")).unwrap();
        let attending = cache.clone();
        tokio::spawn(async move {
            attending.serve_attach(listener, Default::default(), CancellationToken::new()).await;
        });
        Self { cache, clock, sockets, sessions: BTreeMap::new() }
    }

    fn with_session(&self, session: Option<usize>, json: String) -> String {
        match session.and_then(|session| self.sessions.get(&session)) {
            Some(session) => {
                json.replace('}', &format!(r#", "session": "{}"}}"#, session.session()))
            }
            None => json,
        }
    }

    async fn ask(&self, json: &str) -> Result<LeaseId, CacheError> {
        let request = Request::parse(json.as_bytes()).unwrap();
        let answer = self.cache.answer(&request, &Caller::default()).await?;
        Ok(answer.lease().clone())
    }
}

/// Takes a step with both, and compares each of the cache's answers with the model.
async fn take(step: &Step, model: &mut Model, real: &mut Real) {
    let cache = real.cache.clone();
    match *step {
        Step::Register { timeframe, paths, version, consumers } => {
            let chosen = (0..PATHS).filter(|number| paths & (1 << number) != 0);
            let objects: BTreeSet<Object> = chosen.map(|number| (number, version)).collect();
            if !model.fits(&objects) {
                return;
            }
            let named: Vec<usize> =
                (0..CONSUMERS.len()).filter(|number| consumers & (1 << number) != 0).collect();
            let names: Vec<String> =
                named.iter().map(|&number| format!("{:?}", CONSUMERS[number])).collect();
            let names = names.join(", ");
            let columns = json_columns(paths);
            let json = format!(r#"{{"columns": {columns}, "consumers": [{names}]}}"#);
            let register = Register::parse(json.as_bytes()).unwrap();
            let times: Timestamps = [Some(i64::from(version) * 10 + 3)].into_iter().collect();
            let registered = cache.register(timeframe, times, &register, Some(PATIENCE)).await;
            let content = (paths, version, consumers);
            if let Some(there) = model.timeframes.get(&timeframe) {
                assert_eq!(registered.is_ok(), there.content == content, "{registered:?}");
                return;
            }
            let done = |number: &usize| {
                model.watermarks.get(number).is_some_and(|&oldest| timeframe < oldest)
            };
            let states = named.iter().map(|number| {
                (*number, if done(number) { State::Consumed } else { State::Waiting })
            });
            let consumers: BTreeMap<usize, State> = states.collect();
            let over =
                !consumers.is_empty() && consumers.values().all(|state| *state == State::Consumed);
            assert_eq!(registered.unwrap().state == "consumed", over);
            if !over {
                model.timeframes.insert(timeframe, Timeframe { content, objects, consumers });
            }
        }
        Step::Get { timeframe, consumer, session } => {
            let session = session.filter(|session| model.sessions.contains(session));
            let name = CONSUMERS[consumer];
            let json = format!(r#"{{"timeframe": {timeframe}, "consumer": "{name}"}}"#);
            let got = real.ask(&real.with_session(session, json)).await;
            let expected = match model.timeframes.get(&timeframe) {
                None => Err(5010),
                Some(entry) => match entry.consumers.get(&consumer) {
                    Some(State::Consumed) => Err(5012),
                    None if entry.content.2 != 0 => Err(5011),
                    _ => Ok(entry.objects.clone()),
                },
            };
            match (got, expected) {
                (Ok(id), Ok(objects)) => {
                    let reader = Some((timeframe, consumer));
                    model.leases.push(Lease { id, session, reader, expires: None, objects });
                    let entry = model.timeframes.get_mut(&timeframe).unwrap();
                    entry.consumers.insert(consumer, State::Delivered);
                }
                (got, expected) => {
                    let got = got.map_err(|error| error.code().0);
                    assert_eq!(got.map(|_| ()), expected.map(|_| ()));
                }
            }
        }
        Step::Table { object: (number, version), session } => {
            let session = session.filter(|session| model.sessions.contains(session));
            let objects = BTreeSet::from([(number, version)]);
            if !model.fits(&objects) {
                return;
            }
            let at = i64::from(version) * 10 + 5;
            let object = path(number);
            let columns = format!(r#""columns": {{"c": "{object}"}}"#);
            let json = match session.map(|session| real.sessions[&session].session()) {
                Some(name) => {
                    format!(r#"{{{columns}, "timestamps": [{at}], "session": "{name}"}}"#)
                }
                None => format!(r#"{{{columns}, "timestamps": [{at}]}}"#),
            };
            let id = real.ask(&json).await.unwrap();
            let limit = LEASE.as_millis() as u64;
            let expires = session.is_none().then_some(model.now + limit);
            model.leases.push(Lease { id, session, reader: None, expires, objects });
        }
        Step::Release { lease } => {
            if lease < model.leases.len() {
                let lease = model.leases.remove(lease);
                assert!(cache.release(&lease.id));
                assert!(!cache.release(&lease.id), "once is enough");
            }
        }
        Step::Consume { timeframe, consumer } => {
            let name = CONSUMERS[consumer].to_owned();
            let said = cache.consumed(&Consumed::One { timeframe, consumer: name });
            let below = model.watermarks.get(&consumer).is_some_and(|&oldest| timeframe < oldest);
            let expected = match model.timeframes.get(&timeframe) {
                None => below,
                Some(entry) => entry.content.2 == 0 || entry.consumers.contains_key(&consumer),
            };
            assert_eq!(said.is_ok(), expected, "{said:?}");
            if expected {
                model.consume(timeframe, consumer);
            }
        }
        Step::OldestPossible { consumer, timeframe: oldest_possible } => {
            let name = CONSUMERS[consumer].to_owned();
            cache.consumed(&Consumed::Below { oldest_possible, consumer: name }).unwrap();
            let mark = model.watermarks.entry(consumer).or_insert(0);
            *mark = oldest_possible.max(*mark);
            let below = model.timeframes.range(..oldest_possible);
            let waited = below.filter(|(_, entry)| entry.consumers.contains_key(&consumer));
            let waited: Vec<u64> = waited.map(|(&id, _)| id).collect();
            waited.into_iter().for_each(|id| model.consume(id, consumer));
        }
        Step::Drop { timeframe } => {
            let there = model.timeframes.contains_key(&timeframe);
            assert_eq!(cache.drop_timeframe(timeframe).is_ok(), there);
            model.remove(timeframe);
        }
        Step::Die { session } => {
            // Like the kernel after the death of a process: the socket hangs up.
            if let Some(attachment) = real.sessions.remove(&session) {
                tokio::task::spawn_blocking(move || drop(attachment)).await.unwrap();
                model.sessions.remove(&session);
                model.leases.retain(|lease| lease.session != Some(session));
            }
        }
        Step::ComeBack { session } => {
            if model.sessions.insert(session) {
                let path = real.sockets.path().join("attach");
                let open = move || Attachment::open(&path, CONSUMERS[session], None).unwrap();
                let attachment = tokio::task::spawn_blocking(open).await.unwrap();
                real.sessions.insert(session, attachment);
            }
        }
        Step::Expire { millis } => {
            real.clock.advance(Duration::from_millis(millis));
            model.now += millis;
            model.expire();
        }
        Step::Evict { path: number } => {
            // Loads unpinned objects, so that others must be evicted.
            if model.pinned().len() + usize::from(VERSIONS) > ROOM {
                return;
            }
            let until = i64::from(VERSIONS) * 10;
            let columns = json_columns(1 << number);
            let json =
                format!(r#"{{"columns": {columns}, "range": {{"from": 0, "until": {until}}}}}"#);
            let prefetch = Prefetch::parse(json.as_bytes()).unwrap();
            let in_time = Caller { patience: Some(PATIENCE), ..Caller::default() };
            cache.prefetch(&prefetch, &in_time).await.unwrap();
        }
    }
}

/// The difference, if there is one.
fn difference(model: &Model, real: &Real) -> Result<(), String> {
    let bytes =
        |objects: BTreeSet<Object>| objects.len() as u64 * Pool::charge(OBJECT_BYTES as u64);
    let status = real.cache.status();
    let same = |what: &str, got: u64, expected: u64| match got == expected {
        true => Ok(()),
        false => Err(format!("{what}: {got}, the model says {expected}")),
    };
    same("pinned", status.memory.pinned_bytes, bytes(model.pinned()))?;
    same("sessions", status.sessions.len() as u64, model.sessions.len() as u64)?;
    for session in &status.sessions {
        let number = CONSUMERS.iter().position(|name| *name == session.consumer).unwrap();
        let expected = bytes(model.pinned_by(number));
        same(&session.consumer, session.pinned_bytes, expected)?;
    }
    let memory = &status.memory;
    same("used and free", memory.used_bytes + memory.free_bytes, memory.total_bytes)?;
    let ids: Vec<u64> = status.timeframes.iter().map(|timeframe| timeframe.timeframe).collect();
    let expected: Vec<u64> = model.timeframes.keys().copied().collect();
    if ids != expected {
        return Err(format!("in flight: {ids:?}, the model says {expected:?}"));
    }
    for (timeframe, entry) in status.timeframes.iter().zip(model.timeframes.values()) {
        let expected: BTreeMap<&str, State> =
            entry.consumers.iter().map(|(&number, &state)| (CONSUMERS[number], state)).collect();
        let got = timeframe.consumers.iter().map(|(name, state)| {
            use iovcache::table::ConsumerState;
            let state = match state {
                ConsumerState::Waiting => State::Waiting,
                ConsumerState::Delivered => State::Delivered,
                ConsumerState::Consumed => State::Consumed,
            };
            (name.as_str(), state)
        });
        let got: BTreeMap<&str, State> = got.collect();
        if got != expected {
            return Err(format!("{}: {got:?}, expected {expected:?}", timeframe.timeframe));
        }
    }
    real.cache.check().map_err(|faults| faults.join("; "))
}

/// Waits until both agree, since the cache works in the background.
async fn agree(model: &Model, real: &Real) -> Result<(), TestCaseError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let Err(differs) = difference(model, real) else { return Ok(()) };
        if Instant::now() > deadline {
            return Err(TestCaseError::fail(differs));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn play(steps: &[Step]) -> Result<(), TestCaseError> {
    let (mut model, mut real) = (Model::default(), Real::new());
    for step in steps {
        take(step, &mut model, &mut real).await;
        agree(&model, &real).await?;
    }
    // In the end all holders release, in random order.
    for session in 0..CONSUMERS.len() {
        take(&Step::Die { session }, &mut model, &mut real).await;
    }
    for timeframe in model.timeframes.keys().copied().collect::<Vec<_>>() {
        take(&Step::Drop { timeframe }, &mut model, &mut real).await;
    }
    take(&Step::Expire { millis: 1_000 }, &mut model, &mut real).await;
    agree(&model, &real).await?;
    prop_assert_eq!(real.cache.status().memory.pinned_bytes, 0);
    real.cache.close();
    prop_assert_eq!(real.cache.status().memory.used_bytes, 0);
    Ok(())
}

proptest! {
    // Each case is a cache with sockets and up to 60 steps: an eighth of the usual count.
    #![proptest_config(ProptestConfig {
        cases: (ProptestConfig::default().cases / 8).max(8),
        // A differing step is waited for, so each attempt at a smaller sequence takes long.
        max_shrink_time: 60_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn whatever_happens_in_whatever_order_the_pins_are_those_of_the_living(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(play(&steps))?;
    }
}
