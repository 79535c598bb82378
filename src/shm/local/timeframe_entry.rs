//! Timeframes in the directory: where the table of each lies, and the word that consumers wait for.
//!
//! ```text
//!  registered ──▶ Loading ──table published──▶ Ready ──dropped──▶ Free
//!                    ▲  └──failed, or not published──▶ Ask ──▲
//!                    └──── the table is loaded again ───────┘
//! ```
//!
//! The entry says in one word (`changes`) that it has changed, with the protocol of
//! [`change_notice`](super::change_notice): a consumer loads the word, then the state. It sleeps only
//! while the word is as it was, so no wake-up is lost. Each entry has its own word: consumers of other
//! timeframes sleep on.
//!
//! The id of an entry and its state can belong to two timeframes when they are read while the entry
//! changes hands. The block of the table decides: it names the timeframe and its registration. A
//! consumer that waits sees that the word has changed.

use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::super::mapping::Mapping;
use super::block_place::BlockPlace;
use super::change_notice;
use super::directory::{Directory, DirectoryView, TimeframeEntryLayout, probes};
use super::protocol;

/// State of a timeframe, as its entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EntryState {
    /// No timeframe has the entry.
    Free,
    /// Its objects are being loaded.
    Loading,
    /// The table lies in the block.
    Ready,
    /// The service must be asked: the load has failed, or the table is not published.
    Ask,
}

impl EntryState {
    fn from_word(word: u32) -> Self {
        match word {
            1 => Self::Loading,
            2 => Self::Ready,
            3 => Self::Ask,
            _ => Self::Free,
        }
    }
}

/// The words of an entry.
#[derive(Debug, Clone, Copy)]
pub(super) struct TimeframeWords<'a> {
    timeframe: &'a AtomicU64,
    generation: &'a AtomicU64,
    place: &'a AtomicU64,
    changes: &'a AtomicU32,
    state: &'a AtomicU32,
}

impl<'a> TimeframeWords<'a> {
    fn of((mapping, entry): (&'a Mapping, usize)) -> Self {
        let word = |offset| mapping.atomic_u64(entry + offset);
        let half = |offset| mapping.atomic_u32(entry + offset);
        Self {
            timeframe: word(offset_of!(TimeframeEntryLayout, timeframe)),
            generation: word(offset_of!(TimeframeEntryLayout, generation)),
            place: word(offset_of!(TimeframeEntryLayout, place)),
            changes: half(offset_of!(TimeframeEntryLayout, changes)),
            state: half(offset_of!(TimeframeEntryLayout, state)),
        }
    }

    /// The word that changes with the entry.
    pub(super) fn changes(self) -> &'a AtomicU32 {
        self.changes
    }

    /// The state of `timeframe`, and generation and place of its table. `Free` if the entry is that
    /// of another one.
    pub(super) fn read(self, timeframe: u64) -> (EntryState, u64, u64) {
        let words = (self.generation, self.place);
        let (state, (generation, place)) = protocol::load_state(self.state, words);
        // Relaxed: the block, or the word that changes, tells whether the id was another one.
        match self.timeframe.load(Ordering::Relaxed) == timeframe {
            true => (EntryState::from_word(state), generation, place),
            false => (EntryState::Free, 0, 0),
        }
    }

    fn set(self, state: EntryState, table: (u64, u64)) {
        let words = (self.generation, self.place);
        protocol::store_state(self.state, words, (state as u32, table));
        // SYNC(notice): after the words above.
        change_notice::tell_changed(self.changes);
    }
}

impl DirectoryView {
    /// The entries that can be those of a timeframe, with their indices.
    pub(super) fn entries_of(
        &self,
        timeframe: u64,
    ) -> impl Iterator<Item = (u32, TimeframeWords<'_>)> {
        let count = self.timeframes();
        let places = (count > 0).then(|| probes(timeframe, count));
        places.into_iter().flatten().map(|index| (index, self.words_of(index)))
    }

    /// The words of an entry, whose index comes from [`entries_of`](Self::entries_of).
    pub(super) fn words_of(&self, index: u32) -> TimeframeWords<'_> {
        TimeframeWords::of(self.timeframe_entry(index))
    }
}

/// The entry of one timeframe, as the service writes it. Dropping it frees the entry.
#[derive(Debug)]
pub(crate) struct TimeframeEntry {
    directory: Arc<Directory>,
    index: u32,
}

