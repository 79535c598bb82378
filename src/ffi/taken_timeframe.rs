//! The table of a timeframe that a C program has taken from shared memory.
//!
//! ```text
//!  take ─▶ directory ─┬─ loading ─▶ sleep until the entry changes, or the deadline ─┐
//!            ▲        └─ ready ───▶ pinned by one slot ─▶ the line "delivered"      │
//!            └──────────────────────────────────────────────────────────────────────┘
//!  TakenTimeframe ─▶ object (a view keeps the table, and so its pin) ─▶ consumed
//! ```
//!
//! The service always accepts the session's own name. A table for another name is handed out once the
//! service has accepted the line, unless it has accepted the name before and no session or stream has
//! begun to use a name since.

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arrow_ipc::root_as_message;

use super::status::CallFailure;
use crate::cache::CacheError;
use crate::error::ErrorKind;
use crate::object::ObjectId;
use crate::shm::attach::{ClientMessage, check_consumer};
use crate::shm::{
    AskReason, ColumnArrays, ConsumerMark, LineNumber, LocalPlane, Location, MetaHeader,
    PinnedTimeframe, TimeframeLook,
};
use crate::sync::Mutex;

/// Time limit for the service to take a line.
const LINE_LIMIT: Duration = Duration::from_secs(1);
/// Attempts to report a table: the refused line can be another one of the session.
const ATTEMPTS: usize = 3;
/// Names of consumers that are remembered; beyond, the service is asked for each again.
const MAX_NAMES: usize = 4_096;
/// The wait of a call without a time limit.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Names of consumers that the service has accepted, with the count of claims before that.
#[derive(Debug, Default)]
pub(super) struct AcceptedNames(Mutex<HashMap<String, u32>>);

impl AcceptedNames {
    fn has(&self, name: &str, claims: Option<u32>) -> bool {
        claims.is_some() && self.0.lock().get(name).copied() == claims
    }

    fn add(&self, name: &str, claims: Option<u32>) {
        let Some(claims) = claims else { return };
        let mut names = self.0.lock();
        if names.len() >= MAX_NAMES {
            names.clear();
        }
        names.insert(name.to_owned(), claims);
    }
}

/// A timeframe, and the consumer that takes its table.
#[derive(Debug, Clone, Copy)]
pub(super) struct WantedTimeframe<'a> {
    pub(super) timeframe: u64,
    pub(super) consumer: &'a str,
}

/// The table of a timeframe. Its slot pins the table and its objects until this is dropped.
#[derive(Debug)]
pub(super) struct TakenTimeframe {
    pinned: PinnedTimeframe,
    timeframe: u64,
    consumer: String,
    columns: Vec<CString>,
    is_consumed: AtomicBool,
}

/// An object of a table.
#[derive(Debug)]
pub(super) struct TableObject {
    pub(super) location: Location,
    pub(super) id: ObjectId,
    /// The version's validity interval in milliseconds.
    pub(super) validity: [i64; 2],
}

/// The service must be asked for the timeframe.
#[cold]
fn ask(timeframe: u64, reason: AskReason) -> CallFailure {
    let (kind, why) = match reason {
        AskReason::Unpublished | AskReason::Uncovered | AskReason::Unconfirmed => {
            (ErrorKind::Unavailable, "it is unknown, or its table is not published")
        }
        AskReason::NotResident => (ErrorKind::Unavailable, "its table is being replaced"),
        AskReason::NotMapped => (ErrorKind::Unavailable, "a segment of it is not mapped yet"),
        AskReason::NoSlot => {
            (ErrorKind::ResourceExhausted, "all slots or bytes of the session are used")
        }
        AskReason::Ended => (ErrorKind::FailedPrecondition, "the session is over"),
        AskReason::Forked => (ErrorKind::FailedPrecondition, "the session is the parent's"),
    };
    let message = format!("[IOV-7160] ask the service for timeframe {timeframe}: {why}");
    CallFailure::new(kind, message)
}

