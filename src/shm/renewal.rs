//! Segments with names, over the life of a pool: created when they are needed, and made anew under
//! fresh numbers once another program has removed or overwritten them.
//!
//! ```text
//!  listed ──name or head lost──▶ condemned: nothing is allocated, its objects are not handed out
//!                                    │ last block freed
//!                                    ▼
//!                                 retired ──▶ room for a new segment, number never used before
//! ```
//!
//! The memory never exceeds its limit meanwhile: a new segment takes the room of a retired one.
//! Blocks of an overwritten segment are invalidated at once: another program may write over them.

use std::io;
use std::sync::Arc;

use super::pool::{Pool, segment};
use super::pool_error::PoolError;
use super::pool_state::{LEAST_SEGMENT_BYTES, PAGE_BYTES, PoolInner, PoolState};
use super::segment::{LostSegment, Segment, SegmentLoss, SharedSegment};
use super::segment_creation::{RegisterSegment, SegmentCreation, SegmentRegistrar};

impl PoolInner {
    /// Whether segments are created after the start.
    pub(super) fn can_grow(&self) -> bool {
        self.fixed_bytes.is_none() || self.creation == Some(SegmentCreation::WhenNeeded)
    }

    /// An unused number for a new segment; `None` if there is none.
    pub(super) fn new_id(&self) -> Result<Option<u16>, PoolError> {
        let taken = self.maker.take_number().map_err(PoolError::Backing)?;
        Ok(taken.or_else(|| self.state.lock().unused_id(|id| self.maker.is_free(id))))
    }

    /// Creates and registers a segment, of which at least `least_bytes` have memory; it is not
    /// listed yet. `None` if no number is left.
    pub(super) fn make(
        &self,
        bytes: u64,
        least_bytes: u64,
        register: RegisterSegment<'_>,
    ) -> Result<Option<Arc<Segment>>, PoolError> {
        loop {
            let Some(id) = self.new_id()? else { return Ok(None) };
            match segment(&self.maker, self.epoch, id, bytes, least_bytes) {
                // Another program was faster; the number is skipped.
                Err(PoolError::Segment { error, .. })
                    if error.kind() == io::ErrorKind::AlreadyExists && self.creation.is_some() => {}
                made => {
                    let made = made?;
                    register(id, bytes).map_err(|error| PoolError::Segment { bytes, error })?;
                    return Ok(Some(made));
                }
            }
        }
    }

    /// Registers a new segment by the registrar of this pool, if it has one.
    pub(super) fn register(&self, id: u16, bytes: u64) -> io::Result<()> {
        let registrar = self.registrar.lock().clone();
        registrar.map_or(Ok(()), |registrar| registrar(id, bytes))
    }

    /// Creates the segments of a FairMQ session that are missing, as far as memory allows.
    /// Those that were created come with the error that ended it.
    pub(super) fn make_missing(
        &self,
        register: RegisterSegment<'_>,
    ) -> (Vec<SharedSegment>, Option<PoolError>) {
        let mut made = Vec::new();
        if self.creation != Some(SegmentCreation::AtStart) || self.is_frozen() {
            return (made, None);
        }
        let _growing = self.growing.lock();
        loop {
            let bytes = {
                let mut state = self.state.lock();
                let budget = self.budget(&state) / PAGE_BYTES * PAGE_BYTES;
                let bytes = self.segment_bytes.min(budget);
                if bytes < LEAST_SEGMENT_BYTES {
                    return (made, None);
                }
                state.segment_bytes_in_all += bytes;
                bytes
            };
            let segment = match self.make(bytes, bytes, register) {
                Ok(Some(segment)) => segment,
                none => {
                    self.state.lock().segment_bytes_in_all -= bytes;
                    return (made, none.err());
                }
            };
            let shared = SharedSegment(Arc::clone(&segment));
            self.state.lock().insert(segment);
            self.announce(&shared);
            made.push(shared);
        }
    }

    /// Reports a new segment, once it is listed and before a block is published in it.
    pub(super) fn announce(&self, shared: &SharedSegment) {
        let listener = self.listener.lock().clone();
        if let Some(listener) = listener {
            listener(shared);
        }
    }

    /// Condemns the segments that were lost since the last call: nothing is allocated in them any
    /// more, and they are retired once they are empty.
    fn condemn_lost(&self) -> Vec<LostSegment> {
        let (epoch, range) = (self.epoch, self.maker.range());
        let listed: Vec<Arc<Segment>> = {
            let state = self.state.lock();
            state.segments.values().map(|slot| Arc::clone(&slot.segment)).collect()
        };
        let mut lost = Vec::new();
        for segment in listed.iter().filter(|segment| !segment.is_condemned()) {
            let Some(loss) = segment.loss(epoch, range) else { continue };
            segment.condemn(loss.loss);
            if loss.loss == SegmentLoss::Overwritten {
                segment.remove_name();
            }
            lost.push(loss);
        }
        lost
    }

