//! Speed of a large body, beside curl at the same server. Run it by name, in release:
//! `IOVCACHE_MEASURE=1 cargo test --release --test ccdb -- --nocapture as_fast_as_curl`. Without
//! that variable it measures nothing, since it needs a quiet machine.

use std::process::Stdio;
use std::time::{Duration, Instant};

use md5::Digest as _;

use super::fake_ccdb::{Ask, Fault, Upload};
use super::*;

const SIZE: usize = 64 << 20;

async fn curl(url: &str) -> Option<Duration> {
    let mut curl = std::process::Command::new("curl");
    curl.args(["-s", "-o", "/dev/null", url]).stdout(Stdio::null());
    let started = Instant::now();
    let status = tokio::task::spawn_blocking(move || curl.status()).await.unwrap().ok()?;
    status.success().then(|| started.elapsed())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_body_comes_nearly_as_fast_as_curl_throws_it_away() {
    if std::env::var_os("IOVCACHE_MEASURE").is_none() {
        return;
    }
    let server = FakeCcdb::start(Kind::Sql).await;
    let uuid = server.upload(Upload::new("A/Large", 0, 100).bytes(vec![7; SIZE]));
    let by_time = CcdbOptions { browse_limit: 0, ..CcdbOptions::default() };
    let source = source(&server, by_time);
    // By time the MD5 is unknown until the body's own headers arrive.
    let version = version_at(&source, "A/Large", 50).await;
    let url = format!("{}/download/{uuid}", server.url());
    let mut checked = Vec::new();
    let mut unchecked = Vec::new();
    let mut curls = Vec::new();
    let mut hashes = Vec::new();
    let bytes = vec![7; SIZE];
    for _ in 0..11 {
        for (times, faults) in [(&mut checked, 0), (&mut unchecked, 1)] {
            if faults > 0 {
                server.inject(Ask::Body, Fault::Without("Content-MD5"), faults);
            }
            let mut body = Buffer { room: vec![1; SIZE], ..Buffer::default() };
            let started = Instant::now();
            source.fetch(&version, &mut body).await.unwrap();
            times.push(started.elapsed());
        }
        curls.extend(curl(&url).await);
        let started = Instant::now();
        std::hint::black_box(md5::Md5::digest(&bytes));
        hashes.push(started.elapsed());
    }
    let rate = |times: &mut Vec<Duration>| {
        times.sort();
        let of = |took: Duration| SIZE as f64 / took.as_secs_f64() / 1e6;
        times.first().map(|best| (of(*best), of(times[times.len() / 2])))
    };
    for (what, times) in [
        ("with its MD5", &mut checked),
        ("without", &mut unchecked),
        ("curl", &mut curls),
        ("MD5 alone", &mut hashes),
    ] {
        println!("{what}: best and median {:.0?} MB/s", rate(times));
    }
    // Each hash is computed one byte after another: no body can be faster than its MD5.
    let floor = *hashes.last().unwrap() + curls.last().copied().unwrap_or_default();
    assert!(checked[0] < floor * 2, "{:?}, against {floor:?}", checked[0]);
}
