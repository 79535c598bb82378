//! A consumer waits for a change of the answer, without a call and without CPU time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use iovcache::ObjectId;
use iovcache::client::LocalPath;

use crate::common::Service;
use crate::setup::{Consumer, REFRESH, at, service, until_local, version};

const PATH: &str = "TPC/Calib/VDrift";
/// Longer than any of these waits should take.
const LIMIT: Option<Duration> = Some(Duration::from_secs(30));

fn known(path: &LocalPath, millis: i64) -> Option<ObjectId> {
    path.at(at(millis)).unwrap().map(|view| view.id())
}

/// A service with one version of [`PATH`], its repository, and a consumer that finds the object in
/// shared memory.
fn follower(arguments: &[&str]) -> (Service, tempfile::TempDir, Consumer, LocalPath) {
    let (service, repository) = service(&[(PATH, (0, 100), 1)], arguments);
    let consumer = Consumer::new(&service.unix(), "waits");
    let path = consumer.local().path(PATH).unwrap();
    until_local(&path, 50);
    (service, repository, consumer, path)
}

/// CPU time of a process or thread, in milliseconds.
fn cpu_millis(stat: &str) -> u64 {
    let stat = std::fs::read_to_string(stat).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    // utime and stime, in ticks of 10 ms.
    fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap() * 10).sum()
}

/// Voluntary context switches of this thread.
fn switches() -> u64 {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap();
    line.rsplit(char::is_whitespace).next().unwrap().parse().unwrap()
}

#[test]
fn a_new_version_ends_the_wait_within_the_refresh_time() {
    let (_service, repository, _consumer, path) = follower(&[]);
    for created in 2..6 {
        let before = known(&path, 50);
        let put = std::thread::scope(|scope| {
            let put = scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(50));
                version(repository.path(), PATH, (0, 100), created);
                Instant::now()
            });
            assert!(path.changed(at(50), before, LIMIT).unwrap());
            put.join().unwrap()
        });
        assert!(put.elapsed() < REFRESH + Duration::from_secs(2), "{:?}", put.elapsed());
        let newest = path.at(at(50)).unwrap().unwrap();
        assert_eq!(&*newest, format!("{PATH} 0 100 {created}").as_bytes());
        drop(newest);
        until_local(&path, 50);
    }
}

#[test]
fn a_change_before_the_wait_counts_and_none_ends_it_in_time() {
    let (_service, repository, _consumer, path) = follower(&[]);
    let first = known(&path, 50);
    assert!(path.changed(at(50), None, LIMIT).unwrap(), "an object is valid");
    let short = Some(Duration::from_millis(100));
    let began = Instant::now();
    assert!(!path.changed(at(50), first, short).unwrap());
    assert!(began.elapsed() >= Duration::from_millis(100));
    assert!(!path.changed(at(50), first, Some(Duration::ZERO)).unwrap());
    version(repository.path(), PATH, (0, 100), 2);
    std::thread::sleep(2 * REFRESH);
    let began = Instant::now();
    assert!(path.changed(at(50), first, LIMIT).unwrap());
    assert!(began.elapsed() < REFRESH + Duration::from_secs(1));
    // Nothing is valid, and then something is.
    assert!(!path.changed(at(150), None, short).unwrap());
    version(repository.path(), PATH, (100, 200), 3);
    assert!(path.changed(at(150), None, LIMIT).unwrap());
    assert!(known(&path, 150).is_some());
}

#[test]
fn a_version_for_another_time_ends_no_wait() {
    let (_service, repository, _consumer, path) = follower(&[]);
    let first = known(&path, 50);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for created in 2..5 {
                std::thread::sleep(REFRESH);
                version(repository.path(), PATH, (60, 100), created);
            }
        });
        assert!(!path.changed(at(50), first, Some(8 * REFRESH)).unwrap());
    });
    assert_ne!(known(&path, 70), first);
}

