//! Requests for tables: JSON with every rule checked and every unknown field refused by name.

use std::time::Duration;

use serde::Deserialize;

use super::column::{ColumnList, ColumnRequest};
use super::key_rows::{JsonKeys, KeyColumns, KeyError, TableRows};
use super::limits::{AtMost, RequestLimits};
use super::lock_file::LockEntry;
use super::range::{RangeError, RangeRequest, RequestedRange, RunRange};
use super::request_message::{RequestMessage, Times};
use super::request_options::{CellKind, Encoding, Missing, View};
use super::schema_metadata::SchemaMetadata;
use crate::error::coded;
use crate::index::Timestamps;
use crate::interval::ValidityInterval;
use crate::object::CreationLimits;

/// Columns of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Columns {
    /// The columns given in the request.
    Own(Vec<ColumnRequest>),
    /// The columns that the configuration lists under this name.
    Table(String),
    /// The columns with which the timeframe was registered.
    Registered,
}

impl Columns {
    /// From the two fields of a message, of which at most one may be given.
    pub(super) fn of(
        columns: Option<ColumnList>,
        table: Option<String>,
    ) -> Result<Self, RequestError> {
        match (columns, table) {
            (Some(_), Some(_)) => Err(RequestError::TooMany { fields: "columns, table" }),
            (Some(ColumnList(columns)), None) if columns.is_empty() => {
                Err(RequestError::Field { field: "columns", reason: "the list is empty".into() })
            }
            (Some(ColumnList(columns)), None) => Ok(Self::Own(columns)),
            (None, Some(table)) if table.len() > RequestLimits::MOST.name_bytes => {
                let most = RequestLimits::MOST.name_bytes;
                let reason = format!("a name has at most {most} bytes");
                Err(RequestError::Field { field: "table", reason })
            }
            (None, Some(table)) => Ok(Self::Table(table)),
            (None, None) => Ok(Self::Registered),
        }
    }
}

/// Timestamps or time span of a request.
#[derive(Debug, Clone)]
pub enum When {
    /// The timestamps of a timeframe in flight.
    Timeframe(u64),
    /// The timestamps of the request, with the values of the keys.
    Timestamps(TableRows),
    /// All effective spans between two times.
    Range(ValidityInterval),
    /// The time span of a run, which is looked up first.
    Run(RunRange),
}

/// A request for a table.
#[derive(Debug, Clone)]
pub struct Request {
    /// The columns.
    pub columns: Columns,
    /// The timestamps or the time span.
    pub when: When,
    /// Of a range without a step: longest pause in milliseconds between two neighbouring timestamps
    /// that the spans will be joined with. A span that may contain none of them is refused.
    pub gap: Option<i64>,
    /// Name of the consumer that reads the table.
    pub consumer: Option<String>,
    /// Id of the session for which the objects are pinned.
    pub session: Option<String>,
    /// Arrow encoding of the columns.
    pub encoding: Encoding,
    /// Kind of the cells.
    pub cell: CellKind,
    /// Kind of the rows.
    pub view: View,
    /// Treatment of timestamps at which no object is valid.
    pub missing: Missing,
    /// Whether the timestamps are the first column.
    pub timestamps_column: bool,
    /// Metadata of the schema, beside that of the service.
    pub schema_metadata: SchemaMetadata,
    /// Limits on the creation time of the versions considered.
    pub limits: CreationLimits,
    /// The only versions considered.
    pub lock: Option<Vec<LockEntry>>,
    /// Maximum duration of the request, source included.
    pub wait: Duration,
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The body is not the expected JSON.
    #[error("this is no {what}: {reason}")]
    Malformed {
        /// The expected message.
        what: &'static str,
        /// The reason; unknown fields are named.
        reason: String,
    },
    /// A field has a value that is not allowed.
    #[error("{field}: {reason}")]
    Field {
        /// Name of the field.
        field: &'static str,
        /// The reason.
        reason: String,
    },
    /// None of several fields is given, of which one is required.
    #[error("one of {fields} is needed")]
    NoneOf {
        /// The fields, of which one is required.
        fields: &'static str,
    },
    /// More than one of several exclusive fields is given.
    #[error("only one of {fields} may be given")]
    TooMany {
        /// The fields, of which at most one may be given.
        fields: &'static str,
    },
    /// The key columns do not fit the request.
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl From<RangeError> for RequestError {
    fn from(error: RangeError) -> Self {
        Self::Field { field: "range", reason: error.reason }
    }
}

coded! { RequestError {
    Malformed => InvalidArgument 1001,
    Field => InvalidArgument 1002,
    NoneOf => InvalidArgument 1003,
    TooMany => InvalidArgument 1004,
    Key(error) => error,
} }

const WHEN: &str = "timeframe, timestamps, range";

impl RequestMessage {
    fn check_step(&self, range: &RequestedRange) -> Result<(), RequestError> {
        let is_intervals = self.view == Some(View::Intervals);
        let wrong = |reason: &str| Err(RangeRequest::wrong(reason.to_owned()).into());
        match (range.step(), range.gap()) {
            (Some(_), _) if is_intervals => wrong("it has no step for the view intervals"),
            (_, Some(..=0)) if is_intervals => wrong("gap must be positive"),
            (_, Some(_)) if !is_intervals => wrong("gap goes with the view intervals"),
            (None, _) if !is_intervals && matches!(range, RequestedRange::Run { .. }) => {
                wrong("it needs a step, except in the view intervals")
            }
            (Some(step @ ..=0), _) => wrong(&format!("step is {step}, it must be positive")),
            _ => Ok(()),
        }
    }

