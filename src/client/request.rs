//! What a client asks for.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::index::{KeyColumn, KeyValue, Timestamps};
use crate::interval::Timestamp;

/// A request for a table, built step by step; what is wrong with it is said by the service.
///
/// ```
/// use iovcache::client::TableRequest;
/// let request = TableRequest::new()
///     .column("vdrift", "TPC/Calib/VDriftTgl")
///     .range(1_000, 9_000, 1_000)
///     .missing_as_null();
/// assert!(request.to_json().contains("\"step\":1000"));
/// ```
#[derive(Debug, Clone, Default)]
pub struct TableRequest {
    columns: Vec<(String, Value)>,
    timestamps: Option<Arc<Timestamps>>,
    keys: Vec<(String, KeyColumn)>,
    fields: BTreeMap<Cow<'static, str>, Value>,
}

impl TableRequest {
    /// Asks for nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.fields.insert(name.into(), value.into());
        self
    }

    /// One more column with the objects of `path`.
    #[must_use]
    pub fn column(mut self, name: impl Into<String>, path: impl Into<String>) -> Self {
        self.columns.push((name.into(), Value::from(path.into())));
        self
    }

    /// One more column with the objects of `path` that have this metadata, key by key.
    #[must_use]
    pub fn column_with_metadata(
        mut self,
        name: impl Into<String>,
        path: impl Into<String>,
        metadata: &BTreeMap<String, String>,
    ) -> Self {
        let metadata: Map<String, Value> = metadata
            .iter()
            .map(|(key, value)| (key.clone(), Value::from(value.as_str())))
            .collect();
        let column = Map::from_iter([
            ("path".to_owned(), Value::from(path.into())),
            ("metadata".to_owned(), Value::from(metadata)),
        ]);
        self.columns.push((name.into(), Value::from(column)));
        self
    }

    /// One more column as the request's schema describes it: a path, or an object with path, key and
    /// more.
    #[must_use]
    pub fn column_value(mut self, name: impl Into<String>, column: Value) -> Self {
        self.columns.push((name.into(), column));
        self
    }

    /// Any field of the request by name, as `schemas/request.schema.json` describes it; the service
    /// refuses those that it does not know.
    #[must_use]
    pub fn field(mut self, name: impl Into<String>, value: Value) -> Self {
        self.fields.insert(Cow::Owned(name.into()), value);
        self
    }

    /// The columns of a table that the service's configuration names, instead of own ones.
    #[must_use]
    pub fn table(self, name: impl Into<String>) -> Self {
        self.with("table", name.into())
    }

    /// One row per timestamp (ms since the Unix epoch); `None` gives a null cell.
    #[must_use]
    pub fn timestamps<T: Into<Option<i64>>>(self, at: impl IntoIterator<Item = T>) -> Self {
        let at: Timestamps = at.into_iter().map(Into::into).collect();
        self.shared_timestamps(Arc::new(at))
    }

    /// The same with timestamps that the caller keeps: in which order they are is found out once for
    /// all requests.
    #[must_use]
    pub fn shared_timestamps(mut self, at: Arc<Timestamps>) -> Self {
        self.timestamps = Some(at);
        self
    }

    /// The values of a key on which columns depend, one per timestamp.
    #[must_use]
    pub fn key(mut self, name: impl Into<String>, values: KeyColumn) -> Self {
        self.keys.push((name.into(), values));
        self
    }

    /// One row per `step` ms from `from` (inside) to `until` (not inside).
    #[must_use]
    pub fn range(self, from: i64, until: i64, step: i64) -> Self {
        self.with("range", serde_json::json!({"from": from, "until": until, "step": step}))
    }

    /// One row per `step` ms of the time of a run.
    #[must_use]
    pub fn run(self, run: i64, step: i64) -> Self {
        self.with("range", serde_json::json!({"run": run, "step": step}))
    }

    /// All effective spans in the time of a run, instead of rows.
    #[must_use]
    pub fn intervals_of_run(self, run: i64) -> Self {
        self.with("range", serde_json::json!({"run": run})).view("intervals")
    }

    /// All effective spans between `from` and `until`, instead of rows.
    #[must_use]
    pub fn intervals(self, from: i64, until: i64) -> Self {
        self.with("range", serde_json::json!({"from": from, "until": until})).view("intervals")
    }

    /// The timestamps, and unless others are named the columns, of a timeframe in flight.
    #[must_use]
    pub fn timeframe(self, timeframe: u64) -> Self {
        self.with("timeframe", timeframe)
    }

    /// The consumer that reads a timeframe.
    #[must_use]
    pub fn consumer(self, name: impl Into<String>) -> Self {
        self.with("consumer", name.into())
    }

    /// `rows` (default), `objects`, `intervals` or `chunks`.
    #[must_use]
    pub fn view(self, view: impl Into<String>) -> Self {
        self.with("view", view.into())
    }

    /// `dictionary`, `run_end` or `plain`.
    #[must_use]
    pub fn encoding(self, encoding: impl Into<String>) -> Self {
        self.with("encoding", encoding.into())
    }

    /// `binary` (default), `struct`, `o2` or `payload`.
    #[must_use]
    pub fn cell(self, cell: impl Into<String>) -> Self {
        self.with("cell", cell.into())
    }

    /// Where nothing is valid, a null cell instead of an error.
    #[must_use]
    pub fn missing_as_null(self) -> Self {
        self.with("missing", "null")
    }

    /// Prepends the timestamps as column `timestamp`.
    #[must_use]
    pub fn timestamps_column(self) -> Self {
        self.with("timestamps_column", true)
    }

    /// Keys and values for the metadata of the table's schema, beside those of the service. Keys
    /// that begin with `iovcache.` or `ARROW:` are reserved.
    #[must_use]
    pub fn schema_metadata(self, metadata: &BTreeMap<String, String>) -> Self {
        let entries = metadata.iter().map(|(key, value)| (key.clone(), value.as_str().into()));
        self.with("schema_metadata", Value::Object(entries.collect()))
    }

    /// Only versions created at or before `millis`.
    #[must_use]
    pub fn not_after(self, millis: i64) -> Self {
        self.with("not_after", millis)
    }

    /// Only versions created at or after `millis`.
    #[must_use]
    pub fn not_before(self, millis: i64) -> Self {
        self.with("not_before", millis)
    }

    /// The very versions of an earlier table: the rows of its `objects` view.
    #[must_use]
    pub fn lock(self, rows: Vec<Value>) -> Self {
        self.with("lock", rows)
    }

    /// How long the service may take, its source included.
    #[must_use]
    pub fn wait(self, limit: Duration) -> Self {
        self.with("wait_ms", u64::try_from(limit.as_millis()).unwrap_or(u64::MAX))
    }

    /// Names the session, as the client does for what it asks by itself.
    pub(super) fn session(self, session: &str) -> Self {
        self.with("session", session)
    }

    /// Whether columns depend on keys that are given.
    pub(super) fn has_keys(&self) -> bool {
        !self.keys.is_empty() || self.fields.contains_key("keys")
    }

    /// The timestamps that the client has.
    pub(super) fn held(&self) -> Option<&Arc<Timestamps>> {
        self.timestamps.as_ref()
    }

    /// Name, and path or more, of each column.
    pub(super) fn columns(&self) -> &[(String, Value)] {
        &self.columns
    }

    /// The effective spans over a range, instead of rows for the timestamps.
    pub(super) fn spans_of(mut self, range: Value) -> Self {
        self.timestamps = None;
        self.with("range", range).view("intervals")
    }

    /// How long the service may take, if that is said.
    pub(super) fn patience(&self) -> Option<Duration> {
        self.get("wait_ms").and_then(Value::as_u64).map(Duration::from_millis)
    }

    /// The same without a field.
    pub(super) fn without(mut self, field: &str) -> Self {
        self.fields.remove(field);
        self
    }

    pub(super) fn get(&self, field: &str) -> Option<&Value> {
        self.fields.get(field)
    }

    /// The value of `field`, set to `value` if it is not there.
    pub(super) fn or(self, field: &'static str, value: &str) -> Self {
        if self.fields.contains_key(field) { self } else { self.with(field, value) }
    }

    /// The request as it crosses the wire (`schemas/request.schema.json`).
    pub fn to_json(&self) -> String {
        // The order of the columns counts, and serde_json's map would sort them.
        struct Columns<'a>(&'a [(String, Value)]);
        impl Serialize for Columns<'_> {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_map(self.0.iter().map(|(name, column)| (name, column)))
            }
        }
        struct Times<'a>(&'a Timestamps);
        impl Serialize for Times<'_> {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let rows = self.0.rows().map(|at| at.map(Timestamp::as_millis));
                serializer.collect_seq(rows)
            }
        }
        struct KeyRows<'a>(&'a KeyColumn);
        impl Serialize for KeyRows<'_> {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let mut start = 0;
                serializer.collect_seq(self.0.runs().flat_map(|(end, value)| {
                    let value = match value {
                        None => Value::Null,
                        Some(KeyValue::Integer(value)) => Value::from(value),
                        Some(KeyValue::Text(text)) => Value::from(text),
                    };
                    std::iter::repeat_n(value, end - std::mem::replace(&mut start, end))
                }))
            }
        }
        struct KeysByName<'a>(&'a [(String, KeyColumn)]);
        impl Serialize for KeysByName<'_> {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_map(self.0.iter().map(|(name, key)| (name, KeyRows(key))))
            }
        }
        #[derive(Serialize)]
        struct Message<'a> {
            #[serde(skip_serializing_if = "Option::is_none")]
            columns: Option<Columns<'a>>,
            #[serde(flatten)]
            fields: &'a BTreeMap<Cow<'static, str>, Value>,
            #[serde(skip_serializing_if = "Option::is_none")]
            timestamps: Option<Times<'a>>,
            #[serde(skip_serializing_if = "Option::is_none")]
            keys: Option<KeysByName<'a>>,
        }
        let columns = (!self.columns.is_empty()).then_some(Columns(&self.columns));
        let timestamps = self.timestamps.as_deref().map(Times);
        let keys = (!self.keys.is_empty()).then_some(KeysByName(&self.keys));
        let message = Message { columns, fields: &self.fields, timestamps, keys };
        // Strings and values of JSON: nothing in them can fail.
        serde_json::to_string(&message).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_columns_keep_the_order_in_which_they_were_named() {
        let request = TableRequest::new().column("z", "Z/Z").column("a", "A/A").timestamps([1, 2]);
        assert_eq!(request.to_json(), r#"{"columns":{"z":"Z/Z","a":"A/A"},"timestamps":[1,2]}"#);
    }

    #[test]
    fn keys_cross_as_one_value_per_timestamp() {
        let run = [Some(7), Some(7), None].into_iter().collect();
        let period = [Some("a"), None, Some("b")].into_iter().collect();
        let request = TableRequest::new().timestamps([1, 2, 3]).key("run", run);
        let json: Value = serde_json::from_str(&request.key("period", period).to_json()).unwrap();
        let expected = serde_json::json!({"run": [7, 7, null], "period": ["a", null, "b"]});
        assert_eq!(json["keys"], expected);
    }

    #[test]
    fn a_null_timestamp_crosses_as_null() {
        let request = TableRequest::new().table("tpc").timestamps([Some(1), None]);
        assert_eq!(request.to_json(), r#"{"table":"tpc","timestamps":[1,null]}"#);
    }
}
