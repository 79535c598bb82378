//! What a table is asked for with: JSON, every rule checked, every unknown field refused by name.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arrow_buffer::NullBufferBuilder;
use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::column::{ColumnList, ColumnRequest};
use super::key_rows::{JsonKeys, KeyColumns, KeyError, TableRows};
use super::limits::{AtMost, RequestLimits};
use super::lock_file::LockEntry;
use super::range::{RangeError, RangeRequest, RequestedRange, RunRange};
use super::schema_metadata::SchemaMetadata;
use crate::error::coded;
use crate::index::Timestamps;
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::CreationLimits;

/// The shape of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// `Dictionary<Int32, cell>`.
    #[default]
    Dictionary,
    /// `RunEndEncoded<Int32, cell>`.
    RunEnd,
    /// The cell itself in every row.
    Plain,
}

/// What stands in a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CellKind {
    /// The MetaHeader's bytes: `FixedSizeBinary(40)`.
    #[default]
    Binary,
    /// The MetaHeader's seven fields: `Struct`.
    Struct,
    /// handle, segment id, size: `FixedSizeList<Int64>[3]`, the cell of AliceO2's CCDB tables.
    O2,
    /// The object's bytes: `LargeBinary`.
    Payload,
}

/// What the rows of the answer are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum View {
    /// One per timestamp.
    #[default]
    Rows,
    /// One per run: which version served it.
    Objects,
    /// One per effective span that touches a range.
    Intervals,
    /// Pieces of one object.
    Chunks,
    /// One per distinct object of a column.
    Distinct,
}

/// What happens where nothing is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// The request fails.
    #[default]
    Error,
    /// The cell is null.
    Null,
}

/// Which columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Columns {
    /// These.
    Own(Vec<ColumnRequest>),
    /// Those that the configuration names so.
    Table(String),
    /// Those that the timeframe was registered with.
    Registered,
}

impl Columns {
    /// From the two fields of a message, of which at most one may be there.
    pub(super) fn of(
        columns: Option<ColumnList>,
        table: Option<String>,
    ) -> Result<Self, RequestError> {
        match (columns, table) {
            (Some(_), Some(_)) => Err(RequestError::TooMany { fields: "columns, table" }),
            (Some(ColumnList(columns)), None) if columns.is_empty() => {
                Err(RequestError::Field { field: "columns", reason: "it names none".into() })
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

/// For which times.
#[derive(Debug, Clone)]
pub enum When {
    /// The timestamps of a timeframe in flight.
    Timeframe(u64),
    /// These, with the values of the keys beside them.
    Timestamps(TableRows),
    /// All effective spans between two times.
    Range(ValidityInterval),
    /// The time of a run, which is looked up first.
    Run(RunRange),
}

/// A request for a table.
#[derive(Debug, Clone)]
pub struct Request {
    /// Which columns.
    pub columns: Columns,
    /// For which times.
    pub when: When,
    /// Of a range without a step: so far apart are the timestamps that the spans are for, at most.
    /// A span in which none of them may lie is refused.
    pub gap: Option<i64>,
    /// Who reads.
    pub consumer: Option<String>,
    /// For which session the objects are pinned.
    pub session: Option<String>,
    /// The shape of the columns.
    pub encoding: Encoding,
    /// What stands in a cell.
    pub cell: CellKind,
    /// What the rows are.
    pub view: View,
    /// What happens where nothing is valid.
    pub missing: Missing,
    /// Whether the timestamps come first.
    pub timestamps_column: bool,
    /// Metadata of the schema, beside that of the service.
    pub schema_metadata: SchemaMetadata,
    /// Which versions are seen.
    pub limits: CreationLimits,
    /// The only versions that there are.
    pub lock: Option<Vec<LockEntry>>,
    /// How long it may take, the source included.
    pub wait: Duration,
}

/// Why a request is no request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// It is not the JSON that is expected.
    #[error("this is no {what}: {reason}")]
    Malformed {
        /// What was expected.
        what: &'static str,
        /// What is wrong, unknown fields by name.
        reason: String,
    },
    /// A field says something impossible.
    #[error("{field}: {reason}")]
    Field {
        /// Which.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// One is needed.
    #[error("one of {fields} is needed")]
    NoneOf {
        /// Of these.
        fields: &'static str,
    },
    /// Only one may stand there.
    #[error("only one of {fields} may be given")]
    TooMany {
        /// Of these.
        fields: &'static str,
    },
    /// The key columns do not fit.
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    columns: Option<ColumnList>,
    table: Option<String>,
    timeframe: Option<u64>,
    timestamps: Option<Times>,
    keys: Option<JsonKeys>,
    range: Option<RequestedRange>,
    consumer: Option<String>,
    session: Option<String>,
    #[serde(default)]
    encoding: Encoding,
    #[serde(default)]
    cell: CellKind,
    #[serde(default)]
    view: View,
    #[serde(default)]
    missing: Missing,
    #[serde(default)]
    timestamps_column: bool,
    #[serde(default)]
    schema_metadata: SchemaMetadata,
    not_after: Option<Timestamp>,
    not_before: Option<Timestamp>,
    lock: Option<AtMost<LockEntry, { RequestLimits::MOST.lock_entries }>>,
    wait_ms: Option<u64>,
}

/// Timestamps as a list of numbers and nulls.
struct Times(Timestamps);

impl<'de> Deserialize<'de> for Times {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Times;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of milliseconds and nulls")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Times, A::Error> {
                let mut values: Vec<i64> = Vec::new();
                let mut nulls: Option<NullBufferBuilder> = None;
                while let Some(at) = list.next_element::<Option<i64>>()? {
                    if at.is_none() && nulls.is_none() {
                        let mut before = NullBufferBuilder::new(values.len() + 1);
                        before.append_n_non_nulls(values.len());
                        nulls = Some(before);
                    }
                    if let Some(nulls) = &mut nulls {
                        nulls.append(at.is_some());
                    }
                    if values.len() == Timestamps::MAX_ROWS {
                        return Err(A::Error::custom("more rows than a table can have"));
                    }
                    values.push(at.unwrap_or_default());
                }
                let nulls = nulls.and_then(|mut nulls| nulls.finish());
                Ok(Times(Timestamps::new(values, nulls)))
            }
        }
        deserializer.deserialize_seq(List)
    }
}

const WHEN: &str = "timeframe, timestamps, range";

impl Raw {
    fn check_step(&self, range: &RequestedRange) -> Result<(), RequestError> {
        let is_intervals = self.view == View::Intervals;
        let wrong = |reason: &str| Err(RangeRequest::wrong(reason.to_owned()).into());
        match (range.step(), range.gap()) {
            (Some(_), _) if is_intervals => wrong("it has no step for the view intervals"),
            (_, Some(..=0)) if is_intervals => wrong("gap must be positive"),
            (_, Some(_)) if !is_intervals => wrong("gap goes with the view intervals"),
            (None, _) if !is_intervals && matches!(range, RequestedRange::Run { .. }) => {
                wrong("it needs a step, but for the view intervals")
            }
            (Some(step @ ..=0), _) => wrong(&format!("step is {step}, it must be positive")),
            _ => Ok(()),
        }
    }

