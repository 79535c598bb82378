//! What else can be done with a cache: report, release, look, and end.

use std::path::Path;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::time::Instant;

use super::answer::Asker;
use super::error::CacheError;
use super::lease::{LeaseId, Owner, Terms};
use super::origin::Origin;
use super::{Cache, Inner};
use crate::budget::ClientBudget;
use crate::object::ObjectPath;
use crate::shm::{Epoch, Mappings, Usage};
use crate::source::{PathSummary, Problem, SourceHealth, SourceState as State, in_place};
use crate::table::{
    Consumed, ConsumedAnswer, MemoryStatus, Prefetch, Request, SegmentsAnswer, SourceState,
    SourceStatus, Status, TimeframeStatus,
};

impl Cache {
    /// Like [`consumed`](Self::consumed), for a client, whose budget pays for what is kept of it. In
    /// the name of a consumer that is attached or has a stream, only its own user or key may report,
    /// or a client that may administer. A client with an administering key sets a watermark back;
    /// without keys the service's own user and root do, to 0.
    ///
    /// # Errors
    /// [`CacheError::ForeignConsumer`], [`CacheError::UnknownTimeframe`],
    /// [`CacheError::UnknownConsumer`], [`CacheError::Budget`].
    pub fn consumed_by(
        &self,
        consumed: &Consumed,
        origin: &Origin,
        budget: &ClientBudget,
    ) -> Result<ConsumedAnswer, CacheError> {
        let (Consumed::One { consumer, .. } | Consumed::Below { consumer, .. }) = consumed;
        self.0.leases.check_consumer(consumer, origin)?;
        if let (
            Consumed::Below { oldest_possible, .. },
            Origin::Client { administers: true, key, .. },
        ) = (consumed, origin)
            && (key.is_some() || *oldest_possible == 0)
        {
            self.0.timeframes.set_watermark_back(consumer, *oldest_possible);
        }
        self.report_consumed(consumed, budget)
    }

    /// A consumer is done with a timeframe, or with all below one.
    ///
    /// # Errors
    /// [`CacheError::UnknownTimeframe`], [`CacheError::UnknownConsumer`].
    pub fn consumed(&self, consumed: &Consumed) -> Result<ConsumedAnswer, CacheError> {
        self.report_consumed(consumed, &ClientBudget::default())
    }

    fn report_consumed(
        &self,
        consumed: &Consumed,
        budget: &ClientBudget,
    ) -> Result<ConsumedAnswer, CacheError> {
        let Inner { timeframes, leases, .. } = &*self.0;
        let dropped = match consumed {
            Consumed::One { timeframe, consumer } => {
                let dropped = timeframes.consumed(*timeframe, consumer)?;
                leases.end_reader(*timeframe, consumer);
                dropped.into_iter().collect()
            }
            Consumed::Below { oldest_possible, consumer } => {
                let (done, dropped) =
                    timeframes.oldest_possible(consumer, *oldest_possible, budget)?;
                for timeframe in done {
                    leases.end_reader(timeframe, consumer);
                }
                dropped
            }
        };
        let dropped = dropped.iter().map(|timeframe| timeframe.id()).collect();
        Ok(ConsumedAnswer { dropped, in_flight: timeframes.len() as u64 })
    }

    /// Like [`drop_timeframe`](Self::drop_timeframe), for a client: not while others than those that it
    /// may act for are consumers of the timeframe and there.
    ///
    /// # Errors
    /// [`CacheError::ForeignConsumer`], [`CacheError::UnknownTimeframe`].
    pub fn drop_timeframe_by(
        &self,
        timeframe: u64,
        origin: &Origin,
    ) -> Result<ConsumedAnswer, CacheError> {
        let status = self.0.timeframes.get(timeframe)?.status();
        for consumer in status.iter().flat_map(|status| status.consumers.keys()) {
            self.0.leases.check_consumer(consumer, origin)?;
        }
        self.drop_timeframe(timeframe)
    }

    /// Drops a timeframe, whoever still waits for it.
    ///
    /// # Errors
    /// [`CacheError::UnknownTimeframe`].
    pub fn drop_timeframe(&self, timeframe: u64) -> Result<ConsumedAnswer, CacheError> {
        let dropped = self.0.timeframes.drop_timeframe(timeframe)?;
        for consumer in dropped.consumer_names() {
            self.0.leases.end_reader(timeframe, &consumer);
        }
        let in_flight = self.0.timeframes.len() as u64;
        Ok(ConsumedAnswer { dropped: vec![timeframe], in_flight })
    }

    /// Loads what a range of time needs. What it loads is not pinned: it can be thrown out again.
    /// Gives the number of objects that are there now.
    ///
    /// # Errors
    /// [`CacheError`].
    pub async fn prefetch(&self, prefetch: &Prefetch, asker: &Asker) -> Result<u64, CacheError> {
        self.check_open()?;
        let wait =
            asker.patience.map_or(Request::DEFAULT_WAIT, |wait| wait.min(Request::DEFAULT_WAIT));
        let deadline = Instant::now() + wait;
        let columns = self.columns(&prefetch.columns, None)?;
        let spans = self.spans(columns, prefetch.range, &asker.budget);
        let what = "the source to say which versions hold";
        let spans = super::answer::by_deadline(what, deadline, spans).await?;
        let got = self.0.loader.pin_all(&**spans.versions(), deadline).await?;
        Ok(got.pins.pins().len() as u64)
    }

