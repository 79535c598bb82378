//! The lock of a request: selects among the versions that the source describes.
//!
//! ```text
//!  entries ──by path──▶ listing of the path ──by id──▶ the source's descriptions
//!                                                         │ of each column
//!                                                         ▼
//!                                                      timeline of the selected versions only
//! ```
//!
//! Where several sources serve a path, the first one with a valid version decides, here as in every
//! look-up.

use std::collections::{BTreeMap, HashMap, HashSet};
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
use crate::source::{ClaimError, in_place, select};
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

/// Versions of one path, as described by the source, each with the place of its source.
type LockedVersions = HashMap<ObjectId, (Arc<ObjectInfo>, usize)>;

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
                    let timeline = Arc::new(timeline_of(versions));
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
        let selected = select(&**source, path, claims, listed, limits).await?;
        let versions: Vec<Arc<ObjectInfo>> = selected.into_values().collect();
        let places = match source.decides_by_creation(path) || !overlap(&versions) {
            true => vec![0; versions.len()],
            false => {
                let places = source.places(path, &versions).await;
                places.map_err(|error| ClaimError::Source { path: path.clone(), error })?
            }
        };
        let placed = versions.into_iter().zip(places);
        Ok(placed.map(|(version, place)| (version.id, (version, place))).collect())
    }
}

/// The parts of time in which any of the versions is valid, in ascending order, each with the
/// versions that begin in it. The versions are in the order of their beginnings.
fn covered(versions: &[Arc<ObjectInfo>]) -> Vec<(ValidityInterval, &[Arc<ObjectInfo>])> {
    let mut parts = Vec::new();
    let mut begin = 0;
    while let Some(first) = versions.get(begin) {
        let (mut span, mut end) = (first.validity, begin + 1);
        while let Some(next) = versions.get(end).map(|next| next.validity)
            && next.from() < span.until()
        {
            let until = span.until().max(next.until());
            span = ValidityInterval::new(span.from(), until).unwrap_or(span);
            end += 1;
        }
        parts.push((span, &versions[begin..end]));
        begin = end;
    }
    parts
}

/// Whether two of the versions are valid at one time.
fn overlap(versions: &[Arc<ObjectInfo>]) -> bool {
    let mut sorted = versions.to_vec();
    sorted.sort_unstable_by_key(|version| version.validity.from());
    covered(&sorted).len() < versions.len()
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

/// The timeline of versions, each with the place of its source.
fn timeline_of<'a>(versions: impl Iterator<Item = &'a (Arc<ObjectInfo>, usize)>) -> LinkedTimeline {
    let mut by_place: BTreeMap<usize, Vec<Arc<ObjectInfo>>> = BTreeMap::new();
    for (version, place) in versions {
        by_place.entry(*place).or_default().push(Arc::clone(version));
    }
    let count: usize = by_place.values().map(Vec::len).sum();
    let learn = || {
        let learn = |timeline: Timeline, span, versions: &[_]| {
            timeline.learn(span, versions, Moment::default())
        };
        let mut groups = by_place.into_values().rev();
        let last = groups.next().unwrap_or_default();
        let timeline = learn(Timeline::unknown(), ValidityInterval::ALL, &last);
        // Each source hides the ones behind it wherever it has a valid version.
        groups.fold(timeline, |timeline, mut versions| {
            versions.sort_unstable_by_key(|version| version.validity.from());
            let parts = covered(&versions).into_iter();
            parts.fold(timeline, |timeline, (span, part)| learn(timeline, span, part))
        })
    };
    LinkedTimeline::new(if count < MANY_VERSIONS { learn() } else { in_place(learn) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::interval::Timestamp;

    proptest! {
        #[test]
        fn the_first_source_with_a_valid_version_decides_and_of_its_versions_the_latest(
            versions in proptest::collection::vec((0..3_usize, 0..40_i64, 1..20_i64, 0..9_i64), 0..20),
        ) {
            let millis = Timestamp::from_millis;
            let path = ObjectPath::new("A/B").unwrap();
            let versions: Vec<(Arc<ObjectInfo>, usize)> = versions
                .into_iter()
                .enumerate()
                .map(|(n, (place, from, length, created))| {
                    let info = ObjectInfo {
                        path: path.clone(),
                        id: ObjectId::from_bytes([n as u8; 16]),
                        validity: ValidityInterval::new(millis(from), millis(from + length)).unwrap(),
                        created: millis(created),
                        size_bytes: None,
                        md5: None,
                        metadata: Default::default(),
                    };
                    (Arc::new(info), place)
                })
                .collect();
            let timeline = timeline_of(versions.iter());
            for at in -1..61 {
                let valid = versions.iter().filter(|(v, _)| v.validity.contains(millis(at)));
                let winner = valid.max_by_key(|(v, place)| (std::cmp::Reverse(*place), v.rank()));
                let found = timeline.version_at(millis(at)).map(|version| version.id);
                prop_assert_eq!(found, winner.map(|(version, _)| version.id), "{}", at);
            }
        }
    }
}
