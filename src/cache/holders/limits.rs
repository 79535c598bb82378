//! Limits on what one consumer holds, and the actions taken when it exceeds them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

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
