//! The builder of a cache: options, defaults, and background tasks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::handle::{Cache, CacheInner};
use crate::budget::Budget;
use crate::cache::holders::leases::Leases;
use crate::cache::holders::limits::ConsumerLimits;
use crate::cache::holders::quota::ConsumerQuotas;
use crate::cache::holders::timeframe_publisher::TimeframePublisher;
use crate::cache::holders::timeframes::Timeframes;
use crate::cache::memory::publish::{Description, Verified};
use crate::cache::memory::residency::{Reclaimable, Residency};
use crate::cache::restart::{
    DescriptorStore, Inheritance, InheritedObjects, LogRecord, RestartState, SavedTimelines,
    segment_name,
};
use crate::cache::tables::columns::ColumnLookUp;
use crate::cache::tables::loader::Loader;
use crate::cache::tables::run_information::RunInformation;
use crate::cache::ticks::next_tick;
use crate::cache::versions::catalog::Catalog;
use crate::cache::versions::object_index::ObjectIndex;
use crate::cache::versions::publisher::Publisher;
use crate::clock::Clock;
use crate::error::coded;
use crate::object::CreationLimits;
use crate::shm::{HeapTrim, KEPT_FREE_BYTES, Pool, PoolError, PoolOptions};
use crate::source::{Policies, Source};
use crate::sync::Mutex;
use crate::table::{ColumnRequest, RequestLimits};
use crate::telemetry::Counters;

/// Default duration of a lease without an owner.
const LEASE_LIMIT: Duration = Duration::from_secs(60);
/// Default for the maximum number of timeframes in flight.
const MAX_TIMEFRAMES: usize = 4_096;
/// Interval between sweeps of dangling links.
const SWEEP_PAUSE: Duration = Duration::from_secs(5);

/// Collects the options of a cache; [`build`](Self::build) makes it.
#[derive(Debug)]
pub struct CacheBuilder {
    source: Option<Arc<dyn Source>>,
    memory: PoolOptions,
    limits: CreationLimits,
    tables: BTreeMap<String, Vec<ColumnRequest>>,
    max_key_values: usize,
    max_queries: usize,
    runs: RunInformation,
    policies: Policies,
    clock: Clock,
    lease_limit: Duration,
    max_timeframes: usize,
    consumer_limits: ConsumerLimits,
    budget: Budget,
    descriptor_store: Option<Arc<dyn DescriptorStore>>,
    inheritance: Inheritance,
    local_plane: bool,
}

impl Default for CacheBuilder {
    fn default() -> Self {
        Self {
            source: None,
            memory: PoolOptions::default(),
            limits: CreationLimits::default(),
            tables: BTreeMap::new(),
            max_key_values: RequestLimits::MOST.key_values,
            max_queries: RequestLimits::MOST.queries,
            runs: RunInformation::default(),
            policies: Policies::default(),
            clock: Clock::system(),
            lease_limit: LEASE_LIMIT,
            max_timeframes: MAX_TIMEFRAMES,
            consumer_limits: ConsumerLimits::default(),
            budget: Budget::unlimited(),
            descriptor_store: None,
            inheritance: Inheritance::default(),
            local_plane: true,
        }
    }
}

/// Why a cache cannot be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// No source was given.
    #[error("source: a cache needs one")]
    NoSource,
    /// The shared memory cannot be allocated.
    #[error("memory")]
    Memory(#[from] PoolError),
}

coded! { BuildError {
    NoSource => InvalidArgument 8001,
    Memory(error) => error,
} }

impl Cache {
    /// Returns a builder with the defaults.
    pub fn builder() -> CacheBuilder {
        CacheBuilder::default()
    }
}

impl CacheBuilder {
    /// The source of objects. Required.
    #[must_use]
    pub fn source(mut self, source: Arc<dyn Source>) -> Self {
        self.source = Some(source);
        self
    }

    /// The shared memory. Default: 4 GiB in segments of 512 MiB, memfds.
    #[must_use]
    pub fn memory(mut self, memory: PoolOptions) -> Self {
        self.memory = memory;
        self
    }

