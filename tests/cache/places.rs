//! Timeframes in flight reserve memory for all of their objects, and wait for it as a whole.

use super::*;

/// 15 of these fit into each of four segments, 60 in total; by the sum of bytes it would be 63.
const LARGE_BYTES: usize = 256 << 10;

/// A cache of 16 MiB in segments of 4 MiB.
fn in_four_segments(source: Arc<Slow>) -> Cache {
    let memory =
        PoolOptions { memory_bytes: 16 << 20, segment_bytes: 4 << 20, ..PoolOptions::default() };
    Cache::builder().source(source).memory(memory).build().unwrap()
}

/// Registers a timeframe of consumer `c` at 5 ms.
async fn register_at_5(
    cache: &Cache,
    timeframe: u64,
    paths: impl IntoIterator<Item = usize>,
    patience: Duration,
) -> Result<(), CacheError> {
    let columns = paths.into_iter().map(|n| format!(r#""p{n}": "A/P{n}""#));
    let columns = columns.collect::<Vec<_>>().join(", ");
    let json = format!(r#"{{"columns": {{{columns}}}, "consumers": ["c"]}}"#);
    let register = Register::parse(json.as_bytes()).unwrap();
    let times = [Some(5)].into_iter().collect::<Timestamps>();
    cache.register(timeframe, times, &register, Some(patience)).await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeframe_in_flight_has_its_memory_whatever_comes_after_it() {
    let permits = Arc::new(Semaphore::new(0));
    let source = Slow {
        held_back: Some((ObjectPath::new("A/P0").unwrap(), Arc::clone(&permits))),
        ..Slow::default()
    };
    let name = |n: usize| format!("A/P{n}");
    for n in 0..64 {
        source.memory.put(version(&name(n), 0, 0, 10), bytes_of(&name(n), 0, LARGE_BYTES));
    }
    let cache = in_four_segments(Arc::new(source));
    let patience = Duration::from_secs(60);
    let table_of = |n: usize| format!(r#"{{"timeframe": {n}, "consumer": "c", "wait_ms": 60000}}"#);
    let (mut newest, mut refused) = (0, None);
    // The oldest timeframe cannot be loaded yet. Each newer one is loaded, sent, and stays pinned,
    // because its consumer reports only the oldest timeframe that it still needs.
    while refused.is_none() {
        let patience = if newest < 59 { patience } else { Duration::from_millis(200) };
        match register_at_5(&cache, newest as u64, [newest], patience).await {
            Ok(()) if newest == 0 => newest += 1,
            Ok(()) => {
                let answer = ask(&cache, &table_of(newest)).await.unwrap();
                assert_eq!(resolved(&answer), [Some(bytes_of(&name(newest), 0, LARGE_BYTES))]);
                newest += 1;
            }
            Err(error) => refused = Some(error),
        }
    }
    let refused = refused.unwrap();
    assert_eq!((newest, refused.code().0), (60, 5014), "{refused:?}");
    // A timeframe that never fits is refused at once.
    let error = register_at_5(&cache, 100, 0..61, patience).await.unwrap_err();
    assert_eq!((error.kind(), error.code().0), (ErrorKind::ResourceExhausted, 4011), "{error:?}");
    permits.add_permits(1);
    let answer = ask(&cache, &table_of(0)).await.unwrap();
    assert_eq!(resolved(&answer), [Some(bytes_of("A/P0", 0, LARGE_BYTES))]);
    drop(answer);
    let waits = tokio::spawn({
        let cache = cache.clone();
        async move { register_at_5(&cache, 60, 0..60, patience).await }
    });
    let below = Consumed::Below { oldest_possible: 60, consumer: "c".to_owned() };
    assert_eq!(cache.consumed(&below).unwrap().dropped.len(), 60);
    waits.await.unwrap().unwrap();
    let answer = ask(&cache, &table_of(60)).await.unwrap();
    assert_eq!(answer.pins().pins().len(), 60);
    cache.release(answer.lease());
    drop(answer);
    cache.drop_timeframe(60).unwrap();
    nothing_is_pinned(&cache);
    add_up(&cache);
}

/// 4 MiB in one segment.
fn in_one_segment(source: Slow) -> Cache {
    let memory =
        PoolOptions { memory_bytes: 4 << 20, segment_bytes: 4 << 20, ..PoolOptions::default() };
    Cache::builder().source(Arc::new(source)).memory(memory).build().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn timeframes_with_objects_of_unknown_size_do_not_hold_what_others_wait_for() {
    let untold = Some(ObjectPath::new("R/R").unwrap());
    let source = Slow { pause: Duration::from_millis(30), untold, ..Slow::default() };
    for n in 0..4 {
        let (from, until) = (i64::from(n) * 10, i64::from(n) * 10 + 10);
        for path in ["A/A", "R/R"] {
            source.memory.put(version(path, n, from, until), bytes_of(path, n, 1_200_000));
        }
    }
    let cache = in_one_segment(source);
    // Each needs more than half of the memory, which is unknown until they are loaded.
    let register = br#"{"columns": {"a": "A/A", "r": "R/R"}, "consumers": ["c"]}"#;
    let register = Register::parse(register).unwrap();
    for id in 0..4_u64 {
        let times = [Some(id as i64 * 10 + 5)].into_iter().collect::<Timestamps>();
        cache.register(id, times, &register, None).await.unwrap();
    }
    // In any order: each is loaded once another is consumed.
    let all = (0..4_u64).map(async |id| {
        let json = format!(r#"{{"timeframe": {id}, "consumer": "c", "wait_ms": 60000}}"#);
        let answer = ask(&cache, &json).await.unwrap();
        let sizes: Vec<_> = answer.pins().pins().iter().map(|pin| pin.payload().len()).collect();
        assert_eq!(sizes, [1_200_000; 2]);
        drop(answer);
        cache.consumed(&Consumed::One { timeframe: id, consumer: "c".to_owned() }).unwrap();
    });
    futures::future::join_all(all).await;
    nothing_is_pinned(&cache);
    add_up(&cache);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeframe_with_its_memory_passes_those_that_wait_for_memory() {
    let permits = Arc::new(Semaphore::new(0));
    let source = Slow {
        held_back: Some((ObjectPath::new("A/P0").unwrap(), Arc::clone(&permits))),
        ..Slow::default()
    };
    for (n, size) in [(0, 1_000_000), (1, 2_000_000), (2, 2_500_000)] {
        let path = format!("A/P{n}");
        source.memory.put(version(&path, 0, 0, 10), bytes_of(&path, 0, size));
    }
    let cache = in_one_segment(source);
    let patience = Duration::from_secs(60);
    for id in [0, 1] {
        register_at_5(&cache, id as u64, [id], patience).await.unwrap();
    }
    let waits = tokio::spawn({
        let cache = cache.clone();
        async move {
            let json = r#"{"columns": {"x": "A/P2"}, "timestamps": [5], "wait_ms": 60000}"#;
            ask(&cache, json).await.map(|answer| cache.release(answer.lease()))
        }
    });
    // The memory that this request waits for is pinned until both are consumed.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!waits.is_finished());
    permits.add_permits(1);
    for id in [0, 1] {
        let json = format!(r#"{{"timeframe": {id}, "consumer": "c", "wait_ms": 20000}}"#);
        drop(ask(&cache, &json).await.unwrap());
    }
    assert!(!waits.is_finished());
    for timeframe in [0, 1] {
        cache.consumed(&Consumed::One { timeframe, consumer: "c".to_owned() }).unwrap();
    }
    waits.await.unwrap().unwrap();
    nothing_is_pinned(&cache);
    add_up(&cache);
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_in_the_way_are_evicted_also_where_the_timeframe_needs_them() {
    let source = Slow::default();
    let name = |n: usize| format!("A/P{n}");
    for n in 0..8 {
        source.memory.put(version(&name(n), 0, 0, 10), bytes_of(&name(n), 0, 400_000));
    }
    source.memory.put(version(&name(8), 0, 0, 10), bytes_of(&name(8), 0, 2_000_000));
    let cache = in_one_segment(source);
    for n in 0..8 {
        let json = format!(r#"{{"columns": {{"x": "A/P{n}"}}, "timestamps": [5]}}"#);
        let answer = ask(&cache, &json).await.unwrap();
        cache.release(answer.lease());
    }
    nothing_is_pinned(&cache);
    // 1, 3 and 5 are resident, and no gap between them is large enough for 8.
    register_at_5(&cache, 1, [1, 3, 5, 8], Duration::from_secs(60)).await.unwrap();
    let answer = ask(&cache, r#"{"timeframe": 1, "consumer": "c"}"#).await.unwrap();
    let sizes: Vec<_> = answer.pins().pins().iter().map(|pin| pin.payload().len()).collect();
    assert_eq!(sizes, [400_000, 400_000, 400_000, 2_000_000]);
    cache.release(answer.lease());
    drop(answer);
    cache.drop_timeframe(1).unwrap();
    nothing_is_pinned(&cache);
    add_up(&cache);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_gets_its_memory_beside_tables_that_take_all_that_is_freed() {
    let source = Slow::default();
    let name = |n: usize| format!("A/P{n}");
    for n in 0..400 {
        source.memory.put(version(&name(n), 0, 0, 10), bytes_of(&name(n), 0, LARGE_BYTES));
    }
    let cache = in_four_segments(Arc::new(source));
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    // 56 readers, each with an object of its own all the time: of 60 that fit, 4 are free.
    let readers: Vec<_> = (0..56_usize)
        .map(|reader| {
            let (cache, stop) = (cache.clone(), Arc::clone(&stop));
            tokio::spawn(async move {
                // In turn, so that memory is freed evenly over time.
                tokio::time::sleep(Duration::from_millis(reader as u64 * 18)).await;
                let mut next = 0;
                while !stop.load(Ordering::Relaxed) {
                    let n = 50 + (next * 56 + reader) % 350;
                    next += 1;
                    let json = format!(r#"{{"columns": {{"p": "A/P{n}"}}, "timestamps": [5]}}"#);
                    let answer = ask(&cache, &json).await.unwrap();
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    assert!(cache.release(answer.lease()));
                }
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    // Half of the memory, which is never free at once while each freed object is replaced.
    register_at_5(&cache, 1, 0..30, Duration::from_secs(60)).await.unwrap();
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.await.unwrap();
    }
    add_up(&cache);
}
