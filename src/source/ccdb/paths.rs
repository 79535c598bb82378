//! State of each path: its versions as listed, or that it is asked by time.
//!
//! ```text
//!  nothing ──listed──▶ Listed ──unchanged──▶ Listed, confirmed
//!     │ too many, or in doubt     │ changed: listed again
//!     ▼                           ▼
//!  ByTime ── look-ups by time took as long as a longer listing would ──▶ listed
//! ```
//!
//! Whether a path is worth listing is found by trial: the first listing asks for few versions, each
//! further one for eight times as many, once look-ups by time have taken as long in total as that
//! listing is expected to take.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::listing::{SPARE_BYTES_PER_CHECK, Traces};
use crate::object::ObjectInfo;
use crate::sync::{Mutex, MutexGuard};

/// Maximum number of versions in the first listing of a path.
pub(super) const FIRST_LISTING: usize = 256;
/// Growth of that number for each further listing.
const GROWTH: usize = 8;
/// A further listing is expected to take this many times as long as the last one, but at least
/// [`SHORTEST_LISTING`]: servers search a whole path, so most of the time is spent in any case.
const LONGER: u32 = 2;
const SHORTEST_LISTING: Duration = Duration::from_millis(200);
/// Bytes per entry in a listing of few fields, without metadata.
const BYTES_PER_ENTRY: u64 = 60;
/// Bytes per entry in a whole listing, without metadata.
const BYTES_PER_LISTED_VERSION: u64 = 700;
/// All versions are compared at least this often per recheck time, independent of the cost.
const COMPARISONS_PER_RECHECK: u32 = 3;
/// The path is listed again at least once per this number of recheck times: only a whole listing
/// shows metadata with a new key at an older version of an SQL-backed server.
const RECHECKS_PER_LISTING: u32 = 3;

/// A path that is listed whole.
#[derive(Debug)]
pub(super) struct ListedPath {
    /// In order of (`from`, id).
    pub(super) versions: Vec<Arc<ObjectInfo>>,
    /// Number of entries in the listing.
    pub(super) entries: usize,
    pub(super) traces: Traces,
}

/// A path that is asked by time.
#[derive(Debug, Default)]
pub(super) struct ByTime {
    /// Spelling of metadata keys by their lower case; see
    /// [`PathListing::spelling`](super::listing::PathListing::spelling).
    pub(super) spelling: HashMap<String, Option<String>>,
    /// Limit of the next listing, and the time of look-ups after which it is tried.
    next: Option<(usize, Duration)>,
    spent_micros: AtomicU64,
    /// Time at which a listing is tried again in any case.
    until: Option<Instant>,
    /// Listings of single versions do not work either.
    pub(super) never_listed: bool,
    /// Its listing is reliable, and only too long to be kept.
    pub(super) is_too_long: bool,
}

impl ByTime {
    /// For a path with more than `limit` versions, whose listing took `took`.
    pub(super) fn too_many(
        spelling: HashMap<String, Option<String>>,
        limit: usize,
        took: Duration,
        longest: usize,
        pause: Duration,
    ) -> Self {
        let next = limit.saturating_mul(GROWTH).min(longest);
        let cost = took.saturating_mul(LONGER).max(SHORTEST_LISTING);
        Self {
            spelling,
            next: (next > limit).then_some((next, cost)),
            until: Instant::now().checked_add(pause),
            is_too_long: true,
            ..Self::default()
        }
    }

    /// For a path whose listing is not reliable.
    pub(super) fn in_doubt(spelling: HashMap<String, Option<String>>, pause: Duration) -> Self {
        Self { spelling, until: Instant::now().checked_add(pause), ..Self::default() }
    }

    /// For a path that cannot be listed.
    pub(super) fn without_listing(pause: Option<Duration>) -> Self {
        let until = pause.and_then(|pause| Instant::now().checked_add(pause));
        Self { until, never_listed: true, ..Self::default() }
    }

