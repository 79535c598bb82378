//! A service in this process, over a source that loads objects only while its gate is open.

use std::path::PathBuf;
use std::sync::Arc;

use iovcache::shm::PoolOptions;
use iovcache::source::MemorySource;
use iovcache::{Cache, ObjectId, ObjectInfo, ObjectPath, Timestamp, ValidityInterval};
use tokio::runtime::Runtime;

use crate::in_process::gated::{Gate, Gated};
use crate::in_process::{serve, url_of};

/// A service whose objects of the paths `G/P0x`, `G/P1x`, … are valid always.
pub(crate) struct GatedService {
    /// Runs the service until this is dropped.
    _runtime: Runtime,
    pub(crate) cache: Cache,
    gate: Gate,
    socket: PathBuf,
    _folder: tempfile::TempDir,
}

pub(crate) fn gated_path(number: usize) -> String {
    format!("G/P{number}x")
}

impl GatedService {
    /// A service with this many objects, none of them loaded.
    pub(crate) fn new(objects: usize) -> Self {
        let source = MemorySource::new();
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
        let (source, gate) = Gated::new(source, false);
        let memory = PoolOptions { memory_bytes: 16 << 20, ..PoolOptions::default() };
        let (cache, socket) = runtime.block_on(async {
            let cache = Cache::builder().source(Arc::new(source)).memory(memory).build().unwrap();
            let socket = serve(cache.clone(), folder.path()).await;
            (cache, socket)
        });
        Self { _runtime: runtime, cache, gate, socket, _folder: folder }
    }

    pub(crate) fn url(&self) -> String {
        url_of(&self.socket)
    }

    /// Objects are loaded from now on, or not.
    pub(crate) fn set_open(&self, is_open: bool) {
        self.gate.send_replace(is_open);
    }
}
