//! Limits per consumer, and the action against a consumer that exceeds its time limit.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The action against a consumer that holds a table for too long.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "server", derive(schemars::JsonSchema))]
pub enum SlowConsumer {
    /// It is logged once, and counted.
    #[default]
    Warn,
    /// Further requests of the consumer are refused until it has released the table.
    Refuse,
    /// Its pins are released, and the timeframe counts as consumed by it. This also applies to a
    /// timeframe that was ready for this time and never requested by the consumer.
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

/// Limits per consumer, by name. Default: no limits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConsumerLimits {
    /// Bytes that it pins, each object counted once.
    pub quota_bytes: Option<u64>,
    /// Timeframes delivered to it and not consumed.
    pub quota_timeframes: Option<u64>,
    /// Requests for tables in progress.
    pub quota_requests: Option<u64>,
    /// Longest time that it may hold a table, or leave a ready timeframe unread.
    pub slow_after: Option<Duration>,
    /// The action after `slow_after`.
    pub slow_consumer: SlowConsumer,
}

/// A consumer that holds a table or timeframe for too long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SlowHolder {
    pub(crate) consumer: String,
    pub(crate) timeframe: Option<u64>,
    pub(crate) held: Duration,
}

impl fmt::Display for SlowHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { consumer, timeframe, held } = self;
        match timeframe {
            Some(timeframe) => write!(f, "consumer {consumer:?} has timeframe {timeframe}")?,
            None => write!(f, "consumer {consumer:?} has a table")?,
        }
        write!(f, " for {} ms", held.as_millis())
    }
}
