//! Publishes timelines for consumers that look up by themselves.
//!
//! ```text
//!  a session with a pins page asks for a table ─▶ its paths are to be published
//!                                                        │  a part of the time at most
//!                                                        ▼
//!  timeline, objects in memory ─▶ Draft (a snapshot) ─▶ Catalog::publish ─▶ directory
//!  pins pages ─samples─▶ the series and the object are used
//! ```
//!
//! Only paths that such a session has requested are published, and only versions whose objects are
//! in memory. Snapshots are stored in the memory for objects, up to a part of it, and are freed
//! when objects need the memory.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::catalog::Catalog;
use super::linked_timeline::LinkedTimeline;
use super::look_up_record::LookUpRecord;
use super::publication::{CountedSnapshot, Draft, Publication, PublishedSpan};
use super::series::{PublishOutcome, Series};
use crate::cache::memory::residency::{Reclaimable, Residency};
use crate::cache::ticks::next_tick;
use crate::index::State;
use crate::interval::ValidityInterval;
use crate::object::{ObjectPath, Query};
use crate::shm::{
    AskReason, BlockLocation, Directory, EntryCounts, PageLimits, PublishedSnapshot, ServicePage,
    SnapshotSpan, UseSample,
};
use crate::sync::{Mutex, MutexGuard};

/// One part in this many of the memory can hold snapshots.
const MEMORY_SHARE: u64 = 8;
/// Bytes of memory per entry of the directory.
const MEMORY_PER_ENTRY: u64 = 8192;
/// Maximum number of entries of a directory: 512 KiB.
const MAX_ENTRIES: u64 = 16_384;
/// Maximum number of entries for timeframes: 128 KiB.
const MAX_TIMEFRAME_ENTRIES: u64 = 4_096;
/// Time in which requests are gathered before their snapshots are made.
const GATHER_TIME: Duration = Duration::from_millis(1);
/// Time after which the next snapshot is made after a pause, so that a path that is requested then
/// waits for little more than this pause.
const WORK_TIME: Duration = Duration::from_millis(5);
/// Making snapshots takes at most one part in this many of the time of a processor.
const WORK_SHARE: u32 = 5;
/// Interval at which samples are taken from the pins pages.
const SAMPLE_PAUSE: Duration = Duration::from_millis(200);
/// Like [`SAMPLE_PAUSE`], while there are no pages: each wake-up of an idle service costs time.
const IDLE_SAMPLE_PAUSE: Duration = Duration::from_secs(1);
/// Largest number of versions of a timeline for which missing links are looked up.
const LOOKED_UP_VERSIONS: usize = 10_000;

/// Publishes timelines, and keeps the pins pages of the sessions that read them.
pub(crate) struct Publisher {
    catalog: Arc<Catalog>,
    residency: Arc<Residency>,
    /// Made with the first session that reads the directory.
    directory: OnceLock<Option<Arc<Directory>>>,
    /// Bytes of shared memory of all snapshots.
    snapshot_bytes: Arc<AtomicU64>,
    state: Mutex<PublisherState>,
}

/// The published state: the pages of sessions, and the series by directory entry.
#[derive(Default)]
struct PublisherState {
    /// The pins pages, by session id.
    pages: HashMap<String, PageEntry>,
    /// Paths and published series, by directory entry.
    published: HashMap<u32, (ObjectPath, Weak<Series>)>,
    /// Look-ups of sessions that have ended.
    ended: LookUpSums,
}

/// The page of a session, and the session's look-ups.
#[derive(Debug, Clone)]
struct PageEntry {
    page: Arc<ServicePage>,
    record: Arc<Mutex<LookUpRecord>>,
}

/// Counts of look-ups that consumers made by themselves, as they report them.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct LookUpSums {
    /// Number answered from shared memory.
    pub hits: u64,
    /// Number not answered, by reason: see [`LookUpSums::REASONS`].
    pub asks: [u64; LookUpSums::REASONS.len()],
}

