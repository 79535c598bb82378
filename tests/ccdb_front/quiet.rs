//! Requests of a service to its source while nothing changes.

use std::time::{Duration, Instant};

use super::address;
use super::common::{Service, until};
use super::fake_ccdb::{FakeCcdb, Kind, Upload};
use super::raw::get;

const PATHS: i64 = 4;

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_path_in_use_costs_300_bytes_per_refresh_time_and_shows_an_upload_within_two() {
    let refresh = Duration::from_millis(1_000);
    for kind in [Kind::Local, Kind::Sql] {
        let server = FakeCcdb::start(kind).await;
        for n in 0..PATHS * 50 {
            let from = 1_730_000_000_000 + n / PATHS * 1_000;
            let upload = Upload::new(&format!("A/P{}", n % PATHS), from, from + 1_000);
            server.upload(upload.created(from).metadata("runNumber", "545210"));
        }
        let url = server.url();
        let service =
            Service::start(&["--source", &url, "--refresh", "1s", "--ccdb", "127.0.0.1:0"]);
        let address = address(&service);
        let status = |path: i64, at: i64| get(&address, &format!("/A/P{path}/{at}"), &[]).status;
        let ask = || (0..PATHS).for_each(|path| assert_eq!(status(path, 1_730_000_020_500), 303));
        ask();
        let (began, before) = (Instant::now(), server.counts());
        while began.elapsed() < 12 * refresh {
            ask();
            std::thread::sleep(Duration::from_millis(200));
        }
        let after = server.counts();
        let refreshes = began.elapsed().as_secs_f64() / refresh.as_secs_f64();
        let bytes = (after.sent_bytes - before.sent_bytes) as f64 / PATHS as f64 / refreshes;
        let checks = (after.listings - before.listings) as f64 / PATHS as f64 / refreshes;
        println!("{kind:?}: {bytes:.0} B and {checks:.2} requests per path and refresh time");
        // Checks at an unlucky time after each other, and the rest of a comparison.
        assert!(bytes <= 340.0 && checks <= 0.85, "{kind:?}: {bytes} B, {checks} requests");
        assert_eq!(status(0, 1_800_000_000_000), 404);
        server.upload(
            Upload::new("A/P0", 1_800_000_000_000, 1_800_000_001_000).created(i64::MAX / 2),
        );
        let uploaded = Instant::now();
        until("the upload", || (status(0, 1_800_000_000_000) == 303).then_some(()));
        // With room for a loaded machine.
        assert!(uploaded.elapsed() < 2 * refresh + Duration::from_secs(1), "{kind:?}");
    }
}