    /// Limits on the creation time of versions, for every request. Default: all versions are seen.
    #[must_use]
    pub fn creation_limits(mut self, limits: CreationLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Named sets of columns that requests may refer to. Default: none.
    #[must_use]
    pub fn tables(mut self, tables: BTreeMap<String, Vec<ColumnRequest>>) -> Self {
        self.tables = tables;
        self
    }

    /// Path and metadata names of the times of runs, for ranges that name a run. Default: those
    /// of ALICE.
    #[must_use]
    pub fn run_information(mut self, runs: RunInformation) -> Self {
        self.runs = runs;
        self
    }

    /// Maximum number of distinct values of a key for which a column may have one look-up each.
    /// Default: 10,000.
    #[must_use]
    pub fn max_key_values(mut self, values: usize) -> Self {
        self.max_key_values = values;
        self
    }

    /// Maximum number of queries of one table: one per column without a key, and one per path or
    /// value of the key of the others. Default: 200,000.
    #[must_use]
    pub fn max_queries(mut self, queries: usize) -> Self {
        self.max_queries = queries;
        self
    }

    /// Policies for single paths. The cache uses the values for timestamps without a valid object;
    /// time-outs, refresh times and other defaults belong to the source
    /// ([`PolicySource`](crate::source::PolicySource)).
    #[must_use]
    pub fn policies(mut self, policies: Policies) -> Self {
        self.policies = policies;
        self
    }

    /// The clock for the expiry of leases and the age of answers. Default: the system's.
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Duration of leases that belong to no session and no consumer. Default: 60 s.
    #[must_use]
    pub fn lease_limit(mut self, limit: Duration) -> Self {
        self.lease_limit = limit;
        self
    }

    /// Maximum number of timeframes in flight; further registrations wait. Default: 4,096.
    #[must_use]
    pub fn max_timeframes(mut self, limit: usize) -> Self {
        self.max_timeframes = limit.max(1);
        self
    }

    /// Limits on the bytes, timeframes and requests of each consumer, and on the time for which it
    /// may hold a table. Default: none.
    #[must_use]
    pub fn consumer_limits(mut self, limits: ConsumerLimits) -> Self {
        self.consumer_limits = limits;
        self
    }

    /// Budget for the memory outside the segments that requests hold. Default: no limit, since the
    /// callers of an embedded cache are trusted.
    #[must_use]
    pub fn budget(mut self, budget: Budget) -> Self {
        self.budget = budget;
        self
    }

    /// Whether attached consumers may look up by themselves (`schemas/directory.md`). Default: yes.
    #[must_use]
    pub fn local_plane(mut self, offered: bool) -> Self {
        self.local_plane = offered;
        self
    }

    /// A store that keeps the segments and the saved state for the next process. It can keep only
    /// segments without names (memfds). Default: none.
    #[must_use]
    pub fn descriptor_store(mut self, descriptor_store: Arc<dyn DescriptorStore>) -> Self {
        self.descriptor_store = Some(descriptor_store);
        self
    }

    /// The state left by the previous process. Its objects are taken over, each after a check.
    /// Default: none.
    #[must_use]
    pub fn inheritance(mut self, inheritance: Inheritance) -> Self {
        self.inheritance = inheritance;
        self
    }

    /// Builds the cache. Must be called inside a tokio runtime, in which its background tasks run:
    /// expiry of leases, refresh of timelines, publishing for local look-ups.
    ///
    /// # Errors
    /// [`BuildError`]: there is no source, or the shared memory cannot be set up as configured.
    pub fn build(mut self) -> Result<Cache, BuildError> {
        let source = self.source.take().ok_or(BuildError::NoSource)?;
        let counters = Arc::new(Counters::default());
        let CacheMemory { pool, residency, kept, grown, inherited_objects, saved_timelines } =
            self.cache_memory(&counters)?;
        let catalog = self.catalog(&source, saved_timelines, &counters);
        let columns = self.column_look_up(&catalog);
        let quotas = self.consumer_quotas(&counters);
        // Only processes of the host may map its memory.
        let publisher = (self.local_plane && !pool.is_of_host())
            .then(|| publisher_of(&catalog, &residency, &quotas.timeframes));
        let background = Background {
            kept: kept.as_ref(),
            publisher: publisher.as_ref(),
            catalog: &catalog,
            residency: &residency,
            quotas: &quotas,
        };
        let tasks = background.spawn(self.budget.clone(), self.lease_limit);
        let counts = Arc::clone(&counters);
        let loader = Loader::new(Arc::clone(&residency), source, inherited_objects, counts);
        Ok(Cache(Arc::new(CacheInner {
            publisher,
            started: self.clock.now(),
            clock: self.clock,
            loader: Arc::new(loader),
            timeframes: Arc::clone(&quotas.timeframes),
            leases: Arc::clone(&quotas.leases),
            quotas,
            max_timeframes: self.max_timeframes,
            budget: self.budget,
            counters,
            pool,
            residency,
            catalog,
            objects: Arc::clone(&columns.objects),
            columns,
            kept,
            grown,
            draining: CancellationToken::new(),
            tasks: Mutex::new(tasks),
            registering: Default::default(),
            prefetcher: Default::default(),
            column_sets: Default::default(),
            in_use: Default::default(),
            polls: Default::default(),
            attach_path: Default::default(),
        })))
    }
}

/// The shared memory of a cache, its objects, and the state that a later process takes over.
struct CacheMemory {
    pool: Pool,
    residency: Arc<Residency>,
    /// `None` without a store of descriptors.
    kept: Option<Arc<RestartState>>,
    /// Notified of each new segment.
    grown: watch::Sender<()>,
    /// Objects of the previous process. Their take-over has begun.
    inherited_objects: Arc<InheritedObjects>,
    /// Timelines of the previous process.
    saved_timelines: Option<SavedTimelines>,
}

impl CacheBuilder {
    /// Makes the segments, and begins to take over the objects of the previous process.
    fn cache_memory(&mut self, counters: &Arc<Counters>) -> Result<CacheMemory, BuildError> {
        let kept_memory = self.memory.can_be_kept();
        let descriptor_store = self.descriptor_store.take().filter(|_| kept_memory);
        let pool = Pool::new(std::mem::take(&mut self.memory))?;
        let kept = restart_state(descriptor_store.as_deref(), &pool)?;
        let grown = watch::Sender::new(());
        report_segments(&pool, &grown, descriptor_store.as_ref());
        let object_log = kept.as_ref().map(|kept| Arc::clone(&kept.object_log));
        let residency = Residency::new(pool.clone(), Arc::clone(counters), object_log);
        let inheritance = std::mem::take(&mut self.inheritance);
        let saved_timelines = inheritance.saved_timelines();
        let inherited_objects = Arc::new(inheritance.inherited_objects(descriptor_store));
        if !inherited_objects.is_empty() {
            let (residency, counters) = (Arc::clone(&residency), Arc::clone(counters));
            take_over(Arc::clone(&inherited_objects), residency, counters);
        }
        Ok(CacheMemory { pool, residency, kept, grown, inherited_objects, saved_timelines })
    }