impl LookUpSums {
    /// The reasons for asking the service.
    pub(crate) const REASONS: [&'static str; AskReason::COUNTED.len()] = AskReason::COUNTED;

    fn add(&mut self, page: &ServicePage) {
        let (hits, asks) = page.counts();
        self.hits = self.hits.saturating_add(hits);
        let sums = self.asks.iter_mut().zip(asks);
        sums.for_each(|(sum, count)| *sum = sum.saturating_add(count));
    }
}

/// The use of look-ups by consumers, and the memory that they take.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct LocalFigures {
    /// Look-ups so far.
    pub look_ups: LookUpSums,
    /// Sessions that can look up.
    pub sessions: u64,
    /// Slots in use: objects that consumers pin by themselves.
    pub slots: u64,
    /// Published paths.
    pub paths: u64,
    /// Bytes of shared memory that their snapshots take.
    pub snapshot_bytes: u64,
    /// Bytes of freed objects that a consumer still pins.
    pub quarantined_bytes: u64,
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher")
            .field("pages", &self.state().pages.len())
            .finish_non_exhaustive()
    }
}

/// The pins page of a session. Dropping it ends its pins.
#[derive(Debug)]
pub(crate) struct SessionPage {
    publisher: Arc<Publisher>,
    session: String,
    page: Arc<ServicePage>,
    record: Arc<Mutex<LookUpRecord>>,
    directory: Arc<Directory>,
}

impl SessionPage {
    /// Calls `look` with the number of look-ups of the session so far, and their versions.
    pub(crate) fn with_record<T>(&self, look: impl FnOnce(u64, &LookUpRecord) -> T) -> T {
        self.publisher.take_samples_of(&self.page, &self.record);
        look(self.page.counts().0, &self.record.lock())
    }

    pub(crate) fn page(&self) -> &ServicePage {
        &self.page
    }

    pub(crate) fn directory(&self) -> &Directory {
        &self.directory
    }
}

impl Drop for SessionPage {
    fn drop(&mut self) {
        {
            let mut state = self.publisher.state();
            state.pages.remove(&self.session);
            state.ended.add(&self.page);
        }
        self.publisher.residency.pool().remove_pins_page(&self.page);
        self.publisher.residency.notify_freed();
    }
}

impl Reclaimable for Publisher {
    fn bytes(&self) -> u64 {
        self.snapshot_bytes.load(Ordering::Relaxed)
    }

    fn reclaim_all(&self) {
        self.take_all_samples();
        self.series().iter().for_each(|(entry, series)| self.end_publication(*entry, series));
    }
}

impl Publisher {
    pub(crate) fn new(catalog: Arc<Catalog>, residency: Arc<Residency>) -> Arc<Self> {
        let publisher = Arc::new(Self {
            catalog,
            residency: Arc::clone(&residency),
            directory: OnceLock::new(),
            snapshot_bytes: Arc::default(),
            state: Mutex::default(),
        });
        let pool = residency.pool();
        pool.set_aside(entries(pool.total_bytes()).bytes());
        let reclaimable: Arc<dyn Reclaimable> = publisher.clone();
        residency.add_reclaimable(Arc::downgrade(&reclaimable));
        publisher
    }

