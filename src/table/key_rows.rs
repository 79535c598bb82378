//! Rows of a requested table: timestamps and key columns.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::column::ColumnRequest;
use super::limits::{RequestLimits, check_name};
use crate::error::coded;
use crate::index::{KeyBuilder, KeyColumn, KeyType, KeyValue, Timestamps};

/// Why key columns cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// A column depends on a key that was not given.
    #[error(
        "column {column:?} depends on the key {key:?}, which is not given with the timestamps; \
         given are: {}",
        if known.is_empty() { "none".to_owned() } else { known.join(", ") }
    )]
    Missing {
        /// The column.
        column: String,
        /// The key.
        key: String,
        /// The keys that were given.
        known: Vec<String>,
    },
    /// A batch has no such column.
    #[error("there is no column {key:?}; there are {}", columns.join(", "))]
    NoColumn {
        /// The key.
        key: String,
        /// The columns of the batch.
        columns: Vec<String>,
    },
    /// No column depends on the key.
    #[error("keys: no column depends on the key {key:?}; leave it out, or name it in a column")]
    Unused {
        /// The key.
        key: String,
    },
    /// The number of values differs from the number of timestamps.
    #[error("keys: {key:?} has {rows} values for {timestamps} timestamps")]
    Length {
        /// The key.
        key: String,
        /// Number of values.
        rows: usize,
        /// Number of timestamps.
        timestamps: usize,
    },
    /// The key column holds neither integers nor strings.
    #[error(
        "keys: {key:?} is {got}, expected integers or strings; plain, dictionary or run-end encoded"
    )]
    Type {
        /// The key.
        key: String,
        /// The Arrow type of the column.
        got: String,
    },
    /// A value has another type than the values before it.
    #[error("keys: {key:?} has {got} in row {row}, expected {expected} as in the rows before")]
    Mixed {
        /// The key.
        key: String,
        /// The row, from 0.
        row: usize,
        /// The value, in words.
        got: String,
        /// The type of the values before it.
        expected: &'static str,
    },
    /// A column uses the key to choose a path or a time, but the values of the key are strings.
    #[error(
        "column {column:?} needs integers of the key {key:?} for its ranges or as timestamps, and \
         got strings"
    )]
    NotIntegers {
        /// The column.
        column: String,
        /// The key.
        key: String,
    },
    /// A value does not fit into an i64.
    #[error("keys: {key:?} has the value {value} in row {row}, which is no i64")]
    Overflow {
        /// The key.
        key: String,
        /// The row, from 0.
        row: usize,
        /// The value.
        value: String,
    },
    /// A column needs one look-up per distinct value of the key, and there are too many values.
    #[error(
        "column {column:?} needs a look-up for each of {distinct} distinct values of the key \
         {key:?}, at most {limit} are possible"
    )]
    TooManyValues {
        /// The column.
        column: String,
        /// The key.
        key: String,
        /// Number of distinct values.
        distinct: usize,
        /// The maximum number.
        limit: usize,
    },
    /// A column depends on a key, but the request has no rows that could have keys.
    #[error(
        "column {column:?} depends on the key {key:?}, and {what} has none: keys stand beside the \
         timestamps of a request, of a timeframe or of an exchange"
    )]
    NoRows {
        /// The column.
        column: String,
        /// The key.
        key: String,
        /// The part of the request without keys.
        what: &'static str,
    },
}

coded! { KeyError {
    Missing => InvalidArgument 1040,
    Unused => InvalidArgument 1041,
    Length => InvalidArgument 1042,
    Type => InvalidArgument 1043,
    Mixed => InvalidArgument 1044,
    NotIntegers => InvalidArgument 1045,
    Overflow => InvalidArgument 1046,
    TooManyValues => InvalidArgument 1047,
    NoRows => InvalidArgument 1048,
    NoColumn => InvalidArgument 1049,
} }

