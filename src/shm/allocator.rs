//! The allocator: two-level segregated fit (TLSF) over the places of a segment, with its state
//! outside the segment.
//!
//! Lengths are counted in granules. Free places are in lists by length class: 16 classes per power
//! of two, with a bit for each non-empty class, so allocation and release cost O(1). A place knows
//! its neighbours, so adjacent free places are always merged.
//!
//! The end of a segment can be without memory yet: this *tail* is neither free nor allocated, and
//! becomes free from its start on.
//!
//! M. Masmano et al., *TLSF: a new dynamic memory allocator for real-time systems*, ECRTS 2004.

use std::num::NonZeroU32;

/// Classes per power of two.
const SUBCLASS_BITS: u32 = 4;
const SUBCLASSES: u32 = 1 << SUBCLASS_BITS;
const LEVELS: usize = (u32::BITS - SUBCLASS_BITS + 1) as usize;
const NONE: u32 = u32::MAX;
const TAKEN: u32 = u32::MAX - 1;

/// An allocated place; needed once to release it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct AllocatedNode(NonZeroU32);

impl AllocatedNode {
    fn of(node: u32) -> Option<Self> {
        // Nodes count from 0, and NONE is no node.
        NonZeroU32::new(node.wrapping_add(1)).map(Self)
    }

    fn node(&self) -> u32 {
        self.0.get() - 1
    }
}

/// A place in the segment, free or allocated. Start and length are in granules of 64 bytes.
#[derive(Debug, Clone, Copy)]
struct Node {
    start: u32,
    length: u32,
    /// Neighbours in the segment.
    left: u32,
    right: u32,
    /// Neighbours in the list of a class; `next` also in the list of unused nodes. `previous` of an
    /// allocated place is TAKEN.
    previous: u32,
    next: u32,
}

impl Node {
    fn is_free(&self) -> bool {
        self.previous != TAKEN
    }
}

/// The free and allocated places of one segment.
#[derive(Debug)]
pub(crate) struct Allocator {
    nodes: Vec<Node>,
    unused: u32,
    lists: [[u32; SUBCLASSES as usize]; LEVELS],
    /// By level: a bit for each class with a free place.
    classes: [u16; LEVELS],
    /// A bit for each level with a free place.
    levels: u32,
    taken: u32,
    /// The node of the tail, which is in no list.
    tail: u32,
}

/// The class of a free place of `length`.
fn class_of(length: u32) -> (usize, usize) {
    if length < SUBCLASSES {
        return (0, length as usize);
    }
    let top = length.ilog2();
    let subclass = (length >> (top - SUBCLASS_BITS)) & (SUBCLASSES - 1);
    ((top - SUBCLASS_BITS + 1) as usize, subclass as usize)
}

/// The smallest class whose places all have at least `length`.
fn class_that_fits(length: u32) -> Option<(usize, usize)> {
    if length < SUBCLASSES {
        return Some(class_of(length));
    }
    let step = 1 << (length.ilog2() - SUBCLASS_BITS);
    Some(class_of(length.checked_add(step - 1)?))
}

impl Allocator {
    /// An allocator in which the first `free` of `length` granules are free. The rest is the tail.
    pub(crate) fn new(length: u32, free: u32) -> Self {
        let free = free.min(length);
        let mut allocator = Self {
            nodes: Vec::new(),
            unused: NONE,
            lists: [[NONE; SUBCLASSES as usize]; LEVELS],
            classes: [0; LEVELS],
            levels: 0,
            taken: 0,
            tail: NONE,
        };
        let place = |start, length| Node {
            start,
            length,
            left: NONE,
            right: NONE,
            previous: TAKEN,
            next: NONE,
        };
        if free < length {
            allocator.tail = allocator.node(place(free, length - free));
        }
        if free > 0 {
            let first = allocator.node(Node { right: allocator.tail, ..place(0, free) });
            if allocator.tail != NONE {
                allocator.nodes[allocator.tail as usize].left = first;
            }
            allocator.link(first);
        }
        allocator
    }

