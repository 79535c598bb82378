//! Eviction, memory and quotas while consumers pin by themselves.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::common::{PATIENCE, Service, Version, put};
use crate::setup::{Consumer, at, until_local};

const OBJECT_BYTES: usize = 256 << 10;

fn bytes_of(path: usize) -> Vec<u8> {
    (0..OBJECT_BYTES).map(|n| (n * 31 + path * 7 + n / 251) as u8).collect()
}

/// A service with room for a fourth of the objects of this many paths.
fn crowded(paths: usize) -> (Service, tempfile::TempDir) {
    let repository = tempfile::tempdir().unwrap();
    for path in 0..paths {
        let bytes = bytes_of(path);
        let name = format!("P/{path}x");
        let version = Version { path: &name, from: 0, until: 100, created: 1, bytes: &bytes };
        put(repository.path(), &version);
    }
    let source = format!("file://{}", repository.path().display());
    let memory = format!("{}KiB", paths * OBJECT_BYTES / 1024 / 4 + 64);
    let arguments = ["--source", source.as_str(), "--refresh", "10s"];
    (Service::start_sized(&memory, "2MiB", &arguments), repository)
}

#[test]
fn a_pinned_object_keeps_its_bytes_whatever_is_loaded_meanwhile() {
    const PATHS: usize = 32;
    let (service, _repository) = crowded(PATHS);
    let consumer = Consumer::new(&service.unix(), "pins");
    let path = consumer.local().path("P/0x").unwrap();
    until_local(&path, 50);
    let view = path.at(at(50)).unwrap().unwrap();
    assert!(view.is_local());
    let other = Consumer::new(&service.unix(), "loads");
    for round in 0..4 {
        for path in 1..PATHS {
            assert_eq!(other.asked(&format!("P/{path}x"), 50), Some(bytes_of(path)));
        }
        assert_eq!(&*view, &bytes_of(0)[..], "round {round}");
    }
    // It was in use all the time, so it has stayed.
    assert!(path.try_at(at(50)).is_ok());
    drop(view);
    service.adds_up();
}

#[test]
fn look_ups_under_constant_eviction_give_no_wrong_byte() {
    const PATHS: usize = 32;
    let (service, _repository) = crowded(PATHS);
    let url = service.unix();
    let end = Instant::now() + seconds("IOVCACHE_LOCAL_SECONDS", 3);
    let (stop, found) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let looks: Vec<_> = (0..3)
            .map(|thread| {
                let (url, stop, found) = (&url, &stop, &found);
                scope.spawn(move || {
                    let consumer = Consumer::new(url, &format!("looks-{thread}"));
                    let local = consumer.local();
                    let paths: Vec<_> =
                        (0..PATHS).map(|n| local.path(&format!("P/{n}x")).unwrap()).collect();
                    let expected: Vec<_> = (0..PATHS).map(bytes_of).collect();
                    let mut n = thread * 7;
                    while !stop.load(Ordering::Relaxed) {
                        n = (n * 5 + 3) % PATHS;
                        let Ok(Some(view)) = paths[n].at(at(50)) else { continue };
                        assert_eq!(&*view, &expected[n][..], "P/{n}x");
                        found.fetch_add(u64::from(view.is_local()), Ordering::Relaxed);
                    }
                })
            })
            .collect();
        // On a busy machine it takes a while until the first one is found.
        let goes_on = || match found.load(Ordering::Relaxed) {
            0 => Instant::now() < end + PATIENCE,
            _ => Instant::now() < end,
        };
        while goes_on() && looks.iter().all(|look| !look.is_finished()) {
            std::thread::sleep(Duration::from_millis(10));
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(found.load(Ordering::Relaxed) > 0, "nothing was found in shared memory");
    service.adds_up();
}

#[test]
fn more_views_than_slots_are_held_by_leases() {
    let (service, _repository) =
        crate::setup::service(&[("A/B", (0, 100), 1), ("A/C", (0, 100), 1)], &[]);
    let consumer = Consumer::new(&service.unix(), "many");
    let path = consumer.local().path("A/B").unwrap();
    until_local(&path, 50);
    let views: Vec<_> = (0..16_000).map(|_| path.try_at(at(50))).collect();
    let pinned = views.iter().filter(|view| view.is_ok()).count();
    assert_eq!(pinned, 15_360, "as many as there are slots");
    let more = path.at(at(50)).unwrap().unwrap();
    assert_eq!((&*more, more.is_local()), (&b"A/B 0 100 1"[..], false));
    drop(views);
    assert!(path.try_at(at(50)).is_ok());
}

/// How long a test runs that gets better the longer it does.
fn seconds(variable: &str, default: u64) -> Duration {
    let given = std::env::var(variable).ok().and_then(|text| text.parse().ok());
    Duration::from_secs(given.unwrap_or(default)).min(PATIENCE * 60)
}