/// Key columns by name. Clones share their memory.
#[derive(Debug, Clone, Default)]
pub struct KeyColumns(Arc<BTreeMap<Arc<str>, KeyColumn>>);

impl KeyColumns {
    /// Column of the key `name`.
    pub fn get(&self, name: &str) -> Option<&KeyColumn> {
        self.0.get(name)
    }

    /// Name and column of each key.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &KeyColumn)> {
        self.0.iter()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Memory of the names and columns, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.0.iter().map(|(name, key)| name.len() + key.memory_bytes()).sum()
    }

    /// Whether both have the same keys, with equal values in every row.
    pub(crate) fn same_rows(&self, other: &Self) -> bool {
        let pairs = self.0.iter().zip(other.0.iter());
        Arc::ptr_eq(&self.0, &other.0)
            || (self.0.len() == other.0.len()
                && pairs.into_iter().all(|(a, b)| a.0 == b.0 && a.1.same_rows(b.1)))
    }

    /// Concatenates the rows of all parts. Each part must have the same keys.
    ///
    /// # Errors
    /// [`KeyError::Type`] if a key has integers in one part and strings in another.
    pub(crate) fn concat(parts: &[Self]) -> Result<Self, KeyError> {
        let Some(first) = parts.first() else { return Ok(Self::default()) };
        let whole = first.0.keys().map(|name| {
            let columns: Vec<KeyColumn> =
                parts.iter().filter_map(|part| part.get(name).cloned()).collect();
            let whole = KeyColumn::concat(&columns).ok_or_else(|| KeyError::Type {
                key: name.to_string(),
                got: "of integers in one batch and of strings in another".to_owned(),
            });
            Ok((Arc::clone(name), whole?))
        });
        whole.collect()
    }

    /// Checks that these are the keys that `columns` depend on, with `rows` values each.
    ///
    /// # Errors
    /// [`KeyError`] for a key that is missing, unused, of the wrong type or of another length.
    pub fn check(&self, columns: &[ColumnRequest], rows: usize) -> Result<(), KeyError> {
        self.check_columns(columns)?;
        for (name, key) in self.0.iter() {
            let uses =
                |column: &ColumnRequest| column.key.as_ref().is_some_and(|key| *key.key == **name);
            if !columns.iter().any(uses) {
                return Err(KeyError::Unused { key: name.to_string() });
            }
            if key.len() != rows {
                let (key, values) = (name.to_string(), key.len());
                return Err(KeyError::Length { key, rows: values, timestamps: rows });
            }
        }
        Ok(())
    }

    /// Checks that each key that `columns` depend on is given, with values of a fitting type.
    ///
    /// # Errors
    /// [`KeyError::Missing`], or the error for a key of strings where integers are needed.
    pub(crate) fn check_columns(&self, columns: &[ColumnRequest]) -> Result<(), KeyError> {
        for column in columns {
            let Some(used) = &column.key else { continue };
            let (name, key) = (column.name.to_string(), used.key.to_string());
            let Some(values) = self.get(&used.key) else {
                let known = self.0.keys().map(ToString::to_string).collect();
                return Err(KeyError::Missing { column: name, key, known });
            };
            // A key that is null in all rows has no type.
            let is_text = values.key_type() == KeyType::Texts && !values.is_all_null();
            if column.needs_integers() && is_text {
                return Err(KeyError::NotIntegers { column: name, key });
            }
        }
        Ok(())
    }
}

impl FromIterator<(Arc<str>, KeyColumn)> for KeyColumns {
    fn from_iter<I: IntoIterator<Item = (Arc<str>, KeyColumn)>>(keys: I) -> Self {
        Self(Arc::new(keys.into_iter().collect()))
    }
}

/// Rows of a requested table: one timestamp per row, and the values of key columns.
#[derive(Debug, Clone)]
pub struct TableRows {
    /// One timestamp per row.
    pub timestamps: Arc<Timestamps>,
    /// The key columns, each with one value per row.
    pub keys: KeyColumns,
}

