//! A timeline with links from its versions to their objects in memory.
//!
//! ```text
//!  Timeline: version n ──▶ ObjectInfo
//!                     └──▶ link n ──▶ Resident     (LinkedTimeline: both together)
//!                             │ no link, or the object is gone
//!                             └──▶ map by id ──▶ Resident, and the link is set
//! ```
//!
//! Pinning a table of thousands of distinct objects is limited by memory latency. With links they
//! are pinned without access to the map, to the versions or to each other: a link is set when its
//! version was found to have the content of the object, and neither changes afterwards.

use std::ops::Deref;
use std::sync::{Arc, Weak};

use crate::cache::memory::object::{Resident, VersionMatch};
use crate::cache::memory::pin_request::{PinOutcome, PinRequest};
use crate::cache::memory::residency::{Pinning, Residency};
use crate::index::Timeline;
use crate::object::{ObjectId, ObjectInfo};
use crate::shm::{AHEAD, prefetch};
use crate::sync::RwLock;

/// Number of consecutive versions whose links share one lock.
const LINKS_PER_PAGE: usize = 128;
/// Number of links of the smallest page.
const FEW_LINKS: usize = 4;

/// A timeline, with links to the objects of its versions.
#[derive(Debug)]
pub(crate) struct LinkedTimeline {
    timeline: Timeline,
    links: Arc<LinkPages>,
}

impl LinkedTimeline {
    pub(crate) fn new(timeline: Timeline) -> Self {
        let links = Arc::new(LinkPages::of(timeline.versions()));
        Self { timeline, links }
    }

    /// A successor of this one: versions known here keep their links.
    pub(crate) fn followed_by(&self, timeline: Timeline) -> Self {
        let links = match timeline.has_versions_of(&self.timeline) {
            true if timeline.versions() <= self.links.0.len() * LINKS_PER_PAGE => {
                Arc::clone(&self.links)
            }
            true => Arc::new(self.links.grown(timeline.versions())),
            false => return Self::new(timeline),
        };
        Self { timeline, links }
    }

    /// The object of a version, if it was found in memory before and is still there.
    pub(crate) fn linked(&self, version: u32) -> Option<Arc<Resident>> {
        let index = version as usize;
        let page = self.links.0.get(index / LINKS_PER_PAGE)?.read();
        let resident = page.get(index % LINKS_PER_PAGE).and_then(Weak::upgrade);
        resident.filter(|resident| !resident.is_condemned())
    }

    /// The object of a version, if it is in memory and has the content that the source describes.
    /// Counts no use.
    pub(crate) fn resident(&self, version: u32, residency: &Residency) -> Option<Arc<Resident>> {
        self.linked(version).or_else(|| {
            let resident = residency.find(self.id(version))?;
            (resident.match_of(self.version(version)) == VersionMatch::Same).then_some(resident)
        })
    }

    /// Removes links to objects that are gone, each of which keeps some of their memory allocated.
    pub(crate) fn sweep(&self) {
        for page in &self.links.0 {
            let has_gone =
                |link: &Weak<Resident>| !link.ptr_eq(&Weak::new()) && link.strong_count() == 0;
            if page.read().iter().any(has_gone) {
                let mut page = page.write();
                page.iter_mut().filter(|link| has_gone(link)).for_each(|link| *link = Weak::new());
            }
        }
    }
}

impl Deref for LinkedTimeline {
    type Target = Timeline;

    fn deref(&self) -> &Timeline {
        &self.timeline
    }
}

/// Links by version of a timeline.
#[derive(Debug)]
struct LinkPages(Box<[Arc<RwLock<LinkPage>>]>);

/// Links of at most [`LINKS_PER_PAGE`] versions; it grows with the highest one that is set.
type LinkPage = Box<[Weak<Resident>]>;

impl LinkPages {
    fn of(versions: usize) -> Self {
        Self((0..versions.div_ceil(LINKS_PER_PAGE)).map(|_| Arc::default()).collect())
    }

    /// These links, with room for `versions`.
    fn grown(&self, versions: usize) -> Self {
        let known = self.0.iter().map(Arc::clone);
        let room = versions.div_ceil(LINKS_PER_PAGE).saturating_sub(self.0.len());
        Self(known.chain((0..room).map(|_| Arc::default())).collect())
    }

    fn set(&self, index: usize, link: Weak<Resident>) {
        let mut page = self.0[index / LINKS_PER_PAGE].write();
        let place = index % LINKS_PER_PAGE;
        if place >= page.len() {
            let length = (place + 1).next_power_of_two().max(FEW_LINKS);
            let known = std::mem::take(&mut *page).into_iter();
            *page = known.chain(std::iter::repeat_with(Weak::new)).take(length).collect();
        }
        page[place] = link;
    }
}

