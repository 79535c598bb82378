//! Pins in somebody's hands: of a table that is being sent, of an object that is being read.
//!
//! They keep what they pin even where no lease does any more; and they are listed, so that for every
//! pin it can be said whose it is.

use std::collections::HashMap;
use std::fmt;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;

use super::lease::LeaseId;
use super::resident::PinSet;
use crate::table::EncodeError;

/// A stream that makes no progress for this long, and whose lease has ended, gives up its pins.
const STALLED: Duration = Duration::from_secs(5);

/// All that is in somebody's hands now.
#[derive(Debug, Default)]
pub(super) struct Hands {
    held: Mutex<HashMap<u64, Arc<PinSet>, RandomState>>,
    next: AtomicU64,
    /// Tables that are being sent, and their leases.
    streams: Mutex<Vec<(LeaseId, Weak<dyn Stalls>)>>,
}

/// A table that is being sent.
trait Stalls: fmt::Debug + Send + Sync {
    /// For how long its client has taken nothing.
    fn stalled_for(&self) -> Duration;

    /// Gives up what it holds.
    fn give_up(&self);
}

/// What is left to be sent of a table.
struct Sending<I> {
    left: Mutex<Option<I>>,
    /// When the client took something last, in milliseconds after `began`.
    taken_millis: AtomicU64,
    began: Instant,
}

impl<I> fmt::Debug for Sending<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sending").field("taken_millis", &self.taken_millis).finish_non_exhaustive()
    }
}

impl<I: Send> Stalls for Sending<I> {
    fn stalled_for(&self) -> Duration {
        let taken = Duration::from_millis(self.taken_millis.load(Ordering::Relaxed));
        self.began.elapsed().saturating_sub(taken)
    }

    fn give_up(&self) {
        // Whoever has the lock takes something just now.
        let left = match self.left.try_lock() {
            Ok(mut left) => left.take(),
            Err(_) => None,
        };
        // Outside of the lock: with it the objects may go.
        drop(left);
    }
}

/// The messages of a table, until its lease has ended and its client takes nothing: then one error.
pub(super) struct Revocable<I> {
    sending: Arc<Sending<I>>,
    ended: bool,
}

impl<T, I: Iterator<Item = Result<T, EncodeError>>> Iterator for Revocable<I> {
    type Item = Result<T, EncodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let Sending { left, taken_millis, began } = &*self.sending;
        let mut left = left.lock().unwrap_or_else(PoisonError::into_inner);
        let millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        taken_millis.store(millis, Ordering::Relaxed);
        let next = match &mut *left {
            Some(messages) => messages.next(),
            None => Some(Err(EncodeError::Revoked)),
        };
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

impl Hands {
    fn held(&self) -> MutexGuard<'_, HashMap<u64, Arc<PinSet>, RandomState>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes pins in hand, until what this gives is dropped.
    pub(super) fn take(self: &Arc<Self>, pins: Arc<PinSet>) -> InHand {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.held().insert(number, Arc::clone(&pins));
        InHand { pins, number, hands: Arc::clone(self) }
    }

    /// Sends `messages` for a lease; see [`give_up_stalled`](Self::give_up_stalled).
    pub(super) fn send<I: Iterator + Send + 'static>(
        &self,
        lease: &LeaseId,
        messages: I,
    ) -> Revocable<I> {
        let (left, began) = (Mutex::new(Some(messages)), Instant::now());
        let sending = Arc::new(Sending { left, taken_millis: AtomicU64::new(0), began });
        let stalls: Arc<dyn Stalls> = Arc::clone(&sending) as _;
        self.streams().push((lease.clone(), Arc::downgrade(&stalls)));
        Revocable { sending, ended: false }
    }

    fn streams(&self) -> MutexGuard<'_, Vec<(LeaseId, Weak<dyn Stalls>)>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Streams whose client takes nothing, and whose lease has ended, give up their pins.
    pub(super) fn give_up_stalled(&self, is_open: impl Fn(&LeaseId) -> bool) {
        let stalled: Vec<(LeaseId, Arc<dyn Stalls>)> = {
            let mut streams = self.streams();
            streams.retain(|(_, stream)| stream.strong_count() > 0);
            let all = streams.iter().filter_map(|(lease, stream)| {
                let stream = stream.upgrade()?;
                (stream.stalled_for() >= STALLED).then(|| (lease.clone(), stream))
            });
            all.collect()
        };
        let ended = stalled.iter().filter(|(lease, _)| !is_open(lease));
        ended.for_each(|(_, stream)| stream.give_up());
    }

    pub(super) fn pin_sets(&self) -> Vec<Arc<PinSet>> {
        self.held().values().map(Arc::clone).collect()
    }
}

/// Pins that somebody has in hand: what they pin stays until this is dropped.
#[derive(Debug)]
pub struct InHand {
    pins: Arc<PinSet>,
    number: u64,
    hands: Arc<Hands>,
}

impl InHand {
    /// Where it is listed.
    pub(super) fn hands(&self) -> &Hands {
        &self.hands
    }
}

impl Deref for InHand {
    type Target = PinSet;

    fn deref(&self) -> &PinSet {
        &self.pins
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        let gone = self.hands.held().remove(&self.number);
        // Outside of the lock: with it the objects may go.
        drop(gone);
    }
}
