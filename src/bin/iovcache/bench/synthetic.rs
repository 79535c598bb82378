//! A service with any number of versions, for the curves and for comparisons: writing a repository
//! of a million files would take longer than the measurement.
//!
//! The path defines the versions: `Bench/Curve/C0/V1000/B64` has 1,000 versions of 64 bytes, each
//! valid for one millisecond from 0 on; the last one is valid for ever.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use iovcache::server::{ListenOptions, Listeners, ServeOptions};
use iovcache::shm::PoolOptions;
use iovcache::source::{
    Body, Knowledge, PathSummary, Reachability, Source, SourceError, SourceHealth, write_all,
};
use iovcache::{Cache, ObjectId, ObjectInfo, ObjectPath, Query, Timestamp, ValidityInterval};
use serde_json::json;

use super::process::lines_of_stdin;
use crate::failure::Failure;

const URL: &str = "synthetic:";
const PREFIX: &str = "Bench/Curve/";
/// Size of each object of the curves.
const BYTES: u64 = 64;
/// Length of the repeated content of objects.
const PAGE_BYTES: usize = 64 << 10;
const MEMORY_BYTES: u64 = 256 << 20;

/// The path of `column` with this number of versions.
pub(super) fn path(column: usize, versions: u64) -> String {
    format!("{PREFIX}C{column}/V{versions}/B{BYTES}")
}

#[derive(Debug, Default)]
struct Synthetic {
    requests: AtomicU64,
}

/// Number of versions of a path, and bytes of each.
fn asked(path: &ObjectPath) -> (u64, u64) {
    let numbers = path.as_str().strip_prefix(PREFIX).and_then(|rest| rest.split_once("/V"));
    let numbers = numbers.and_then(|(_, numbers)| numbers.split_once("/B"));
    let number = |text: &str| text.parse().ok();
    numbers.and_then(|(count, bytes)| Some((number(count)?, number(bytes)?))).unwrap_or((0, 0))
}

#[async_trait]
impl Source for Synthetic {
    fn url(&self) -> &str {
        URL
    }

    fn refresh(&self) -> Duration {
        Duration::from_secs(86_400)
    }

    async fn look_up(
        &self,
        query: &Query,
        _at: Timestamp,
        _held: Option<&Arc<ObjectInfo>>,
    ) -> Result<Knowledge, SourceError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let (count, bytes) = asked(&query.path);
        let hash = query
            .path
            .as_str()
            .bytes()
            .fold(7_u64, |hash, byte| hash.wrapping_mul(0x0100_0000_01b3) ^ u64::from(byte));
        let one = |n: u64| {
            let from = Timestamp::from_millis(n as i64);
            let until =
                if n + 1 == count { Timestamp::MAX } else { Timestamp::from_millis(n as i64 + 1) };
            let validity = ValidityInterval::new(from, until).ok()?;
            let mut id = [0; 16];
            id[..8].copy_from_slice(&hash.to_be_bytes());
            id[8..].copy_from_slice(&n.to_be_bytes());
            Some(Arc::new(ObjectInfo {
                path: query.path.clone(),
                id: ObjectId::from_bytes(id),
                validity,
                created: Timestamp::from_millis(1),
                size_bytes: Some(bytes),
                md5: None,
                metadata: Default::default(),
            }))
        };
        let versions = (0..count).filter_map(one).collect();
        Ok(Knowledge { span: ValidityInterval::ALL, versions, problems: Vec::new(), stale: false })
    }

    async fn fetch(&self, version: &ObjectInfo, body: &mut dyn Body) -> Result<(), SourceError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let (_, size_bytes) = asked(&version.path);
        let page_bytes = usize::try_from(size_bytes).unwrap_or(PAGE_BYTES).min(PAGE_BYTES);
        // Copied in doubling pieces: byte by byte it took longer than all of the load.
        let page = version.id.as_bytes().repeat(page_bytes.div_ceil(16));
        let stored = async {
            body.reserve(size_bytes).await?;
            let mut left = size_bytes;
            while left > 0 {
                let count = page.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                write_all(body, &page[..count]).await?;
                left -= count as u64;
            }
            Ok(())
        };
        stored.await.map_err(|error| SourceError::Body {
            what: format!("{} {}", version.path, version.id),
            error,
        })
    }

    fn health(&self) -> Vec<SourceHealth> {
        let requests = self.requests.load(Ordering::Relaxed);
        vec![SourceHealth {
            url: URL.to_owned(),
            state: Reachability::Up,
            requests,
            failures: 0,
            latency: Default::default(),
        }]
    }

    async fn paths(&self, _prefix: &str) -> Result<Vec<PathSummary>, SourceError> {
        Ok(Vec::new())
    }
}

/// Runs such a service until stdin ends.
pub(super) async fn run(memory: Option<u64>) -> Result<(), Failure> {
    let memory_bytes = memory.unwrap_or(MEMORY_BYTES);
    let memory =
        PoolOptions { memory_bytes, segment_bytes: memory_bytes, ..PoolOptions::default() };
    let cache = Cache::builder().source(Arc::new(Synthetic::default())).memory(memory).build()?;
    let listeners = Listeners::bind(&ListenOptions::default()).await?;
    let ready = json!({"flight": listeners.flight_urls(), "pid": std::process::id()});
    let tell = move || {
        // Without a reader of this line there are no requests either.
        let _ = writeln!(std::io::stdout(), "{ready}");
    };
    let shutdown = async {
        let mut lines = lines_of_stdin();
        while lines.recv().await.is_some() {}
    };
    iovcache::server::run(listeners, cache, ServeOptions::default(), shutdown, tell).await?;
    Ok(())
}