    /// Start and length of the tail; its length is 0 if there is none.
    pub(crate) fn tail(&self) -> (u32, u32) {
        self.nodes.get(self.tail as usize).map_or((0, 0), |tail| (tail.start, tail.length))
    }

    /// Length of the free place directly before the tail.
    pub(crate) fn free_before_tail(&self) -> u32 {
        let left = self.nodes.get(self.tail as usize).map_or(NONE, |tail| tail.left);
        let left = self.nodes.get(left as usize).filter(|left| left.is_free());
        left.map_or(0, |left| left.length)
    }

    /// Frees the first `length` granules of the tail.
    pub(crate) fn free_tail(&mut self, length: u32) {
        let (start, whole) = self.tail();
        let length = length.min(whole);
        if length == 0 {
            return;
        }
        let (tail, left) = (self.tail, self.nodes[self.tail as usize].left);
        // A new place before the tail, or the tail itself.
        let freed = if length == whole {
            self.tail = NONE;
            tail
        } else {
            let freed =
                self.node(Node { start, length, left, right: tail, previous: TAKEN, next: NONE });
            let rest = &mut self.nodes[tail as usize];
            (rest.start, rest.length, rest.left) = (start + length, whole - length, freed);
            if left != NONE {
                self.nodes[left as usize].right = freed;
            }
            freed
        };
        if let Some(place) = AllocatedNode::of(freed) {
            self.taken += 1;
            self.give(place);
        }
    }

    /// Allocates a place of `length` granules (at least 1). Returns its start and the node to
    /// release.
    pub(crate) fn take(&mut self, length: u32) -> Option<(u32, AllocatedNode)> {
        debug_assert!(length > 0);
        let found = self.find(length)?;
        self.unlink(found);
        let Node { start, length: whole, right, .. } = self.nodes[found as usize];
        if whole > length {
            let rest = self.node(Node {
                start: start + length,
                length: whole - length,
                left: found,
                right,
                previous: TAKEN,
                next: NONE,
            });
            if right != NONE {
                self.nodes[right as usize].left = rest;
            }
            let node = &mut self.nodes[found as usize];
            node.length = length;
            node.right = rest;
            self.link(rest);
        }
        self.taken += 1;
        Some((start, AllocatedNode::of(found)?))
    }

    /// Releases a place.
    pub(crate) fn give(&mut self, place: AllocatedNode) {
        let mut node = place.node();
        debug_assert!(!self.nodes[node as usize].is_free());
        self.taken -= 1;
        let left = self.nodes[node as usize].left;
        if left != NONE && self.nodes[left as usize].is_free() {
            self.unlink(left);
            self.join(left, node);
            node = left;
        }
        let right = self.nodes[node as usize].right;
        if right != NONE && self.nodes[right as usize].is_free() {
            self.unlink(right);
            self.join(node, right);
        }
        self.link(node);
    }

    /// Whether no place is allocated.
    pub(crate) fn is_empty(&self) -> bool {
        self.taken == 0
    }

    /// Every allocated place in order: start and length. Walks all places.
    pub(crate) fn taken_places(&self) -> impl Iterator<Item = (u32, u32)> {
        self.places()
            .into_iter()
            .filter_map(|(start, length, free)| (!free).then_some((start, length)))
    }

    /// Length of the longest place that could be allocated now, or after the tail is freed. Walks
    /// one list.
    pub(crate) fn largest_free(&self) -> u32 {
        let with_tail = self.free_before_tail() + self.tail().1;
        if self.levels == 0 {
            return with_tail;
        }
        let level = self.levels.ilog2() as usize;
        let class = self.classes[level].ilog2() as usize;
        let lengths = self.linked(level, class).map(|node| self.nodes[node as usize].length);
        lengths.max().unwrap_or(0).max(with_tail)
    }