    /// The timelines of `source`, and those of the previous process until their first refresh.
    fn catalog(
        &self,
        source: &Arc<dyn Source>,
        saved_timelines: Option<SavedTimelines>,
        counters: &Arc<Counters>,
    ) -> Arc<Catalog> {
        let (source, clock) = (Arc::clone(source), self.clock.clone());
        let catalog = Arc::new(Catalog::new(source, clock, Arc::clone(counters)));
        catalog.listen();
        if let Some(saved_timelines) = saved_timelines {
            catalog.remember(saved_timelines);
        }
        catalog
    }

    /// The leases, the timeframes, and the quotas over both.
    fn consumer_quotas(&mut self, counters: &Arc<Counters>) -> Arc<ConsumerQuotas> {
        let (clock, counters) = (self.clock.clone(), Arc::clone(counters));
        let limits = std::mem::take(&mut self.consumer_limits);
        let counts = Arc::clone(&counters);
        let leases = Leases::new(clock.clone(), self.lease_limit, limits.clone(), counts);
        let timeframes = Arc::new(Timeframes::new(clock.clone(), Arc::clone(&counters)));
        let (leases, permits) = (Arc::new(leases), Arc::default());
        Arc::new(ConsumerQuotas { limits, clock, leases, timeframes, counters, permits })
    }