/// Versions of timelines, each id once; cells refer to them by number.
#[derive(Debug, Default)]
pub(crate) struct VersionSet {
    timelines: Vec<Arc<LinkedTimeline>>,
    /// By number: the timeline, and its index there.
    places: Vec<(u32, u32)>,
}

impl VersionSet {
    pub(crate) fn new(timelines: Vec<Arc<LinkedTimeline>>, places: Vec<(u32, u32)>) -> Self {
        Self { timelines, places }
    }

    /// The descriptions of all versions.
    pub(crate) fn infos(&self) -> impl Iterator<Item = &Arc<ObjectInfo>> {
        (0..self.len()).map(|number| self.info(number))
    }

    fn of(&self, number: usize) -> (&LinkedTimeline, u32) {
        let (timeline, index) = self.places[number];
        (&self.timelines[timeline as usize], index)
    }

    /// Pins by links, and returns the numbers of versions without one. Holds the lock of a page
    /// while it reads from it.
    fn pin_linked(
        &self,
        pinning: &mut Pinning<'_>,
        numbers: impl Iterator<Item = usize>,
        found: &mut impl FnMut(usize, PinOutcome),
    ) -> Vec<usize> {
        let mut unlinked = Vec::new();
        let mut at = (u32::MAX, usize::MAX);
        let mut page = None;
        for number in numbers {
            let (timeline, index) = self.places[number];
            let index = index as usize;
            if at != (timeline, index / LINKS_PER_PAGE) {
                at = (timeline, index / LINKS_PER_PAGE);
                // One lock at a time.
                drop(page.take());
                page =
                    Some(self.timelines[timeline as usize].links.0[index / LINKS_PER_PAGE].read());
            }
            let links: &[Weak<Resident>] = page.as_ref().map_or(&[], |page| page);
            if let Some(next) = links.get(index % LINKS_PER_PAGE + AHEAD) {
                prefetch(next.as_ptr());
            }
            let resident = links.get(index % LINKS_PER_PAGE).and_then(Weak::upgrade);
            match resident.filter(|resident| !resident.is_condemned()) {
                Some(resident) => found(number, PinOutcome::Same(pinning.take(resident))),
                None => unlinked.push(number),
            }
        }
        unlinked
    }
}

impl PinRequest for VersionSet {
    fn len(&self) -> usize {
        self.places.len()
    }

    fn id(&self, number: usize) -> ObjectId {
        let (linked, index) = self.of(number);
        linked.id(index)
    }

    fn info(&self, number: usize) -> &Arc<ObjectInfo> {
        let (linked, index) = self.of(number);
        linked.version(index)
    }

