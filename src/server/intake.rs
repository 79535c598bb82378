//! How much is taken in at a time: what clients send is bounded over all of them.

use std::sync::Arc;

use arrow_flight::FlightData;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

/// Room is counted in these.
const UNIT_BYTES: usize = 1 << 10;

/// The room for what comes in. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Intake {
    room: Arc<Semaphore>,
    limit_bytes: usize,
}

/// Room for one message, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Taken(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

impl Intake {
    pub(super) fn new(limit_bytes: usize) -> Self {
        let units = (limit_bytes / UNIT_BYTES).min(Semaphore::MAX_PERMITS);
        Self { room: Arc::new(Semaphore::new(units)), limit_bytes }
    }

    /// Room for a message.
    ///
    /// # Errors
    /// UNAVAILABLE if others take it now.
    pub(super) fn take(&self, message: &FlightData) -> Result<Taken, Status> {
        let bytes = message.data_header.len() + message.data_body.len();
        let units = u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX);
        Arc::clone(&self.room).try_acquire_many_owned(units).map(Taken).map_err(|_| {
            let limit = self.limit_bytes;
            Status::unavailable(format!(
                "[IOV-1052] {limit} bytes of timestamps are being taken in, no more are now"
            ))
        })
    }
}
