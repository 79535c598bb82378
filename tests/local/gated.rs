//! A service in this process, over a source that loads objects only while its gate is open.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use iovcache::object::Query;
use iovcache::server::{ListenOptions, Listeners, ServeOptions};
use iovcache::shm::PoolOptions;
use iovcache::source::{
    Body, Knowledge, MemorySource, PathSummary, Source, SourceError, SourceHealth,
};
use iovcache::{Cache, ObjectId, ObjectInfo, ObjectPath, Timestamp, ValidityInterval};
use tokio::runtime::Runtime;
use tokio::sync::watch;

#[derive(Debug)]
struct Gated {
    objects: MemorySource,
    is_open: watch::Receiver<bool>,
}

#[async_trait]
impl Source for Gated {
    fn url(&self) -> &str {
        self.objects.url()
    }

    fn refresh(&self) -> Duration {
        Duration::from_secs(3_600)
    }

    async fn look_up(
        &self,
        query: &Query,
        at: Timestamp,
        held: Option<&Arc<ObjectInfo>>,
    ) -> Result<Knowledge, SourceError> {
        self.objects.look_up(query, at, held).await
    }

    async fn fetch(&self, version: &ObjectInfo, body: &mut dyn Body) -> Result<(), SourceError> {
        let mut is_open = self.is_open.clone();
        let _ = is_open.wait_for(|is_open| *is_open).await;
        self.objects.fetch(version, body).await
    }

    fn health(&self) -> Vec<SourceHealth> {
        self.objects.health()
    }

    async fn paths(&self, prefix: &str) -> Result<Vec<PathSummary>, SourceError> {
        self.objects.paths(prefix).await
    }
}

/// A service whose objects of the paths `G/P0x`, `G/P1x`, … are valid always.
pub(crate) struct GatedService {
    /// Runs the service until this is dropped.
    _runtime: Runtime,
    pub(crate) cache: Cache,
    gate: watch::Sender<bool>,
    sockets: PathBuf,
    _folder: tempfile::TempDir,
}

pub(crate) fn gated_path(number: usize) -> String {
    format!("G/P{number}x")
}

impl GatedService {
    /// A service with this many objects, none of them loaded.
    pub(crate) fn new(objects: usize) -> Self {
        let (source, (gate, is_open)) = (MemorySource::new(), watch::channel(false));
        for number in 0..objects {
            let info = ObjectInfo {
                path: ObjectPath::new(&gated_path(number)).unwrap(),
                id: ObjectId::from_bytes([number as u8 + 1; 16]),
                validity: ValidityInterval::ALL,
                created: Timestamp::from_millis(1),
                size_bytes: None,
                md5: None,
                metadata: Default::default(),
            };
            source.put(info, format!("object {number}").into_bytes());
        }
        let runtime = Runtime::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let sockets = folder.path().join("s");
        let source = Arc::new(Gated { objects: source, is_open });
        let memory = PoolOptions { memory_bytes: 16 << 20, ..PoolOptions::default() };
        let cache = runtime.block_on(async {
            let cache = Cache::builder().source(source).memory(memory).build().unwrap();
            let socket_folder = Some(sockets.clone());
            let options = ListenOptions { socket_folder, ..ListenOptions::default() };
            let listeners = Listeners::bind(&options).await.unwrap();
            let (forever, options) = (std::future::pending(), ServeOptions::default());
            tokio::spawn(iovcache::server::run(listeners, cache.clone(), options, forever, || ()));
            cache
        });
        Self { _runtime: runtime, cache, gate, sockets, _folder: folder }
    }

    pub(crate) fn url(&self) -> String {
        format!("grpc+unix://{}", self.sockets.join("flight.sock").display())
    }

    /// Objects are loaded from now on, or not.
    pub(crate) fn set_open(&self, is_open: bool) {
        self.gate.send_replace(is_open);
    }
}
