//! The lock of a request: selects among the versions that the source describes.
//!
//! ```text
//!  entries ──by path──▶ listing of the path ──by id──▶ the source's descriptions
//!                                                         │ of each column
//!                                                         ▼
//!                                                      timeline of the selected versions only
//! ```

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures::future::try_join_all;
use tokio::time::Instant;

use crate::budget::ClientBudget;
use crate::cache::deadline::by_deadline;
use crate::cache::error::CacheError;
use crate::cache::versions::catalog::KnownTimeline;
use crate::cache::versions::linked_timeline::LinkedTimeline;
use crate::cache::versions::object_index::{ObjectIndex, Versions};
use crate::cache::yielder::WorkClock;
use crate::clock::Moment;
use crate::index::Timeline;
use crate::interval::ValidityInterval;
use crate::object::{CreationLimits, ObjectId, ObjectInfo, ObjectPath, VersionClaim};
use crate::source::{in_place, select};
use crate::table::{LockEntry, RequestError};

/// Number of paths listed in parallel.
const PARALLEL: usize = 16;
/// Memory per version selected for one column: its entry in the timeline, and one or two steps.
const VERSION_BYTES: u64 = 128;
/// From this number of versions on, a timeline is built without blocking other tasks of the thread.
const MANY_VERSIONS: usize = 4_096;

/// The entries of one path.
#[derive(Debug, Default)]
struct PathEntries<'a> {
    claims: Vec<VersionClaim>,
    /// The ids by column name; `None`: entries without a column name.
    by_column: HashMap<Option<&'a str>, Vec<ObjectId>>,
    /// The ids by column name and value of the key; `None`: entries without a value.
    by_key: HashMap<(Option<&'a str>, Option<&'a str>), Vec<ObjectId>>,
}

impl<'a> PathEntries<'a> {
    fn of(&self, column: Option<&'a str>, target: &LockTarget<'a>) -> Vec<&Vec<ObjectId>> {
        match target.key {
            None => self.by_column.get(&column).into_iter().collect(),
            Some(key) => {
                let keys = [Some(key), None];
                keys.iter().filter_map(|key| self.by_key.get(&(column, *key))).collect()
            }
        }
    }

    /// The ids of the entries for a target, and whether any of them names its column.
    fn ids(&self, target: &LockTarget<'a>) -> (Vec<ObjectId>, bool) {
        let (own, others) = (self.of(Some(target.column), target), self.of(None, target));
        let mut seen = HashSet::new();
        let ids = own.iter().chain(&others).flat_map(|ids| ids.iter().copied());
        (ids.filter(|id| seen.insert(*id)).collect(), !own.is_empty())
    }
}

/// The target for which a lock selects versions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LockTarget<'a> {
    pub(crate) column: &'a str,
    pub(crate) path: &'a ObjectPath,
    /// The value of the key, if the target is only for that value: entries with another value are
    /// ignored.
    pub(crate) key: Option<&'a str>,
}

/// Versions of one path, as described by the source.
type LockedVersions = HashMap<ObjectId, Arc<ObjectInfo>>;