    /// Forgets what is known of a path: the next request asks the source. Objects in memory whose
    /// versions are still the right ones are used on.
    pub fn invalidate(&self, path: &ObjectPath) {
        self.0.catalog.forget(path);
        self.0.objects.forget(path);
        self.0.residency.unlist(|resident| resident.path() == path);
    }

    /// Ends a lease; whether there was any.
    pub fn release(&self, lease: &LeaseId) -> bool {
        self.0.leases.end(lease)
    }

    /// Ends all leases that were opened under a ticket; how many there were.
    pub fn release_ticket(&self, ticket: &[u8]) -> usize {
        self.release_ticket_of(ticket, &Origin::Embedded, None)
    }

    /// Ends the leases that were opened under a ticket and belong to the client: those that it opened
    /// over this connection, and those of its sessions. How many there were.
    pub fn release_ticket_of(
        &self,
        ticket: &[u8],
        origin: &Origin,
        connection: Option<u64>,
    ) -> usize {
        let leases = self.0.leases.of_ticket_and_client(ticket, origin, connection);
        leases.iter().filter(|lease| self.0.leases.end(lease)).count()
    }

    /// Gives a lease its time anew: how long it lasts now, if it runs out at all.
    ///
    /// # Errors
    /// [`CacheError::LeaseEnded`].
    pub fn renew(&self, lease: &LeaseId) -> Result<Option<Duration>, CacheError> {
        self.0.leases.renew(lease)
    }

    /// Gives all leases that were opened under a ticket their time anew.
    ///
    /// # Errors
    /// [`CacheError::LeaseEnded`] if there is none.
    pub fn renew_ticket(&self, ticket: &[u8]) -> Result<Option<Duration>, CacheError> {
        let leases = self.0.leases.of_ticket(ticket);
        let mut shortest = None;
        let mut renewed = 0;
        for lease in &leases {
            let Ok(time) = self.0.leases.renew(lease) else { continue };
            renewed += 1;
            shortest = match (shortest, time) {
                (Some(a), Some(b)) => Some(Duration::min(a, b)),
                (a, b) => a.or(b),
            };
        }
        match renewed {
            0 => Err(CacheError::LeaseEnded),
            _ => Ok(shortest),
        }
    }

    /// Opens a lease for a request whose table is to be fetched later, and says how long it lasts.
    /// It pins nothing yet.
    ///
    /// # Errors
    /// [`CacheError::Draining`].
    pub fn open_lease(&self) -> Result<(LeaseId, Duration), CacheError> {
        self.check_open()?;
        let terms = Terms { owner: Owner::Nobody, timeframe: None, ticket: None, holder: None };
        let lease = self.0.leases.open(terms, Vec::new())?;
        Ok((lease, self.0.leases.time_limit()))
    }

    /// Whether a process is attached under this id, and the client may use its session.
    ///
    /// # Errors
    /// [`CacheError::UnknownSession`].
    pub fn check_session(&self, session: &str, origin: &Origin) -> Result<(), CacheError> {
        self.0.leases.check_session(session, origin)
    }

    /// The paths that the source knows at `prefix` and below, sorted.
    ///
    /// # Errors
    /// What the source answers.
    pub async fn paths(&self, prefix: &str) -> Result<Vec<PathSummary>, CacheError> {
        self.0.catalog.paths(prefix).await
    }

    /// What the source has that cannot be read, each with the reason.
    pub fn problems(&self) -> Vec<Problem> {
        self.0.catalog.problems()
    }

    /// Where objects come from, host by host, and how each does.
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

    /// The memory as of now, for resolving in this very process: nothing is mapped a second time.
    /// A segment that comes later is not in it.
    pub fn mappings(&self) -> Mappings {
        self.0.pool.mappings()
    }

    /// This instance.
    pub fn epoch(&self) -> Epoch {
        self.0.pool.epoch()
    }

    /// Where processes attach, once [`serve_attach`](Self::serve_attach) runs.
    pub fn attach_path(&self) -> Option<&Path> {
        self.0.attach_path.get().map(AsRef::as_ref)
    }

    /// Tells clients where processes attach; only the first such socket counts.
    pub fn tell_attach_path(&self, listener: &UnixListener) {
        if let Ok(address) = listener.local_addr()
            && let Some(path) = address.as_pathname()
        {
            let _ = self.0.attach_path.set(path.to_owned());
        }
    }

    /// Where the memory is.
    pub(super) fn memory(&self) -> MemoryStatus {
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

    /// One picture of everything.
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
            // It counts every pin of every session.
            sessions: in_place(|| inner.leases.sessions()),
            sources: sources
                .into_iter()
                .map(|source| SourceStatus {
                    url: source.url,
                    state: match source.state {
                        State::Up => SourceState::Up,
                        State::Down => SourceState::Down,
                    },
                    requests: source.requests,
                    failures: source.failures,
                })
                .collect(),
        }
    }

    /// Takes no new work.
    pub fn drain(&self) {
        self.0.draining.cancel();
    }

    /// Ends everything: no new work is taken, all sessions, leases and timeframes end. Where
    /// somebody keeps the segments, the objects are left in them as they lie.
    pub fn close(&self) {
        self.drain();
        if let Some(kept) = &self.0.kept {
            kept.note(&self.0.catalog.noted(|id| self.0.residency.size_of(id).is_some()));
            kept.ledger.leave();
            self.0.pool.leave();
        }
        self.0.timeframes.clear();
        self.0.leases.end_everything();
        self.0.residency.close();
    }

    /// # Errors
    /// [`CacheError::Draining`].
    pub(super) fn check_open(&self) -> Result<(), CacheError> {
        if self.0.draining.is_cancelled() { Err(CacheError::Draining) } else { Ok(()) }
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }
}