    fn find(&self, length: u32) -> Option<u32> {
        if let Some((level, class)) = class_that_fits(length) {
            let here = self.classes[level] & (u16::MAX << class);
            if here != 0 {
                return Some(self.lists[level][here.trailing_zeros() as usize]);
            }
            let above = self.levels & u32::MAX.checked_shl(level as u32 + 1).unwrap_or(0);
            if above != 0 {
                let level = above.trailing_zeros() as usize;
                return Some(self.lists[level][self.classes[level].trailing_zeros() as usize]);
            }
        }
        // Before giving up: some places in the class of `length` itself may be long enough.
        let (level, class) = class_of(length);
        self.linked(level, class).find(|&node| self.nodes[node as usize].length >= length)
    }

    fn linked(&self, level: usize, class: usize) -> impl Iterator<Item = u32> {
        let first = self.lists[level][class];
        std::iter::successors((first != NONE).then_some(first), |&node| {
            let next = self.nodes[node as usize].next;
            (next != NONE).then_some(next)
        })
    }

    fn node(&mut self, node: Node) -> u32 {
        if self.unused == NONE {
            self.nodes.push(node);
            return (self.nodes.len() - 1) as u32;
        }
        let index = self.unused;
        self.unused = self.nodes[index as usize].next;
        self.nodes[index as usize] = node;
        index
    }

    /// Merges `right` into `left`.
    fn join(&mut self, left: u32, right: u32) {
        let Node { length, right: beyond, .. } = self.nodes[right as usize];
        let node = &mut self.nodes[left as usize];
        node.length += length;
        node.right = beyond;
        if beyond != NONE {
            self.nodes[beyond as usize].left = left;
        }
        self.nodes[right as usize].next = self.unused;
        self.unused = right;
    }

    fn link(&mut self, index: u32) {
        let (level, class) = class_of(self.nodes[index as usize].length);
        let first = self.lists[level][class];
        let node = &mut self.nodes[index as usize];
        (node.previous, node.next) = (NONE, first);
        if first != NONE {
            self.nodes[first as usize].previous = index;
        }
        self.lists[level][class] = index;
        self.classes[level] |= 1 << class;
        self.levels |= 1 << level;
    }

    fn unlink(&mut self, index: u32) {
        let Node { length, previous, next, .. } = self.nodes[index as usize];
        let (level, class) = class_of(length);
        self.nodes[index as usize].previous = TAKEN;
        if next != NONE {
            self.nodes[next as usize].previous = previous;
        }
        if previous != NONE {
            self.nodes[previous as usize].next = next;
            return;
        }
        self.lists[level][class] = next;
        if next == NONE {
            self.classes[level] &= !(1 << class);
            if self.classes[level] == 0 {
                self.levels &= !(1 << level);
            }
        }
    }

    /// Every place but the tail in order: start, length, and whether it is free.
    fn places(&self) -> Vec<(u32, u32, bool)> {
        let mut unused = vec![false; self.nodes.len()];
        if let Some(tail) = unused.get_mut(self.tail as usize) {
            *tail = true;
        }
        let mut node = self.unused;
        while node != NONE {
            unused[node as usize] = true;
            node = self.nodes[node as usize].next;
        }
        let mut places: Vec<_> = self
            .nodes
            .iter()
            .zip(unused)
            .filter(|(_, unused)| !unused)
            .map(|(node, _)| (node.start, node.length, node.is_free()))
            .collect();
        places.sort_unstable();
        places
    }