impl TableRows {
    /// Memory of the timestamps and keys, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.timestamps.memory_bytes() + self.keys.memory_bytes()
    }
}

impl TableRows {
    /// Whether both have equal timestamps and keys in every row, in any encoding.
    pub(crate) fn same_rows(&self, other: &Self) -> bool {
        self.timestamps.same_rows(&other.timestamps) && self.keys.same_rows(&other.keys)
    }
}

impl From<Timestamps> for TableRows {
    fn from(timestamps: Timestamps) -> Self {
        Self { timestamps: Arc::new(timestamps), keys: KeyColumns::default() }
    }
}

impl From<Arc<Timestamps>> for TableRows {
    fn from(timestamps: Arc<Timestamps>) -> Self {
        Self { timestamps, keys: KeyColumns::default() }
    }
}

/// Names of the keys that `columns` depend on, each once.
pub fn key_names(columns: &[ColumnRequest]) -> Vec<Arc<str>> {
    let mut names: Vec<Arc<str>> =
        columns.iter().filter_map(|column| Some(Arc::clone(&column.key.as_ref()?.key))).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// `{"<name>": [values]}` of a request. The error of a value is kept until the request is parsed,
/// so that it is returned as [`KeyError`].
#[derive(Debug, Clone)]
pub(crate) struct JsonKeys(pub(super) Result<KeyColumns, KeyError>);

impl Default for JsonKeys {
    fn default() -> Self {
        Self(Ok(KeyColumns::default()))
    }
}

impl JsonKeys {
    /// Adds a key, or replaces its values.
    pub(super) fn insert(&mut self, name: Arc<str>, values: KeyColumn) {
        if let Ok(KeyColumns(keys)) = &mut self.0 {
            Arc::make_mut(keys).insert(name, values);
        }
    }
}

impl Serialize for JsonKeys {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let keys = self.0.as_ref().map_err(serde::ser::Error::custom)?;
        serializer.collect_map(keys.iter().map(|(name, values)| (name, KeyRows(values))))
    }
}

/// The values of a key, one per row.
struct KeyRows<'a>(&'a KeyColumn);

impl Serialize for KeyRows<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut start = 0;
        serializer.collect_seq(self.0.runs().flat_map(|(end, value)| {
            let value = match value {
                None => serde_json::Value::Null,
                Some(KeyValue::Integer(value)) => value.into(),
                Some(KeyValue::Text(text)) => text.into(),
            };
            std::iter::repeat_n(value, end - std::mem::replace(&mut start, end))
        }))
    }
}

impl<'de> Deserialize<'de> for JsonKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ByName;
        impl<'de> Visitor<'de> for ByName {
            type Value = JsonKeys;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(r#"keys as {"<name>": [values], …}"#)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<JsonKeys, A::Error> {
                let mut keys = BTreeMap::new();
                let mut wrong = None;
                while let Some(name) = map.next_key::<String>()? {
                    check_name("a key", &name)?;
                    if keys.len() == RequestLimits::MOST.columns {
                        return Err(A::Error::custom("more keys than a table can have columns"));
                    }
                    let name: Arc<str> = name.into();
                    let values = JsonValues::new(Arc::clone(&name));
                    match map.next_value_seed(values)? {
                        Ok(key) => {
                            if keys.insert(Arc::clone(&name), key).is_some() {
                                let twice = format_args!("key {name:?} occurs twice");
                                return Err(A::Error::custom(twice));
                            }
                        }
                        Err(error) => wrong = wrong.or(Some(error)),
                    }
                }
                Ok(JsonKeys(wrong.map_or_else(|| Ok(KeyColumns(Arc::new(keys))), Err)))
            }
        }
        deserializer.deserialize_map(ByName)
    }
}

/// Values of one key, row by row.
struct JsonValues {
    name: Arc<str>,
    builder: Option<KeyBuilder>,
    /// Number of nulls before the first value, which determines the type.
    nulls: usize,
    wrong: Option<KeyError>,
}

