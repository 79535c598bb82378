//! A request that is built step by step.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::column::{ColumnRequest, check_column_names};
use super::limits::AtMost;
use super::lock_file::LockEntry;
use super::range::{RangeRequest, RequestedRange, RunRange};
use super::request::{Request, RequestError, parse_json};
use super::request_message::{RequestMessage, Times};
use super::request_options::{CellKind, Encoding, Missing, View};
use super::schema_metadata::SchemaMetadata;
use crate::index::{KeyColumn, Timestamps};
use crate::interval::Timestamp;
use crate::object::ObjectPath;

/// A request for a table, for a client ([`Client::table`](crate::client::Client::table)) or an
/// embedded cache ([`build`](Self::build)).
///
/// An invalid value, such as a path that is none, is reported when the request is used.
///
/// ```
/// use iovcache::table::TableRequest;
/// let request = TableRequest::new()
///     .column("vdrift", "TPC/Calib/VDriftTgl")
///     .range(1_000, 9_000, 1_000)
///     .missing_as_null();
/// assert!(request.to_json()?.contains("\"step\":1000"));
/// assert!(request.column("b", "no path!").to_json().is_err());
/// # Ok::<(), iovcache::table::RequestError>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct TableRequest {
    message: RequestMessage,
    /// The first invalid value.
    error: Option<RequestError>,
}

impl TableRequest {
    /// A request without columns and times.
    pub fn new() -> Self {
        Self::default()
    }

    /// The request for an embedded cache.
    ///
    /// # Errors
    /// [`RequestError`]: an invalid value, or fields that do not go together.
    pub fn build(self) -> Result<Request, RequestError> {
        self.checked()?;
        Request::from_message(self.message)
    }

    /// The request as it crosses the wire (`schemas/request.schema.json`).
    ///
    /// # Errors
    /// [`RequestError`] for an invalid value. Whether the fields go together is checked by the
    /// service.
    pub fn to_json(&self) -> Result<String, RequestError> {
        let message = self.checked()?;
        serde_json::to_string(message).map_err(|error| malformed(&error))
    }

    /// The fields, each valid by itself.
    ///
    /// # Errors
    /// [`RequestError`] for an invalid value.
    pub(crate) fn checked(&self) -> Result<&RequestMessage, RequestError> {
        if let Some(error) = &self.error {
            return Err(error.clone());
        }
        if let Some(columns) = &self.message.columns {
            check_column_names(&columns.0).map_err(|reason| malformed(&reason))?;
        }
        Ok(&self.message)
    }

    /// The fields, whether valid or not.
    #[cfg(feature = "client")]
    pub(crate) fn fields(&self) -> &RequestMessage {
        &self.message
    }

    /// Changes fields.
    #[must_use]
    pub(crate) fn with(mut self, change: impl FnOnce(&mut RequestMessage)) -> Self {
        change(&mut self.message);
        self
    }

    fn try_with(
        mut self,
        change: impl FnOnce(&mut RequestMessage) -> Result<(), RequestError>,
    ) -> Self {
        let changed = change(&mut self.message);
        self.error = self.error.or(changed.err());
        self
    }

    fn try_column(self, column: impl FnOnce() -> Result<ColumnRequest, RequestError>) -> Self {
        self.try_with(|message| {
            message.columns.get_or_insert_default().0.push(column()?);
            Ok(())
        })
    }

    /// One more column with the objects of `path`. Columns keep the order in which they are added;
    /// by default a request has at most 10,000 of them. A name that occurs twice is an error when
    /// the request is used.
    #[must_use]
    pub fn column(self, name: impl Into<String>, path: impl AsRef<str>) -> Self {
        self.column_with_metadata(name, path, &BTreeMap::new())
    }

    /// One more column with the objects of `path` that have this metadata, key by key.
    #[must_use]
    pub fn column_with_metadata(
        self,
        name: impl Into<String>,
        path: impl AsRef<str>,
        metadata: &BTreeMap<String, String>,
    ) -> Self {
        self.try_column(|| {
            let name: String = name.into();
            let path = ObjectPath::new(path.as_ref());
            let path = path.map_err(|error| malformed(&format!("column {name:?}: {error}")))?;
            Ok(ColumnRequest { metadata: metadata.clone(), ..ColumnRequest::new(name, path) })
        })
    }