impl ObjectIndex {
    /// The timeline of each column with only the versions of `lock`, each for its own interval.
    ///
    /// # Errors
    /// [`CacheError::Claim`] for an entry that contradicts the source.
    pub(crate) async fn locked(
        &self,
        lock: &[LockEntry],
        targets: &[LockTarget<'_>],
        limits: CreationLimits,
        budget: &ClientBudget,
        deadline: Instant,
    ) -> Result<Vec<KnownTimeline>, CacheError> {
        let what = "the look-up of the versions of a lock at the source";
        by_deadline(what, deadline, self.select(lock, targets, limits, budget)).await
    }

    async fn select(
        &self,
        lock: &[LockEntry],
        targets: &[LockTarget<'_>],
        limits: CreationLimits,
        budget: &ClientBudget,
    ) -> Result<Vec<KnownTimeline>, CacheError> {
        let mut turns = WorkClock::new();
        let mut charge = budget.charge(0, "lock of a request")?;
        let by_path = by_path(lock, targets, &mut turns).await?;
        let paths: Vec<_> = by_path.iter().collect();
        let mut told: HashMap<&ObjectPath, LockedVersions> = HashMap::new();
        for paths in paths.chunks(PARALLEL) {
            let asked = paths.iter().map(async |(path, entries)| {
                let versions = self.vouched(path, &entries.claims, limits).await?;
                Ok::<_, CacheError>((**path, versions))
            });
            told.extend(try_join_all(asked).await?);
        }
        let mut known = Vec::with_capacity(targets.len());
        // Targets of one path without entries of their own share a timeline.
        let mut shared: HashMap<&ObjectPath, Arc<LinkedTimeline>> = HashMap::new();
        for target in targets {
            let ids = by_path.get(target.path).map(|entries| entries.ids(target));
            let (ids, own) = ids.unwrap_or_default();
            let is_shared = !own && target.key.is_none();
            let timeline = match shared.get(target.path).filter(|_| is_shared) {
                Some(timeline) => Arc::clone(timeline),
                None => {
                    turns.take(ids.len()).await;
                    charge.grow(ids.len() as u64 * VERSION_BYTES)?;
                    let told = told.get(target.path);
                    let versions = ids.iter().filter_map(|id| told?.get(id));
                    let versions: Vec<Arc<ObjectInfo>> = versions.map(Arc::clone).collect();
                    let timeline = Arc::new(timeline_of(&versions));
                    if is_shared {
                        shared.insert(target.path, Arc::clone(&timeline));
                    }
                    timeline
                }
            };
            turns.take(1).await;
            known.push(KnownTimeline { timeline, stale: false, pace: None, charge: None });
        }
        let charge = Arc::new(charge);
        known.iter_mut().for_each(|known| known.charge = Some(Arc::clone(&charge)));
        Ok(known)
    }

    /// The claimed versions of `path`, as described by the source.
    async fn vouched(
        &self,
        path: &ObjectPath,
        claims: &[VersionClaim],
        limits: CreationLimits,
    ) -> Result<LockedVersions, CacheError> {
        let listed = self.listing(path).await?;
        let Versions { versions, whole } = &listed.versions;
        let listed = whole.then_some(&versions[..]);
        let source = self.catalog().source();
        Ok(select(&**source, path, claims, listed, limits).await?)
    }
}

/// The entries of the requested paths.
async fn by_path<'a>(
    lock: &'a [LockEntry],
    targets: &'a [LockTarget<'a>],
    turns: &mut WorkClock,
) -> Result<HashMap<&'a ObjectPath, PathEntries<'a>>, CacheError> {
    let mut by_path: HashMap<&ObjectPath, PathEntries<'_>> = HashMap::new();
    for target in targets {
        by_path.entry(target.path).or_default();
        turns.take(1).await;
    }
    let names: HashSet<&str> = targets.iter().map(|target| target.column).collect();
    for entry in lock {
        turns.take(1).await;
        let Some(of_path) = by_path.get_mut(&entry.path) else { continue };
        let column = entry.column.as_deref();
        if column.is_some_and(|name| !names.contains(name)) {
            continue;
        }
        let claim = entry.claim().map_err(|error| RequestError::Field {
            field: "lock",
            reason: format!("{} {}: {error}", entry.path, entry.object_id),
        })?;
        of_path.claims.push(claim);
        of_path.by_column.entry(column).or_default().push(claim.id);
        of_path.by_key.entry((column, entry.key.as_deref())).or_default().push(claim.id);
    }
    by_path.retain(|_, entries| !entries.claims.is_empty());
    Ok(by_path)
}

fn timeline_of(versions: &[Arc<ObjectInfo>]) -> LinkedTimeline {
    let learn = || Timeline::unknown().learn(ValidityInterval::ALL, versions, Moment::default());
    LinkedTimeline::new(if versions.len() < MANY_VERSIONS { learn() } else { in_place(learn) })
}
