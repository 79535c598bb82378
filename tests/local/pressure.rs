//! Eviction, memory and quotas while consumers pin by themselves.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::common::{PATIENCE, Service, Version, put, run_well};
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

/// Many small objects in a service with room for some of them.
pub(crate) struct Churn {
    pub(crate) service: Service,
    _repository: tempfile::TempDir,
    objects: Vec<Vec<u8>>,
}

impl Churn {
    const PATHS: usize = 8;
    const VERSIONS: usize = 16;
    const BYTES: usize = 4096;

    pub(crate) fn new() -> Self {
        let repository = tempfile::tempdir().unwrap();
        let files = tempfile::tempdir().unwrap();
        let mut manifest =
            "path,valid_from_ms,valid_until_ms,created_ms,id,file,size,md5,note\n".to_owned();
        let objects: Vec<Vec<u8>> = (0..Self::PATHS * Self::VERSIONS)
            .map(|n| (0..Self::BYTES).map(|byte| (byte * 7 + byte / 251 + n * 13) as u8).collect())
            .collect();
        for (n, bytes) in objects.iter().enumerate() {
            std::fs::write(files.path().join(n.to_string()), bytes).unwrap();
            let from = n % Self::VERSIONS * 10;
            let path = Self::path_of(n / Self::VERSIONS);
            manifest += &format!("{path},{from},{},1,,{n},{},,\n", from + 10, Self::BYTES);
        }
        let table = files.path().join("manifest.csv");
        std::fs::write(&table, manifest).unwrap();
        let folder = repository.path().to_str().unwrap();
        run_well(&["import", "--repository", folder, table.to_str().unwrap()]);
        let source = format!("file://{folder}");
        // They take 560 KiB with their blocks and snapshots.
        let arguments = ["--source", source.as_str(), "--refresh", "10s"];
        let service = Service::start_sized("320KiB", "320KiB", &arguments);
        Self { service, _repository: repository, objects }
    }

    fn path_of(path: usize) -> String {
        format!("Churn/P{path}x")
    }

    /// Looks objects up at random, in shared memory, until `goes_on` says no to the number of those
    /// found. The one with seed 0 has others loaded, in place of those in memory.
    pub(crate) fn look_up(&self, url: &str, seed: u64, goes_on: impl Fn(u64) -> bool) -> u64 {
        let consumer = Consumer::new(url, &format!("looks-{seed}"));
        let local = consumer.local();
        let paths: Vec<_> =
            (0..Self::PATHS).map(|n| local.path(&Self::path_of(n)).unwrap()).collect();
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut found = 0;
        while goes_on(found) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let object = (random >> 20) as usize % self.objects.len();
            let path = &paths[object / Self::VERSIONS];
            let time = at((object % Self::VERSIONS * 10) as i64 + (random % 10) as i64);
            match path.try_at(time) {
                Ok(view) => {
                    assert!(*view == self.objects[object][..], "object {object}, seed {seed}");
                    found += 1;
                }
                Err(_) if seed > 0 => {}
                Err(_) => {
                    // Memory can be short for a moment.
                    if let Ok(Some(view)) = path.at(time) {
                        assert!(*view == self.objects[object][..], "object {object}, seed {seed}");
                    }
                }
            }
        }
        found
    }

    fn evictions(&self) -> u64 {
        let consumer = Consumer::new(&self.service.unix(), "observes");
        consumer.runtime.block_on(consumer.client.status()).unwrap().evictions
    }
}

#[test]
fn small_objects_that_are_evicted_all_the_time_are_found_without_a_wrong_byte() {
    const THREADS: u64 = 2;
    let wanted = std::env::var("IOVCACHE_LOCAL_LOOK_UPS").ok().and_then(|text| text.parse().ok());
    let wanted: u64 = wanted.unwrap_or(20_000);
    let churn = Churn::new();
    let (url, began) = (churn.service.unix(), Instant::now());
    let is_over = AtomicBool::new(false);
    let found: u64 = std::thread::scope(|scope| {
        let loads = scope.spawn(|| churn.look_up(&url, 0, |_| !is_over.load(Ordering::Relaxed)));
        let looks: Vec<_> = (1..=THREADS)
            .map(|seed| {
                let (churn, url) = (&churn, &url);
                // Long enough for many evictions.
                let least = Duration::from_secs(4);
                let goes_on = move |found| found < wanted / THREADS + 1 || began.elapsed() < least;
                let look = move || churn.look_up(url, seed, goes_on);
                scope.spawn(look)
            })
            .collect();
        let looks: Vec<_> = looks.into_iter().map(|look| look.join()).collect();
        // On a busy machine the loads may come late.
        let deadline = Instant::now() + PATIENCE;
        while churn.evictions() == 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        is_over.store(true, Ordering::Relaxed);
        loads.join().unwrap();
        looks.into_iter().map(|found| found.unwrap()).sum()
    });
    let evictions = churn.evictions();
    println!("{found} look-ups and {evictions} evictions in {:?}", began.elapsed());
    assert!(found >= wanted && evictions > 0, "{found} look-ups, {evictions} evictions");
    churn.service.adds_up();
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