    /// Records the duration of a look-up by time.
    pub(super) fn spend(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.spent_micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// Whether a longer listing has not been tried yet.
    pub(super) fn may_be_listed(&self) -> bool {
        self.next.is_some()
    }

    /// Limit of the listing that is due now; `None` if none is due.
    pub(super) fn due(&self) -> Option<usize> {
        let spent = Duration::from_micros(self.spent_micros.load(Ordering::Relaxed));
        let is_over = self.until.is_some_and(|until| Instant::now() >= until);
        match self.next {
            Some((limit, cost)) if spent >= cost => Some(limit),
            _ => is_over.then_some(FIRST_LISTING),
        }
    }
}

#[derive(Debug, Clone, Default)]
pub(super) enum KnownPath {
    #[default]
    Nothing,
    Listed(Arc<ListedPath>),
    ByTime(Arc<ByTime>),
}

/// State of a path.
#[derive(Debug, Default)]
pub(super) struct PathMemory {
    /// Held by the one look-up that requests the listing.
    pub(super) asking: tokio::sync::Mutex<()>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    state: KnownPath,
    /// Time of the last listing, or of the last check without changes.
    confirmed: Option<Instant>,
    /// Time of the last comparison of all versions.
    compared: Option<Instant>,
    /// Number of checks since then.
    checks: u64,
    /// Time of the last listing.
    listed: Option<Instant>,
    /// Answers requested before this time no longer count.
    doubted: Option<Instant>,
}

impl Inner {
    /// The time of an answer requested at `asked`, if it counts.
    fn counts(&self, asked: Instant) -> Option<Instant> {
        self.doubted.is_none_or(|doubted| doubted < asked).then_some(asked)
    }
}

/// Kind of check for changes of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ChangeCheck {
    /// Compare the newest version, and look for newer ones.
    Newest,
    /// Compare every version.
    All,
    /// List the path again.
    Whole,
}

impl PathMemory {
    pub(super) fn state(&self) -> KnownPath {
        self.inner().state.clone()
    }

    /// The state that can be used without a request: a listing confirmed within `window`, or a path
    /// that is not to be listed now.
    pub(super) fn usable(&self, window: Duration) -> Option<KnownPath> {
        let inner = self.inner();
        let usable = match &inner.state {
            KnownPath::Nothing => false,
            KnownPath::Listed(_) => inner.confirmed.is_some_and(|at| at.elapsed() < window),
            KnownPath::ByTime(by_time) => by_time.due().is_none(),
        };
        usable.then(|| inner.state.clone())
    }

    /// The check that a listing needs.
    pub(super) fn check(&self, listed: &ListedPath, recheck: Duration) -> ChangeCheck {
        let inner = self.inner();
        let is_over = |since: Option<Instant>, pause: Duration| {
            since.is_none_or(|since| since.elapsed() >= pause)
        };
        if is_over(inner.listed, recheck.saturating_mul(RECHECKS_PER_LISTING)) {
            return ChangeCheck::Whole;
        }
        let traces = &listed.traces;
        let (comparison, bytes) = match traces.replaces_keys && !traces.has_changes {
            true => (ChangeCheck::Whole, listed.entries as u64 * BYTES_PER_LISTED_VERSION),
            false => {
                // A comparison of all versions includes the newest one.
                let others = (listed.entries as u64).saturating_sub(1);
                (ChangeCheck::All, others * BYTES_PER_ENTRY)
            }
        };
        let bytes = bytes + traces.metadata_bytes;
        let is_paid = (inner.checks + 1) * SPARE_BYTES_PER_CHECK >= bytes;
        let is_old = is_over(inner.compared, recheck / COMPARISONS_PER_RECHECK);
        // Servers ignore a limit that is not positive.
        let can_limit = listed.traces.newest.is_none_or(|newest| newest > 0);
        if is_paid || is_old || !can_limit { comparison } else { ChangeCheck::Newest }
    }

    /// Records that a check, requested at `asked`, found no change.
    pub(super) fn confirm(&self, check: ChangeCheck, asked: Instant) {
        let mut inner = self.inner();
        inner.confirmed = inner.counts(asked);
        match check {
            ChangeCheck::Newest => inner.checks += 1,
            ChangeCheck::All | ChangeCheck::Whole => {
                (inner.checks, inner.compared) = (0, inner.confirmed);
            }
        }
    }

