//! The handle to a cache, and the state that its clones share.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::budget::Budget;
use crate::cache::holders::leases::Leases;
use crate::cache::holders::polls::Polls;
use crate::cache::holders::quota::ConsumerQuotas;
use crate::cache::holders::timeframes::Timeframes;
use crate::cache::memory::in_use::InUse;
use crate::cache::memory::residency::Residency;
use crate::cache::restart::RestartState;
use crate::cache::tables::column_sets::ColumnSets;
use crate::cache::tables::columns::ColumnLookUp;
use crate::cache::tables::loader::Loader;
use crate::cache::versions::catalog::Catalog;
use crate::cache::versions::object_index::ObjectIndex;
use crate::cache::versions::pace::Prefetcher;
use crate::cache::versions::publisher::{LocalFigures, Publisher};
use crate::clock::{Clock, Moment};
use crate::shm::Pool;
use crate::telemetry::Counters;

/// Keeps condition objects in shared memory and answers with tables of their MetaHeaders.
///
/// Clones share one cache. When the last one is dropped, its segments are unlinked; mappings of
/// consumers stay readable, but no MetaHeader resolves in them any more.
#[derive(Clone)]
pub struct Cache(pub(super) Arc<CacheInner>);

/// The rooms of one cache, as its calls use them. Each field guards itself: there is no lock over
/// all of them.
pub(super) struct CacheInner {
    pub(super) clock: Clock,
    pub(super) started: Moment,
    pub(super) counters: Arc<Counters>,
    pub(super) pool: Pool,
    pub(super) residency: Arc<Residency>,
    pub(super) catalog: Arc<Catalog>,
    pub(super) columns: ColumnLookUp,
    pub(super) prefetcher: Prefetcher,
    pub(super) column_sets: ColumnSets,
    pub(super) loader: Arc<Loader>,
    pub(super) leases: Arc<Leases>,
    pub(super) objects: Arc<ObjectIndex>,
    pub(super) in_use: Arc<InUse>,
    /// The state for the next process, if a descriptor store is configured.
    pub(super) kept: Option<Arc<RestartState>>,
    pub(super) timeframes: Arc<Timeframes>,
    pub(super) quotas: Arc<ConsumerQuotas>,
    /// Maximum number of timeframes in flight.
    pub(super) max_timeframes: usize,
    /// Budget for the memory outside the segments that requests hold.
    pub(super) budget: Budget,
    /// Serialises registrations that wait for memory.
    pub(super) registering: tokio::sync::Mutex<()>,
    /// Results of the loads that polls have started.
    pub(super) polls: Arc<crate::sync::Mutex<Polls>>,
    pub(super) attach_path: OnceLock<PathBuf>,
    /// Notified of each new segment.
    pub(super) grown: watch::Sender<()>,
    /// Cancelled when no new work is accepted.
    pub(super) draining: CancellationToken,
    /// Publishes timelines for look-ups by attached consumers; `None` if the local plane is off.
    pub(super) publisher: Option<Arc<Publisher>>,
    /// Background tasks: refresh timelines, expire leases, load timeframes.
    pub(super) tasks: crate::sync::Mutex<JoinSet<()>>,
}

impl Cache {
    /// The budget for the memory outside the segments that requests hold.
    pub fn budget(&self) -> &Budget {
        &self.0.budget
    }

    /// The use of look-ups by consumers; `None` if they are turned off.
    pub(crate) fn local_figures(&self) -> Option<LocalFigures> {
        self.0.publisher.as_ref().map(|publisher| publisher.figures())
    }

    /// The counters since the start.
    pub fn counters(&self) -> &Counters {
        &self.0.counters
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("residency", &self.0.residency).finish_non_exhaustive()
    }
}