    /// One more column as the request's schema describes it: a path, or an object with path, key
    /// and more.
    #[must_use]
    pub fn column_json(self, name: &str, column: &str) -> Self {
        self.try_column(|| {
            ColumnRequest::from_json(name, column).map_err(|error| malformed(&error))
        })
    }

    /// Fields of the request as a JSON object, as `schemas/request.schema.json` describes them.
    /// They replace those given before.
    #[must_use]
    pub fn fields_json(self, fields: &str) -> Self {
        self.try_with(|message| {
            message.merge(parse_json("request", fields.as_bytes())?);
            Ok(())
        })
    }

    /// The columns of a table that the service's configuration names (`[tables.<name>]`), instead
    /// of own ones. An unknown name is NOT_FOUND.
    #[must_use]
    pub fn table(self, name: impl Into<String>) -> Self {
        self.with(|message| message.table = Some(name.into()))
    }

    /// One row per timestamp (ms since the Unix epoch); `None` gives a null cell.
    #[must_use]
    pub fn timestamps<T: Into<Option<i64>>>(self, at: impl IntoIterator<Item = T>) -> Self {
        let at: Timestamps = at.into_iter().map(Into::into).collect();
        self.shared_timestamps(Arc::new(at))
    }

    /// One row per timestamp. The caller keeps the timestamps, whose order is examined once for all
    /// requests.
    #[must_use]
    pub fn shared_timestamps(self, at: Arc<Timestamps>) -> Self {
        self.with(|message| message.timestamps = Some(Times(at)))
    }

    /// The values of a key on which columns depend, one per timestamp. A null value gives a null
    /// cell. Every key that a column uses must be given, and no other.
    ///
    /// ```
    /// use iovcache::table::TableRequest;
    /// let request = TableRequest::new()
    ///     .column_json("map", r#"{"path": "TPC/Calib/Map", "key": "run", "as": "metadata:runNumber"}"#)
    ///     .timestamps([1_000, 2_000, 3_000])
    ///     .key("run", [Some(7), Some(7), Some(8)].into_iter().collect());
    /// assert!(request.build().is_ok());
    /// ```
    #[must_use]
    pub fn key(self, name: impl Into<Arc<str>>, values: KeyColumn) -> Self {
        self.with(|message| message.keys.get_or_insert_default().insert(name.into(), values))
    }

    /// One row per `step` ms from `from` (inside) to `until` (not inside), both in milliseconds
    /// since the Unix epoch. At most [`Timestamps::MAX_ROWS`] rows.
    #[must_use]
    pub fn range(self, from: i64, until: i64, step: i64) -> Self {
        self.times(from, until, Some(step))
    }

    /// One row per `step` ms of the time of a run, from its beginning (inside) to its end (not
    /// inside). The service reads both from the metadata of an object whose validity is in run
    /// numbers, by default `RCT/Info/RunInformation`.
    #[must_use]
    pub fn run(self, run: i64, step: i64) -> Self {
        self.time_of_run(run, Some(step))
    }

    /// All effective spans in the time of a run, instead of rows: [`View::Intervals`]. The time is
    /// found as by [`run`](Self::run).
    #[must_use]
    pub fn intervals_of_run(self, run: i64) -> Self {
        self.time_of_run(run, None).view(View::Intervals)
    }

    /// All effective spans between `from` (inside) and `until` (not inside), in milliseconds since
    /// the Unix epoch, instead of rows: [`View::Intervals`]. Spans are cut at the range.
    #[must_use]
    pub fn intervals(self, from: i64, until: i64) -> Self {
        self.times(from, until, None).view(View::Intervals)
    }

    fn times(self, from: i64, until: i64, step: Option<i64>) -> Self {
        let [from, until] = [from, until].map(Timestamp::from_millis);
        self.in_range(RangeRequest { from, until, step, gap: None })
    }

    fn in_range(self, range: RangeRequest) -> Self {
        self.with(|message| message.range = Some(RequestedRange::Times(range)))
    }

    /// The effective spans from `from` to `until`, instead of rows for the timestamps, of which no
    /// two neighbours are farther apart than `gap` ms.
    #[cfg(feature = "client")]
    pub(crate) fn spans_of(self, from: i64, until: i64, gap: i64) -> Self {
        let [from, until] = [from, until].map(Timestamp::from_millis);
        let range = RangeRequest { from, until, step: None, gap: Some(gap) };
        self.with(|message| message.timestamps = None).in_range(range).view(View::Intervals)
    }

