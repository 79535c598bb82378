//! The JSON of a request: one type that clients serialise and the service parses
//! (`schemas/request.schema.json`).

use std::fmt;
use std::sync::Arc;

use arrow_buffer::NullBufferBuilder;
use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::column::ColumnList;
use super::key_rows::JsonKeys;
use super::limits::{AtMost, RequestLimits};
use super::lock_file::LockEntry;
use super::range::RequestedRange;
use super::request_options::{CellKind, Encoding, Missing, View};
use super::schema_metadata::SchemaMetadata;
use crate::index::Timestamps;
use crate::interval::Timestamp;

/// The entries of a lock file.
pub(crate) type LockEntries = AtMost<LockEntry, { RequestLimits::MOST.lock_entries }>;

/// A request field by field. Whether the fields go together is checked by
/// [`Request`](super::Request).
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RequestMessage {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) columns: Option<ColumnList>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) table: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) timeframe: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) timestamps: Option<Times>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) keys: Option<JsonKeys>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) range: Option<RequestedRange>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) consumer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) session: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) encoding: Option<Encoding>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cell: Option<CellKind>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) view: Option<View>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) missing: Option<Missing>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) timestamps_column: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) schema_metadata: Option<SchemaMetadata>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) not_after: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) not_before: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) lock: Option<LockEntries>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) wait_ms: Option<u64>,
}

impl RequestMessage {
    /// Takes over the fields that `other` has.
    pub(super) fn merge(&mut self, other: Self) {
        fn set<T>(field: &mut Option<T>, value: Option<T>) {
            if value.is_some() {
                *field = value;
            }
        }
        set(&mut self.columns, other.columns);
        set(&mut self.table, other.table);
        set(&mut self.timeframe, other.timeframe);
        set(&mut self.timestamps, other.timestamps);
        set(&mut self.keys, other.keys);
        set(&mut self.range, other.range);
        set(&mut self.consumer, other.consumer);
        set(&mut self.session, other.session);
        set(&mut self.encoding, other.encoding);
        set(&mut self.cell, other.cell);
        set(&mut self.view, other.view);
        set(&mut self.missing, other.missing);
        set(&mut self.timestamps_column, other.timestamps_column);
        set(&mut self.schema_metadata, other.schema_metadata);
        set(&mut self.not_after, other.not_after);
        set(&mut self.not_before, other.not_before);
        set(&mut self.lock, other.lock);
        set(&mut self.wait_ms, other.wait_ms);
    }
}

/// Timestamps as a list of numbers and nulls.
#[derive(Debug, Clone)]
pub(crate) struct Times(pub(crate) Arc<Timestamps>);

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
                Ok(Times(Arc::new(Timestamps::new(values, nulls))))
            }
        }
        deserializer.deserialize_seq(List)
    }
}

impl Serialize for Times {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.rows().map(|at| at.map(Timestamp::as_millis)))
    }
}