    /// Finds the columns of requests over the timelines of `catalog`. Takes the options that only
    /// this needs.
    fn column_look_up(&mut self, catalog: &Arc<Catalog>) -> ColumnLookUp {
        let objects = ObjectIndex::new(Arc::clone(catalog), self.clock.clone(), self.limits);
        ColumnLookUp {
            clock: self.clock.clone(),
            catalog: Arc::clone(catalog),
            objects: Arc::new(objects),
            limits: self.limits,
            policies: std::mem::take(&mut self.policies),
            tables: std::mem::take(&mut self.tables),
            max_key_values: self.max_key_values,
            max_queries: self.max_queries,
            runs: std::mem::take(&mut self.runs),
        }
    }
}

/// Publishes timelines and timeframes for consumers that read the directory.
fn publisher_of(
    catalog: &Arc<Catalog>,
    residency: &Arc<Residency>,
    timeframes: &Arc<Timeframes>,
) -> Arc<Publisher> {
    let publisher = Publisher::new(Arc::clone(catalog), Arc::clone(residency));
    let of_timeframes = TimeframePublisher::new(Arc::clone(&publisher), Arc::clone(residency));
    timeframes.set_publisher(of_timeframes);
    let reclaimable: Arc<dyn Reclaimable> = Arc::clone(timeframes) as _;
    residency.add_reclaimable(Arc::downgrade(&reclaimable));
    publisher
}

/// The state that a later process takes over; `None` without a store.
fn restart_state(
    descriptor_store: Option<&dyn DescriptorStore>,
    pool: &Pool,
) -> Result<Option<Arc<RestartState>>, PoolError> {
    let kept = descriptor_store.map(|store| RestartState::new(store, pool.epoch())).transpose();
    Ok(kept.map_err(PoolError::Backing)?.map(Arc::new))
}

/// The parts of a cache that its background tasks keep up to date.
struct Background<'a> {
    kept: Option<&'a Arc<RestartState>>,
    publisher: Option<&'a Arc<Publisher>>,
    catalog: &'a Arc<Catalog>,
    residency: &'a Arc<Residency>,
    quotas: &'a Arc<ConsumerQuotas>,
}

impl Background<'_> {
    /// Starts the tasks. They end when the returned set is dropped.
    fn spawn(self, budget: Budget, lease_limit: Duration) -> JoinSet<()> {
        let Self { kept, publisher, catalog, residency, quotas } = self;
        let parts = || (Arc::clone(catalog), Arc::clone(residency));
        let mut tasks = JoinSet::new();
        if let Some(kept) = kept {
            let (catalog, residency) = parts();
            tasks.spawn(save_timelines(Arc::clone(kept), catalog, residency));
        }
        tasks.spawn(Arc::clone(catalog).keep_fresh());
        if let Some(publisher) = publisher {
            tasks.spawn(Arc::clone(publisher).publish_wanted());
            tasks.spawn(Arc::clone(publisher).take_samples());
        }
        let (catalog, residency) = parts();
        tasks.spawn(sweep(catalog, residency, budget));
        tasks.spawn(end_overdue(Arc::clone(quotas), lease_limit));
        tasks
    }
}

