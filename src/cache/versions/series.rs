//! The timeline of one query, and its publication.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use arc_swap::ArcSwap;

use crate::cache::versions::linked_timeline::LinkedTimeline;
use crate::cache::versions::pace::Pace;
use crate::cache::versions::publication::{Draft, Freshness, Publication, differs};
use crate::clock::Moment;
use crate::index::Timeline;
use crate::interval::ValidityInterval;
use crate::object::ObjectInfo;
use crate::shm::DirectoryEntry;
use crate::sync::{Mutex, MutexGuard};

/// The timeline of one query, and its use.
#[derive(Debug)]
pub(crate) struct Series {
    pub(super) timeline: ArcSwap<LinkedTimeline>,
    pub(super) used: AtomicU64,
    /// When the source reported a change of the path; 0: never. Requests then ask the source.
    pub(super) changed: AtomicU64,
    /// The source reported a change of the path, and is asked in the background.
    pub(super) told: AtomicBool,
    /// The timestamp for which the source was asked last.
    pub(super) asked: AtomicI64,
    pub(super) pace: Arc<Pace>,
    /// Locked while the timeline is replaced.
    published: Mutex<PublishedState>,
    /// Whether the series is queued for a snapshot.
    pub(super) to_publish: AtomicBool,
    /// Earliest time of the next snapshot, in milliseconds of the catalog's clock.
    pub(super) publish_after: AtomicU64,
}

/// The published part of a series.
#[derive(Debug, Default)]
enum PublishedState {
    #[default]
    Nothing,
    Snapshot(Box<Publication>),
    /// The series is forgotten: it is not published any more.
    Closed,
}

impl PublishedState {
    fn publication(&mut self) -> Option<&mut Publication> {
        match self {
            Self::Snapshot(publication) => Some(publication),
            Self::Nothing | Self::Closed => None,
        }
    }
}

impl Series {
    /// A timeline without any known versions.
    pub(super) fn new(used: u64) -> Self {
        Self {
            timeline: ArcSwap::from_pointee(LinkedTimeline::new(Timeline::unknown())),
            used: AtomicU64::new(used),
            changed: AtomicU64::new(0),
            told: AtomicBool::new(false),
            asked: AtomicI64::new(0),
            pace: Arc::default(),
            published: Mutex::default(),
            to_publish: AtomicBool::new(false),
            publish_after: AtomicU64::new(0),
        }
    }

    fn published(&self) -> MutexGuard<'_, PublishedState> {
        self.published.lock()
    }

    /// Adds versions to the timeline. If the publication is not right any more, it is withdrawn;
    /// returns whether it was.
    pub(super) fn learn(
        &self,
        span: ValidityInterval,
        versions: &[Arc<ObjectInfo>],
        learned: Moment,
        freshness: impl FnOnce() -> Freshness,
    ) -> bool {
        let mut published = self.published();
        let known = self.timeline.load();
        let next = Arc::new(known.followed_by(known.learn(span, versions, learned)));
        let Some(publication) = published.publication() else {
            self.timeline.store(next);
            return false;
        };
        let differs = differs(&known, &next, span);
        drop(known);
        let right = publication.is_right_in(&next);
        if !right {
            publication.withdraw();
        }
        self.timeline.store(Arc::clone(&next));
        if right {
            publication.confirm(&next, &freshness());
        }
        if differs {
            // After the next timeline is visible to requests: a woken consumer may send one.
            publication.tell_changed();
        }
        !right
    }

    /// The current timeline.
    pub(crate) fn timeline(&self) -> Arc<LinkedTimeline> {
        self.timeline.load_full()
    }

    /// The publication, if there is one.
    pub(crate) fn with_publication<T>(&self, look: impl FnOnce(&Publication) -> T) -> Option<T> {
        self.published().publication().map(|publication| look(publication))
    }

    /// Publishes a draft, unless it is not right any more. `entry` takes an entry of the directory,
    /// if one is free.
    pub(super) fn publish(
        &self,
        draft: Draft,
        freshness: impl FnOnce() -> Freshness,
        entry: impl FnOnce() -> Option<DirectoryEntry>,
    ) -> PublishOutcome {
        let mut published = self.published();
        let current = self.timeline.load();
        if !Arc::ptr_eq(&current, &draft.timeline) && !draft.is_right_in(&current) {
            return PublishOutcome::Changed;
        }
        match &mut *published {
            PublishedState::Closed => PublishOutcome::Closed,
            PublishedState::Snapshot(publication) => {
                let before = publication.replace(draft, &current, &freshness());
                drop(published);
                // Its memory is freed outside the lock.
                drop(before);
                PublishOutcome::Replaced
            }
            PublishedState::Nothing => {
                let Some(entry) = entry() else { return PublishOutcome::NoEntry };
                let mut publication = Publication::new(entry, draft);
                publication.confirm(&current, &freshness());
                let entry = publication.entry();
                *published = PublishedState::Snapshot(Box::new(publication));
                PublishOutcome::New { entry }
            }
        }
    }

    /// Ends the publication until the next snapshot is made.
    pub(crate) fn unpublish(&self) {
        let mut published = self.published();
        if matches!(&*published, PublishedState::Snapshot(_)) {
            let before = std::mem::take(&mut *published);
            drop(published);
            drop(before);
        }
    }

    /// Withdraws the publication: consumers ask the service until something new is learned.
    pub(super) fn withdraw(&self) {
        if let Some(publication) = self.published().publication() {
            publication.withdraw();
            publication.tell_changed();
        }
    }

    /// Ends the publication for good.
    pub(super) fn close(&self) {
        let published = std::mem::replace(&mut *self.published(), PublishedState::Closed);
        // Its memory is freed outside the lock.
        drop(published);
    }

    /// Spans learned before this moment may have changed.
    pub(super) fn changed(&self) -> Moment {
        Moment::from_millis(self.changed.load(Ordering::Acquire))
    }

    /// The time of the last request.
    pub(crate) fn used(&self) -> Moment {
        Moment::from_millis(self.used.load(Ordering::Relaxed))
    }
}

/// The result of publishing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PublishOutcome {
    /// The first snapshot, under this entry of the directory.
    New {
        /// Number of the entry.
        entry: u32,
    },
    /// The snapshot replaces an earlier one.
    Replaced,
    /// The timeline has changed: the draft must be made again.
    Changed,
    /// The directory has no entry left for the path.
    NoEntry,
    /// The series is forgotten.
    Closed,
}
