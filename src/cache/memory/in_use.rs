//! Pins in use outside of a lease: by a table that is being sent, or an object that is being read.
//!
//! They keep their objects in memory even after the lease has ended. They are listed, so that every
//! pin can be attributed to a holder.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use foldhash::fast::RandomState;

use crate::cache::memory::object::PinSet;
use crate::sync::{Mutex, MutexGuard};

/// All pins in use.
#[derive(Debug, Default)]
pub(crate) struct InUse {
    held: Mutex<HashMap<u64, Arc<PinSet>, RandomState>>,
    next: AtomicU64,
}

impl InUse {
    fn held(&self) -> MutexGuard<'_, HashMap<u64, Arc<PinSet>, RandomState>> {
        self.held.lock()
    }

    /// Lists pins as in use until the returned guard is dropped.
    pub(crate) fn take(self: &Arc<Self>, pins: Arc<PinSet>) -> InUseGuard {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.held().insert(number, Arc::clone(&pins));
        InUseGuard { pins, number, in_use: Arc::clone(self) }
    }

    pub(crate) fn pin_sets(&self) -> Vec<Arc<PinSet>> {
        self.held().values().map(Arc::clone).collect()
    }
}

/// Pins in use: their objects stay in memory until this is dropped.
#[derive(Debug)]
pub struct InUseGuard {
    pins: Arc<PinSet>,
    number: u64,
    in_use: Arc<InUse>,
}

impl Deref for InUseGuard {
    type Target = PinSet;

    fn deref(&self) -> &PinSet {
        &self.pins
    }
}

impl Drop for InUseGuard {
    fn drop(&mut self) {
        let gone = self.in_use.held().remove(&self.number);
        // Outside of the lock, because this can free objects.
        drop(gone);
    }
}
