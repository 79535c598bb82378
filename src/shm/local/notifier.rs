//! Descriptors for event loops: a thread of the session waits for the words of shared memory.
//!
//! ```text
//!  PlaneEvent ─▶ pending events of a group ─▶ FUTEX_WAITV on all of their words ─▶ eventfd
//!                    │ one more: `added` + 1 ──────▲ wakes the thread, which then waits for it too
//! ```
//!
//! The first event starts the thread. It sleeps in the kernel without a time limit while nothing
//! changes, and ends with the session. An event is readable from the first change on, and at the end
//! of the session. FUTEX_WAITV takes at most 128 words, so each thread has a group of
//! [`GROUP_EVENTS`] events.
//!
//! **No event is lost.** The kernel compares each word with the value that the event has seen, and
//! sleeps in one step; [`change_notice`](super::change_notice) proves that no change after that value
//! is missed. `added` is one more such word, of this process: the thread loads it before it reads the
//! pending events, so an event that is added later changes it, and the thread does not sleep
//! (`SYNC(added)`).

use std::fmt;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::event::{EventfdFlags, eventfd};

use super::super::futex;
use super::change_notice;
use super::files::LocalFiles;
use crate::sync::{Mutex, MutexGuard};

/// Events of one thread: FUTEX_WAITV takes 128 words, one of which is that of the thread itself.
const GROUP_EVENTS: usize = 120;

/// The word that an event waits for, and its value when the event was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SeenWord {
    pub(super) place: WordPlace,
    pub(super) seen: u32,
}

/// The place of a word in the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WordPlace {
    /// Changes of the path of an entry.
    Path(u32),
    /// Changes of the entry of a timeframe.
    Timeframe(u32),
}

impl SeenWord {
    fn word(self, files: &LocalFiles) -> &AtomicU32 {
        match self.place {
            WordPlace::Path(entry) => files.directory.changes(entry),
            WordPlace::Timeframe(entry) => files.directory.words_of(entry).changes(),
        }
    }
}

/// A descriptor that becomes readable once, and stays readable, when what it waits for can have
/// changed, or the session is over. For `epoll`, `poll`, and event loops like that of asyncio.
///
/// It holds no pin. Dropping it closes the descriptor.
pub struct PlaneEvent {
    descriptor: Arc<EventDescriptor>,
    /// `None`: it was set from the beginning.
    group: Option<Arc<EventGroup>>,
}

impl fmt::Debug for PlaneEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PlaneEvent({})", self.as_raw_fd())
    }
}

impl AsFd for PlaneEvent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.0.as_fd()
    }
}

impl AsRawFd for PlaneEvent {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.0.as_raw_fd()
    }
}

impl Drop for PlaneEvent {
    fn drop(&mut self) {
        // In a forked child the events are the parent's, and a thread may have held the lock.
        if let Some(group) = self.group.take().filter(|group| !group.is_forked()) {
            group.remove(&self.descriptor);
        }
    }
}

impl PlaneEvent {
    /// An event that has happened.
    ///
    /// # Errors
    /// The system provides no descriptor.
    #[cfg(feature = "capi")]
    pub(super) fn readable_now() -> io::Result<Self> {
        let descriptor = EventDescriptor::new()?;
        descriptor.set();
        Ok(Self { descriptor: Arc::new(descriptor), group: None })
    }
}

/// An eventfd.
#[derive(Debug)]
struct EventDescriptor(OwnedFd);