    fn state(&self) -> MutexGuard<'_, PublisherState> {
        self.state.lock()
    }

    /// All published series, with their directory entries.
    fn series(&self) -> Vec<(u32, Arc<Series>)> {
        let mut known: Vec<(u32, Arc<Series>)> = {
            let mut state = self.state();
            state.published.retain(|_, (_, series)| series.strong_count() > 0);
            let there = state.published.iter();
            there.filter_map(|(entry, (_, series))| Some((*entry, series.upgrade()?))).collect()
        };
        // One that was unpublished meanwhile can have another entry by now.
        known.retain(|(entry, series)| series.with_publication(|one| one.entry()) == Some(*entry));
        known
    }

    /// Ends the publication of a series. It is forgotten before its entry becomes free: another
    /// thread may publish another series under the same entry at once.
    fn end_publication(&self, entry: u32, series: &Arc<Series>) {
        {
            let mut state = self.state();
            let known = state.published.get(&entry);
            if known.is_some_and(|(_, known)| std::ptr::eq(known.as_ptr(), Arc::as_ptr(series))) {
                state.published.remove(&entry);
            }
        }
        series.unpublish();
    }

    fn directory(&self) -> Option<&Arc<Directory>> {
        let made = self.directory.get_or_init(|| {
            let pool = self.residency.pool();
            match Directory::new(pool.epoch(), entries(pool.total_bytes())) {
                Ok(directory) => Some(Arc::new(directory)),
                Err(error) => {
                    tracing::warn!(%error, "no directory for consumers that look up by themselves");
                    None
                }
            }
        });
        made.as_ref()
    }

    /// The directory, if a session reads it.
    pub(crate) fn directory_of_readers(&self) -> Option<&Arc<Directory>> {
        if self.pages() == 0 {
            return None;
        }
        self.directory()
    }

    /// A session or a stream has begun to use the name of a consumer: consumers that use it without
    /// a request ask the service again.
    pub(crate) fn note_claim(&self) {
        if let Some(Some(directory)) = self.directory.get() {
            directory.note_claim();
        }
    }

    /// A pins page for a session; `None` if the system provides none: the session then asks the
    /// service.
    pub(crate) fn open_page(
        self: &Arc<Self>,
        session: &str,
        limits: PageLimits,
    ) -> Option<SessionPage> {
        let directory = Arc::clone(self.directory()?);
        let page = match ServicePage::new(limits) {
            Ok(page) => Arc::new(page),
            Err(error) => {
                tracing::warn!(%error, "no pins page for a session");
                return None;
            }
        };
        self.residency.pool().add_pins_page(&page);
        let record: Arc<Mutex<LookUpRecord>> = Arc::default();
        let entry = PageEntry { page: Arc::clone(&page), record: Arc::clone(&record) };
        self.state().pages.insert(session.to_owned(), entry);
        let (publisher, session) = (Arc::clone(self), session.to_owned());
        Some(SessionPage { publisher, session, page, record, directory })
    }

    /// Number of pins pages.
    pub(crate) fn pages(&self) -> usize {
        self.state().pages.len()
    }

    /// Whether a session reads published timelines.
    pub(crate) fn is_read_by(&self, session: &str) -> bool {
        self.state().pages.contains_key(session)
    }

    /// Locations of the snapshots in shared memory.
    pub(crate) fn locations(&self) -> Vec<BlockLocation> {
        let series = self.series().into_iter();
        series.filter_map(|(_, series)| series.with_publication(Publication::location)).collect()
    }

    /// Slots in use by session. A session says this of itself.
    pub(crate) fn slots(&self) -> HashMap<String, u64> {
        let pages: Vec<(String, PageEntry)> = {
            let state = self.state();
            state.pages.iter().map(|(session, entry)| (session.clone(), entry.clone())).collect()
        };
        let slots = |entry: &PageEntry| entry.page.used_slots().count() as u64;
        pages.into_iter().map(|(session, entry)| (session, slots(&entry))).collect()
    }

    /// Faults in pages and sums, each with a name and a sentence. `is_session` tells whether a session
    /// exists.
    pub(crate) fn faults(&self, is_session: impl Fn(&str) -> bool) -> Vec<(&'static str, String)> {
        let (gone, pages) = {
            let state = self.state();
            let gone = state.pages.keys().filter(|session| !is_session(session)).count();
            (gone, state.pages.len())
        };
        let mut faults = Vec::new();
        if gone > 0 {
            faults.push(("pins pages", format!("{gone} pins pages have no session")));
        }
        let listed = self.residency.pool().pins_pages();
        if listed != pages {
            let fault = format!("{listed} pins pages are looked at, and {pages} sessions have one");
            faults.push(("pins pages looked at", fault));
        }
        let charged =
            |(_, series): (u32, Arc<Series>)| series.with_publication(|one| one.charged_bytes());
        let sum: u64 = self.series().into_iter().filter_map(charged).sum();
        if sum != self.bytes() {
            let fault = format!("snapshots take {sum} bytes, {} are counted", self.bytes());
            faults.push(("bytes of snapshots", fault));
        }
        faults
    }

    /// The use of look-ups by consumers.
    pub(crate) fn figures(&self) -> LocalFigures {
        let (pages, mut look_ups) = {
            let state = self.state();
            let pages: Vec<_> = state.pages.values().map(|entry| Arc::clone(&entry.page)).collect();
            (pages, state.ended)
        };
        pages.iter().for_each(|page| look_ups.add(page));
        LocalFigures {
            look_ups,
            sessions: pages.len() as u64,
            slots: pages.iter().map(|page| page.used_slots().count() as u64).sum(),
            paths: self.series().len() as u64,
            snapshot_bytes: self.snapshot_bytes.load(Ordering::Relaxed),
            quarantined_bytes: self.residency.pool().quarantined_bytes(),
        }
    }

    /// Makes the queued snapshots. Runs until it is dropped.
    pub(crate) async fn publish_wanted(self: Arc<Self>) {
        loop {
            self.catalog.to_publish().await;
            tokio::time::sleep(GATHER_TIME).await;
            let publisher = Arc::clone(&self);
            let published = tokio::task::spawn_blocking(move || publisher.publish_some());
            let Ok(work_time) = published.await else { return };
            tokio::time::sleep(work_time * WORK_SHARE).await;
        }
    }

    /// Makes some of the queued snapshots; returns the processor time that it took. Waiting for memory
    /// is no work: the pause after it would be long.
    fn publish_some(&self) -> Duration {
        let began = thread_time();
        let work_time = || thread_time().saturating_sub(began);
        let mut due = self.catalog.take_to_publish().into_iter();
        for (query, series) in due.by_ref() {
            self.publish(&query, &series);
            if work_time() >= WORK_TIME {
                break;
            }
        }
        due.for_each(|(query, series)| self.catalog.add_to_publish(&query, &series));
        work_time()
    }

    /// Makes a snapshot of one timeline and publishes it.
    fn publish(&self, query: &Query, series: &Arc<Series>) {
        let Some(directory) = self.directory() else { return };
        let path = query.path.as_str();
        let timeline = series.timeline();
        let (spans, cells) = spans_in_memory(&timeline, &self.residency);
        if series.with_publication(|one| one.says(&spans)) == Some(true) {
            return self.catalog.defer_publishing(series);
        }
        let size = PublishedSnapshot::size_bytes(cells.len(), path).filter(|_| !cells.is_empty());
        let room = size.filter(|size| self.make_room(*size)).and_then(|size| {
            // Evicts unused objects if necessary: the memory of a service is usually full.
            self.residency.reserve(size).ok()
        });
        let Some(room) = room else {
            self.take_all_samples();
            return series.unpublish();
        };
        let snapshot = PublishedSnapshot::publish(room, path, &cells);
        let snapshot = CountedSnapshot::new(snapshot, &self.snapshot_bytes);
        let draft = Draft { snapshot, timeline, spans: spans.into() };
        let entry = || directory.take(path);
        self.take_all_samples();
        let published = self.catalog.publish(query, series, draft, entry);
        if let PublishOutcome::New { entry } = published {
            let published = (query.path.clone(), Arc::downgrade(series));
            self.state().published.insert(entry, published);
        }
    }

    /// Makes room for a snapshot of `size` bytes in the memory share of snapshots, by unpublishing
    /// the least recently used ones. Returns whether it fits.
    fn make_room(&self, size: u64) -> bool {
        let limit = self.residency.pool().total_bytes() / MEMORY_SHARE;
        if size > limit {
            return false;
        }
        let mut bytes = self.bytes();
        if bytes + size <= limit {
            return true;
        }
        self.take_all_samples();
        let mut all = self.series();
        all.sort_by_key(|(_, series)| series.used());
        for (entry, series) in all {
            if bytes + size <= limit {
                break;
            }
            bytes -= series.with_publication(|one| one.charged_bytes()).unwrap_or(0).min(bytes);
            self.end_publication(entry, &series);
        }
        true
    }

    /// Samples the pins pages for the spans that consumers use. Runs until it is dropped.
    pub(crate) async fn take_samples(self: Arc<Self>) {
        loop {
            let is_idle = self.state().pages.is_empty();
            next_tick(if is_idle { IDLE_SAMPLE_PAUSE } else { SAMPLE_PAUSE }).await;
            for PageEntry { page, record } in self.page_entries() {
                self.take_samples_of(&page, &record);
                page.watched().for_each(|entry| self.watched(entry));
                tokio::task::yield_now().await;
            }
            self.residency.pool().release_kept();
        }
    }

    fn page_entries(&self) -> Vec<PageEntry> {
        self.state().pages.values().cloned().collect()
    }

    /// Takes the samples of all pages, before the spans that they name are replaced.
    fn take_all_samples(&self) {
        for PageEntry { page, record } in self.page_entries() {
            self.take_samples_of(&page, &record);
        }
    }

    fn take_samples_of(&self, page: &ServicePage, record: &Mutex<LookUpRecord>) {
        page.take_samples(|sample| self.used(&sample, &mut record.lock()));
    }

    fn published(&self, entry: u32) -> Option<(ObjectPath, Arc<Series>)> {
        let state = self.state();
        let (path, series) = state.published.get(&entry)?;
        Some((path.clone(), series.upgrade()?))
    }

    /// Handles the report of a consumer that it waits for changes of a path: the path is kept fresh.
    /// The report is untrusted.
    fn watched(&self, entry: u32) {
        if let Some((_, series)) = self.published(entry) {
            self.catalog.used(&series);
        }
    }

    /// Handles the report of a consumer that it used a span of a published timeline. The report is
    /// untrusted.
    fn used(&self, sample: &UseSample, record: &mut LookUpRecord) {
        let Some((path, series)) = self.published(sample.entry) else {
            return record.add_unknown();
        };
        self.catalog.used(&series);
        match series.with_publication(|publication| publication.used(sample)).flatten() {
            None => record.add_unknown(),
            Some((span, resident)) => {
                record.add(&path, span.id, span.interval);
                if let Some(resident) = resident {
                    self.residency.used(&resident);
                }
            }
        }
    }
}

