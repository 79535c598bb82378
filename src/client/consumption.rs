//! Reports of a consumer about a timeframe.

use std::sync::Arc;

use arrow_schema::Schema;

use crate::shm::attach::ClientMessage;
use crate::shm::{LocalPlane, TimeframeLook};
use crate::table::{REGISTRATION, TableRequest};

/// A timeframe whose table a consumer has, to be reported as consumed
/// ([`Client::report_consumed`](super::Client::report_consumed)) when the table is not needed any
/// more.
#[derive(Debug, Clone)]
pub struct Consumption {
    timeframe: u64,
    consumer: String,
    /// Number of the registration; `None`: the service did not tell it.
    registration: Option<u64>,
    /// The session that took the table from shared memory.
    taken: Option<Arc<LocalPlane>>,
}

impl Consumption {
    /// That of a requested table; `None` if it is not the table of a timeframe for a consumer.
    pub(super) fn requested(request: &TableRequest, schema: &Schema) -> Option<Self> {
        let fields = request.fields();
        let (timeframe, consumer) = (fields.timeframe?, fields.consumer.clone()?);
        let registration = schema.metadata().get(REGISTRATION).and_then(|text| text.parse().ok());
        Some(Self { timeframe, consumer, registration, taken: None })
    }

    /// That of a table from shared memory.
    pub(super) fn taken(
        timeframe: u64,
        consumer: &str,
        plane: Arc<LocalPlane>,
        registration: u64,
    ) -> Self {
        let (consumer, registration) = (consumer.to_owned(), Some(registration));
        Self { timeframe, consumer, registration, taken: Some(plane) }
    }

    /// The timeframe.
    pub fn timeframe(&self) -> u64 {
        self.timeframe
    }

    /// The name of the consumer.
    pub fn consumer(&self) -> &str {
        &self.consumer
    }

    /// Number of the registration, if it is known.
    pub(super) fn registration(&self) -> Option<u64> {
        self.registration
    }

    /// The line that reports the table as delivered, and the session to send it; `None`: a requested
    /// table is reported by its request.
    pub(super) fn delivered(&self) -> Option<(&Arc<LocalPlane>, ClientMessage)> {
        let (plane, registration) = self.taken.as_ref().zip(self.registration)?;
        Some((plane, ClientMessage::delivered(self.timeframe, &self.consumer, registration)))
    }

    /// The line that reports the timeframe as consumed, and the session to send it; `None`: it is
    /// reported by a call.
    pub(super) fn consumed(&self) -> Option<(&Arc<LocalPlane>, ClientMessage)> {
        let (plane, registration) = self.taken.as_ref().zip(self.registration)?;
        Some((plane, ClientMessage::consumed(self.timeframe, &self.consumer, registration)))
    }

    /// Whether the id was registered anew since the table was taken.
    pub(super) fn is_of_an_earlier_registration(&self) -> bool {
        let Some((plane, registration)) = self.taken.as_ref().zip(self.registration) else {
            return false;
        };
        match plane.timeframe(self.timeframe) {
            TimeframeLook::Ready(pinned) => pinned.registration() != registration,
            // The segments of the earlier table were mapped.
            TimeframeLook::Loading(_) | TimeframeLook::Unmapped(_) => true,
            TimeframeLook::Ask(_) => false,
        }
    }
}