impl JsonValues {
    fn new(name: Arc<str>) -> Self {
        Self { name, builder: None, nulls: 0, wrong: None }
    }

    fn rows(&self) -> usize {
        self.builder.as_ref().map_or(self.nulls, KeyBuilder::len)
    }

    fn push(&mut self, value: &JsonValue) {
        let row = self.rows();
        let value = match value {
            JsonValue::Null => None,
            JsonValue::Integer(value) => Some(KeyValue::Integer(*value)),
            JsonValue::Text(text) => Some(KeyValue::Text(text)),
            JsonValue::Overflow(value) => {
                let (key, value) = (self.name.to_string(), value.to_string());
                self.wrong.get_or_insert(KeyError::Overflow { key, row, value });
                None
            }
            JsonValue::Other(got) => {
                let (key, got) = (self.name.to_string(), got.clone());
                let expected = self.expected();
                self.wrong.get_or_insert(KeyError::Mixed { key, row, got, expected });
                None
            }
        };
        let key_type = match value {
            Some(KeyValue::Integer(_)) => Some(KeyType::Integers),
            Some(KeyValue::Text(_)) => Some(KeyType::Texts),
            None => None,
        };
        let Some(key_type) = key_type else {
            match &mut self.builder {
                Some(builder) => builder.push(1, None),
                None => self.nulls += 1,
            }
            return;
        };
        let nulls = self.nulls;
        let builder = self.builder.get_or_insert_with(|| {
            let mut builder = KeyBuilder::new(key_type);
            builder.push(nulls, None);
            builder
        });
        if builder.key_type() != key_type {
            let got = format!(
                "{} ({})",
                value.map(|v| v.to_string()).unwrap_or_default(),
                key_type.name()
            );
            let (key, expected) = (self.name.to_string(), builder.key_type().name());
            self.wrong.get_or_insert(KeyError::Mixed { key, row, got, expected });
        }
        builder.push(1, value);
    }

    fn expected(&self) -> &'static str {
        self.builder.as_ref().map_or("integers or strings", |one| one.key_type().name())
    }

    fn finish(self) -> Result<KeyColumn, KeyError> {
        if let Some(wrong) = self.wrong {
            return Err(wrong);
        }
        let builder = self.builder.unwrap_or_else(|| {
            let mut builder = KeyBuilder::new(KeyType::Integers);
            builder.push(self.nulls, None);
            builder
        });
        Ok(builder.finish())
    }
}

impl<'de> DeserializeSeed<'de> for JsonValues {
    type Value = Result<KeyColumn, KeyError>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for JsonValues {
    type Value = Result<KeyColumn, KeyError>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the values of the key {:?} as a list of integers or strings", self.name)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<Self::Value, A::Error> {
        while let Some(value) = list.next_element::<JsonValue>()? {
            if self.rows() == Timestamps::MAX_ROWS {
                return Err(A::Error::custom("more rows than a table can have"));
            }
            self.push(&value);
        }
        Ok(self.finish())
    }
}

/// A value of a key.
enum JsonValue {
    Null,
    Integer(i64),
    Text(String),
    /// An integer that does not fit into an i64.
    Overflow(u64),
    /// Another JSON type, in words.
    Other(String),
}