/// Takes a table that is ready, or waits for it until `deadline` (`None`: for ever).
///
/// # Errors
/// The service must be asked, the deadline has passed, or the table is not for this consumer.
pub(super) fn take(
    plane: &Arc<LocalPlane>,
    names: &AcceptedNames,
    wanted: WantedTimeframe<'_>,
    deadline: Option<Instant>,
) -> Result<TakenTimeframe, CallFailure> {
    let WantedTimeframe { timeframe, consumer } = wanted;
    if let Err(reason) = check_consumer(consumer) {
        let reason = format!("[IOV-7161] {reason}, and not {consumer:?}");
        return Err(CallFailure::new(ErrorKind::InvalidArgument, reason));
    }
    if plane.timeframes_are_requested() {
        return Err(ask(timeframe, AskReason::Unpublished));
    }
    let until = deadline.unwrap_or_else(|| Instant::now() + FOR_EVER);
    let mut refused = 0;
    loop {
        match plane.timeframe(timeframe) {
            TimeframeLook::Loading(wait) => {
                if !wait.spin() && !wait.wait(until) {
                    let reason = format!("[IOV-7162] timeframe {timeframe} is still being loaded");
                    return Err(CallFailure::new(ErrorKind::DeadlineExceeded, reason));
                }
            }
            TimeframeLook::Unmapped(header) => {
                if !plane.attachment().mappings_for(&header).knows(&header) {
                    return Err(ask(timeframe, AskReason::NotMapped));
                }
            }
            TimeframeLook::Ask(reason) => {
                plane.count_ask(reason);
                return Err(ask(timeframe, reason));
            }
            TimeframeLook::Ready(pinned) => {
                if let Some(taken) = deliver(plane, names, pinned, wanted)? {
                    return Ok(taken);
                }
                refused += 1;
                if refused == ATTEMPTS {
                    return Err(CacheError::ForeignConsumer { consumer: consumer.into() }.into());
                }
            }
        }
    }
}

/// Reports a table as delivered; `None` if the service has refused that.
fn deliver(
    plane: &Arc<LocalPlane>,
    names: &AcceptedNames,
    pinned: PinnedTimeframe,
    wanted: WantedTimeframe<'_>,
) -> Result<Option<TakenTimeframe>, CallFailure> {
    let WantedTimeframe { timeframe, consumer } = wanted;
    match pinned.consumer(consumer) {
        Some(ConsumerMark::Waiting | ConsumerMark::Delivered) => {}
        Some(ConsumerMark::Consumed) => {
            let consumer = consumer.to_owned();
            return Err(CacheError::AlreadyConsumed { timeframe, consumer }.into());
        }
        None => {
            let (consumer, known) = (consumer.to_owned(), pinned.consumer_names());
            return Err(CacheError::UnknownConsumer { timeframe, consumer, known }.into());
        }
    }
    let columns = column_names(&pinned).ok_or_else(damaged)?;
    let is_own = plane.attachment().consumer() == consumer;
    // Before the line is sent: a claim after its check raises the count.
    let claims = plane.claims();
    let line = ClientMessage::delivered(timeframe, consumer, pinned.registration());
    // Where it is awaited, it is sent at once.
    let sent = LineNumber::sent_later(plane, &line);
    let sent = sent.ok_or_else(|| unsent(plane, timeframe))?;
    if !is_own && !names.has(consumer, claims) {
        if !is_accepted(plane, &sent, timeframe)? {
            return Ok(None);
        }
        names.add(consumer, claims);
    }
    plane.count_timeframe();
    let (consumer, is_consumed) = (consumer.to_owned(), AtomicBool::new(false));
    Ok(Some(TakenTimeframe { pinned, timeframe, consumer, columns, is_consumed }))
}

/// The line could not be sent.
fn unsent(plane: &LocalPlane, timeframe: u64) -> CallFailure {
    match plane.check() {
        Err(reason) => ask(timeframe, reason),
        Ok(()) => {
            let reason = "[IOV-7163] the attach socket is full: the service does not read it";
            CallFailure::new(ErrorKind::Unavailable, reason)
        }
    }
}

/// Waits until the service has taken a line; whether it has refused no line since.
fn is_accepted(plane: &LocalPlane, line: &LineNumber, timeframe: u64) -> Result<bool, CallFailure> {
    if line.wait(Instant::now() + LINE_LIMIT) {
        return Ok(true);
    }
    match (line.is_accepted(), plane.check()) {
        (Some(is_accepted), _) => Ok(is_accepted),
        (None, Err(reason)) => Err(ask(timeframe, reason)),
        (None, Ok(())) => {
            let millis = LINE_LIMIT.as_millis();
            let reason = format!("[IOV-7164] the service has not taken a report in {millis} ms");
            Err(CallFailure::new(ErrorKind::Unavailable, reason))
        }
    }
}

#[cold]
fn damaged() -> CallFailure {
    CallFailure::new(ErrorKind::Internal, "[IOV-7165] the table in shared memory is malformed")
}

/// The names of the columns, from the schema.
fn column_names(pinned: &PinnedTimeframe) -> Option<Vec<CString>> {
    let message = root_as_message(pinned.schema()?).ok()?;
    let fields = message.header_as_schema()?.fields()?;
    let name = |text: &str| CString::new(text.replace('\0', "?")).ok();
    let names: Vec<CString> =
        fields.iter().map(|field| name(field.name()?)).collect::<Option<_>>()?;
    (names.len() == pinned.columns()).then_some(names)
}

