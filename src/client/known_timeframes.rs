//! Requests for timeframes that shared memory can answer, and the schemas and names they need.

use std::collections::HashMap;
use std::sync::Arc;

use super::plane_request::PlaneFields;
use super::timeframe_columns::TimeframeSchema;
use crate::shm::PinnedTimeframe;
use crate::shm::attach::check_consumer;
use crate::table::{Missing, TableRequest};

/// Schemas that are remembered; beyond, all are decoded anew.
const MAX_SCHEMAS: usize = 256;
/// Names of consumers that are remembered; beyond, the first table of each is requested again.
const MAX_CONSUMERS: usize = 4_096;

/// A timeframe and the consumer that reads it, if shared memory can answer the request.
#[derive(Debug, Clone, Copy)]
pub(super) struct TimeframeRequest<'a> {
    pub(super) timeframe: u64,
    pub(super) consumer: &'a str,
}

impl<'a> TimeframeRequest<'a> {
    /// `None`: the service must be asked.
    pub(super) fn of(request: &'a TableRequest) -> Option<Self> {
        let PlaneFields {
            columns: None,
            timeframe: Some(timeframe),
            timestamps: None,
            consumer: Some(consumer),
            missing: None | Some(Missing::Error),
        } = PlaneFields::of(request)?
        else {
            return None;
        };
        // Other names cannot be reported by a line.
        check_consumer(consumer).is_ok().then_some(Self { timeframe, consumer })
    }
}

/// Facts about the timeframes of one session.
#[derive(Debug, Default)]
pub(super) struct KnownTimeframes {
    /// By number.
    schemas: HashMap<u64, Arc<TimeframeSchema>>,
    /// Consumers for which the service has answered, with the count of claims before the request.
    consumers: HashMap<String, Option<u32>>,
}

impl KnownTimeframes {
    /// Remembers that the service has answered for a consumer. `claims` is the count of claims before
    /// the request.
    pub(super) fn add_consumer(&mut self, name: &str, claims: Option<u32>) {
        if let Some(known) = self.consumers.get_mut(name) {
            *known = claims;
            return;
        }
        if self.consumers.len() >= MAX_CONSUMERS {
            self.consumers.clear();
        }
        self.consumers.insert(name.to_owned(), claims);
    }

    /// Whether the service accepts the name of a consumer. `claims` is the count of claims now: if it
    /// has risen, another user may have the name. The session's own name is always accepted.
    pub(super) fn has_consumer(&self, name: &str, is_own: bool, claims: Option<u32>) -> bool {
        self.consumers.get(name).is_some_and(|known| is_own || *known == claims)
    }

    /// The next table for each consumer is requested.
    pub(super) fn forget_consumers(&mut self) {
        self.consumers.clear();
    }

    pub(super) fn schema(&mut self, pinned: &PinnedTimeframe) -> Option<Arc<TimeframeSchema>> {
        let number = pinned.schema_number();
        if let Some(known) = self.schemas.get(&number) {
            return Some(Arc::clone(known));
        }
        let schema = Arc::new(TimeframeSchema::of(pinned)?);
        if self.schemas.len() >= MAX_SCHEMAS {
            self.schemas.clear();
        }
        self.schemas.insert(number, Arc::clone(&schema));
        Some(schema)
    }
}
