//! The state of the cache in numbers: status, paths, segments, sources.

use std::path::Path;
use std::sync::Arc;

use futures::Stream;
use tokio::net::UnixListener;

use super::handle::Cache;
use crate::cache::error::CacheError;
use crate::shm::{
    Epoch, LostSegment, Mappings, Pool, PoolError, SegmentRegistrar, SharedSegment, Usage,
};
use crate::source::{PathSummary, Problem, Reachability, SourceHealth, in_place};
use crate::table::{
    MemoryStatus, SegmentsAnswer, SourceState, SourceStatus, Status, TimeframeStatus,
};

/// Result of [`Cache::renew_lost_segments`].
#[derive(Debug)]
pub struct SegmentRenewal {
    /// Segments found lost since the last call.
    pub lost: Vec<LostSegment>,
    /// Numbers of the segments created in place of lost ones.
    pub made: Vec<u16>,
    /// Why not all of them were created.
    pub error: Option<CacheError>,
}

impl Cache {
    /// The paths of the source at `prefix` and below, sorted.
    ///
    /// # Errors
    /// The error of the source.
    pub async fn paths(&self, prefix: &str) -> Result<Vec<PathSummary>, CacheError> {
        self.0.catalog.paths(prefix).await
    }

    /// Like [`paths`](Self::paths), in parts: there may be hundreds of thousands.
    ///
    /// # Errors
    /// The error of the source, also within the parts.
    pub async fn path_parts(
        &self,
        prefix: &str,
    ) -> Result<impl Stream<Item = Result<Vec<PathSummary>, CacheError>> + Send + use<>, CacheError>
    {
        self.0.catalog.path_parts(prefix).await
    }

    /// Unreadable entries of the source, each with the reason.
    pub fn problems(&self) -> Vec<Problem> {
        self.0.catalog.problems()
    }

    /// The health of each host of the source.
    pub fn sources(&self) -> Vec<SourceHealth> {
        self.0.catalog.source().health()
    }

    /// The timeframes in flight, by id.
    pub fn timeframes(&self) -> Vec<TimeframeStatus> {
        self.0.timeframes.all().iter().filter_map(|timeframe| timeframe.status()).collect()
    }

    /// The segments of shared memory.
    pub fn segments(&self) -> SegmentsAnswer {
        SegmentsAnswer {
            epoch: self.epoch().to_string(),
            attach: self.attach_path().map(|path| path.display().to_string()),
            segments: self.0.pool.segments().iter().map(Into::into).collect(),
        }
    }

    /// Segments with names that another program has removed or overwritten: devices that find
    /// segments by name can no longer read their objects.
    pub fn lost_segments(&self) -> Vec<LostSegment> {
        self.0.pool.lost_segments()
    }

    /// Makes segments anew, under fresh numbers, whose names or heads another program has removed
    /// or overwritten. Their objects are loaded anew when they are requested; tables that hold them
    /// keep them, and a segment is replaced once it holds none of those. Headers that name an
    /// overwritten segment are stale at once.
    ///
    /// Timeframes in flight are issued anew: requests for such a table get headers of other
    /// segments from now on. Consumers that have received the earlier table can read it until they
    /// report it as consumed, unless its segment was overwritten.
    pub fn renew_lost_segments(&self) -> SegmentRenewal {
        self.renew_lost(Pool::renew_condemned_segments)
    }

    /// Like [`renew_lost_segments`](Self::renew_lost_segments); each new segment is registered by
    /// `register` before it is used.
    #[cfg(feature = "capi")]
    pub(crate) fn renew_lost_segments_with(
        &self,
        register: crate::shm::RegisterSegment<'_>,
    ) -> SegmentRenewal {
        self.renew_lost(|pool| pool.renew_condemned_segments_with(register))
    }

    /// Number of lost segments that are not replaced yet, because they still hold objects.
    #[cfg(feature = "capi")]
    pub(crate) fn segments_to_renew(&self) -> usize {
        self.0.pool.condemned_segments()
    }

    fn renew_lost(
        &self,
        renew: impl FnOnce(&Pool) -> (Vec<SharedSegment>, Option<PoolError>),
    ) -> SegmentRenewal {
        let lost = self.0.pool.condemn_lost_segments();
        if !lost.is_empty() {
            self.0.residency.abandon_condemned();
        }
        if self.0.pool.condemned_segments() > 0 {
            // Also those that were loaded while their segment was lost.
            self.reissue_timeframes();
        }
        let (made, error) = renew(&self.0.pool);
        if !made.is_empty() {
            self.0.residency.notify_freed();
        }
        let made = made.iter().map(SharedSegment::id).collect();
        SegmentRenewal { lost, made, error: error.map(|error| CacheError::Pool(Arc::new(error))) }
    }

    /// Registers each segment created from now on, before it is used.
    pub fn register_segments_with(&self, registrar: SegmentRegistrar) {
        self.0.pool.register_segments_with(registrar);
    }

    /// The current memory, for resolving in this process without a second mapping. Segments added
    /// later are not included.
    pub fn mappings(&self) -> Mappings {
        self.0.pool.mappings()
    }

    /// The epoch of this instance.
    pub fn epoch(&self) -> Epoch {
        self.0.pool.epoch()
    }

    /// The path of the attach socket, once [`serve_attach`](Self::serve_attach) runs.
    pub fn attach_path(&self) -> Option<&Path> {
        self.0.attach_path.get().map(AsRef::as_ref)
    }

    /// Publishes the path of the attach socket to clients. Only the first socket counts.
    pub(crate) fn tell_attach_path(&self, listener: &UnixListener) {
        if let Ok(address) = listener.local_addr()
            && let Some(path) = address.as_pathname()
        {
            let _ = self.0.attach_path.set(path.to_owned());
        }
    }

    /// Use of the memory.
    pub(crate) fn memory(&self) -> MemoryStatus {
        let Usage { total_bytes, used_bytes, free_bytes, largest_free_bytes, .. } =
            self.0.pool.usage();
        MemoryStatus {
            total_bytes,
            used_bytes,
            pinned_bytes: self.0.residency.pinned_bytes(),
            free_bytes,
            largest_free_bytes,
        }
    }

    /// The complete status.
    pub fn status(&self) -> Status {
        let inner = &*self.0;
        let uptime = inner.clock.now().since(inner.started);
        let sources = inner.catalog.source().health();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            epoch: self.epoch().to_string(),
            pid: std::process::id(),
            uptime_ms: u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX),
            memory: self.memory(),
            objects: inner.residency.objects() as u64,
            hits: inner.counters.hits.get(),
            loads: inner.counters.loads.get(),
            waits: inner.counters.waits.get(),
            evictions: inner.counters.evictions.get(),
            stale: inner.counters.stale.get(),
            timeframes: self.timeframes(),
            lost_segments: self.lost_segments().iter().map(ToString::to_string).collect(),
            configuration: None,
            // Counts every pin of every session.
            sessions: in_place(|| {
                let slots = inner.publisher.as_ref().map(|publisher| publisher.slots());
                inner.leases.sessions(&slots.unwrap_or_default())
            }),
            sources: sources
                .into_iter()
                .map(|source| SourceStatus {
                    url: source.url,
                    state: match source.state {
                        Reachability::Up => SourceState::Up,
                        Reachability::Down { .. } => SourceState::Down,
                    },
                    down_since_ms: match source.state {
                        Reachability::Up => None,
                        Reachability::Down { since } => Some(since.as_millis()),
                    },
                    requests: source.requests,
                    failures: source.failures,
                })
                .collect(),
        }
    }
}