/// Entries of the directory for this much memory.
fn entries(memory_bytes: u64) -> EntryCounts {
    let entries = |most| (memory_bytes / MEMORY_PER_ENTRY).clamp(1, most) as u32;
    EntryCounts { paths: entries(MAX_ENTRIES), timeframes: entries(MAX_TIMEFRAME_ENTRIES) }
}

/// The processor time of this thread.
fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// The spans of a timeline whose objects are in memory.
fn spans_in_memory(
    timeline: &LinkedTimeline,
    residency: &Residency,
) -> (Vec<PublishedSpan>, Vec<SnapshotSpan>) {
    let looks_up = timeline.versions() <= LOOKED_UP_VERSIONS;
    let (mut spans, mut cells) = (Vec::new(), Vec::new());
    for step in timeline.steps(ValidityInterval::ALL) {
        let State::Version(version) = step.state else { continue };
        let resident = match looks_up {
            true => timeline.resident(version, residency),
            false => timeline.linked(version),
        };
        let Some(resident) = resident else { continue };
        let (info, block) = (timeline.version(version), resident.block());
        block.enter_snapshot();
        let header = block.meta_header();
        let interval = step.interval;
        spans.push(PublishedSpan { interval, version, id: info.id, generation: header.hint });
        cells.push(SnapshotSpan {
            from: interval.from().as_millis(),
            until: interval.until().as_millis(),
            validity: (info.validity.from().as_millis(), info.validity.until().as_millis()),
            header,
        });
    }
    (spans, cells)
}
