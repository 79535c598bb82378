//! How fast a large body comes, next to curl at the same server. Run it by name, in release:
//! `cargo test --release --test ccdb -- --ignored --nocapture as_fast_as_curl`.

use std::process::Stdio;
use std::time::{Duration, Instant};

use super::fake_ccdb::Upload;
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
#[ignore = "a measurement, which needs a quiet machine and a release build"]
async fn a_large_body_comes_nearly_as_fast_as_curl_throws_it_away() {
    let server = FakeCcdb::start(Kind::Sql).await;
    let uuid = server.upload(Upload::new("A/Large", 0, 100).bytes(vec![7; SIZE]));
    let source = source(&server, CcdbOptions { browse_limit: 8, ..CcdbOptions::default() });
    let version = version_at(&source, "A/Large", 50).await;
    let url = format!("{}/download/{uuid}", server.url());
    let mut ours = Vec::new();
    let mut theirs = Vec::new();
    for _ in 0..15 {
        let mut body = Buffer { room: vec![1; SIZE], ..Buffer::default() };
        let started = Instant::now();
        source.fetch(&version, &mut body).await.unwrap();
        ours.push(started.elapsed());
        theirs.extend(curl(&url).await);
    }
    ours.sort();
    theirs.sort();
    let rate = |took: Duration| SIZE as f64 / took.as_secs_f64() / 1e6;
    println!("ours: best {:.0}, median {:.0} MB/s", rate(ours[0]), rate(ours[7]));
    let Some(best) = theirs.first() else { return println!("there is no curl here") };
    println!("curl: best {:.0}, median {:.0} MB/s", rate(*best), rate(theirs[theirs.len() / 2]));
    println!("MD5 alone: {:.0} MB/s", {
        use md5::Digest as _;
        let bytes = vec![7; SIZE];
        let started = Instant::now();
        std::hint::black_box(md5::Md5::digest(&bytes));
        rate(started.elapsed())
    });
    assert!(ours[7] < theirs[theirs.len() / 2] * 4);
}
