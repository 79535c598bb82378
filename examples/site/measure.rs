//! Requests of one service to a CCDB: a real cache over a server that counts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use iovcache::shm::PoolOptions;
use iovcache::source::ccdb::{CcdbOptions, CcdbSource};
use iovcache::{Cache, ObjectPath, Query, Timestamp};

use crate::fake_ccdb::{Counts, FakeCcdb, Kind, Upload};

/// Paths of the measurement.
const PATHS: usize = 10;
/// Refresh interval of the measurement; requests come more often.
const REFRESH: Duration = Duration::from_secs(2);
const REQUEST_PAUSE: Duration = Duration::from_millis(100);
const STEADY_TIME: Duration = Duration::from_secs(12);
const PATIENCE: Duration = Duration::from_secs(10);

/// Requests of a service, per path.
#[derive(Debug, Clone, Copy)]
#[allow(dead_code, reason = "two of its figures are only printed")]
pub(crate) struct Traffic {
    /// Look-ups and bodies at the first request.
    pub(crate) cold_look_ups: f64,
    pub(crate) cold_bodies: f64,
    /// Look-ups per refresh interval while the path is requested continuously.
    pub(crate) look_ups_per_refresh: f64,
    /// Share of these that is answered with 304.
    pub(crate) not_modified: f64,
    /// Default refresh interval in seconds.
    pub(crate) refresh_seconds: f64,
}

async fn ask(cache: &Cache, paths: &[ObjectPath]) {
    for path in paths {
        let query = Query::all(path.clone());
        let at = Timestamp::from_millis(1_500);
        let found = cache.version_at(&query, at, PATIENCE).await.unwrap().unwrap();
        drop(cache.hold(&found.version, PATIENCE).await.unwrap());
    }
}

/// Measures for a few seconds.
pub(crate) async fn measure() -> Traffic {
    let server = FakeCcdb::start(Kind::Sql).await;
    let paths: Vec<ObjectPath> =
        (0..PATHS).map(|n| ObjectPath::new(&format!("Site/O{n}")).unwrap()).collect();
    for path in &paths {
        server.upload(Upload::new(path.as_str(), 1_000, 2_000).bytes(vec![1; 1_000]));
    }
    let refresh_millis = u64::try_from(REFRESH.as_millis()).unwrap();
    let options = CcdbOptions { refresh_millis, ..CcdbOptions::default() };
    let source = CcdbSource::new(&server.url(), options).unwrap();
    let memory = PoolOptions { memory_bytes: 64 << 20, ..PoolOptions::default() };
    let cache = Cache::builder().source(Arc::new(source)).memory(memory).build().unwrap();
    ask(&cache, &paths).await;
    let cold = server.counts();
    let began = Instant::now();
    while began.elapsed() < STEADY_TIME {
        tokio::time::sleep(REQUEST_PAUSE).await;
        ask(&cache, &paths).await;
    }
    let intervals = began.elapsed().as_secs_f64() / REFRESH.as_secs_f64();
    let steady = server.counts();
    // The valid version is queried by time, or by the listing of a path.
    let questions = |counts: &Counts| counts.look_ups + counts.listings;
    let look_ups = (questions(&steady) - questions(&cold)) as f64;
    let not_modified = (steady.not_modified - cold.not_modified) as f64;
    let each = PATHS as f64;
    Traffic {
        cold_look_ups: questions(&cold) as f64 / each,
        cold_bodies: cold.bodies_sent as f64 / each,
        look_ups_per_refresh: look_ups / each / intervals,
        not_modified: if look_ups > 0.0 { not_modified / look_ups } else { 0.0 },
        refresh_seconds: CcdbOptions::default().refresh_millis as f64 / 1_000.0,
    }
}