    /// Retires the condemned segments that are empty.
    fn retire_condemned(&self) {
        let retired: Vec<Arc<Segment>> = {
            let mut state = self.state.lock();
            let empty: Vec<u16> = state.empty_condemned().collect();
            empty.into_iter().filter_map(|id| state.take_out(id)).collect()
        };
        retired.iter().for_each(|segment| self.notify_retired(segment));
    }
}

impl PoolState {
    fn empty_condemned(&self) -> impl Iterator<Item = u16> {
        let slots = self.segments.iter();
        let empty =
            slots.filter(|(_, slot)| slot.segment.is_condemned() && slot.allocator.is_empty());
        empty.map(|(id, _)| *id)
    }
}

impl Pool {
    /// Registers each segment created from now on before it is used. Replaces the previous one.
    pub fn register_segments_with(&self, registrar: SegmentRegistrar) {
        *self.0.registrar.lock() = Some(registrar);
    }

    /// Condemns the segments whose name or head was lost since the last call, and returns them.
    /// Their blocks stay readable for their holders, and no new one is placed there.
    pub(crate) fn condemn_lost_segments(&self) -> Vec<LostSegment> {
        let lost = self.0.condemn_lost();
        self.0.retire_condemned();
        lost
    }

    /// Creates segments under fresh numbers in place of condemned ones that are empty by now;
    /// returns them, and the error that ended it. That is [`PoolError::Segment`] if the system does
    /// not provide one or it cannot be registered, [`PoolError::Backing`] if no number is left.
    pub(crate) fn renew_condemned_segments(&self) -> (Vec<SharedSegment>, Option<PoolError>) {
        self.renew_condemned_segments_with(&|id, bytes| self.0.register(id, bytes))
    }

    /// Like [`renew_condemned_segments`](Self::renew_condemned_segments); each new segment is
    /// registered by `register` before it is used, instead of by the pool's registrar.
    pub(crate) fn renew_condemned_segments_with(
        &self,
        register: RegisterSegment<'_>,
    ) -> (Vec<SharedSegment>, Option<PoolError>) {
        self.0.retire_condemned();
        self.0.make_missing(register)
    }

