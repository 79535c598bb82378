//! Calls of the client for timeframes: their tables, and the reports of their consumers.

use std::time::{Duration, Instant};

use super::consumption::Consumption;
use super::error::ClientError;
use super::known_timeframes::KnownTimeframes;
use super::plane_timeframe::{PlaneTimeframe, until_accepted, until_changed};
use super::service::Client;
use super::table::Table;
use crate::shm::attach::process_generation;
use crate::table::TableRequest;

/// Longest time for which a call waits until the service has taken the lines sent before it. A service
/// that is stopped does not take them; the call itself has its own time limit.
const LINE_LIMIT: Duration = Duration::from_secs(1);

impl Client {
    /// The table of a timeframe for a consumer. It is taken from shared memory where it lies there,
    /// and awaited there while its objects are loaded; else it is requested from the service. Its
    /// objects are pinned until the table is dropped.
    ///
    /// # Errors
    /// As [`table`](Self::table): the timeframe is not in flight, is not registered for the consumer,
    /// or was consumed by it.
    pub async fn timeframe(&self, timeframe: u64, consumer: &str) -> Result<Table, ClientError> {
        self.table(TableRequest::new().timeframe(timeframe).consumer(consumer)).await
    }

    /// Like [`timeframe`](Self::timeframe), for a thread outside of the runtime: it sleeps in the
    /// kernel and is woken by the service itself.
    ///
    /// # Errors
    /// As [`timeframe`](Self::timeframe).
    ///
    /// # Panics
    /// Within a runtime.
    pub fn timeframe_blocking(&self, timeframe: u64, consumer: &str) -> Result<Table, ClientError> {
        let request = TableRequest::new().timeframe(timeframe).consumer(consumer);
        let until = Instant::now() + self.patience();
        while let Some(tables) = self.plane_tables().filter(|_| !self.is_forked()) {
            match tables.timeframe(&request) {
                PlaneTimeframe::Ready(table) => return Ok(*table),
                PlaneTimeframe::Loading(wait) if wait.spin() || wait.wait(until) => {}
                PlaneTimeframe::Unmapped(segment) if segment.map() => {}
                PlaneTimeframe::Loading(_) | PlaneTimeframe::Unmapped(_) | PlaneTimeframe::Ask => {
                    break;
                }
            }
        }
        let left = until.saturating_duration_since(Instant::now());
        self.runtime().block_on(self.table(request.wait(left)))
    }

    /// The table of a timeframe from shared memory, if it lies there or comes there within the time
    /// limit of the request.
    pub(super) async fn awaited_timeframe(
        &self,
        request: &TableRequest,
        limit: Duration,
    ) -> Option<Table> {
        let until = Instant::now().checked_add(limit)?;
        // In a forked child the session is the parent's.
        while let Some(tables) = self.plane_tables().filter(|_| !self.is_forked()) {
            match tables.timeframe(request) {
                PlaneTimeframe::Ready(table) => return Some(*table),
                PlaneTimeframe::Loading(wait) => {
                    if !until_changed(wait, until).await {
                        return None;
                    }
                }
                PlaneTimeframe::Unmapped(segment) => {
                    if !segment.mapped().await {
                        return None;
                    }
                }
                PlaneTimeframe::Ask => return None,
            }
        }
        None
    }

    fn is_forked(&self) -> bool {
        self.process() != process_generation()
    }

    /// Waits until the service has taken the reports sent before, so that a call sees their effects.
    pub(super) async fn settle_reports(&self) {
        let Some(tables) = self.plane_tables() else { return };
        if let Some(line) = tables.take_line()
            && !until_accepted(line, Instant::now() + LINE_LIMIT).await
        {
            // The service decides about the names anew.
            tables.with_timeframes(KnownTimeframes::forget_consumers);
        }
    }

    /// Drops the table of a timeframe, and reports the timeframe as consumed.
    ///
    /// # Errors
    /// As [`report_consumed`](Self::report_consumed); [`ClientError::Argument`] if it is no table of
    /// a timeframe for a consumer.
    pub async fn consume(&self, table: Table) -> Result<(), ClientError> {
        let consumption = table.consumption().cloned();
        // Its pins end before the report, so that the service can free the objects with it.
        drop(table);
        match consumption {
            Some(consumption) => self.report_consumed(&consumption).await,
            None => {
                let reason = "it is no table of a timeframe for a consumer".to_owned();
                Err(ClientError::Argument { reason })
            }
        }
    }

    /// Reports that a consumer has finished with a timeframe: by a line on the attach socket where
    /// the table came from shared memory, else by a call. The service has taken the report when this
    /// returns.
    ///
    /// # Errors
    /// [`ClientError`], mostly [`Service`](ClientError::Service); [`ClientError::Dropped`] if the
    /// timeframe was dropped since, and its id is registered anew.
    pub async fn report_consumed(&self, consumption: &Consumption) -> Result<(), ClientError> {
        if self.is_forked() {
            return Err(ClientError::ForkedProcess);
        }
        if let Some(tables) = self.plane_tables()
            && let Some(line) = tables.report_consumed(consumption)
        {
            // Not reported again by a call while the service may still take the line: that call would
            // find the timeframe consumed and dropped.
            let limit = self.patience();
            if until_accepted(line.clone(), Instant::now() + limit).await {
                return Ok(());
            }
            if line.is_pending() {
                return Err(ClientError::NotInTime { limit_millis: limit.as_millis() });
            }
            // The service decides about the names anew.
            tables.with_timeframes(KnownTimeframes::forget_consumers);
        }
        if consumption.is_of_an_earlier_registration() {
            return Err(ClientError::Dropped { timeframe: consumption.timeframe() });
        }
        let (timeframe, consumer) = (consumption.timeframe(), consumption.consumer());
        self.consumed_of(timeframe, consumer, consumption.registration()).await.map(|_| ())
    }
}