    fn pin_each(
        &self,
        residency: &Residency,
        numbers: impl Iterator<Item = usize>,
        mut found: impl FnMut(usize, PinOutcome),
    ) {
        let mut pinning = residency.pinning();
        for number in self.pin_linked(&mut pinning, numbers, &mut found) {
            let (linked, index) = self.of(number);
            let pinned = PinOutcome::new(pinning.by_id(linked.id(index)), linked.version(index));
            if let PinOutcome::Same(pin) = &pinned {
                linked.links.set(index as usize, Arc::downgrade(pin.resident()));
            }
            found(number, pinned);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::memory::object::Pin;
    use crate::cache::memory::samples::{OBJECT_BYTES, home, id, object};
    use crate::clock::Moment;
    use crate::index::State;
    use crate::interval::{Timestamp, ValidityInterval};
    use crate::object::{Md5Sum, ObjectPath};

    const COUNT: usize = 3 * LINKS_PER_PAGE / 2;

    fn version(n: usize, size_bytes: u64) -> Arc<ObjectInfo> {
        let [from, until] = [n, n + 1].map(|at| Timestamp::from_millis(at as i64));
        Arc::new(ObjectInfo {
            path: ObjectPath::new("A/B").unwrap(),
            id: id(n),
            validity: ValidityInterval::new(from, until).unwrap(),
            created: from,
            size_bytes: Some(size_bytes),
            md5: Some(Md5Sum([n as u8; 16])),
            metadata: Default::default(),
        })
    }

    fn timeline(versions: &[Arc<ObjectInfo>]) -> Timeline {
        Timeline::unknown().learn(ValidityInterval::ALL, versions, Moment::default())
    }

    fn all_of(linked: &Arc<LinkedTimeline>) -> VersionSet {
        let count = linked.versions() as u32;
        VersionSet::new(vec![Arc::clone(linked)], (0..count).map(|index| (0, index)).collect())
    }

    /// The pins by number, and the number of pins that match their version.
    fn pinned(set: &VersionSet, home: &Residency) -> (Vec<Option<Pin>>, usize) {
        let mut pins: Vec<Option<Pin>> = (0..set.len()).map(|_| None).collect();
        let mut right = 0;
        set.pin_each(home, 0..set.len(), |number, found| {
            pins[number] = match found {
                PinOutcome::Same(pin) => {
                    right += 1;
                    Some(pin)
                }
                PinOutcome::Other(pin) => Some(pin),
                PinOutcome::Unverified(pin) => Some(pin),
                PinOutcome::Nothing => None,
            };
        });
        for (number, pin) in pins.iter().enumerate() {
            assert!(pin.as_ref().is_none_or(|pin| pin.id() == set.id(number)));
        }
        (pins, right)
    }

    /// Number of links.
    fn links(linked: &LinkedTimeline) -> usize {
        let pages = linked.links.0.iter().map(|page| page.read().to_vec());
        pages.flatten().filter(|link| !link.ptr_eq(&Weak::new())).count()
    }

    #[test]
    fn a_link_leads_to_the_object_that_is_there_now() {
        let home = home(COUNT);
        let versions: Vec<_> = (0..COUNT).map(|n| version(n, OBJECT_BYTES)).collect();
        let linked = Arc::new(LinkedTimeline::new(timeline(&versions)));
        let set = all_of(&linked);
        assert!(pinned(&set, &home).0.iter().all(Option::is_none));
        (0..COUNT).for_each(|n| drop(object(&home, n)));
        let (first, _) = pinned(&set, &home);
        assert!(first.iter().all(Option::is_some));
        let bytes = home.pinned_bytes();
        assert_eq!(links(&linked), COUNT);
        let (again, right) = pinned(&set, &home);
        assert_eq!((right, home.pinned_bytes()), (COUNT, bytes));
        let generation = |pin: &Option<Pin>| pin.as_ref().unwrap().meta_header().hint;
        let before: Vec<u64> = first.iter().map(generation).collect();
        drop((first, again));
        assert_eq!(home.pinned_bytes(), 0);
        // All are evicted, and every second one is loaded again: at another place, with a new
        // generation.
        home.clear_out();
        assert_eq!(home.objects(), 0);
        (0..COUNT).step_by(2).for_each(|n| drop(object(&home, n)));
        let (pins, _) = pinned(&set, &home);
        for (n, pin) in pins.iter().enumerate() {
            assert_eq!(pin.is_some(), n % 2 == 0);
            if let Some(pin) = pin {
                assert_ne!(pin.meta_header().hint, before[n]);
                assert_eq!(pin.payload(), [n as u8; OBJECT_BYTES as usize]);
            }
        }
    }

    #[test]
    fn no_link_is_made_to_an_object_of_other_content() {
        let home = home(2);
        let _other = object(&home, 0);
        let linked = Arc::new(LinkedTimeline::new(timeline(&[version(0, OBJECT_BYTES + 1)])));
        for _ in 0..2 {
            let (pins, right) = pinned(&all_of(&linked), &home);
            assert_eq!((pins[0].is_some(), right, links(&linked)), (true, 0, 0));
        }
    }

    #[test]
    fn links_stay_with_the_versions_and_go_with_their_objects() {
        let home = home(COUNT);
        let versions: Vec<_> = (0..COUNT).map(|n| version(n, OBJECT_BYTES)).collect();
        let first = LinkedTimeline::new(timeline(&versions));
        let confirmed = first.learn(ValidityInterval::ALL, &versions, Moment::from_millis(7));
        let confirmed = Arc::new(first.followed_by(confirmed));
        let other = first.learn(ValidityInterval::ALL, &versions[1..], Moment::from_millis(8));
        let other = Arc::new(first.followed_by(other));
        (0..COUNT).for_each(|n| drop(object(&home, n)));
        drop(pinned(&all_of(&Arc::new(first)), &home));
        assert_eq!((links(&confirmed), links(&other)), (COUNT, COUNT));
        let spans = other.spans(ValidityInterval::ALL);
        let decide = spans.iter().filter(|span| matches!(span.state, State::Version(_)));
        assert_eq!(decide.count(), COUNT - 1);
        let kept = object(&home, 5);
        home.clear_out();
        assert_eq!(links(&confirmed), COUNT);
        confirmed.sweep();
        assert_eq!(links(&confirmed), 1);
        drop(kept);
    }
}