    /// The timestamps or the time span, if one is given.
    fn when(&mut self) -> Result<Option<When>, RequestError> {
        let keys = match self.keys.take() {
            Some(JsonKeys(keys)) => keys?,
            None => KeyColumns::default(),
        };
        if !keys.is_empty() && self.timestamps.is_none() {
            let reason = "they need timestamps: one value per timestamp".to_owned();
            return Err(RequestError::Field { field: "keys", reason });
        }
        Ok(Some(match (self.timeframe, self.timestamps.take(), self.range) {
            (Some(timeframe), None, None) => When::Timeframe(timeframe),
            (None, Some(Times(timestamps)), None) => {
                When::Timestamps(TableRows { timestamps, keys })
            }
            (None, None, Some(range)) => {
                self.check_step(&range)?;
                match range {
                    RequestedRange::Run { run, .. } => When::Run(run),
                    RequestedRange::Times(range) if self.view == Some(View::Intervals) => {
                        When::Range(range.interval()?)
                    }
                    RequestedRange::Times(range) => When::Timestamps(range.timestamps()?.into()),
                }
            }
            (None, None, None) => return Ok(None),
            _ => return Err(RequestError::TooMany { fields: WHEN }),
        }))
    }
}

impl Request {
    /// Maximum duration of a request that gives none.
    pub const DEFAULT_WAIT: Duration = Duration::from_secs(60);

    /// Parses a request from JSON.
    ///
    /// # Errors
    /// [`RequestError`], which names the faulty field.
    pub fn parse(json: &[u8]) -> Result<Self, RequestError> {
        Self::from_message(parse_json("request", json)?)
    }

    /// # Errors
    /// [`RequestError`] if the fields of the message do not go together.
    pub(super) fn from_message(mut message: RequestMessage) -> Result<Self, RequestError> {
        let when = message.when()?.ok_or(RequestError::NoneOf { fields: WHEN })?;
        let request = Self::of(message, when)?;
        request.check_view()?;
        Ok(request)
    }

    /// Parses the request of an exchange, in which the timestamps follow as batches: JSON without
    /// `timeframe`, `timestamps` and `range`. Its tables can have null cells, since timestamps can
    /// be null.
    ///
    /// # Errors
    /// [`RequestError`], which names the faulty field.
    pub fn parse_template(json: &[u8]) -> Result<Self, RequestError> {
        let mut message: RequestMessage = parse_json("request", json)?;
        if message.when()?.is_some() {
            let reason = "in an exchange the timestamps come with each batch".to_owned();
            return Err(RequestError::Field { field: WHEN, reason });
        }
        let when = When::Timestamps(Timestamps::new(Vec::new(), None).into());
        let request = Self::of(message, when)?;
        match request.view {
            View::Rows | View::Objects | View::Distinct => request.check_view()?,
            View::Intervals | View::Chunks => {
                let reason = "an exchange has the views rows, objects and distinct".to_owned();
                return Err(RequestError::Field { field: "view", reason });
            }
        }
        Ok(request)
    }