    /// Sets a state that was requested at `asked`.
    pub(super) fn set(&self, state: KnownPath, asked: Instant) {
        let mut inner = self.inner();
        inner.state = state;
        inner.confirmed = inner.counts(asked);
        (inner.compared, inner.checks) = (inner.confirmed, 0);
        inner.listed = inner.confirmed;
    }

    /// Makes the next look-up ask the server.
    pub(super) fn doubt(&self) {
        let mut inner = self.inner();
        (inner.confirmed, inner.compared, inner.listed) = (None, None, None);
        inner.doubted = Some(Instant::now());
    }

    /// Number of remembered versions, for the bound on memory.
    pub(super) fn weight(&self) -> u32 {
        let versions = match &self.inner().state {
            KnownPath::Listed(listed) => listed.versions.len(),
            KnownPath::Nothing | KnownPath::ByTime(_) => 0,
        };
        u32::try_from(versions).unwrap_or(u32::MAX).saturating_add(8)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // No critical section leaves this half-changed on a panic.
        self.inner.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_longer_listing_is_tried_once_look_ups_by_time_cost_as_much() {
        let took = Duration::from_millis(300);
        let pause = Duration::from_secs(60);
        let by_time = ByTime::too_many(HashMap::new(), 256, took, 100_000, pause);
        by_time.spend(Duration::from_millis(599));
        assert_eq!(by_time.due(), None);
        by_time.spend(Duration::from_millis(1));
        assert_eq!(by_time.due(), Some(2048));
        let last = ByTime::too_many(HashMap::new(), 2048, took, 2048, pause);
        last.spend(Duration::from_secs(1000));
        assert_eq!(last.due(), None);
    }

    #[test]
    fn a_whole_comparison_is_paid_for_by_checks_that_found_nothing() {
        let memory = PathMemory::default();
        let traces = Traces { newest: Some(7), ..Traces::default() };
        let listed = Arc::new(ListedPath { versions: Vec::new(), entries: 10, traces });
        let now = Instant::now();
        memory.set(KnownPath::Listed(Arc::clone(&listed)), now);
        let longest = Duration::from_secs(600);
        let mut checks = 0;
        while memory.check(&listed, longest) == ChangeCheck::Newest {
            memory.confirm(ChangeCheck::Newest, now);
            checks += 1;
        }
        assert_eq!(checks, (9 * BYTES_PER_ENTRY).div_ceil(SPARE_BYTES_PER_CHECK) - 1);
        memory.confirm(ChangeCheck::All, now);
        assert_eq!(memory.check(&listed, longest), ChangeCheck::Newest);
        assert_eq!(memory.check(&listed, Duration::ZERO), ChangeCheck::Whole);
    }

    #[test]
    fn comparisons_and_listings_are_due_at_fixed_times_too() {
        let memory = PathMemory::default();
        let traces = Traces { newest: Some(7), ..Traces::default() };
        let listed = Arc::new(ListedPath { versions: Vec::new(), entries: 9_000, traces });
        let (now, recheck) = (Instant::now(), Duration::from_secs(1_000));
        for (seconds, check) in
            [(0, ChangeCheck::Newest), (334, ChangeCheck::All), (3_001, ChangeCheck::Whole)]
        {
            let Some(past) = now.checked_sub(Duration::from_secs(seconds)) else { continue };
            memory.set(KnownPath::Listed(Arc::clone(&listed)), past);
            assert_eq!(memory.check(&listed, recheck), check, "{seconds}");
        }
        // One version: every check compares it.
        let one = ListedPath { versions: Vec::new(), entries: 1, traces: Traces::default() };
        assert_eq!(memory.check(&one, Duration::MAX), ChangeCheck::All);
    }

    #[test]
    fn a_listing_is_used_within_its_window_and_not_after_a_doubt() {
        let memory = PathMemory::default();
        let listed = ListedPath { versions: Vec::new(), entries: 0, traces: Traces::default() };
        memory.set(KnownPath::Listed(Arc::new(listed)), Instant::now());
        assert!(memory.usable(Duration::from_secs(60)).is_some());
        assert!(memory.usable(Duration::ZERO).is_none());
        memory.doubt();
        assert!(memory.usable(Duration::from_secs(60)).is_none());
    }
}