/// The run that contains `row`.
fn run_of(ends: &[u8], row: usize) -> usize {
    let (ends, _) = ends.as_chunks();
    ends.partition_point(|end| u32::from_le_bytes(*end) as usize <= row)
}

impl TakenTimeframe {
    pub(super) fn rows(&self) -> usize {
        self.pinned.rows()
    }

    /// The names of the columns.
    pub(super) fn columns(&self) -> &[CString] {
        &self.columns
    }

    /// The arrays of a column.
    pub(super) fn column(&self, number: usize) -> Result<ColumnArrays<'_>, CallFailure> {
        if number >= self.columns.len() {
            let columns = self.columns.len();
            let reason = format!("[IOV-7166] column {number} of a table of {columns} columns");
            return Err(CallFailure::new(ErrorKind::InvalidArgument, reason));
        }
        let forked = self.pinned.plane().check().err();
        let is_forked = forked.filter(|reason| matches!(reason, AskReason::Forked));
        let failure = || is_forked.map_or_else(damaged, |reason| ask(self.timeframe, reason));
        self.pinned.column(number).ok_or_else(failure)
    }

    /// The object of a cell; `None`: the cell is null.
    pub(super) fn object(
        &self,
        column: usize,
        row: usize,
    ) -> Result<Option<TableObject>, CallFailure> {
        let arrays = self.column(column)?;
        let run = run_of(arrays.ends, row);
        if row >= self.rows() || run >= arrays.runs {
            let rows = self.rows();
            let reason = format!("[IOV-7167] row {row} of a table of {rows} rows");
            return Err(CallFailure::new(ErrorKind::InvalidArgument, reason));
        }
        if arrays.validity.is_some_and(|bits| bits[run / 8] >> (run % 8) & 1 == 0) {
            return Ok(None);
        }
        let (cells, _) = arrays.cells.as_chunks();
        let header = MetaHeader::from_array(&cells[run]);
        let mappings = self.pinned.mappings();
        let failed = |error| CallFailure::Resolve { error, place: None };
        let location = mappings.locate(&header).map_err(failed)?;
        let id = mappings.object_id(&header).map_err(failed)?;
        let intervals = arrays.intervals.map(|all| all.as_chunks::<8>().0);
        let validity = intervals
            .map_or([0; 2], |all| [all[2 * run], all[2 * run + 1]].map(i64::from_le_bytes));
        Ok(Some(TableObject { location, id, validity }))
    }

    /// Reports the timeframe as consumed, and waits until the service has taken the report.
    pub(super) fn report_consumed(&self) -> Result<(), CallFailure> {
        if self.is_consumed.load(Ordering::Acquire) {
            return Ok(());
        }
        let (plane, timeframe) = (self.pinned.plane(), self.timeframe);
        let registration = self.pinned.registration();
        let line = ClientMessage::consumed(timeframe, &self.consumer, registration);
        for _ in 0..ATTEMPTS {
            let sent = LineNumber::sent(plane, &line);
            let sent = sent.ok_or_else(|| unsent(plane, timeframe))?;
            // The mark tells more exactly: the refused line can be another one of the session.
            let is_marked = || self.pinned.consumer(&self.consumer) == Some(ConsumerMark::Consumed);
            if is_accepted(plane, &sent, timeframe)? || is_marked() {
                self.is_consumed.store(true, Ordering::Release);
                return Ok(());
            }
            let now = plane.timeframe(timeframe);
            let is_it = |now: &PinnedTimeframe| now.registration() == registration;
            if !matches!(&now, TimeframeLook::Ready(now) if is_it(now)) {
                return Err(CacheError::UnknownTimeframe { timeframe }.into());
            }
        }
        Err(CacheError::ForeignConsumer { consumer: self.consumer.clone() }.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_lies_in_the_first_run_that_ends_behind_it() {
        let ends: Vec<u8> = [2_i32, 3, 7].iter().flat_map(|end| end.to_le_bytes()).collect();
        let runs: Vec<usize> = (0..8).map(|row| run_of(&ends, row)).collect();
        assert_eq!(runs, [0, 0, 1, 2, 2, 2, 2, 3]);
        assert_eq!(run_of(&[], 0), 0);
    }

    #[test]
    fn a_name_is_accepted_until_another_claim_and_never_by_a_service_that_tells_no_claims() {
        let names = AcceptedNames::default();
        assert!(!names.has("a", Some(1)));
        names.add("a", Some(1));
        assert!(names.has("a", Some(1)) && !names.has("a", Some(2)) && !names.has("b", Some(1)));
        names.add("a", Some(2));
        assert!(names.has("a", Some(2)));
        names.add("c", None);
        assert!(!names.has("c", None));
    }
}