#[test]
fn no_change_is_missed_however_fast_they_come() {
    // Readers follow a path that changes all the time: each of them sees the last version.
    let (service, repository) = service(&[(PATH, (0, 100), 1)], &["--refresh", "20ms"]);
    let url = service.unix();
    const LAST: i64 = 40;
    let steps = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let followers: Vec<_> = (0..3)
            .map(|n| {
                let (url, steps) = (&url, &steps);
                scope.spawn(move || {
                    let consumer = Consumer::new(url, &format!("follows-{n}"));
                    let path = consumer.local().path(PATH).unwrap();
                    let last = format!("{PATH} 0 100 {LAST}");
                    loop {
                        let view = path.at(at(50)).unwrap().unwrap();
                        if *view == *last.as_bytes() {
                            return;
                        }
                        let known = Some(view.id());
                        drop(view);
                        assert!(path.changed(at(50), known, LIMIT).unwrap(), "the last is missed");
                        steps.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        for created in 2..=LAST {
            version(repository.path(), PATH, (0, 100), created);
        }
        followers.into_iter().for_each(|one| one.join().unwrap());
    });
    assert!(steps.load(Ordering::Relaxed) > 0);
    service.adds_up();
}

#[test]
fn a_wait_uses_no_cpu_time_here_or_in_the_service() {
    let (service, _repository, _consumer, path) = follower(&["--refresh", "2s"]);
    let first = known(&path, 50);
    let (own, of_service) = ("/proc/thread-self/stat", format!("/proc/{}/stat", service.pid()));
    let cpu = || (cpu_millis(own), cpu_millis(&of_service));
    let (before, slept) = (cpu(), switches());
    assert!(!path.changed(at(50), first, Some(Duration::from_secs(4))).unwrap());
    let (after, woken) = (cpu(), switches() - slept);
    // The thread sleeps once. The service has the work of any service without requests.
    assert!(woken < 10, "{woken} wake-ups in 4 s");
    assert!(after.0 - before.0 <= 10, "{} ms here", after.0 - before.0);
    assert!(after.1 - before.1 <= 400, "{} ms in the service", after.1 - before.1);
}

#[test]
fn a_wait_for_longer_than_a_path_is_kept_fresh_still_sees_the_change() {
    // A path without requests is not refreshed after 10 s; one with a waiting consumer is.
    let (_service, repository, _consumer, path) = follower(&[]);
    let first = known(&path, 50);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_secs(12));
            version(repository.path(), PATH, (0, 100), 2);
        });
        let began = Instant::now();
        assert!(path.changed(at(50), first, LIMIT).unwrap());
        assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    });
}

#[test]
fn a_path_that_is_invalidated_is_asked_for_and_found_unchanged() {
    let (_service, _repository, consumer, path) = follower(&[]);
    let first = known(&path, 50);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(REFRESH);
            let about = serde_json::json!({"path": PATH});
            let invalidate = consumer.client.act("invalidate", &about);
            let _: serde_json::Value = consumer.runtime.block_on(invalidate).unwrap();
        });
        assert!(!path.changed(at(50), first, Some(4 * REFRESH)).unwrap());
    });
}

#[test]
fn a_wait_goes_on_with_the_successor_of_a_service_that_was_killed() {
    let repository = tempfile::tempdir().unwrap();
    version(repository.path(), PATH, (0, 100), 1);
    let first = Service::over(repository.path(), &[]);
    let sockets = first.folder.path().join("s").to_str().unwrap().to_owned();
    let consumer = Consumer::new(&first.unix(), "waits");
    let path = consumer.local().path(PATH).unwrap();
    until_local(&path, 50);
    let before = known(&path, 50);
    let (changed, second) = std::thread::scope(|scope| {
        let second = scope.spawn(|| {
            std::thread::sleep(REFRESH);
            let folder = first.kill();
            version(repository.path(), PATH, (0, 100), 2);
            let second = Service::over(repository.path(), &["--socket", &sockets]);
            (second, folder)
        });
        (path.changed(at(50), before, LIMIT), second.join().unwrap())
    });
    assert!(changed.unwrap());
    assert_eq!(&*path.at(at(50)).unwrap().unwrap(), b"TPC/Calib/VDrift 0 100 2");
    drop(second);
}

#[test]
fn without_a_plane_the_service_is_asked_for_changes() {
    let (service, repository) = service(&[(PATH, (0, 100), 1)], &["--no-local"]);
    let consumer = Consumer::new(&service.unix(), "waits");
    let path = consumer.local().path(PATH).unwrap();
    let first = known(&path, 50);
    assert!(!path.changed(at(50), first, Some(Duration::from_millis(50))).unwrap());
    version(repository.path(), PATH, (0, 100), 2);
    assert!(path.changed(at(50), first, LIMIT).unwrap());
}

#[test]
fn a_wait_ends_at_its_limit_though_the_source_does_not_answer() {
    // Connections are made, and nothing is read from them.
    let source = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("http://{}", source.local_addr().unwrap());
    let service = Service::start(&["--source", &url]);
    let consumer = Consumer::new(&service.unix(), "waits");
    let mut path = consumer.local().path(PATH).unwrap();
    let some = Some(ObjectId::from_bytes([1; 16]));
    for limit in [Duration::ZERO, Duration::from_millis(300)] {
        for known in [None, some] {
            let began = Instant::now();
            assert!(!path.changed(at(50), known, Some(limit)).unwrap());
            let changed = path.changed_async(at(50), known, Some(limit));
            assert!(!consumer.runtime.block_on(changed).unwrap());
            let took = began.elapsed();
            assert!(took >= 2 * limit && took < Duration::from_secs(5), "{took:?}");
        }
    }
}

#[test]
fn a_wait_that_blocks_no_thread_ends_with_a_new_version_and_at_its_limit() {
    let (_service, repository, consumer, mut path) = follower(&[]);
    let first = known(&path, 50);
    let mut changed = |millis, known, limit| {
        consumer.runtime.block_on(path.changed_async(at(millis), known, limit)).unwrap()
    };
    assert!(changed(50, None, Some(Duration::ZERO)), "an object is valid");
    assert!(!changed(50, first, Some(Duration::from_millis(100))));
    assert!(!changed(150, None, Some(Duration::from_millis(100))));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(REFRESH);
            version(repository.path(), PATH, (0, 200), 2);
        });
        assert!(changed(50, first, LIMIT));
    });
    assert!(changed(150, None, LIMIT));
}
