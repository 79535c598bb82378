//! Tables of timeframes from shared memory, without a request.
//!
//! ```text
//!  timeframe, consumer ─▶ directory ─┬─ ready ───▶ pinned by one slot ─▶ Table; the line "delivered"
//!                            ▲       ├─ loading ─▶ sleep until the entry changes ─┐
//!                            └───────┼────────────────────────────────────────────┘
//!                                    └─ anything else ─▶ the service (Client::table)
//! ```
//!
//! The service decides about the names of consumers: the first table for the name of a consumer is requested,
//! and all names are requested again after a refused line. A consumer that the timeframe is not
//! registered for, or that has consumed it, gets the error of the service.

use std::sync::Arc;
use std::time::Instant;

use super::consumption::Consumption;
use super::known_timeframes::TimeframeRequest;
use super::plane_table::PlaneTables;
use super::table::{Hold, Table};
use super::table_columns::TableColumns;
use super::timeframe_columns::TimeframeColumns;
use crate::shm::attach::PinnedBlocks;
use crate::shm::{
    AskReason, ConsumerMark, LineNumber, LocalPlane, MetaHeader, PinnedTimeframe, TimeframeLook,
    TimeframeWait,
};
use crate::table::{Encoding, TableRequest, TimeframeMark};

/// A timeframe for a consumer, in shared memory.
#[derive(Debug)]
pub(super) enum PlaneTimeframe {
    Ready(Box<Table>),
    /// To wait for.
    Loading(TimeframeWait),
    /// A segment is to be mapped first.
    Unmapped(UnmappedSegment),
    /// The service must be asked.
    Ask,
}

/// A segment of a table that this process has not mapped yet.
#[derive(Debug)]
pub(super) struct UnmappedSegment {
    plane: Arc<LocalPlane>,
    header: MetaHeader,
}

impl UnmappedSegment {
    /// Maps it; whether that was possible. Blocks the thread until the service has announced it, at
    /// most 2 s.
    pub(super) fn map(&self) -> bool {
        self.plane.attachment().mappings_for(&self.header).knows(&self.header)
    }

    /// Like [`map`](Self::map), in a runtime.
    pub(super) async fn mapped(self) -> bool {
        tokio::task::spawn_blocking(move || self.map()).await.unwrap_or(false)
    }
}

impl PlaneTables {
    /// The table of a timeframe as it is now. The service is told that the consumer has it.
    pub(super) fn timeframe(&self, request: &TableRequest) -> PlaneTimeframe {
        let Some(wanted) = TimeframeRequest::of(request) else { return PlaneTimeframe::Ask };
        let Some(plane) = self.plane_for(wanted.consumer) else { return PlaneTimeframe::Ask };
        let reason = match plane.timeframe(wanted.timeframe) {
            TimeframeLook::Loading(wait) => return PlaneTimeframe::Loading(wait),
            TimeframeLook::Unmapped(header) => {
                return PlaneTimeframe::Unmapped(UnmappedSegment { plane, header });
            }
            TimeframeLook::Ready(pinned) => match self.table_of(pinned, wanted, request) {
                Some(table) => return PlaneTimeframe::Ready(Box::new(table)),
                None => AskReason::Uncovered,
            },
            TimeframeLook::Ask(reason) => reason,
        };
        plane.count_ask(reason);
        PlaneTimeframe::Ask
    }

    fn table_of(
        &self,
        pinned: PinnedTimeframe,
        wanted: TimeframeRequest<'_>,
        request: &TableRequest,
    ) -> Option<Table> {
        let TimeframeRequest { timeframe, consumer } = wanted;
        match pinned.consumer(consumer)? {
            ConsumerMark::Waiting | ConsumerMark::Delivered => {}
            ConsumerMark::Consumed => return None,
        }
        let schema = self.with_timeframes(|known| known.schema(&pinned))?;
        let (plane, rows) = (Arc::clone(pinned.plane()), pinned.rows());
        let registration = pinned.registration();
        let consumption = Consumption::taken(timeframe, consumer, Arc::clone(&plane), registration);
        // The table is not handed out without the report.
        let (session, line) = consumption.delivered()?;
        self.note_line(LineNumber::sent_later(session, &line)?);
        let mark = TimeframeMark { timeframe, registration };
        let columns = TimeframeColumns::new(mark, schema);
        let hold = Hold::Pinned(PinnedBlocks::of_timeframe(pinned));
        let request = request.clone().encoding(Encoding::RunEnd);
        let request = request.session(plane.attachment().session());
        plane.count_timeframe();
        Some(Table::of_timeframe(
            TableColumns::OfTimeframe(columns),
            rows,
            hold,
            request,
            consumption,
        ))
    }

    /// Reports a timeframe as consumed, if its table came from shared memory. The next call to the
    /// service waits for the line. `None`: the service must be called.
    pub(super) fn report_consumed(&self, consumption: &Consumption) -> Option<LineNumber> {
        let (session, line) = consumption.consumed()?;
        let sent = LineNumber::sent(session, &line)?;
        self.note_line(sent.clone());
        Some(sent)
    }
}

/// Waits for a timeframe in a runtime, without blocking its threads; whether its entry has changed
/// before `until`.
pub(super) async fn until_changed(wait: TimeframeWait, until: Instant) -> bool {
    if wait.spin() {
        return true;
    }
    // Dropped with this future: then the thread does not wait any longer.
    let _cancel = wait.cancel_on_drop();
    tokio::task::spawn_blocking(move || wait.wait(until)).await.unwrap_or(false)
}

/// Waits until the service has taken a line, for at most as long as an answer would take; whether it
/// has accepted it.
pub(super) async fn until_accepted(line: LineNumber, until: Instant) -> bool {
    if line.spin() {
        return line.wait(Instant::now());
    }
    tokio::task::spawn_blocking(move || line.wait(until)).await.unwrap_or(false)
}