impl EventDescriptor {
    fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Makes it readable.
    fn set(&self) {
        // It fails only where the count is at its maximum, and then it is readable.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}

/// An event that has not happened yet.
#[derive(Debug)]
struct PendingEvent {
    descriptor: Arc<EventDescriptor>,
    word: SeenWord,
    /// When it happens without a change.
    at: Option<Instant>,
    /// Number of its watch in the pins page.
    watch: Option<u32>,
}

/// The events of one thread.
#[derive(Debug)]
struct EventGroup {
    files: Arc<LocalFiles>,
    process: u64,
    /// Rises when the thread has to read the pending events again.
    added: AtomicU32,
    state: Mutex<GroupState>,
}

#[derive(Debug, Default)]
struct GroupState {
    pending: Vec<PendingEvent>,
    /// The session is over.
    is_over: bool,
}

/// The events of a session, and the threads that wait for them.
#[derive(Debug, Default)]
pub(in crate::shm) struct Notifier {
    state: Mutex<NotifierState>,
}

#[derive(Debug, Default)]
struct NotifierState {
    /// A forked child has none of the threads, and must not release their handles.
    groups: Vec<(Arc<EventGroup>, ManuallyDrop<JoinHandle<()>>)>,
    is_over: bool,
}

/// An event to be made.
#[derive(Debug)]
pub(super) struct EventRequest {
    pub(super) files: Arc<LocalFiles>,
    pub(super) word: SeenWord,
    /// When it happens without a change.
    pub(super) at: Option<Instant>,
    /// Number of its watch in the pins page, which the event ends.
    pub(super) watch: Option<u32>,
    /// See [`process_generation`](super::super::attach::process_generation).
    pub(super) process: u64,
}

impl Notifier {
    /// Makes an event.
    ///
    /// # Errors
    /// The error of the system: no descriptor or thread can be made.
    pub(super) fn event(&self, request: EventRequest) -> io::Result<PlaneEvent> {
        let descriptor = Arc::new(EventDescriptor::new()?);
        let EventRequest { files, word, at, watch, process } = request;
        let pending = PendingEvent { descriptor: Arc::clone(&descriptor), word, at, watch };
        let mut state = self.state.lock();
        if state.is_over {
            pending.happen(&files);
            return Ok(PlaneEvent { descriptor, group: None });
        }
        let mut pending = Some(pending);
        for (group, _) in &state.groups {
            pending = group.add(pending);
            if pending.is_none() {
                return Ok(PlaneEvent { descriptor, group: Some(Arc::clone(group)) });
            }
        }
        let made = EventGroup { files, process, added: AtomicU32::new(0), state: Mutex::default() };
        let group = Arc::new(made);
        group.add(pending);
        let thread = std::thread::Builder::new().name("iovcache-events".into()).spawn({
            let group = Arc::clone(&group);
            move || group.run()
        })?;
        state.groups.push((Arc::clone(&group), ManuallyDrop::new(thread)));
        Ok(PlaneEvent { descriptor, group: Some(group) })
    }

    /// The session is over: all events happen, and the threads end.
    pub(in crate::shm) fn end(&self) {
        let mut state = self.state.lock();
        state.is_over = true;
        state.groups.iter().for_each(|(group, _)| group.end());
    }

    /// Waits until the threads have ended. Not in a forked child, which has none.
    pub(in crate::shm) fn join(&self) {
        let groups = std::mem::take(&mut self.state.lock().groups);
        for (_, thread) in groups {
            let _ = ManuallyDrop::into_inner(thread).join();
        }
    }
}

impl PendingEvent {
    fn happen(&self, files: &LocalFiles) {
        self.end_watch(files);
        self.descriptor.set();
    }

    fn end_watch(&self, files: &LocalFiles) {
        if let Some(watch) = self.watch {
            files.page.end_watch(watch);
        }
    }

    fn has_happened(&self, files: &LocalFiles, now: Instant) -> bool {
        change_notice::note(self.word.word(files)) != self.word.seen
            || self.at.is_some_and(|at| at <= now)
    }
}

impl EventGroup {
    fn state(&self) -> MutexGuard<'_, GroupState> {
        self.state.lock()
    }

    fn is_forked(&self) -> bool {
        self.process != super::super::attach::process_generation()
    }

    /// Adds an event; gives it back if the group is full.
    fn add(&self, event: Option<PendingEvent>) -> Option<PendingEvent> {
        {
            let mut state = self.state();
            if state.pending.len() >= GROUP_EVENTS {
                return event;
            }
            state.pending.extend(event);
        }
        self.wake();
        None
    }

    fn remove(&self, descriptor: &Arc<EventDescriptor>) {
        let mut state = self.state();
        let is_it = |event: &PendingEvent| Arc::ptr_eq(&event.descriptor, descriptor);
        if let Some(place) = state.pending.iter().position(is_it) {
            state.pending.swap_remove(place).end_watch(&self.files);
        }
    }

    fn end(&self) {
        let pending = {
            let mut state = self.state();
            state.is_over = true;
            std::mem::take(&mut state.pending)
        };
        pending.iter().for_each(|event| event.happen(&self.files));
        self.wake();
    }

    fn wake(&self) {
        // SYNC(added): after the change of the state.
        self.added.fetch_add(1, Ordering::Release);
        futex::wake_own(&self.added);
    }

    /// Waits for the pending events until the session is over.
    fn run(&self) {
        let mut words: Vec<SeenWord> = Vec::with_capacity(GROUP_EVENTS);
        loop {
            // SYNC(added): before the state is read.
            let added = self.added.load(Ordering::Acquire);
            let now = Instant::now();
            let deadline = {
                let mut state = self.state();
                if state.is_over {
                    return;
                }
                state.pending.retain(|event| {
                    let has_happened = event.has_happened(&self.files, now);
                    if has_happened {
                        event.happen(&self.files);
                    }
                    !has_happened
                });
                words.clear();
                words.extend(state.pending.iter().map(|event| event.word));
                state.pending.iter().filter_map(|event| event.at).min()
            };
            let shared = words.iter().map(|word| (word.word(&self.files), word.seen));
            futex::wait_many(shared, (&self.added, added), deadline);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;
    use crate::shm::attach::process_generation;
    use crate::shm::layout::Epoch;
    use crate::shm::local::directory::{Directory, EntryCounts};
    use crate::shm::local::pins_page::{PageLimits, ServicePage};
    use crate::shm::local::timeframe_entry::{EntryState, TimeframeEntry};

    const EPOCH: Epoch = Epoch(7);

    /// A service with a directory, and the files of a session.
    fn session() -> (Arc<Directory>, ServicePage, Arc<LocalFiles>) {
        let counts = EntryCounts { paths: 16, timeframes: 1024 };
        let directory = Arc::new(Directory::new(EPOCH, counts).unwrap());
        let page = ServicePage::new(PageLimits::default()).unwrap();
        let files = (directory.file(), directory.size_bytes());
        let files = LocalFiles::open(files, (page.file(), ServicePage::BYTES), EPOCH).unwrap();
        (directory, page, Arc::new(files))
    }

    fn request(files: &Arc<LocalFiles>, timeframe: u64) -> EventRequest {
        let entries = files.directory.entries_of(timeframe);
        let found =
            entries.into_iter().find(|(_, words)| words.read(timeframe).0 != EntryState::Free);
        let (entry, words) = found.expect("an entry");
        let seen = change_notice::note(words.changes());
        let word = SeenWord { place: WordPlace::Timeframe(entry), seen };
        let files = Arc::clone(files);
        EventRequest { files, word, at: None, watch: None, process: process_generation() }
    }

    fn is_readable(event: &PlaneEvent, limit: Duration) -> bool {
        let mut polled = [PollFd::new(event, PollFlags::IN)];
        let limit = limit.try_into().unwrap();
        poll(&mut polled, Some(&limit)).unwrap() == 1
    }

    const LONG: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(20);

    #[test]
    fn an_event_is_readable_from_the_change_of_its_timeframe_on_and_of_no_other() {
        let (directory, _page, files) = session();
        let notifier = Notifier::default();
        let entries = [1, 2].map(|id| directory.take_timeframe(id).unwrap());
        let events = [1, 2].map(|id| notifier.event(request(&files, id)).unwrap());
        assert!(!events.iter().any(|event| is_readable(event, SHORT)));
        entries[1].set_ask();
        assert!(is_readable(&events[1], LONG));
        assert!(!is_readable(&events[0], SHORT) && is_readable(&events[1], SHORT));
        // A change before the event was made counts too.
        let late = request(&files, 1);
        entries[0].set_ask();
        assert!(is_readable(&notifier.event(late).unwrap(), LONG));
        notifier.end();
        notifier.join();
    }

    #[test]
    fn no_event_is_lost_in_a_race_of_ten_thousand_rounds() {
        let (directory, _page, files) = session();
        let (notifier, entry) = (Notifier::default(), directory.take_timeframe(5).unwrap());
        let rounds = AtomicU32::new(0);
        std::thread::scope(|scope| {
            // Changes the entry at another moment of each round.
            scope.spawn(|| {
                let mut random = 0x9e37_79b9_u32;
                for round in 1..=10_000 {
                    while rounds.load(Ordering::Acquire) != round {
                        std::thread::yield_now();
                    }
                    random ^= random << 13;
                    random ^= random >> 17;
                    random ^= random << 5;
                    (0..random % 4_000).for_each(|_| std::hint::spin_loop());
                    entry.set_ask();
                }
            });
            for round in 1..=10_000 {
                let request = request(&files, 5);
                rounds.store(round, Ordering::Release);
                let event = notifier.event(request).unwrap();
                assert!(is_readable(&event, LONG), "round {round}");
            }
        });
        notifier.end();
        notifier.join();
    }

    #[test]
    fn more_events_than_one_wait_of_the_kernel_takes_all_happen() {
        let (directory, _page, files) = session();
        let notifier = Notifier::default();
        let entries: Vec<TimeframeEntry> =
            (0..300).map(|id| directory.take_timeframe(id).unwrap()).collect();
        let events: Vec<PlaneEvent> =
            (0..300).map(|id| notifier.event(request(&files, id)).unwrap()).collect();
        assert_eq!(notifier.state.lock().groups.len(), 3);
        assert!(!events.iter().any(|event| is_readable(event, Duration::ZERO)));
        entries.iter().rev().for_each(TimeframeEntry::set_ask);
        assert!(events.iter().all(|event| is_readable(event, LONG)));
        drop(events);
        // Their places are free again.
        let again: Vec<PlaneEvent> =
            (0..300).map(|id| notifier.event(request(&files, id)).unwrap()).collect();
        assert_eq!(notifier.state.lock().groups.len(), 3);
        drop(again);
        notifier.end();
        notifier.join();
    }

    #[test]
    fn the_end_of_the_session_makes_all_events_readable_and_ends_the_threads() {
        let (directory, page, files) = session();
        let notifier = Notifier::default();
        let _entry = directory.take_timeframe(5).unwrap();
        let watch = files.page.begin_watch(3);
        let before = notifier.event(EventRequest { watch, ..request(&files, 5) }).unwrap();
        assert_eq!(page.watched().collect::<Vec<_>>(), [3]);
        assert!(!is_readable(&before, SHORT));
        notifier.end();
        assert!(is_readable(&before, LONG));
        assert_eq!(page.watched().count(), 0);
        notifier.join();
        assert!(is_readable(&notifier.event(request(&files, 5)).unwrap(), LONG));
    }

    #[test]
    fn an_event_with_a_time_happens_then_without_a_change() {
        let (directory, _page, files) = session();
        let (notifier, _entry) = (Notifier::default(), directory.take_timeframe(5).unwrap());
        let began = Instant::now();
        let at = Some(began + Duration::from_millis(60));
        let event = notifier.event(EventRequest { at, ..request(&files, 5) }).unwrap();
        assert!(is_readable(&event, LONG) && began.elapsed() >= Duration::from_millis(60));
        notifier.end();
        notifier.join();
    }

    #[test]
    fn a_dropped_event_closes_its_descriptor_and_ends_its_watch() {
        let (directory, page, files) = session();
        let (notifier, _entry) = (Notifier::default(), directory.take_timeframe(5).unwrap());
        let watch = files.page.begin_watch(3);
        let event = notifier.event(EventRequest { watch, ..request(&files, 5) }).unwrap();
        let weak = Arc::downgrade(&event.descriptor);
        drop(event);
        assert_eq!(page.watched().count(), 0);
        assert!(weak.upgrade().is_none(), "the descriptor is still open");
        notifier.end();
        notifier.join();
    }
}