impl<'de> Deserialize<'de> for JsonValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = JsonValue;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an integer, a string or null")
            }
            fn visit_unit<E>(self) -> Result<JsonValue, E> {
                Ok(JsonValue::Null)
            }
            fn visit_i64<E>(self, value: i64) -> Result<JsonValue, E> {
                Ok(JsonValue::Integer(value))
            }
            fn visit_u64<E>(self, value: u64) -> Result<JsonValue, E> {
                Ok(i64::try_from(value).map_or(JsonValue::Overflow(value), JsonValue::Integer))
            }
            fn visit_f64<E>(self, value: f64) -> Result<JsonValue, E> {
                Ok(JsonValue::Other(value.to_string()))
            }
            fn visit_bool<E>(self, value: bool) -> Result<JsonValue, E> {
                Ok(JsonValue::Other(value.to_string()))
            }
            fn visit_str<E>(self, text: &str) -> Result<JsonValue, E> {
                Ok(JsonValue::Text(text.to_owned()))
            }
            fn visit_string<E>(self, text: String) -> Result<JsonValue, E> {
                Ok(JsonValue::Text(text))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<JsonValue, A::Error> {
                while list.next_element::<serde::de::IgnoredAny>()?.is_some() {}
                Ok(JsonValue::Other("a list".to_owned()))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<JsonValue, A::Error> {
                while map.next_entry::<serde::de::IgnoredAny, serde::de::IgnoredAny>()?.is_some() {}
                Ok(JsonValue::Other("an object".to_owned()))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(json: &str) -> Result<KeyColumns, KeyError> {
        serde_json::from_str::<JsonKeys>(json).unwrap().0
    }

    #[test]
    fn keys_are_integers_or_strings_with_nulls() {
        let keys = keys(r#"{"run": [null, 544123, -1, null], "period": ["a", null]}"#).unwrap();
        let run = keys.get("run").unwrap();
        let values = (0..4).map(|row| run.value(row));
        let expected = [None, Some(544_123), Some(-1), None].map(|n| n.map(KeyValue::Integer));
        assert!(values.eq(expected));
        assert_eq!(keys.get("period").unwrap().value(0), Some(KeyValue::Text("a")));
        assert!(self::keys(r#"{"k": []}"#).unwrap().get("k").unwrap().is_empty());
        assert!(serde_json::from_str::<JsonKeys>(r#"{"k": [1], "k": [2]}"#).is_err());
        assert!(serde_json::from_str::<JsonKeys>(r#"{"": [1]}"#).is_err());
        assert!(serde_json::from_str::<JsonKeys>(r#"{"k": 1}"#).is_err());
    }

    #[test]
    fn a_value_of_another_type_is_named_with_key_and_row() {
        let error = |json: &str| keys(json).unwrap_err();
        let over = error(r#"{"run": [1, null, 9223372036854775808]}"#);
        let value = "9223372036854775808".to_owned();
        assert_eq!(over, KeyError::Overflow { key: "run".into(), row: 2, value });
        for (json, row) in [
            (r#"{"run": [1, "a"]}"#, 1),
            (r#"{"run": ["a", null, 1]}"#, 2),
            (r#"{"run": [1, 2, 3.5]}"#, 2),
            (r#"{"run": [true]}"#, 0),
            (r#"{"run": [null, [1]]}"#, 1),
            (r#"{"run": [{"a": 1}]}"#, 0),
        ] {
            match error(json) {
                KeyError::Mixed { key, row: got, .. } => assert_eq!((&*key, got), ("run", row)),
                other => panic!("{other}"),
            }
        }
    }

    #[test]
    fn keys_fit_their_columns_and_timestamps() {
        let columns: super::super::column::ColumnList = serde_json::from_str(
            r#"{"a": {"path": "A", "key": "run", "as": "timestamp"}, "b": "B"}"#,
        )
        .unwrap();
        let check = |json: &str| keys(json).unwrap().check(&columns.0, 2);
        assert_eq!(check(r#"{"run": [1, 2]}"#), Ok(()));
        assert_eq!(check(r#"{"run": [null, null]}"#), Ok(()));
        assert!(matches!(check(r#"{}"#), Err(KeyError::Missing { .. })));
        assert!(matches!(check(r#"{"run": [1]}"#), Err(KeyError::Length { rows: 1, .. })));
        assert!(matches!(check(r#"{"run": ["a", "b"]}"#), Err(KeyError::NotIntegers { .. })));
        let more = check(r#"{"run": [1, 2], "fill": [1, 2]}"#);
        assert_eq!(more, Err(KeyError::Unused { key: "fill".to_owned() }));
        assert_eq!(key_names(&columns.0).len(), 1);
    }
}
