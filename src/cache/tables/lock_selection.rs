//! The lock of a request: it selects among the versions that the source describes.
//!
//! ```text
//!  entries ──by path──▶ listing of the path ──by id──▶ the source's descriptions
//!                                                         │ of each column
//!                                                         ▼
//!                                                      timeline, of the selected versions alone
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
use crate::cache::yielder::Turns;
use crate::clock::Moment;
use crate::index::Timeline;
use crate::interval::ValidityInterval;
use crate::object::{CreationLimits, ObjectId, ObjectInfo, ObjectPath, VersionClaim};
use crate::source::{in_place, select};
use crate::table::{ColumnRequest, LockEntry, RequestError};

/// Paths whose versions are looked up at the same time.
const PARALLEL: usize = 16;
/// What a version selected for one column takes: its place in the timeline, and a step or two.
const VERSION_BYTES: u64 = 128;
/// From this number of versions on a timeline is built without keeping others from the thread.
const MANY_VERSIONS: usize = 4_096;

/// The entries of one path.
#[derive(Debug, Default)]
struct OfPath<'a> {
    claims: Vec<VersionClaim>,
    /// By column: the ids of entries that name it; `None`: of those that name none.
    by_column: HashMap<Option<&'a str>, Vec<ObjectId>>,
}

/// Versions of one path, as the source describes them.
type Told = HashMap<ObjectId, Arc<ObjectInfo>>;

impl ObjectIndex {
    /// What is known of each column where only the versions of `lock` are there, each for its own
    /// interval.
    ///
    /// # Errors
    /// [`CacheError::Claim`] for an entry that the source does not bear out.
    pub(crate) async fn locked(
        &self,
        lock: &[LockEntry],
        columns: &[ColumnRequest],
        limits: CreationLimits,
        budget: &ClientBudget,
        deadline: Instant,
    ) -> Result<Vec<KnownTimeline>, CacheError> {
        let what = "the source to tell the versions of a lock";
        by_deadline(what, deadline, self.select(lock, columns, limits, budget)).await
    }

    async fn select(
        &self,
        lock: &[LockEntry],
        columns: &[ColumnRequest],
        limits: CreationLimits,
        budget: &ClientBudget,
    ) -> Result<Vec<KnownTimeline>, CacheError> {
        let mut turns = Turns::new();
        let mut charge = budget.charge(0, "lock of a request")?;
        let by_path = by_path(lock, columns, &mut turns).await?;
        let paths: Vec<_> = by_path.iter().collect();
        let mut told: HashMap<&ObjectPath, Told> = HashMap::new();
        for paths in paths.chunks(PARALLEL) {
            let asked = paths.iter().map(async |(path, entries)| {
                let versions = self.vouched(path, &entries.claims, limits).await?;
                Ok::<_, CacheError>((**path, versions))
            });
            told.extend(try_join_all(asked).await?);
        }
        let mut known = Vec::with_capacity(columns.len());
        // Columns of one path without entries of their own share a timeline.
        let mut shared: HashMap<&ObjectPath, Arc<LinkedTimeline>> = HashMap::new();
        for column in columns {
            let entries = by_path.get(&column.path);
            let ids = |name| entries.and_then(|entries| entries.by_column.get(&name));
            let own = ids(Some(&*column.name));
            let timeline = match shared.get(&column.path) {
                Some(timeline) if own.is_none() => Arc::clone(timeline),
                _ => {
                    let ids = own.into_iter().chain(ids(None)).flatten();
                    let mut seen = HashSet::new();
                    let ids: Vec<ObjectId> = ids.copied().filter(|id| seen.insert(*id)).collect();
                    turns.take(ids.len()).await;
                    charge.grow(ids.len() as u64 * VERSION_BYTES)?;
                    let told = told.get(&column.path);
                    let versions = ids.iter().filter_map(|id| told?.get(id));
                    let versions: Vec<Arc<ObjectInfo>> = versions.map(Arc::clone).collect();
                    let timeline = Arc::new(timeline_of(&versions));
                    if own.is_none() {
                        shared.insert(&column.path, Arc::clone(&timeline));
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

    /// The versions of `path` that are claimed, as the source describes them.
    async fn vouched(
        &self,
        path: &ObjectPath,
        claims: &[VersionClaim],
        limits: CreationLimits,
    ) -> Result<Told, CacheError> {
        let listed = self.listing(path).await?;
        let Versions { versions, whole } = &listed.versions;
        let listed = whole.then_some(&versions[..]);
        let source = self.catalog().source();
        Ok(select(&**source, path, claims, listed, limits).await?)
    }
}

/// The entries of those paths that columns ask for.
async fn by_path<'a>(
    lock: &'a [LockEntry],
    columns: &'a [ColumnRequest],
    turns: &mut Turns,
) -> Result<HashMap<&'a ObjectPath, OfPath<'a>>, CacheError> {
    let mut by_path: HashMap<&ObjectPath, OfPath<'_>> = HashMap::new();
    for column in columns {
        by_path.entry(&column.path).or_default();
        turns.take(1).await;
    }
    let names: HashSet<&str> = columns.iter().map(|column| &*column.name).collect();
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
    }
    by_path.retain(|_, entries| !entries.claims.is_empty());
    Ok(by_path)
}

fn timeline_of(versions: &[Arc<ObjectInfo>]) -> LinkedTimeline {
    let learn = || Timeline::unknown().learn(ValidityInterval::ALL, versions, Moment::default());
    LinkedTimeline::new(if versions.len() < MANY_VERSIONS { learn() } else { in_place(learn) })
}