    /// Number of condemned segments that still hold blocks.
    pub(crate) fn condemned_segments(&self) -> usize {
        let state = self.0.state.lock();
        state.segments.values().filter(|slot| slot.segment.is_condemned()).count()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::FileExt as _;
    use std::path::PathBuf;

    use super::super::backing::Backing;
    use super::super::block::Block;
    use super::super::pool::PoolOptions;
    use super::*;
    use crate::object::ObjectId;
    use crate::sync::Mutex;

    const SEGMENT_BYTES: u64 = 64 << 10;

    /// A session of its own, whose files are removed in the end.
    struct Session(String);

    impl Session {
        fn new(number: u8) -> Self {
            Self(format!("{number:02x}{:06x}", std::process::id()))
        }

        fn pool(&self, creation: SegmentCreation) -> Pool {
            let backing = Backing::FairMq { shmid: self.0.clone(), first_segment: 8, creation };
            Pool::new(PoolOptions {
                memory_bytes: 3 * SEGMENT_BYTES,
                segment_bytes: SEGMENT_BYTES,
                backing,
                ..PoolOptions::default()
            })
            .unwrap()
        }

        fn file(&self, id: u16) -> PathBuf {
            PathBuf::from(format!("/dev/shm/fmq_{}_m_{id}", self.0))
        }
    }

    impl Drop for Session {
        fn drop(&mut self) {
            let _ = fs::remove_file(format!("/dev/shm/iovcache_{}.numbers", self.0));
        }
    }

    fn ids(segments: &[SharedSegment]) -> Vec<u16> {
        segments.iter().map(SharedSegment::id).collect()
    }

    fn published(pool: &Pool, byte: u8, bytes: usize) -> Block {
        let mut place = pool.reserve(bytes as u64).unwrap();
        place.payload_mut().fill(byte);
        place.publish(ObjectId::from_bytes([byte; 16]))
    }

    fn id_of(block: &Block) -> u16 {
        block.meta_header().segment_id
    }

    #[test]
    fn lost_segments_are_replaced_under_fresh_numbers_once_nothing_is_held_in_them() {
        let session = Session::new(0x10);
        let pool = session.pool(SegmentCreation::AtStart);
        assert_eq!(ids(&pool.segments()), [8, 9, 10]);
        let held = published(&pool, 1, 1000);
        assert_eq!(id_of(&held), 8);
        fs::remove_file(session.file(8)).unwrap();
        // A reset: an empty heap in place of the full one. What follows is another program's.
        let reset = fs::OpenOptions::new().write(true).open(session.file(9)).unwrap();
        reset.write_all_at(&[7; 4096], 0).unwrap();
        assert_eq!(pool.lost_segments().len(), 2);
        let lost = pool.condemn_lost_segments();
        assert_eq!(lost.iter().map(|one| one.id).collect::<Vec<_>>(), [8, 9]);
        assert!(!session.file(9).exists(), "no device opens it by its name any more");
        assert!(pool.condemn_lost_segments().is_empty(), "each is told once");
        assert_eq!(pool.lost_segments(), [], "they are being replaced");
        // 9 was empty and is replaced now; 8 holds a block that stays readable.
        let (made, error) = pool.renew_condemned_segments();
        assert_eq!((ids(&made), error.is_none()), (vec![11], true));
        assert_eq!(ids(&pool.segments()), [8, 10, 11]);
        assert!(session.file(11).exists());
        assert_eq!(held.payload(), [1; 1000]);
        assert_eq!(id_of(&published(&pool, 2, 1000)), 10, "nothing new is placed in a lost one");
        pool.check().unwrap();
        drop(held);
        let (made_last, _) = pool.renew_condemned_segments();
        assert_eq!(ids(&made_last), [12]);
        assert_eq!(ids(&pool.segments()), [10, 11, 12]);
        assert_eq!(pool.usage().used_bytes, 0);
        pool.check().unwrap();
        let mut head = [0; 4096];
        let reset = fs::File::open(format!("/proc/self/fd/{}", fd(&reset))).unwrap();
        reset.read_exact_at(&mut head, 0).unwrap();
        assert_eq!(head, [7; 4096], "another program's bytes stay as they are");
        drop((pool, made, made_last));
        let again = session.pool(SegmentCreation::AtStart);
        assert_eq!(ids(&again.segments()), [13, 14, 15]);
    }

    fn fd(file: &fs::File) -> i32 {
        std::os::fd::AsRawFd::as_raw_fd(file)
    }

    #[test]
    fn only_needed_segments_are_created_and_each_is_registered_before_its_use() {
        let session = Session::new(0x11);
        let pool = session.pool(SegmentCreation::WhenNeeded);
        assert!(pool.segments().is_empty() && !session.file(8).exists());
        let registered: Arc<Mutex<Vec<(u16, u64)>>> = Arc::default();
        pool.register_segments_with({
            let registered = Arc::clone(&registered);
            Arc::new(move |id, bytes| {
                registered.lock().push((id, bytes));
                Ok(())
            })
        });
        let whole = pool.usage();
        assert_eq!((whole.free_bytes, whole.segments), (3 * SEGMENT_BYTES, 0));
        let largest = usize::try_from(whole.largest_free_bytes).unwrap();
        let first = published(&pool, 1, largest);
        assert_eq!(*registered.lock(), [(8, SEGMENT_BYTES)]);
        let others = [published(&pool, 2, largest), published(&pool, 3, largest)];
        assert_eq!(others.iter().map(id_of).collect::<Vec<_>>(), [9, 10]);
        assert!(matches!(pool.reserve(1), Err(PoolError::NoRoom { .. })));
        assert!(matches!(pool.reserve(largest as u64 + 1), Err(PoolError::NeverFits { .. })));
        // They stay when they are empty, and are used again.
        drop((first, others));
        assert_eq!(ids(&pool.segments()), [8, 9, 10]);
        assert_eq!(id_of(&published(&pool, 4, 10)), 8);
        assert_eq!(registered.lock().len(), 3);
        pool.check().unwrap();
    }

    #[test]
    fn a_segment_that_cannot_be_registered_is_not_used_and_says_why() {
        let session = Session::new(0x12);
        let pool = session.pool(SegmentCreation::WhenNeeded);
        pool.register_segments_with(Arc::new(|_, _| Err(io::Error::other("no book"))));
        let error = pool.reserve(10).unwrap_err();
        assert!(
            matches!(&error, PoolError::Segment { error, .. } if error.to_string() == "no book")
        );
        assert!(pool.segments().is_empty() && !session.file(8).exists());
        pool.register_segments_with(Arc::new(|_, _| Ok(())));
        assert_eq!(id_of(&published(&pool, 1, 10)), 9, "its number counts as used");
        assert_eq!(pool.usage().free_bytes, 3 * SEGMENT_BYTES);
    }
}