    /// The objects view of the same table.
    #[cfg(feature = "client")]
    pub(crate) fn objects_view(self) -> Self {
        self.with(|message| message.timestamps_column = None).view(View::Objects)
    }

    fn time_of_run(self, run: i64, step: Option<i64>) -> Self {
        let range = RequestedRange::Run { run: RunRange { run, step }, gap: None };
        self.with(|message| message.range = Some(range))
    }

    /// The timestamps, and unless others are named the columns, of a timeframe in flight. The
    /// request waits until all its objects are loaded, at most for the time limit
    /// ([`wait`](Self::wait)).
    #[must_use]
    pub fn timeframe(self, timeframe: u64) -> Self {
        self.with(|message| message.timeframe = Some(timeframe))
    }

    /// The consumer that reads a timeframe; at most 256 bytes. The timeframe counts as delivered to
    /// it, and stays in flight until it is reported as consumed.
    #[must_use]
    pub fn consumer(self, name: impl Into<String>) -> Self {
        self.with(|message| message.consumer = Some(name.into()))
    }

    /// The session that the objects are pinned for, in place of the client's own. The cells are
    /// then resolved by the process of that session. Without a session and a consumer, the objects
    /// are pinned by a lease of 60 s.
    #[must_use]
    pub fn session(self, session: impl Into<String>) -> Self {
        self.with(|message| message.session = Some(session.into()))
    }

    /// The meaning of a row; by default [`View::Rows`], one row per timestamp.
    #[must_use]
    pub fn view(self, view: View) -> Self {
        self.with(|message| message.view = Some(view))
    }

    /// The Arrow encoding of the columns. The default of the service is [`Encoding::Dictionary`];
    /// [`Client::table`](crate::client::Client::table) asks for [`Encoding::RunEnd`], whose cost
    /// follows the runs of equal cells instead of the rows.
    #[must_use]
    pub fn encoding(self, encoding: Encoding) -> Self {
        self.with(|message| message.encoding = Some(encoding))
    }

    /// The content of a cell. The default of the service is [`CellKind::Binary`], the bytes of a
    /// MetaHeader; a client without shared memory asks for [`CellKind::Payload`].
    #[must_use]
    pub fn cell(self, cell: CellKind) -> Self {
        self.with(|message| message.cell = Some(cell))
    }

    /// A null cell where no version is valid, instead of the error NOT_FOUND, which names each such
    /// column with its first and last timestamp.
    #[must_use]
    pub fn missing_as_null(self) -> Self {
        self.with(|message| message.missing = Some(Missing::Null))
    }

    /// Prepends the timestamps as column `timestamp`: Int64, milliseconds since the Unix epoch.
    #[must_use]
    pub fn timestamps_column(self) -> Self {
        self.with(|message| message.timestamps_column = Some(true))
    }

    /// Keys and values for the metadata of the table's schema, beside those of the service. Keys
    /// that begin with `iovcache.` or `ARROW:` are reserved.
    #[must_use]
    pub fn schema_metadata(self, entries: BTreeMap<String, String>) -> Self {
        self.try_with(|message| {
            let metadata = SchemaMetadata::new(entries).map_err(|error| malformed(&error))?;
            message.schema_metadata = Some(metadata);
            Ok(())
        })
    }

    /// Only versions created at or before `millis` (milliseconds since the Unix epoch, inclusive).
    /// It narrows the limit that the service was started with.
    #[must_use]
    pub fn not_after(self, millis: i64) -> Self {
        self.with(|message| message.not_after = Some(Timestamp::from_millis(millis)))
    }

    /// Only versions created at or after `millis` (milliseconds since the Unix epoch, inclusive).
    /// It narrows the limit that the service was started with.
    #[must_use]
    pub fn not_before(self, millis: i64) -> Self {
        self.with(|message| message.not_before = Some(Timestamp::from_millis(millis)))
    }

    /// Exactly the versions of an earlier table: the rows of its view [`View::Objects`], at most
    /// 100,000 by default. A lock selects among the versions that the source has: one that is gone
    /// is NOT_FOUND.
    #[must_use]
    pub fn lock(self, rows: Vec<LockEntry>) -> Self {
        self.with(|message| message.lock = Some(AtMost(rows)))
    }