    fn of(message: RequestMessage, when: When) -> Result<Self, RequestError> {
        let columns = Columns::of(message.columns, message.table)?;
        if columns == Columns::Registered && !matches!(when, When::Timeframe(_)) {
            return Err(RequestError::NoneOf { fields: "columns, table" });
        }
        Ok(Self {
            columns,
            when,
            gap: message.range.and_then(|range| range.gap()),
            consumer: message.consumer,
            session: message.session,
            encoding: message.encoding.unwrap_or_default(),
            cell: message.cell.unwrap_or_default(),
            view: message.view.unwrap_or_default(),
            missing: message.missing.unwrap_or_default(),
            timestamps_column: message.timestamps_column.unwrap_or_default(),
            schema_metadata: message.schema_metadata.unwrap_or_default(),
            limits: CreationLimits { not_before: message.not_before, not_after: message.not_after },
            lock: message.lock.map(|AtMost(entries)| entries),
            wait: message.wait_ms.map_or(Self::DEFAULT_WAIT, Duration::from_millis),
        })
    }

    /// Whether it considers all versions that the service knows.
    #[doc(hidden)]
    pub fn is_plain(&self) -> bool {
        self.limits == CreationLimits::default() && self.lock.is_none()
    }

    fn check_view(&self) -> Result<(), RequestError> {
        let wrong =
            |field, reason: &str| Err(RequestError::Field { field, reason: reason.to_owned() });
        match (self.view, &self.when) {
            (View::Intervals, When::Range(_) | When::Run(_)) => {}
            (View::Intervals, _) => return wrong("view", "intervals needs a range without a step"),
            (View::Chunks, When::Timestamps(TableRows { timestamps, .. })) => {
                if timestamps.len() != 1 || timestamps.has_nulls() {
                    return wrong("view", "chunks needs exactly one timestamp");
                }
            }
            (View::Chunks, _) => return wrong("view", "chunks needs exactly one timestamp"),
            (View::Rows | View::Objects | View::Distinct, _) => {}
        }
        if self.view == View::Chunks
            && matches!(&self.columns, Columns::Own(columns) if columns.len() != 1)
        {
            return wrong("view", "chunks needs exactly one column");
        }
        if self.timestamps_column && self.view != View::Rows {
            return wrong("timestamps_column", "only the view rows has timestamps");
        }
        if let Columns::Own(columns) = &self.columns
            && self.timestamps_column
            && columns.iter().any(|column| &*column.name == "timestamp")
        {
            return wrong("timestamps_column", "a column is named timestamp already");
        }
        for (field, name) in [("consumer", &self.consumer), ("session", &self.session)] {
            let most = RequestLimits::MOST.name_bytes;
            if name.as_ref().is_some_and(|name| name.is_empty() || name.len() > most) {
                return wrong(field, &format!("a name has 1 to {most} bytes"));
            }
        }
        Ok(())
    }
}

/// Parses an object in JSON; `what` names the message in the error. serde would take an array, too, with
/// the fields in their order.
pub(super) fn parse_json<'a, T: Deserialize<'a>>(
    what: &'static str,
    json: &'a [u8],
) -> Result<T, RequestError> {
    let parsed = match json.trim_ascii_start().first() {
        Some(b'[') => Err("it is an array, expected an object".to_owned()),
        _ => serde_json::from_slice(json).map_err(|error| error.to_string()),
    };
    parsed.map_err(|reason| RequestError::Malformed { what, reason })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Coded as _;
    use crate::interval::Timestamp;

    fn error(json: &str) -> String {
        Request::parse(json.as_bytes()).unwrap_err().message()
    }

    #[test]
    fn an_array_is_no_request() {
        let json = r#" [{"x": "T/A"}, null, null, [1000]]"#;
        let error = Request::parse(json.as_bytes()).unwrap_err().message();
        assert!(error.contains("an array, expected an object"), "{error}");
    }

    #[test]
    fn columns_keep_their_order_and_may_ask_for_metadata() {
        let request = Request::parse(
            br#"{"columns": {"z": "Z/Z", "a": {"path": "A/A", "metadata": {"k": "v"}}},
                "timestamps": [5, null]}"#,
        )
        .unwrap();
        let Columns::Own(columns) = request.columns else { panic!() };
        assert_eq!(&*columns[0].name, "z");
        assert_eq!(columns[1].metadata["k"], "v");
        assert_eq!(request.wait, Duration::from_secs(60));
        let When::Timestamps(TableRows { timestamps, .. }) = request.when else { panic!() };
        assert_eq!((timestamps.value(0).is_some(), timestamps.value(1)), (true, None));
    }

