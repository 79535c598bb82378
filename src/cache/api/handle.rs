//! The handle to a cache, and what its clones share.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::budget::Budget;
use crate::cache::holders::lease::Leases;
use crate::cache::holders::polls::Polls;
use crate::cache::holders::quota::ConsumerQuotas;
use crate::cache::holders::timeframe::Timeframes;
use crate::cache::memory::in_use::InUse;
use crate::cache::memory::residency::Residency;
use crate::cache::restart::RestartState;
use crate::cache::tables::columns::ColumnLookUp;
use crate::cache::tables::loader::Loader;
use crate::cache::tables::schema_cache::SchemaCache;
use crate::cache::versions::catalog::Catalog;
use crate::cache::versions::object_index::ObjectIndex;
use crate::cache::versions::pace::Prefetcher;
use crate::cache::versions::publisher::{LocalFigures, Publisher};
use crate::clock::{Clock, Moment};
use crate::shm::Pool;
use crate::telemetry::Counters;

/// Keeps condition objects in shared memory and answers with tables of their MetaHeaders.
///
/// Clones are the same cache. When the last one is dropped, its segments go; mappings of consumers
/// stay readable, but no MetaHeader resolves in them any more.
#[derive(Clone)]
pub struct Cache(pub(super) Arc<CacheInner>);

pub(super) struct CacheInner {
    pub(super) clock: Clock,
    pub(super) started: Moment,
    pub(super) counters: Arc<Counters>,
    pub(super) pool: Pool,
    pub(super) residency: Arc<Residency>,
    pub(super) catalog: Arc<Catalog>,
    pub(super) columns: ColumnLookUp,
    pub(super) prefetcher: Prefetcher,
    pub(super) forms: SchemaCache,
    pub(super) loader: Arc<Loader>,
    pub(super) leases: Arc<Leases>,
    pub(super) objects: Arc<ObjectIndex>,
    pub(super) hands: Arc<InUse>,
    /// What is left to a successor, where anybody keeps it.
    pub(super) kept: Option<Arc<RestartState>>,
    pub(super) timeframes: Arc<Timeframes>,
    pub(super) slow: Arc<ConsumerQuotas>,
    /// So many can be in flight.
    pub(super) max_timeframes: usize,
    /// Memory beside the segments that requests may hold.
    pub(super) budget: Budget,
    /// Whose turn it is to wait for a place in flight.
    pub(super) registering: tokio::sync::Mutex<()>,
    /// What became of the loading that polls have started.
    pub(super) polls: Arc<std::sync::Mutex<Polls>>,
    pub(super) attach_path: OnceLock<PathBuf>,
    /// Told of each new segment.
    pub(super) grown: watch::Sender<()>,
    /// Set when no new work is taken.
    pub(super) draining: CancellationToken,
    /// What attached consumers look up by themselves; `None` where that is turned off.
    pub(super) publisher: Option<Arc<Publisher>>,
    /// The tasks that keep timelines fresh, let leases expire, load timeframes.
    pub(super) tasks: std::sync::Mutex<JoinSet<()>>,
}

impl Cache {
    /// The memory beside the segments that requests may hold.
    pub fn budget(&self) -> &Budget {
        &self.0.budget
    }

    /// How much consumers look up by themselves; `None` where that is turned off.
    pub fn local_figures(&self) -> Option<LocalFigures> {
        self.0.publisher.as_ref().map(|publisher| publisher.figures())
    }

    /// What it counted since its start.
    pub fn counters(&self) -> &Counters {
        &self.0.counters
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("residency", &self.0.residency).finish_non_exhaustive()
    }
}