    /// For which times, if that is said.
    fn when(&mut self) -> Result<Option<When>, RequestError> {
        let keys = match self.keys.take() {
            Some(JsonKeys(keys)) => keys?,
            None => KeyColumns::default(),
        };
        if !keys.is_empty() && self.timestamps.is_none() {
            let reason = "they go with timestamps: one value per timestamp".to_owned();
            return Err(RequestError::Field { field: "keys", reason });
        }
        Ok(Some(match (self.timeframe, self.timestamps.take(), self.range) {
            (Some(timeframe), None, None) => When::Timeframe(timeframe),
            (None, Some(Times(timestamps)), None) => {
                When::Timestamps(TableRows { timestamps: Arc::new(timestamps), keys })
            }
            (None, None, Some(range)) => {
                self.check_step(&range)?;
                match range {
                    RequestedRange::Run { run, .. } => When::Run(run),
                    RequestedRange::Times(range) if self.view == View::Intervals => {
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
    /// How long a request may take that does not say.
    pub const DEFAULT_WAIT: Duration = Duration::from_secs(60);

    /// From JSON.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn parse(json: &[u8]) -> Result<Self, RequestError> {
        let mut raw: Raw = parse_json("request", json)?;
        let when = raw.when()?.ok_or(RequestError::NoneOf { fields: WHEN })?;
        let request = Self::of(raw, when)?;
        request.check_view()?;
        Ok(request)
    }

    /// From JSON without `timeframe`, `timestamps` and `range`: the request of an exchange, in which
    /// the timestamps come later. Its tables can have null cells, since timestamps can.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn parse_template(json: &[u8]) -> Result<Self, RequestError> {
        let mut raw: Raw = parse_json("request", json)?;
        if raw.when()?.is_some() {
            let reason = "in an exchange the timestamps come with each batch".to_owned();
            return Err(RequestError::Field { field: WHEN, reason });
        }
        let when = When::Timestamps(Timestamps::new(Vec::new(), None).into());
        let request = Self::of(raw, when)?;
        match request.view {
            View::Rows | View::Objects | View::Distinct => request.check_view()?,
            View::Intervals | View::Chunks => {
                let reason = "an exchange has the views rows, objects and distinct".to_owned();
                return Err(RequestError::Field { field: "view", reason });
            }
        }
        Ok(request)
    }

    fn of(raw: Raw, when: When) -> Result<Self, RequestError> {
        let columns = Columns::of(raw.columns, raw.table)?;
        if columns == Columns::Registered && !matches!(when, When::Timeframe(_)) {
            return Err(RequestError::NoneOf { fields: "columns, table" });
        }
        Ok(Self {
            columns,
            when,
            gap: raw.range.and_then(|range| range.gap()),
            consumer: raw.consumer,
            session: raw.session,
            encoding: raw.encoding,
            cell: raw.cell,
            view: raw.view,
            missing: raw.missing,
            timestamps_column: raw.timestamps_column,
            schema_metadata: raw.schema_metadata,
            limits: CreationLimits { not_before: raw.not_before, not_after: raw.not_after },
            lock: raw.lock.map(|AtMost(entries)| entries),
            wait: raw.wait_ms.map_or(Self::DEFAULT_WAIT, Duration::from_millis),
        })
    }

    /// Whether it sees all versions that the service sees.
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

/// JSON of a known form.
pub(super) fn parse_json<'a, T: Deserialize<'a>>(
    what: &'static str,
    json: &'a [u8],
) -> Result<T, RequestError> {
    serde_json::from_slice(json)
        .map_err(|error| RequestError::Malformed { what, reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Coded as _;

    fn error(json: &str) -> String {
        Request::parse(json.as_bytes()).unwrap_err().message()
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
    fn what_is_wrong_is_named() {
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
