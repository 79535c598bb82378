//! Quotas of consumers, and consumers that release nothing.

use iovcache::table::{EncodeError, Message, Part};

use super::*;

/// A cache whose consumers are limited, over two versions of 100 kB, and the clock that drives it.
fn limited(limits: ConsumerLimits) -> (Cache, Clock) {
    let clock = Clock::manual(Timestamp::from_millis(0));
    let memory =
        PoolOptions { memory_bytes: 2 << 20, segment_bytes: 1 << 20, ..PoolOptions::default() };
    let cache = Cache::builder()
        .source(slow(0, &["A/B"], 100_000))
        .memory(memory)
        .clock(clock.clone())
        .lease_limit(Duration::from_millis(200))
        .consumer_limits(limits)
        .build()
        .unwrap();
    (cache, clock)
}

/// Timeframes 1 to `count` for consumers x and y, each at another version.
async fn register_for_two(cache: &Cache, count: u64) {
    let register =
        Register::parse(br#"{"columns": {"b": "A/B"}, "consumers": ["x", "y"]}"#).unwrap();
    for id in 1..=count {
        let times = [Some(id as i64 * 10 - 5)].into_iter().collect::<Timestamps>();
        cache.register(id, times, &register, None).await.unwrap();
    }
}

#[tokio::test]
async fn a_consumer_over_its_quota_is_refused_until_it_releases_and_others_are_not() {
    let quota = ConsumerLimits { quota_timeframes: Some(2), ..ConsumerLimits::default() };
    let (cache, _) = limited(quota);
    register_for_two(&cache, 4).await;
    get(&cache, 1, "x").await.unwrap();
    get(&cache, 2, "x").await.unwrap();
    // A second request for the same table does not count again.
    get(&cache, 2, "x").await.unwrap();
    let error = get(&cache, 3, "x").await.unwrap_err();
    assert_eq!((error.kind(), error.code().0), (ErrorKind::ResourceExhausted, 5015));
    assert!(error.to_string().contains("would hold 3 timeframes, and its quota is 2"), "{error}");
    get(&cache, 3, "y").await.unwrap();
    done(&cache, 1, "x");
    get(&cache, 3, "x").await.unwrap();
    assert_eq!(cache.counters().over_quota.get(), 1);

    // In bytes each object counts once, in however many tables it is.
    let quota = ConsumerLimits { quota_bytes: Some(250_000), ..ConsumerLimits::default() };
    let (cache, _) = limited(quota);
    let table = |at: &str| {
        let json = r#"{"columns": {"b": "A/B"}, "consumer": "x", "timestamps": ["#;
        ask_owned(cache.clone(), format!("{json}{at}]}}"))
    };
    let first = table("5, 15").await.unwrap().lease().clone();
    let again = table("15").await.unwrap().lease().clone();
    let error = table("25").await.unwrap_err();
    assert!(error.to_string().contains("bytes, and its quota is 250000"), "{error}");
    assert!(cache.release(&first));
    table("25").await.unwrap();
    assert!(cache.release(&again));
    add_up(&cache);
}

async fn ask_owned(cache: Cache, json: String) -> Result<Answer, CacheError> {
    ask(&cache, &json).await
}

#[tokio::test]
async fn a_stream_has_its_consumers_quota_and_what_it_has_too_long_is_revoked() {
    let limits = ConsumerLimits {
        quota_timeframes: Some(2),
        slow_after: Some(Duration::from_millis(100)),
        slow_consumer: SlowConsumer::Revoke,
        ..ConsumerLimits::default()
    };
    let (cache, clock) = limited(limits);
    let template = br#"{"columns": {"b": "A/B"}, "consumer": "x"}"#;
    let template = Request::parse_template(template).unwrap();
    let exchange = cache.exchange(template).unwrap();
    let times = |at: i64| [Some(at)].into_iter().collect::<Timestamps>();
    drop(exchange.answer(1, times(5)).await.unwrap());
    drop(exchange.answer(2, times(15)).await.unwrap());
    assert_eq!(exchange.answer(3, times(25)).await.unwrap_err().code().0, 5015);
    exchange.consumed(&[1]);
    drop(exchange.answer(3, times(25)).await.unwrap());
    clock.advance(Duration::from_millis(100));
    until_counted("revoked", || cache.counters().slow_revoked.get(), 2).await;
    nothing_is_pinned(&cache);
    drop(exchange.answer(4, times(5)).await.unwrap());
    drop(exchange);
    nothing_is_pinned(&cache);
    add_up(&cache);
}

#[tokio::test]
async fn a_slow_consumer_is_told_once_and_nothing_is_taken_from_it() {
    let slow_after = Some(Duration::from_millis(100));
    let (cache, clock) = limited(ConsumerLimits { slow_after, ..ConsumerLimits::default() });
    register_for_two(&cache, 1).await;
    drop(get(&cache, 1, "x").await.unwrap());
    clock.advance(Duration::from_millis(99));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(cache.counters().slow_consumers.get(), 0);
    clock.advance(Duration::from_millis(1));
    // x has held it too long, and y has not fetched it.
    until_counted("slow", || cache.counters().slow_consumers.get(), 2).await;
    clock.advance(Duration::from_millis(500));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(cache.counters().slow_consumers.get(), 2);
    assert_eq!(cache.timeframes().len(), 1);
    get(&cache, 1, "x").await.unwrap();
    add_up(&cache);
}

#[tokio::test]
async fn a_slow_consumer_is_refused_until_it_releases_its_tables() {
    let slow_after = Some(Duration::from_millis(100));
    let slow_consumer = SlowConsumer::Refuse;
    let limits = ConsumerLimits { slow_after, slow_consumer, ..ConsumerLimits::default() };
    let (cache, clock) = limited(limits);
    register_for_two(&cache, 3).await;
    drop(get(&cache, 1, "x").await.unwrap());
    clock.advance(Duration::from_millis(60));
    drop(get(&cache, 2, "x").await.unwrap());
    clock.advance(Duration::from_millis(60));
    let error = get(&cache, 3, "x").await.unwrap_err();
    assert_eq!((error.kind(), error.code().0), (ErrorKind::ResourceExhausted, 5016));
    assert!(error.to_string().contains("for 120 ms, longer than 100 ms"), "{error}");
    // A consumer that has fetched nothing yet may still do so.
    get(&cache, 1, "y").await.unwrap();
    done(&cache, 1, "x");
    get(&cache, 3, "x").await.unwrap();
    assert_eq!(cache.counters().slow_refused.get(), 1);
    // A table without a timeframe counts too.
    let table = r#"{"columns": {"b": "A/B"}, "timestamps": [5], "consumer": "z"}"#;
    let held = ask(&cache, table).await.unwrap().lease().clone();
    clock.advance(Duration::from_millis(150));
    assert_eq!(ask(&cache, table).await.unwrap_err().code().0, 5016);
    cache.release(&held);
    ask(&cache, table).await.unwrap();
    add_up(&cache);
}

#[tokio::test]
async fn tables_of_a_slow_consumer_are_revoked_and_its_reads_are_stale_once_the_objects_are_gone() {
    let slow_after = Some(Duration::from_millis(100));
    let slow_consumer = SlowConsumer::Revoke;
    let limits = ConsumerLimits { slow_after, slow_consumer, ..ConsumerLimits::default() };
    let (cache, clock) = limited(limits);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("attach.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let serving = tokio::spawn({
        let (cache, stop) = (cache.clone(), stop.clone());
        async move { cache.serve_attach(listener, Default::default(), stop).await }
    });
    let attach = move || Attachment::open(&path, "x", None).unwrap();
    let attachment = tokio::task::spawn_blocking(attach).await.unwrap();
    register_for_two(&cache, 1).await;
    let session = attachment.session();
    let json = format!(r#"{{"timeframe": 1, "consumer": "x", "session": "{session}"}}"#);
    let answer = ask(&cache, &json).await.unwrap();
    let header = answer.pins().pins()[0].meta_header();
    drop(answer);
    drop(get(&cache, 1, "y").await.unwrap());
    assert_eq!(done(&cache, 1, "y"), [0_u64; 0]);
    clock.advance(Duration::from_millis(100));
    until_counted("revoked", || cache.counters().slow_revoked.get(), 1).await;
    assert_eq!(cache.timeframes().len(), 0);
    nothing_is_pinned(&cache);
    // A report after the revocation is refused, without further effect.
    assert!(cache.consumed(&Consumed::One { timeframe: 1, consumer: "x".into() }).is_err());
    assert_eq!(ask(&cache, &json).await.unwrap_err().kind(), ErrorKind::NotFound);
    // Until its memory is reused, the object still has the right bytes.
    let mappings = attachment.mappings();
    assert_eq!(mappings.read(&header).unwrap(), bytes_of("A/B", 0, 100_000));
    cache.invalidate(&ObjectPath::new("A/B").unwrap());
    let error = mappings.read(&header).unwrap_err();
    assert!(matches!(error, ResolveError::Stale { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    add_up(&cache);
    stop.cancel();
    serving.await.unwrap();
}

#[tokio::test]
async fn messages_to_a_client_that_does_not_read_end_with_their_lease() {
    let slow_after = Some(Duration::from_millis(100));
    let slow_consumer = SlowConsumer::Revoke;
    let limits = ConsumerLimits { slow_after, slow_consumer, ..ConsumerLimits::default() };
    let (cache, clock) = limited(limits);
    let table = |more: &str| {
        format!(r#"{{"columns": {{"b": "A/B"}}, "timestamps": [5], "cell": "payload"{more}}}"#)
    };
    let code = |message: Option<Result<_, EncodeError>>| {
        message.unwrap().map(|_: Message| ()).unwrap_err().code().0
    };

    // The lease is revoked.
    let answer = ask(&cache, &table(r#", "consumer": "x""#)).await.unwrap();
    let mut unread = answer.messages().unwrap();
    drop(answer);
    unread.next().unwrap().unwrap();
    assert!(cache.status().memory.pinned_bytes > 0);
    clock.advance(Duration::from_millis(100));
    until_counted("revoked", || cache.counters().slow_revoked.get(), 1).await;
    nothing_is_pinned(&cache);
    assert_eq!(code(unread.next()), 5003);
    assert!(unread.next().is_none());

    // So is what was made already: all messages, of which a part of one was sent.
    let answer = ask(&cache, &table(r#", "consumer": "x""#)).await.unwrap();
    let mut made: Vec<Message> = answer.messages().unwrap().map(Result::unwrap).collect();
    drop(answer);
    let large = |message: &mut Message| {
        let is_object = |part: &&mut Part| matches!(part, Part::Object(_));
        message.rest.iter_mut().find(is_object).map(|part| part.take_front(60_000))
    };
    assert_eq!(made.iter_mut().find_map(large).unwrap().unwrap().len(), 60_000);
    assert!(cache.status().memory.pinned_bytes > 0);
    clock.advance(Duration::from_millis(100));
    until_counted("revoked", || cache.counters().slow_revoked.get(), 2).await;
    nothing_is_pinned(&cache);
    assert_eq!(made.iter_mut().find_map(large).unwrap().unwrap_err().code().0, 5003);
    drop(made);

    // The lease expires; while the stream was read it did not.
    let answer = ask(&cache, &table("")).await.unwrap();
    let mut unread = answer.messages().unwrap();
    drop(answer);
    for _ in 0..2 {
        clock.advance(Duration::from_millis(150));
        unread.next().unwrap().unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Nor while one message was read.
    let answer = ask(&cache, &table("")).await.unwrap();
    let made: Vec<Message> = answer.messages().unwrap().map(Result::unwrap).collect();
    drop(answer);
    let mut parts: Vec<Part> = made.into_iter().flat_map(|message| message.rest).collect();
    let object = parts.iter_mut().find(|part| matches!(part, Part::Object(_))).unwrap();
    while !object.is_empty() {
        clock.advance(Duration::from_millis(150));
        object.take_front(25_000).unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(parts);
    let expired = cache.counters().leases_expired.get();
    clock.advance(Duration::from_millis(200));
    until_counted("expired", || cache.counters().leases_expired.get(), expired + 1).await;
    nothing_is_pinned(&cache);

    // The lease is released by a client that knows its id.
    let answer = ask(&cache, &table("")).await.unwrap();
    let (lease, mut unread) = (answer.lease().clone(), answer.messages().unwrap());
    drop(answer);
    unread.next().unwrap().unwrap();
    assert!(cache.release(&lease));
    nothing_is_pinned(&cache);
    assert_eq!(code(unread.next()), 5003);

    // A stream read to its end completes, whatever happens to the lease.
    let answer = ask(&cache, &table("")).await.unwrap();
    let (lease, unread) = (answer.lease().clone(), answer.messages().unwrap());
    drop(answer);
    assert!(unread.map(Result::unwrap).count() >= 2);
    assert!(cache.release(&lease));
    add_up(&cache);
}

#[tokio::test]
async fn a_long_stream_goes_on_where_its_timeframe_was_consumed_early_and_ends_where_it_is_revoked()
{
    let slow_after = Some(Duration::from_millis(100));
    let slow_consumer = SlowConsumer::Revoke;
    let limits = ConsumerLimits { slow_after, slow_consumer, ..ConsumerLimits::default() };
    let (cache, clock) = limited(limits);
    let template = br#"{"columns": {"b": "A/B"}, "consumer": "x"}"#;
    let exchange = cache.exchange(Request::parse_template(template).unwrap()).unwrap();
    let times = || [Some(5)].into_iter().collect::<Timestamps>();
    let answer = exchange.answer(1, times()).await.unwrap();
    let mut early = answer.body().unwrap();
    drop(answer);
    exchange.consumed(&[1]);
    early.next().unwrap().unwrap();
    let answer = exchange.answer(2, times()).await.unwrap();
    let mut unread = answer.body().unwrap();
    drop((answer, early));
    clock.advance(Duration::from_millis(100));
    until_counted("revoked", || cache.counters().slow_revoked.get(), 1).await;
    nothing_is_pinned(&cache);
    assert_eq!(unread.next().unwrap().map(|_| ()).unwrap_err().code().0, 5003);
    drop(exchange);
    add_up(&cache);
}
