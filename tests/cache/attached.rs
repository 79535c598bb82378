//! Attached processes: unread announcements, reports, and the owners of sessions and names.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use iovcache::budget::ClientBudget;
use iovcache::cache::Origin;
use iovcache::shm::attach::{Announcement, AttachRefusal, LineReader, SegmentEntry};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio_util::sync::CancellationToken;

use super::*;

/// A cache with an attach socket.
struct Attached {
    cache: Cache,
    path: PathBuf,
    stop: CancellationToken,
    serving: JoinHandle<()>,
    _folder: tempfile::TempDir,
}

impl Attached {
    fn over(source: Arc<Slow>, memory_bytes: u64, segment_bytes: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("attach.sock");
        let memory = PoolOptions { memory_bytes, segment_bytes, ..PoolOptions::default() };
        let cache = Cache::builder().source(source).memory(memory).build().unwrap();
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let stop = CancellationToken::new();
        let serving = tokio::spawn({
            let (cache, stop) = (cache.clone(), stop.clone());
            async move { cache.serve_attach(listener, Default::default(), stop).await }
        });
        Self { cache, path, stop, serving, _folder: folder }
    }

    async fn attach(&self, name: &'static str) -> Attachment {
        let path = self.path.clone();
        spawn_blocking(move || Attachment::open(&path, name, None).unwrap()).await.unwrap()
    }