impl Directory {
    /// Takes an entry for a timeframe whose objects are being loaded; `None` if all that can hold it
    /// are taken.
    pub(crate) fn take_timeframe(self: &Arc<Self>, timeframe: u64) -> Option<TimeframeEntry> {
        let index = self.take_timeframe_index(timeframe)?;
        let entry = TimeframeEntry { directory: Arc::clone(self), index };
        entry.words().timeframe.store(timeframe, Ordering::Relaxed);
        entry.set_loading();
        Some(entry)
    }
}

impl TimeframeEntry {
    fn words(&self) -> TimeframeWords<'_> {
        TimeframeWords::of(self.directory.timeframe_entry(self.index))
    }

    /// The objects are being loaded.
    pub(crate) fn set_loading(&self) {
        self.words().set(EntryState::Loading, (0, 0));
    }

    /// The table is ready. Wakes the consumers that wait for it.
    pub(crate) fn set_ready(&self, (generation, place): (u64, BlockPlace)) {
        self.words().set(EntryState::Ready, (generation, place.to_word()));
    }

    /// Consumers must ask the service. Wakes those that wait.
    pub(crate) fn set_ask(&self) {
        self.words().set(EntryState::Ask, (0, 0));
    }
}

impl Drop for TimeframeEntry {
    fn drop(&mut self) {
        self.words().set(EntryState::Free, (0, 0));
        self.directory.give_timeframe_index(self.index);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize};
    use std::time::{Duration, Instant};

    use super::super::super::futex::{self, EndWord};
    use super::super::super::layout::Epoch;
    use super::super::directory::EntryCounts;
    use super::*;

    fn directory(timeframes: u32) -> (Arc<Directory>, DirectoryView) {
        let counts = EntryCounts { paths: 16, timeframes };
        let directory = Arc::new(Directory::new(Epoch(7), counts).unwrap());
        let view = DirectoryView::open(directory.file(), directory.size_bytes(), Epoch(7));
        (directory, view.unwrap())
    }

    fn state(view: &DirectoryView, timeframe: u64) -> EntryState {
        let states = view.entries_of(timeframe).map(|(_, words)| words.read(timeframe).0);
        states.filter(|state| *state != EntryState::Free).last().unwrap_or(EntryState::Free)
    }

    #[test]
    fn a_timeframe_is_found_in_its_entry_until_it_is_dropped() {
        let (directory, view) = directory(16);
        let place = BlockPlace::from_word(1 << 63 | 64);
        for timeframe in [0, 5, u64::MAX] {
            assert_eq!(state(&view, timeframe), EntryState::Free);
            let entry = directory.take_timeframe(timeframe).unwrap();
            assert_eq!(state(&view, timeframe), EntryState::Loading);
            entry.set_ready((9, place));
            let ready = (EntryState::Ready, 9, place.to_word());
            assert!(view.entries_of(timeframe).any(|(_, words)| words.read(timeframe) == ready));
            entry.set_ask();
            assert_eq!(state(&view, timeframe), EntryState::Ask);
            drop(entry);
            assert_eq!(state(&view, timeframe), EntryState::Free);
        }
    }

    #[test]
    fn timeframes_beyond_the_entries_have_none() {
        let (directory, view) = directory(16);
        let taken: Vec<_> = (0..40).filter_map(|id| directory.take_timeframe(id)).collect();
        assert_eq!(taken.len(), 16);
        assert_eq!(state(&view, 39), EntryState::Free);
        drop(taken);
        assert!(directory.take_timeframe(39).is_some());
    }

    #[test]
    fn twenty_that_wait_are_woken_by_their_timeframe_and_by_no_other_one() {
        let (directory, view) = directory(64);
        let entries: Vec<_> = (0..2).map(|id| directory.take_timeframe(id).unwrap()).collect();
        let (end, woken, is_ready) =
            (EndWord::default(), AtomicUsize::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| {
                    let (_, words) = view.entries_of(0).next().unwrap();
                    let seen = change_notice::note(words.changes());
                    assert_eq!(words.read(0).0, EntryState::Loading);
                    let until = Instant::now() + Duration::from_secs(30);
                    while change_notice::note(words.changes()) == seen {
                        let own = [end.word()];
                        futex::wait_any((words.changes(), seen), &own, Some(until));
                        woken.fetch_add(1, Ordering::SeqCst);
                        assert!(Instant::now() < until, "not woken");
                    }
                    assert!(is_ready.load(Ordering::SeqCst));
                });
            }
            std::thread::sleep(Duration::from_millis(100));
            for _ in 0..100 {
                entries[1].set_loading();
            }
            std::thread::sleep(Duration::from_millis(20));
            assert_eq!(woken.load(Ordering::SeqCst), 0, "another timeframe has woken them");
            is_ready.store(true, Ordering::SeqCst);
            entries[0].set_ready((9, BlockPlace::from_word(64)));
        });
    }
}
