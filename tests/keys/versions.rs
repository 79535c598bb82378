//! Versions at the source, and a cache in front of it.

use std::sync::Arc;

use arrow_array::RecordBatch;
use iovcache::cache::{CacheError, Caller};
use iovcache::shm::PoolOptions;
use iovcache::source::{MemorySource, Source};
use iovcache::table::Request;
use iovcache::{Cache, ObjectId, ObjectInfo, ObjectPath, Timestamp, ValidityInterval};
use serde_json::Value;

pub(crate) const PATHS: [&str; 3] = ["A/A", "B/B", "C/C"];

/// A version, and the run that it is for.
#[derive(Debug, Clone)]
pub(crate) struct Made {
    pub(crate) path: usize,
    pub(crate) from: i64,
    pub(crate) until: i64,
    /// The metadata `run`.
    pub(crate) run: Option<i64>,
}

impl Made {
    pub(crate) fn info(&self, n: usize) -> ObjectInfo {
        let [from, until, created] = [self.from, self.until, n as i64].map(Timestamp::from_millis);
        let run = self.run.map(|run| ("run".to_owned(), run.to_string()));
        ObjectInfo {
            path: ObjectPath::new(PATHS[self.path]).unwrap(),
            id: ObjectId::from_bytes([n as u8 + 1; 16]),
            validity: ValidityInterval::new(from, until).unwrap(),
            created,
            size_bytes: None,
            md5: None,
            metadata: run.into_iter().collect(),
        }
    }

    /// The bytes name the version.
    pub(crate) fn bytes(n: usize) -> Vec<u8> {
        format!("version {n}").into_bytes()
    }
}

pub(crate) fn memory() -> PoolOptions {
    PoolOptions { memory_bytes: 16 << 20, segment_bytes: 1 << 20, ..PoolOptions::default() }
}

pub(crate) fn cache(source: Arc<dyn Source>) -> Cache {
    Cache::builder().source(source).memory(memory()).build().unwrap()
}

pub(crate) fn put_all(memory: &MemorySource, versions: &[Made]) {
    for (n, made) in versions.iter().enumerate() {
        memory.put(made.info(n), Made::bytes(n));
    }
}

pub(crate) async fn ask(cache: &Cache, request: &Value) -> Result<Vec<RecordBatch>, CacheError> {
    let request = Request::parse(request.to_string().as_bytes())?;
    Ok(cache.answer(&request, &Caller::default()).await?.to_batches().unwrap())
}