    /// A connection that sends hello and nothing else.
    async fn by_hand(&self, name: &str, count: usize) -> UnixStream {
        let mut stream = UnixStream::connect(&self.path).unwrap();
        writeln!(stream, r#"{{"hello": 1, "consumer": "{name}"}}"#).unwrap();
        self.sessions(count).await;
        stream
    }

    async fn sessions(&self, count: usize) {
        for _ in 0..500 {
            if self.cache.status().sessions.len() == count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{:?}", self.cache.status().sessions);
    }

    async fn end(self) {
        add_up(&self.cache);
        self.stop.cancel();
        self.serving.await.unwrap();
    }
}

/// The next line with the number of its descriptors; `None`: nothing came within 300 ms.
async fn line(stream: &UnixStream) -> Option<(Vec<u8>, usize)> {
    let stream = stream.try_clone().unwrap();
    spawn_blocking(move || {
        stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let mut reader = LineReader::default();
        reader.read(&stream).ok()?;
        let line = reader.line().expect("one line at a time");
        assert!(reader.line().is_none(), "two lines were in the socket at the same time");
        Some((line, reader.descriptors()))
    })
    .await
    .unwrap()
}

async fn segments(stream: &UnixStream) -> Option<Vec<SegmentEntry>> {
    let (line, descriptors) = line(stream).await?;
    let announcement: Announcement = serde_json::from_slice(&line).unwrap();
    assert_eq!(announcement.segments.len(), descriptors);
    Some(announcement.segments)
}

/// Versions of one path, each larger than a segment, and all of different sizes.
fn large_objects(count: u8, least: usize, step: usize) -> Arc<Slow> {
    let source = Slow::default();
    for n in 0..count {
        let size = least + usize::from(n) * step;
        source
            .memory
            .put(version("A/B", n, i64::from(n), i64::from(n) + 1), bytes_of("A/B", n, size));
    }
    Arc::new(source)
}

async fn load_and_release(cache: &Cache, at: u8) {
    let json = format!(r#"{{"columns": {{"b": "A/B"}}, "timestamps": [{at}]}}"#);
    let answer = ask(cache, &json).await.unwrap();
    let lease = answer.lease().clone();
    drop(answer);
    assert!(cache.release(&lease));
}

#[tokio::test(flavor = "multi_thread")]
async fn announcements_that_are_not_read_hold_no_memory_and_end_no_session() {
    let kept = Attached::over(large_objects(40, 1_500_000, 10_000), 8 << 20, 1 << 20);
    let silent = kept.by_hand("silent", 1).await;
    let mut reading = Vec::new();
    for at in 0..40 {
        load_and_release(&kept.cache, at).await;
        add_up(&kept.cache);
        if at % 10 == 0 {
            // Others stop reading at other times, each with another segment unread.
            reading.push(kept.by_hand("stopped", 2 + reading.len()).await);
        }
    }
    // The largest possible object still fits.
    kept.cache.invalidate(&ObjectPath::new("A/B").unwrap());
    let free = kept.cache.status().memory.largest_free_bytes;
    assert!(free > 6 << 20, "{free} bytes are free in one piece");
    // An attached process that reads learns where a new object lies.
    let attached = kept.attach("reads").await;
    let session = attached.session();
    let json =
        format!(r#"{{"columns": {{"b": "A/B"}}, "timestamps": [7], "session": "{session}"}}"#);
    let answer = ask(&kept.cache, &json).await.unwrap();
    let header = answer.pins().pins()[0].meta_header();
    let bytes = spawn_blocking(move || attached.mappings_for(&header).read(&header));
    assert_eq!(bytes.await.unwrap().unwrap(), bytes_of("A/B", 7, 1_570_000));
    kept.sessions(5).await;
    // The silent one finally reads: its welcome, then the current segments, in one line.
    let welcome = segments(&silent).await.unwrap();
    assert!(welcome.len() <= 1, "{welcome:?}");
    let now = segments(&silent).await.unwrap();
    let listed: Vec<SegmentEntry> = kept
        .cache
        .segments()
        .segments
        .iter()
        .map(|one| SegmentEntry { kind: one.kind, id: one.id, size: one.size })
        .collect();
    assert!(now.iter().all(|one| listed.contains(one)), "{now:?} of {listed:?}");
    drop((silent, reading));
    kept.sessions(0).await;
    kept.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_segment_whose_descriptor_is_unread_is_reused() {
    let kept = Attached::over(large_objects(8, 1_500_000, 0), 8 << 20, 1 << 20);
    load_and_release(&kept.cache, 0).await;
    let _silent = kept.by_hand("silent", 1).await;
    let ids = || kept.cache.segments().segments.iter().map(|one| one.id).collect::<Vec<_>>();
    let before = ids();
    assert_eq!(before.len(), 1);
    kept.cache.invalidate(&ObjectPath::new("A/B").unwrap());
    assert_eq!(ids(), before, "it would keep its memory all the same");
    load_and_release(&kept.cache, 1).await;
    assert_eq!(ids(), before);
    kept.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attached_process_reports_on_its_socket_and_a_wrong_report_is_told_and_ends_nothing() {
    let kept = Attached::over(large_objects(3, 1_000, 0), 8 << 20, 1 << 20);
    let register = br#"{"columns": {"b": "A/B"}, "consumers": ["x"]}"#;
    let register = Register::parse(register).unwrap();
    for id in 1..=3 {
        let times = [Some(id - 1)].into_iter().collect::<Timestamps>();
        kept.cache.register(id as u64, times, &register, None).await.unwrap();
    }
    let mut stream = kept.by_hand("x", 1).await;
    segments(&stream).await.unwrap();
    let left = |count: usize| {
        let cache = kept.cache.clone();
        async move {
            for _ in 0..200 {
                if cache.timeframes().len() == count {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            panic!("{:?}", cache.timeframes());
        }
    };
    writeln!(stream, r#"{{"delivered": 2}}"#).unwrap();
    writeln!(stream, r#"{{"consumed": 1, "consumer": "x"}}"#).unwrap();
    left(2).await;
    let states: Vec<_> = kept.cache.timeframes()[0].consumers.values().copied().collect();
    assert_eq!(states, [iovcache::table::ConsumerState::Delivered]);
    let answer = ask(&kept.cache, r#"{"columns": {"b": "A/B"}, "timestamps": [2]}"#).await.unwrap();
    let lease = answer.lease().as_str().to_owned();
    drop(answer);
    writeln!(stream, r#"{{"release": "{lease}"}}"#).unwrap();
    for (wrong, code) in [
        (format!(r#"{{"release": "{lease}"}}"#), "[IOV-5002]"),
        (r#"{"consumed": 99}"#.to_owned(), "[IOV-5010]"),
        (r#"{"consumed": 2, "consumer": "y"}"#.to_owned(), "[IOV-5011]"),
    ] {
        writeln!(stream, "{wrong}").unwrap();
        let (told, _) = line(&stream).await.unwrap();
        let told: AttachRefusal = serde_json::from_slice(&told).unwrap();
        assert!(told.error.starts_with(code), "{wrong}: {}", told.error);
        assert!(!told.error.contains(&lease), "{}", told.error);
    }
    writeln!(stream, r#"{{"consumed": {{"oldest_possible": 4}}}}"#).unwrap();
    left(0).await;
    nothing_is_pinned(&kept.cache);
    kept.sessions(1).await;
    // The service stops reading from a client that sends endless wrong reports and reads nothing.
    stream.set_nonblocking(true).unwrap();
    let wrong = "{\"consumed\": 99}\n".repeat(4_000).into_bytes();
    let mut written = 0;
    for _ in 0..400 {
        match stream.write(&wrong) {
            Ok(count) => written += count,
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
    assert!(written < 4 << 20, "{written} bytes were taken");
    drop(stream);
    kept.sessions(0).await;
    // A line outside of the protocol is answered with an error, and ends the session.
    for wrong in [r#"{"colour": "red"}"#, "no json"] {
        let mut stream = kept.by_hand("x", 1).await;
        segments(&stream).await.unwrap();
        writeln!(stream, "{wrong}").unwrap();
        let (told, _) = line(&stream).await.unwrap();
        assert!(String::from_utf8_lossy(&told).contains("[IOV-4064]"), "{told:?}");
        kept.sessions(0).await;
    }
    kept.end().await;
}

fn client(uid: Option<u32>) -> Origin {
    Origin::Client { uid, tcp_uid: None, key: None, administers: false }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_used_by_its_own_user_on_its_own_node_alone() {
    let kept = Attached::over(large_objects(3, 1_000, 0), 8 << 20, 1 << 20);
    let attached = kept.attach("x").await;
    let own = rustix::process::geteuid().as_raw();
    let json = format!(
        r#"{{"columns": {{"b": "A/B"}}, "timestamps": [1], "session": "{}"}}"#,
        attached.session()
    );
    let request = Request::parse(json.as_bytes()).unwrap();
    let asked = async |origin| {
        let asker = Caller { origin, ticket: Some(json.as_bytes().into()), ..Caller::default() };
        kept.cache.answer(&request, &asker).await
    };
    asked(client(Some(own))).await.unwrap();
    // Over loopback too, where the kernel reports the uid.
    asked(client(None).with_tcp_user(Some(own))).await.unwrap();
    let unknown = |json: &str| json.replace(attached.session(), "another");
    let unknown = Request::parse(unknown(&json).as_bytes()).unwrap();
    let unknown = kept.cache.answer(&unknown, &Caller::default()).await.unwrap_err();
    for stranger in [client(Some(own + 1)), client(None)] {
        let error = asked(stranger.clone()).await.unwrap_err();
        assert_eq!(error.to_string(), unknown.to_string(), "it does not tell that it is there");
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
        assert!(kept.cache.check_session(attached.session(), &stranger).is_err());
        assert_eq!(kept.cache.release_ticket_of(json.as_bytes(), &stranger, None), 0);
    }
    assert!(!unknown.to_string().contains("another"), "{unknown}");
    let status = serde_json::to_string(&kept.cache.status()).unwrap();
    assert!(!status.contains(attached.session()) && status.contains(r#""number":1"#), "{status}");
    assert_eq!(kept.cache.release_ticket_of(json.as_bytes(), &client(Some(own)), None), 2);
    drop(attached);
    kept.sessions(0).await;
    kept.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_name_of_a_consumer_that_is_there_only_its_user_or_key_reports_and_reads() {
    let kept = Attached::over(large_objects(3, 1_000, 0), 8 << 20, 1 << 20);
    let cache = &kept.cache;
    let own = rustix::process::geteuid().as_raw();
    let register = br#"{"columns": {"b": "A/B"}, "consumers": ["x"]}"#;
    let register = Register::parse(register).unwrap();
    let put = async |id: u64| {
        let times = [Some(0)].into_iter().collect::<Timestamps>();
        cache.register(id, times, &register, None).await.unwrap();
        cache.timeframes().len()
    };
    let below = |oldest_possible| Consumed::Below { oldest_possible, consumer: "x".to_owned() };
    let one = Consumed::One { timeframe: 1, consumer: "x".to_owned() };
    let read = Request::parse(br#"{"timeframe": 1, "consumer": "x"}"#).unwrap();
    assert_eq!(put(1).await, 1);
    // No process uses this name, so any process may report for it.
    cache.consumed_by(&below(1), &client(None), &ClientBudget::default()).unwrap();
    let attached = kept.attach("x").await;
    for stranger in [client(None), client(Some(own + 1))] {
        for consumed in [below(u64::MAX), one.clone()] {
            let error =
                cache.consumed_by(&consumed, &stranger, &ClientBudget::default()).unwrap_err();
            assert_eq!((error.kind(), error.code().0), (ErrorKind::PermissionDenied, 5017));
        }
        assert_eq!(cache.drop_timeframe_by(1, &stranger).unwrap_err().code().0, 5017);
        let asker = Caller { origin: stranger, ..Caller::default() };
        assert_eq!(cache.answer(&read, &asker).await.unwrap_err().code().0, 5017);
    }
    assert_eq!(cache.timeframes().len(), 1);
    cache.consumed_by(&one, &client(Some(own)), &ClientBudget::default()).unwrap();
    assert_eq!(cache.timeframes().len(), 0);
    cache.consumed_by(&below(100), &client(Some(own)), &ClientBudget::default()).unwrap();
    // A consumer's own reports never move it back; an administrator may.
    cache.consumed_by(&below(2), &client(Some(own)), &ClientBudget::default()).unwrap();
    assert_eq!(put(50).await, 0);
    let key = Some("shift".into());
    let administrator = Origin::Client { uid: None, tcp_uid: None, key, administers: true };
    cache.consumed_by(&below(50), &administrator, &ClientBudget::default()).unwrap();
    assert_eq!(put(50).await, 1);
    cache.consumed_by(&below(100), &client(Some(own)), &ClientBudget::default()).unwrap();
    cache.consumed_by(&below(0), &Origin::process(own), &ClientBudget::default()).unwrap();
    assert_eq!(put(2).await, 1);
    drop(attached);
    kept.sessions(0).await;
    // An open stream uses the name too.
    let template = Request::parse_template(br#"{"columns": {"b": "A/B"}, "consumer": "x"}"#);
    let stream =
        cache.exchange_of(template.unwrap(), client(Some(own)), ClientBudget::default()).unwrap();
    assert!(cache.consumed_by(&below(3), &client(None), &ClientBudget::default()).is_err());
    drop(stream);
    cache.consumed_by(&below(3), &client(None), &ClientBudget::default()).unwrap();
    assert_eq!(cache.timeframes().len(), 0);
    kept.end().await;
}

#[tokio::test]
async fn the_quota_of_a_consumer_is_not_used_up_by_others_that_name_it() {
    let quota = ConsumerLimits { quota_bytes: Some(150_000), ..ConsumerLimits::default() };
    let cache = Cache::builder()
        .source(slow(0, &["A/B"], 100_000))
        .memory(PoolOptions { memory_bytes: 2 << 20, ..PoolOptions::default() })
        .consumer_limits(quota)
        .build()
        .unwrap();
    let asked = async |at: u8, origin: Origin| {
        let json =
            format!(r#"{{"columns": {{"b": "A/B"}}, "timestamps": [{at}], "consumer": "x"}}"#);
        let asker = Caller { origin, ..Caller::default() };
        cache.answer(&Request::parse(json.as_bytes()).unwrap(), &asker).await.map(|_| ())
    };
    asked(5, client(None)).await.unwrap();
    assert_eq!(asked(15, client(None)).await.unwrap_err().code().0, 5015);
    asked(15, client(Some(1))).await.unwrap();
    assert_eq!(asked(25, client(Some(1))).await.unwrap_err().code().0, 5015);
}

#[tokio::test]
async fn a_request_that_another_client_repeats_ends_no_lease_of_it() {
    let cache = Cache::builder()
        .source(slow(0, &["A/B"], 1_000))
        .memory(PoolOptions { memory_bytes: 2 << 20, ..PoolOptions::default() })
        .build()
        .unwrap();
    let ticket = br#"{"columns": {"b": "A/B"}, "timestamps": [5]}"#;
    let request = Request::parse(ticket).unwrap();
    let mut leases = Vec::new();
    for connection in [Some(1), Some(2)] {
        let (origin, ticket) = (client(None), Some(ticket[..].into()));
        let asker = Caller { origin, connection, ticket, ..Caller::default() };
        leases.push(cache.answer(&request, &asker).await.unwrap().lease().clone());
    }
    for stranger in [None, Some(3)] {
        assert_eq!(cache.release_ticket_of(ticket, &client(None), stranger), 0);
    }
    assert_eq!(cache.release_ticket_of(ticket, &client(None), Some(2)), 1);
    assert!(cache.renew(&leases[0]).is_ok() && cache.renew(&leases[1]).is_err());
    assert!(cache.status().memory.pinned_bytes > 0);
    assert_eq!(cache.release_ticket(ticket), 1);
    nothing_is_pinned(&cache);
}
