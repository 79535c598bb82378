//! Pins in somebody's hands: of a table that is being sent, of an object that is being read.
//!
//! They keep what they pin even where no lease does any more; and they are listed, so that for every
//! pin it can be said whose it is.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;

use crate::cache::memory::object::PinSet;

/// All that is in somebody's hands now.
#[derive(Debug, Default)]
pub(crate) struct InUse {
    held: Mutex<HashMap<u64, Arc<PinSet>, RandomState>>,
    next: AtomicU64,
}

impl InUse {
    fn held(&self) -> MutexGuard<'_, HashMap<u64, Arc<PinSet>, RandomState>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes pins in hand, until what this gives is dropped.
    pub(crate) fn take(self: &Arc<Self>, pins: Arc<PinSet>) -> InUseGuard {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.held().insert(number, Arc::clone(&pins));
        InUseGuard { pins, number, hands: Arc::clone(self) }
    }

    pub(crate) fn pin_sets(&self) -> Vec<Arc<PinSet>> {
        self.held().values().map(Arc::clone).collect()
    }
}

/// Pins that somebody has in hand: what they pin stays until this is dropped.
#[derive(Debug)]
pub struct InUseGuard {
    pins: Arc<PinSet>,
    number: u64,
    hands: Arc<InUse>,
}

impl Deref for InUseGuard {
    type Target = PinSet;

    fn deref(&self) -> &PinSet {
        &self.pins
    }
}

impl Drop for InUseGuard {
    fn drop(&mut self) {
        let gone = self.hands.held().remove(&self.number);
        // Outside of the lock: with it the objects may go.
        drop(gone);
    }
}