    /// Violated invariants: places tile the segment, and no two neighbours are free.
    pub(crate) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for pair in self.places().windows(2) {
            let [(start, length, free), (next, _, next_free)] = [pair[0], pair[1]];
            if start + length != next {
                faults.push(format!("place {start}+{length} does not reach to {next}"));
            }
            if free && next_free {
                faults.push(format!("free places at {start} and {next} are not one"));
            }
        }
        let places = self.places();
        let end = places.last().map_or(0, |(start, length, _)| start + length);
        if self.tail != NONE && self.tail().0 != end {
            faults.push(format!(
                "the tail begins at {}, the last place ends at {end}",
                self.tail().0
            ));
        }
        let taken = places.iter().filter(|(.., free)| !free).count();
        if taken != self.taken as usize {
            faults.push(format!("{taken} places are taken, {} are counted", self.taken));
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_place_of_the_class_that_fits_is_long_enough() {
        for length in (1..5000).chain([u32::MAX / 2 - 3, 1 << 31]) {
            let Some(fits) = class_that_fits(length) else { continue };
            // The shortest place in that class.
            let (level, class) = (fits.0 as u32, fits.1 as u32);
            let shortest = match level {
                0 => class,
                _ => (SUBCLASSES + class) << (level - 1),
            };
            assert!(shortest >= length, "{length}: {fits:?} holds {shortest}");
            assert_eq!(class_of(shortest), fits);
        }
    }

    #[test]
    fn an_object_that_exactly_fills_the_segment_is_found() {
        for length in [1, 15, 16, 17, 33, 1000, 1_000_003] {
            let mut allocator = Allocator::new(length, length);
            let (start, place) = allocator.take(length).unwrap();
            assert_eq!(start, 0);
            assert_eq!(allocator.largest_free(), 0);
            assert!(allocator.take(1).is_none());
            allocator.give(place);
            assert_eq!(allocator.largest_free(), length);
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Take(u32),
        Give(prop::sample::Index),
        FreeTail(u32),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (1..200_u32).prop_map(Step::Take),
            (1..20_u32).prop_map(Step::Take),
            any::<prop::sample::Index>().prop_map(Step::Give),
            (0..300_u32).prop_map(Step::FreeTail),
        ]
    }

    /// Number of granules of the longest range that is not taken.
    fn longest_free(taken: &[bool]) -> u32 {
        taken.split(|taken| *taken).map(<[bool]>::len).max().unwrap_or(0) as u32
    }

    proptest! {
        #[test]
        fn places_never_overlap_and_all_come_back(
            whole in 1..3000_u32,
            free in 0..3000_u32,
            steps in proptest::collection::vec(any_step(), 0..300),
        ) {
            let mut free = free.min(whole);
            let mut allocator = Allocator::new(whole, free);
            // The naive model: one flag per granule.
            let mut taken = vec![false; whole as usize];
            let mut held: Vec<(u32, u32, AllocatedNode)> = Vec::new();
            for step in steps {
                match step {
                    Step::Take(length) => {
                        prop_assert_eq!(allocator.largest_free(), longest_free(&taken));
                        prop_assert_eq!(allocator.tail().1, whole - free);
                        let longest = longest_free(&taken[..free as usize]);
                        match allocator.take(length) {
                            Some((start, place)) => {
                                let range = start as usize..(start + length) as usize;
                                prop_assert!(start + length <= free);
                                prop_assert!(taken[range.clone()].iter().all(|taken| !taken));
                                taken[range].fill(true);
                                held.push((start, length, place));
                            }
                            None => prop_assert!(longest < length),
                        }
                    }
                    Step::FreeTail(length) => {
                        allocator.free_tail(length);
                        free = whole.min(free + length);
                    }
                    Step::Give(_) if held.is_empty() => {}
                    Step::Give(index) => {
                        let (start, length, place) = held.swap_remove(index.index(held.len()));
                        taken[start as usize..(start + length) as usize].fill(false);
                        allocator.give(place);
                    }
                }
                prop_assert!(allocator.faults().is_empty(), "{:?}", allocator.faults());
            }
            for (.., place) in held {
                allocator.give(place);
            }
            prop_assert!(allocator.is_empty());
            prop_assert_eq!(allocator.largest_free(), whole);
        }
    }
}