/// Sends new segments to attached processes and to the descriptor store, and withdraws retired
/// ones.
fn report_segments(
    pool: &Pool,
    grown: &watch::Sender<()>,
    descriptor_store: Option<&Arc<dyn DescriptorStore>>,
) {
    let epoch = pool.epoch();
    pool.on_new_segment({
        let (grown, descriptor_store) = (grown.clone(), descriptor_store.cloned());
        move |segment| {
            if let (Some(descriptor_store), Some(file)) = (&descriptor_store, segment.file()) {
                descriptor_store.keep(&segment_name(epoch, segment.id()), file);
            }
            grown.send_replace(());
        }
    });
    if let Some(descriptor_store) = descriptor_store.cloned() {
        pool.on_retired_segment(move |id| descriptor_store.forget(&segment_name(epoch, id)));
    }
}

/// Removes links to objects that are gone, and returns free memory to the system after large
/// charges and when private memory has grown.
async fn sweep(catalog: Arc<Catalog>, residency: Arc<Residency>, budget: Budget) {
    let mut charged = 0;
    let mut heap = HeapTrim::new();
    loop {
        next_tick(SWEEP_PAUSE).await;
        charged += budget.take_charged_bytes();
        let freed = charged > KEPT_FREE_BYTES && budget.used_bytes() < KEPT_FREE_BYTES;
        if freed {
            charged = 0;
        }
        let checked = tokio::task::spawn_blocking(move || {
            heap.check(freed);
            heap
        });
        heap = checked.await.unwrap_or_else(|_| HeapTrim::new());
        residency.sweep(|| catalog.sweep());
    }
}

/// Ends leases whose time has run out, and reports slow consumers.
async fn end_overdue(quotas: Arc<ConsumerQuotas>, lease_limit: Duration) {
    let slow_after = quotas.limits.slow_after;
    let shortest = slow_after.map_or(lease_limit, |after| after.min(lease_limit));
    let pause = (shortest / 20).clamp(Duration::from_millis(5), Duration::from_secs(1));
    loop {
        next_tick(pause).await;
        quotas.leases.expire();
        quotas.timeframes.sweep_watermarks();
        quotas.look();
    }
}

/// Shortest pause between two saves for the next process.
const SAVE_PAUSE: Duration = Duration::from_secs(1);
/// Saving takes at most one part in this many of all time.
const SAVE_SHARE: u32 = 50;

/// Saves the timelines periodically until it is dropped.
async fn save_timelines(kept: Arc<RestartState>, catalog: Arc<Catalog>, residency: Arc<Residency>) {
    let mut pause = SAVE_PAUSE;
    loop {
        tokio::time::sleep(pause).await;
        let (kept, catalog, residency) =
            (Arc::clone(&kept), Arc::clone(&catalog), Arc::clone(&residency));
        let began = std::time::Instant::now();
        let saved_timelines = tokio::task::spawn_blocking(move || {
            kept.note(&catalog.saved_timelines(|id| residency.size_of(id).is_some()));
        });
        if saved_timelines.await.is_err() {
            return;
        }
        pause = SAVE_PAUSE.max(began.elapsed() * SAVE_SHARE);
    }
}

/// Takes over the objects of the previous process on a blocking thread.
fn take_over(
    inherited_objects: Arc<InheritedObjects>,
    residency: Arc<Residency>,
    counters: Arc<Counters>,
) {
    tokio::task::spawn_blocking(move || {
        let found = inherited_objects.len();
        inherited_objects.take_over(residency.pool(), |record: &LogRecord, reservation| {
            if residency.is_closed() {
                return false;
            }
            // Without a digest the object cannot be compared with the description of a source.
            let Some(md5) = record.md5 else { return true };
            let (id, path) = (record.id, record.path.clone());
            let size_bytes = Some(record.header.size);
            let times = record.times;
            let description = Description { id, path, times, size_bytes, md5: Some(md5) };
            match Verified::check(description, reservation, None) {
                // Its pin is dropped at once: the object stays until its memory is needed.
                Ok(verified) => {
                    drop(residency.admit(verified));
                    counters.inherited.add(1);
                }
                Err(wrong) => {
                    tracing::warn!(path = %record.path, %id, %wrong, "an inherited object is not taken over");
                }
            }
            true
        });
        let inherited = counters.inherited.get();
        tracing::info!("{inherited} of {found} inherited objects are taken over");
    });
}