    #[test]
    fn faults_are_named() {
        assert!(
            error(r#"{"columns": {"a": "A"}, "timestamps": [1], "colour": 1}"#).contains("colour")
        );
        assert!(
            error(r#"{"columns": {"a": {"path": "A", "x": 1}}, "timestamps": [1]}"#)
                .contains("`x`")
        );
        assert!(error(r#"{"columns": {"a": "A", "a": "B"}, "timestamps": [1]}"#).contains("twice"));
        assert!(error(r#"{"columns": {"a": "12"}, "timestamps": [1]}"#).contains("all digits"));
        assert!(error(r#"{"columns": {}, "timestamps": [1]}"#).contains("columns"));
        assert!(
            error(r#"{"columns": {"a": "A"}, "table": "t", "timestamps": [1]}"#).contains("table")
        );
        assert!(error(r#"{"timestamps": [1]}"#).contains("columns, table"));
        assert!(error(r#"{"columns": {"a": "A"}}"#).contains("timeframe, timestamps, range"));
        let both = r#"{"columns": {"a": "A"}, "timestamps": [1], "timeframe": 1}"#;
        assert!(error(both).contains("only one of"));
        assert!(error("[1, 2").starts_with("[IOV-1001] this is no request"));
        assert!(error(r#"{"columns": {"a": "A"}, "timestamps": [1.5]}"#).contains("1.5"));
        let view = |extra: &str| error(&format!(r#"{{"columns": {{"a": "A"}}, {extra}}}"#));
        assert!(
            view(r#""timestamps": [1], "view": "intervals"}"#.trim_end_matches('}'))
                .contains("range")
        );
        assert!(view(r#""timestamps": [1, 2], "view": "chunks""#).contains("one timestamp"));
        assert!(view(r#""range": {"from": 0, "until": 9}"#).contains("step"));
        assert!(view(r#""range": {"from": 0, "until": 9, "step": 0}"#).contains("positive"));
        assert!(view(r#""range": {"from": 9, "until": 9, "step": 1}"#).contains("from < until"));
        let endless =
            format!(r#""range": {{"from": {}, "until": {}, "step": 1}}"#, i64::MIN, i64::MAX);
        assert!(view(&endless).contains("rows"));
    }

    #[test]
    fn a_range_has_a_row_for_each_step_before_its_end() {
        let rows = |from: i64, until: i64, step: i64| {
            let [from, until] = [from, until].map(Timestamp::from_millis);
            let range = RangeRequest { from, until, step: Some(step), gap: None };
            let timestamps = range.timestamps().unwrap();
            (0..timestamps.len()).map(|row| timestamps.value(row).unwrap().as_millis()).collect()
        };
        let all: Vec<i64> = rows(0, 10, 5);
        assert_eq!(all, [0, 5]);
        let all: Vec<i64> = rows(0, 11, 5);
        assert_eq!(all, [0, 5, 10]);
        let all: Vec<i64> = rows(i64::MIN, i64::MAX, i64::MAX);
        assert_eq!(all, [i64::MIN, -1, i64::MAX - 1]);
    }
}
