//! The distinct versions of a table, and the cells of its columns.

use std::hash::BuildHasher as _;
use std::ops::Range;
use std::sync::Arc;

use foldhash::quality::RandomState;

use crate::cache::versions::linked_timeline::{LinkedTimeline, VersionSet};
use crate::object::ObjectId;

/// The versions that a table needs, each id once.
#[derive(Debug)]
pub(super) struct Distinct {
    timelines: Vec<Arc<LinkedTimeline>>,
    /// By version: the timeline, and its index there.
    places: Vec<(u32, u32)>,
    /// An open-addressing hash table by id: the numbers of versions plus 1; 0: empty slot. Its
    /// length is a power of two, and it is never full.
    slots: Vec<u32>,
    hasher: RandomState,
    /// By version: the column that used it last, counted from 1, and its cell there.
    cells: Vec<(u32, u32)>,
    /// By cell, column after column: the number of its version.
    numbers: Vec<u32>,
    /// Number of columns so far.
    columns: u32,
    /// Index of the first cell of the latest column.
    first: usize,
}

impl Distinct {
    /// With initial capacity for this many versions.
    pub(super) fn with_capacity(versions: usize) -> Self {
        Self {
            timelines: Vec::new(),
            places: Vec::with_capacity(versions),
            slots: vec![0; (versions * 2).next_power_of_two().max(2)],
            hasher: RandomState::default(),
            cells: Vec::with_capacity(versions),
            numbers: Vec::with_capacity(versions),
            columns: 0,
            first: 0,
        }
    }

    /// Starts the next column.
    pub(super) fn begin_column(&mut self) {
        self.columns += 1;
        self.first = self.numbers.len();
    }

    /// Adds a timeline to the latest column and returns its number.
    pub(super) fn add_timeline(&mut self, timeline: &Arc<LinkedTimeline>) -> usize {
        self.timelines.push(Arc::clone(timeline));
        self.timelines.len() - 1
    }

    /// The range of the cells of the latest column.
    pub(super) fn range(&self) -> Range<usize> {
        self.first..self.numbers.len()
    }

    fn id(&self, number: usize) -> ObjectId {
        let (timeline, index) = self.places[number];
        self.timelines[timeline as usize].id(index)
    }

    /// The slot of a version, or a free one for it; `is_it` tells whether a number is that version.
    fn slot(&self, id: ObjectId, is_it: impl Fn(usize) -> bool) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = self.hasher.hash_one(id) as usize & mask;
        loop {
            match self.slots[slot] {
                0 => return slot,
                number if is_it(number as usize - 1) => return slot,
                _ => slot = (slot + 1) & mask,
            }
        }
    }

    /// Whether version `number` is the one of timeline `own` and `index`. Versions with one id that
    /// the source describes differently are distinct: this is detected when they are pinned.
    fn is(&self, number: usize, own: usize, index: u32) -> bool {
        let other = self.places[number];
        if self.id(number) != self.timelines[own].id(index) {
            return false;
        }
        if other.0 as usize == own {
            return true;
        }
        let own = self.timelines[own].version(index);
        let other = self.timelines[other.0 as usize].version(other.1);
        let differ = own.size_bytes.zip(other.size_bytes).is_some_and(|(a, b)| a != b)
            || own.md5.zip(other.md5).is_some_and(|(a, b)| a != b);
        Arc::ptr_eq(own, other) || !differ
    }

    /// The number of a version.
    fn number(&mut self, timeline: usize, index: u32) -> u32 {
        let id = self.timelines[timeline].id(index);
        let slot = self.slot(id, |number| self.is(number, timeline, index));
        if self.slots[slot] > 0 {
            return self.slots[slot] - 1;
        }
        self.places.push((timeline as u32, index));
        self.cells.push((0, 0));
        self.slots[slot] = self.places.len() as u32;
        if self.places.len() * 2 > self.slots.len() {
            self.grow();
        }
        self.places.len() as u32 - 1
    }

    fn grow(&mut self) {
        self.slots = vec![0; self.slots.len() * 2];
        for number in 0..self.places.len() {
            let slot = self.slot(self.id(number), |_| false);
            self.slots[slot] = number as u32 + 1;
        }
    }

    /// Number of versions, and of cells.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.places.len(), self.numbers.len())
    }

    /// The cell of a version in the latest column.
    pub(super) fn cell(&mut self, timeline: usize, index: u32) -> u32 {
        let (column, number) = (self.columns, self.number(timeline, index));
        let cell = &mut self.cells[number as usize];
        if cell.0 != column {
            *cell = (column, (self.numbers.len() - self.first) as u32);
            self.numbers.push(number);
        }
        cell.1
    }

    /// The versions, and the number of the version of each cell.
    pub(super) fn into_versions(self) -> (Arc<VersionSet>, Vec<u32>) {
        (Arc::new(VersionSet::new(self.timelines, self.places)), self.numbers)
    }
}
