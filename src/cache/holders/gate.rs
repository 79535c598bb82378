//! The gate of a lease: stops the messages of a table when its lease ends.
//!
//! ```text
//!  Lease ──ends──▶ Gate ──close──▶ Gated: drops the messages not made yet, and their pins
//!                      └──close──▶ PayloadPins: withdrawn from the messages made already
//! ```
//!
//! The transport asks for the next message only while the client reads. A client that does not read
//! would otherwise keep its pins after its lease has ended.

use std::fmt;
use std::sync::{Arc, Weak};

use crate::cache::holders::lease::{LeaseId, OnEnd};
use crate::cache::holders::leases::Leases;
use crate::clock::Moment;
use crate::sync::{Mutex, MutexGuard};
use crate::table::{EncodeError, PayloadPins};

/// A client that reads renews its lease at most this many times within its time limit.
const RENEWALS: u32 = 4;

/// The messages in transit of one table, as its lease sees them.
#[derive(Debug)]
pub(crate) struct Gate {
    leases: Weak<Leases>,
    lease: LeaseId,
    /// The last renewal by a client that reads.
    renewed: Mutex<Moment>,
    state: Mutex<GateState>,
}

/// While a gate is open, the holders that its end has to close.
#[derive(Debug)]
enum GateState {
    Open(Vec<Weak<dyn Closing>>),
    Closed,
}

/// A holder of pins that can be made to drop them.
trait Closing: fmt::Debug + Send + Sync {
    fn close(&self);
}

impl Gate {
    /// Creates the gate of a lease; it is closed if the lease has ended.
    pub(crate) fn of(leases: &Arc<Leases>, lease: LeaseId, of_stream: bool) -> Arc<Self> {
        let gate = Arc::new(Self {
            leases: Arc::downgrade(leases),
            lease,
            renewed: Mutex::new(leases.now()),
            state: Mutex::new(GateState::Open(Vec::new())),
        });
        let told: Weak<dyn OnEnd> = Arc::downgrade(&(Arc::clone(&gate) as Arc<dyn OnEnd>));
        if !leases.add_gate(&gate.lease, told, of_stream) && !of_stream {
            gate.lease_ended();
        }
        gate
    }

    fn state(&self) -> MutexGuard<'_, GateState> {
        self.state.lock()
    }

    /// Wraps messages so that they end with an error once the lease ends.
    pub(crate) fn guard<I: Iterator + Send + 'static>(self: &Arc<Self>, messages: I) -> Gated<I> {
        let messages = Arc::new(GuardedMessages(Mutex::new(Some(messages))));
        self.add(Arc::clone(&messages) as Arc<dyn Closing>);
        Gated { gate: Arc::clone(self), messages, over: false }
    }

    /// Withdraws these pins once the lease ends, from messages made already too.
    pub(crate) fn withdraw_at_end(&self, pins: &Arc<PayloadPins>) {
        self.add(Arc::clone(pins) as Arc<dyn Closing>);
    }

    /// Closes `holder` once the lease ends: now if it has ended.
    fn add(&self, holder: Arc<dyn Closing>) {
        match &mut *self.state() {
            GateState::Open(holders) => return holders.push(Arc::downgrade(&holder)),
            GateState::Closed => {}
        }
        holder.close();
    }

    /// Renews the lease because the client reads, so that its time limit does not end it.
    pub(crate) fn renew(&self) {
        let Some(leases) = self.leases.upgrade() else { return };
        let now = leases.now();
        let mut renewed = self.renewed.lock();
        if now.since(*renewed) < leases.time_limit() / RENEWALS {
            return;
        }
        *renewed = now;
        drop(renewed);
        let _ = leases.renew(&self.lease);
    }
}

impl OnEnd for Gate {
    /// Drops the messages in transit.
    fn lease_ended(&self) {
        let before = std::mem::replace(&mut *self.state(), GateState::Closed);
        if let GateState::Open(holders) = before {
            holders.iter().filter_map(Weak::upgrade).for_each(|holder| holder.close());
        }
    }
}

/// `None` once closed, or after the last message.
struct GuardedMessages<I>(Mutex<Option<I>>);

impl<I> GuardedMessages<I> {
    fn messages(&self) -> MutexGuard<'_, Option<I>> {
        self.0.lock()
    }
}

impl<I> fmt::Debug for GuardedMessages<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Guarded")
    }
}

impl<I: Send> Closing for GuardedMessages<I> {
    fn close(&self) {
        let messages = self.messages().take();
        // Outside of the lock, because this can free objects.
        drop(messages);
    }
}

impl Closing for PayloadPins {
    fn close(&self) {
        self.withdraw();
    }
}

/// Messages that end with an error once the lease ends; see [`Gate`].
pub(crate) struct Gated<I> {
    gate: Arc<Gate>,
    messages: Arc<GuardedMessages<I>>,
    over: bool,
}

impl<T, I: Iterator<Item = Result<T, EncodeError>>> Iterator for Gated<I> {
    type Item = Result<T, EncodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let mut messages = self.messages.messages();
        let next = match &mut *messages {
            Some(messages) => messages.next(),
            None => Some(Err(EncodeError::LeaseEnded)),
        };
        self.over = !matches!(next, Some(Ok(_)));
        let done = if self.over { messages.take() } else { None };
        drop(messages);
        drop(done);
        if !self.over {
            self.gate.renew();
        }
        next
    }
}
