//! Quotas per consumer, and the actions against slow consumers.
//!
//! ```text
//!  delivered ──consumed in time──▶ released
//!      │ held for longer than `slow_after`
//!      ├─ warn:   logged once, and counted
//!      ├─ refuse: also refuses new requests of this consumer until it has released the table
//!      └─ revoke: also releases its pins: messages in transit end with an error, and cells that it
//!                 still reads do not resolve once the memory is reused
//! ```

use std::collections::HashMap;
use std::sync::Arc;

use crate::cache::error::CacheError;
use crate::cache::holders::lease_terms::HolderName;
use crate::cache::holders::leases::Leases;
use crate::cache::holders::limits::{ConsumerLimits, SlowConsumer, SlowHolder};
use crate::cache::holders::timeframes::Timeframes;
use crate::clock::Clock;
use crate::sync::Mutex;
use crate::telemetry::Counters;

/// Enforces the limits per consumer.
#[derive(Debug)]
pub(crate) struct ConsumerQuotas {
    pub(crate) limits: ConsumerLimits,
    pub(crate) clock: Clock,
    pub(crate) leases: Arc<Leases>,
    pub(crate) timeframes: Arc<Timeframes>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) permits: Arc<Mutex<HashMap<HolderName, u64>>>,
}

/// A request of a consumer in progress; dropping it frees its place in the quota.
#[derive(Debug)]
pub(crate) struct RequestPermit {
    permits: Arc<Mutex<HashMap<HolderName, u64>>>,
    name: HolderName,
}

impl Drop for RequestPermit {
    fn drop(&mut self) {
        let mut permits = self.permits.lock();
        if let Some(count) = permits.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                permits.remove(&self.name);
            }
        }
    }
}

impl ConsumerQuotas {
    /// Counts one more request in progress of a consumer.
    ///
    /// # Errors
    /// [`CacheError::OverQuota`].
    pub(crate) fn begin(&self, name: &HolderName) -> Result<Option<RequestPermit>, CacheError> {
        let Some(limit) = self.limits.quota_requests else { return Ok(None) };
        let mut permits = self.permits.lock();
        let wanted = permits.get(name).map_or(1, |count| count + 1);
        if wanted > limit {
            self.counters.over_quota.add(1);
            let consumer = name.consumer.clone();
            return Err(CacheError::OverQuota { consumer, what: "requests", wanted, limit });
        }
        permits.insert(name.clone(), wanted);
        Ok(Some(RequestPermit { permits: Arc::clone(&self.permits), name: name.clone() }))
    }

    /// Whether a consumer may make further requests.
    ///
    /// # Errors
    /// [`CacheError::SlowConsumer`] if it holds a table for too long and such consumers are
    /// refused.
    pub(crate) fn admit(&self, name: &HolderName) -> Result<(), CacheError> {
        let (Some(after), SlowConsumer::Refuse) =
            (self.limits.slow_after, self.limits.slow_consumer)
        else {
            return Ok(());
        };
        let now = self.clock.now();
        let of_timeframe = || self.timeframes.held_longest(&name.consumer, now);
        let held = self.leases.held_longest(name, now).max(of_timeframe());
        match held.filter(|held| *held >= after) {
            None => Ok(()),
            Some(held) => {
                self.counters.slow_refused.add(1);
                Err(CacheError::SlowConsumer {
                    consumer: name.consumer.clone(),
                    held_ms: u64::try_from(held.as_millis()).unwrap_or(u64::MAX),
                    limit_ms: u64::try_from(after.as_millis()).unwrap_or(u64::MAX),
                })
            }
        }
    }

    /// Acts on all tables that are held for too long by now.
    pub(crate) fn look(&self) {
        let Some(after) = self.limits.slow_after else { return };
        let now = self.clock.now();
        let revoke = self.limits.slow_consumer == SlowConsumer::Revoke;
        let said = |late: &SlowHolder| {
            self.counters.slow_consumers.add(1);
            let (held, what) = (late, if revoke { ": revoked" } else { "" });
            tracing::warn!("{held}, longer than {} ms{what}", after.as_millis());
        };
        for (lease, late) in self.leases.newly_slow(now, after) {
            said(&late);
            if revoke && self.leases.revoke(&lease) {
                self.counters.slow_revoked.add(1);
            }
        }
        for (timeframe, late) in self.timeframes.newly_slow(now, after) {
            said(&late);
            // The consumer can have consumed it meanwhile.
            if revoke && self.timeframes.consumed(timeframe, &late.consumer, None).is_ok() {
                self.leases.revoke_reader(timeframe, &late.consumer);
                self.counters.slow_revoked.add(1);
            }
        }
    }
}