    /// Time limit of the service, its source included; rounded down to milliseconds. By default 60
    /// s. After it the request is DEADLINE_EXCEEDED.
    #[must_use]
    pub fn wait(self, limit: Duration) -> Self {
        let millis = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        self.with(|message| message.wait_ms = Some(millis))
    }
}

fn malformed(reason: &impl ToString) -> RequestError {
    RequestError::Malformed { what: "request", reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::table::When;

    #[test]
    fn the_columns_keep_the_order_in_which_they_were_named() {
        let request = TableRequest::new().column("z", "Z/Z").column("a", "A/A").timestamps([1, 2]);
        let json = r#"{"columns":{"z":"Z/Z","a":"A/A"},"timestamps":[1,2]}"#;
        assert_eq!(request.to_json().unwrap(), json);
    }

    #[test]
    fn keys_cross_as_one_value_per_timestamp() {
        let run = [Some(7), Some(7), None].into_iter().collect();
        let period = [Some("a"), None, Some("b")].into_iter().collect();
        let request = TableRequest::new().timestamps([1, 2, 3]).key("run", run);
        let json = request.key("period", period).to_json().unwrap();
        let json: Value = serde_json::from_str(&json).unwrap();
        let expected = serde_json::json!({"run": [7, 7, null], "period": ["a", null, "b"]});
        assert_eq!(json["keys"], expected);
    }

    #[test]
    fn a_null_timestamp_crosses_as_null() {
        let request = TableRequest::new().table("tpc").timestamps([Some(1), None]);
        assert_eq!(request.to_json().unwrap(), r#"{"table":"tpc","timestamps":[1,null]}"#);
    }

    #[test]
    fn requests_of_the_builders_are_those_that_the_service_parses() {
        let column = r#"{"path": [{"from": 1, "until": 9, "path": "A/B"}, {"path": "A/C"}],
            "key": "run", "as": "metadata:runNumber", "uniform": true, "metadata": {"k": "v"}}"#;
        let request = TableRequest::new()
            .column_json("keyed", column)
            .column_with_metadata("plain", "A/D", &[("m".to_owned(), "1".to_owned())].into())
            .timestamps([Some(5), None, Some(-7)])
            .key("run", [Some(1), None, Some(3)].into_iter().collect())
            .consumer("x")
            .encoding(Encoding::RunEnd)
            .cell(CellKind::O2)
            .view(View::Objects)
            .missing_as_null()
            .not_after(9)
            .not_before(-9)
            .wait(Duration::from_millis(250))
            .fields_json(r#"{"session": "s", "lock": []}"#);
        let parsed = Request::parse(request.to_json().unwrap().as_bytes()).unwrap();
        let built = request.build().unwrap();
        assert_eq!(parsed.columns, built.columns);
        let (When::Timestamps(parsed_rows), When::Timestamps(rows)) = (&parsed.when, &built.when)
        else {
            panic!("{:?}", parsed.when)
        };
        assert!(parsed_rows.keys.same_rows(&rows.keys));
        assert!(parsed_rows.timestamps.rows().eq(rows.timestamps.rows()));
        let options = |request: &Request| {
            (request.encoding, request.cell, request.view, request.missing, request.limits)
        };
        assert_eq!(options(&parsed), options(&built));
        assert_eq!((&parsed.consumer, parsed.wait), (&built.consumer, built.wait));
        assert_eq!(parsed.wait, Duration::from_millis(250));
        assert_eq!((parsed.session.as_deref(), parsed.lock.as_deref()), (Some("s"), Some(&[][..])));
    }

    #[test]
    fn an_invalid_value_is_reported_when_the_request_is_used() {
        let valid = TableRequest::new().timestamps([1]);
        for (request, expected) in [
            (valid.clone().column("a", "12/13"), "all digits"),
            (valid.clone().column_json("a", r#"{"path": "A", "colour": 1}"#), "colour"),
            (valid.clone().fields_json(r#"{"colour": 1}"#), "colour"),
            (valid.clone().column("a", "A").column("a", "B"), "occurs twice"),
        ] {
            let error = request.to_json().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert_eq!(request.build().unwrap_err().to_string(), error);
        }
        assert!(valid.to_json().is_ok(), "whether fields go together is the service's to say");
        assert_eq!(valid.build().unwrap_err(), RequestError::NoneOf { fields: "columns, table" });
    }
}
