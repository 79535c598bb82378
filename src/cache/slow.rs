//! What one consumer may hold, and what becomes of one that does not let go.
//!
//! ```text
//!  delivered ──consumed in time──▶ let go
//!      │ held for longer than `slow_after`
//!      ├─ warn:   told once, and counted
//!      ├─ refuse: and nothing more for this consumer until it has let go
//!      └─ revoke: and released in its name: what is being sent to it ends with an error, and what it
//!                 reads on does not resolve once its memory is reused
//! ```

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::CacheError;
use super::lease::{HolderName, Leases};
use super::timeframe::Timeframes;
use crate::clock::Clock;
use crate::telemetry::Counters;

/// What becomes of a consumer that holds a table for too long.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "server", derive(schemars::JsonSchema))]
pub enum SlowConsumer {
    /// It is told once, in the log, and counted.
    #[default]
    Warn,
    /// Its further requests are refused, until it has let go.
    Refuse,
    /// What it holds is let go, and a timeframe counts as consumed by it. Where the timeframe was
    /// ready for so long and the consumer did not even ask, too.
    Revoke,
}

impl FromStr for SlowConsumer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "warn" => Ok(Self::Warn),
            "refuse" => Ok(Self::Refuse),
            "revoke" => Ok(Self::Revoke),
            _ => Err(format!("{text:?}, expected warn, refuse or revoke")),
        }
    }
}

/// What each consumer, by its name, may hold. By default there is no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConsumerLimits {
    /// Bytes that it pins, each object counted once.
    pub quota_bytes: Option<u64>,
    /// Timeframes that it was sent and has not consumed.
    pub quota_timeframes: Option<u64>,
    /// Requests for tables that are being answered.
    pub quota_requests: Option<u64>,
    /// For how long it may hold a table, and leave a timeframe that is ready alone.
    pub slow_after: Option<Duration>,
    /// And if it holds one for longer.
    pub slow_consumer: SlowConsumer,
}

/// What a consumer holds for too long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Late {
    pub(crate) consumer: String,
    pub(crate) timeframe: Option<u64>,
    pub(crate) held: Duration,
}

impl fmt::Display for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { consumer, timeframe, held } = self;
        match timeframe {
            Some(timeframe) => write!(f, "consumer {consumer:?} has timeframe {timeframe}")?,
            None => write!(f, "consumer {consumer:?} has a table")?,
        }
        write!(f, " for {} ms", held.as_millis())
    }
}

/// Looks after consumers that do not let go.
#[derive(Debug)]
pub(crate) struct SlowWatch {
    pub(crate) limits: ConsumerLimits,
    pub(crate) clock: Clock,
    pub(crate) leases: Arc<Leases>,
    pub(crate) timeframes: Arc<Timeframes>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) asking: Arc<Mutex<HashMap<HolderName, u64>>>,
}

/// One request of a consumer that is being answered.
#[derive(Debug)]
pub(crate) struct Asking {
    asking: Arc<Mutex<HashMap<HolderName, u64>>>,
    name: HolderName,
}

impl Drop for Asking {
    fn drop(&mut self) {
        let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = asking.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                asking.remove(&self.name);
            }
        }
    }
}

impl SlowWatch {
    /// Counts one more request of a consumer that is being answered.
    ///
    /// # Errors
    /// [`CacheError::OverQuota`].
    pub(crate) fn begin(&self, name: &HolderName) -> Result<Option<Asking>, CacheError> {
        let Some(limit) = self.limits.quota_requests else { return Ok(None) };
        let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = asking.get(name).map_or(1, |count| count + 1);
        if wanted > limit {
            self.counters.over_quota.add(1);
            let consumer = name.consumer.clone();
            return Err(CacheError::OverQuota { consumer, what: "requests", wanted, limit });
        }
        asking.insert(name.clone(), wanted);
        Ok(Some(Asking { asking: Arc::clone(&self.asking), name: name.clone() }))
    }

    /// Whether a consumer may ask for more.
    ///
    /// # Errors
    /// [`CacheError::SlowConsumer`] if it holds something for too long, and is to be refused.
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

    /// Deals with all that is held for too long by now.
    pub(crate) fn look(&self) {
        let Some(after) = self.limits.slow_after else { return };
        let now = self.clock.now();
        let revoke = self.limits.slow_consumer == SlowConsumer::Revoke;
        let said = |late: &Late| {
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
            // Meanwhile it can have let go by itself.
            if revoke && self.timeframes.consumed(timeframe, &late.consumer).is_ok() {
                self.leases.revoke_reader(timeframe, &late.consumer);
                self.counters.slow_revoked.add(1);
            }
        }
    }
}
