//! Columns of a request: name, path or paths by ranges of a key, and use of the key.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::limits::{AtMost, RequestLimits, check_metadata, check_name, metadata_bytes};
use crate::object::ObjectPath;

/// A column of a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ColumnRequest {
    /// Name in the table.
    pub name: Arc<str>,
    /// Path of its objects, or paths that the key chooses from.
    pub path: ColumnPath,
    /// Metadata that a version must have.
    pub metadata: BTreeMap<String, String>,
    /// The key on which the column depends in addition to the timestamp.
    pub key: Option<KeyUse>,
}

/// Object path of a column.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ColumnPath {
    /// One path.
    One(ObjectPath),
    /// The path of the first range that contains the value of the key.
    ByRange(Arc<[PathRange]>),
}

/// Path for the key values from `from` to `until`, both inclusive. Without bounds it is the
/// fallback for all other values.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathRange {
    /// Lowest value; `None`: no lower bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<i64>,
    /// Highest value; `None`: no upper bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<i64>,
    /// The path.
    pub path: ObjectPath,
}

impl PathRange {
    /// Whether it has no bounds.
    pub(crate) fn is_fallback(&self) -> bool {
        self.from.is_none() && self.until.is_none()
    }

    /// Whether some value is in both.
    fn overlaps(&self, other: &Self) -> bool {
        let starts_by = |one: &Self, other: &Self| {
            one.from.is_none_or(|from| other.until.is_none_or(|until| from <= until))
        };
        starts_by(self, other) && starts_by(other, self)
    }

    /// Whether the range contains this value.
    pub fn contains(&self, value: i64) -> bool {
        self.from.is_none_or(|from| from <= value) && self.until.is_none_or(|until| value <= until)
    }
}

/// How a column depends on a key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeyUse {
    /// Name of the key column.
    pub key: Arc<str>,
    /// The part of the look-up, besides the path, that the value of the key determines.
    pub look_up: KeyLookUp,
    /// Whether each distinct value of the key is looked up once, at the timestamp of its first row.
    pub uniform: bool,
}

/// The part of a look-up that the value of a key determines.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum KeyLookUp {
    /// The path alone: objects are looked up at the timestamp.
    AtTimestamp,
    /// The time: objects are looked up at the value of the key instead of the timestamp.
    AtKey,
    /// The metadata of this name: a version must have the value of the key there.
    WithMetadata(Arc<str>),
}

impl ColumnPath {
    /// The distinct paths, in the order in which they are named.
    pub fn paths(&self) -> Vec<&ObjectPath> {
        self.numbered().0
    }

    /// The distinct paths, and for each range the index of its path.
    fn numbered(&self) -> (Vec<&ObjectPath>, Vec<u32>) {
        let ranges = match self {
            Self::One(path) => return (vec![path], vec![0]),
            Self::ByRange(ranges) => ranges,
        };
        let (mut paths, mut numbers) = (Vec::new(), HashMap::new());
        let number = ranges.iter().map(|range| {
            *numbers.entry(&range.path).or_insert_with(|| {
                paths.push(&range.path);
                paths.len() as u32 - 1
            })
        });
        let by_range = number.collect();
        (paths, by_range)
    }

    /// The paths as a step function over the values of the key: the starts of the steps, and for
    /// each step an index into [`paths`](Self::paths). `None`: no range contains these values.
    pub fn steps(&self) -> (Vec<i64>, Vec<Option<u32>>) {
        let Self::ByRange(ranges) = self else { return (vec![i64::MIN], vec![Some(0)]) };
        let (_, by_range) = self.numbered();
        let (starts, range_of_step) = steps_of(ranges);
        let path = |range: usize| by_range[range];
        (starts, range_of_step.into_iter().map(|range| range.map(path)).collect())
    }
}

/// Ranges as a step function over the values of a key: the first range that holds the values from each
/// start on.
fn steps_of(ranges: &[PathRange]) -> (Vec<i64>, Vec<Option<usize>>) {
    let mut starts = vec![i64::MIN];
    for range in ranges.iter() {
        starts.extend(range.from);
        // No value follows the greatest i64.
        starts.extend(range.until.and_then(|until| until.checked_add(1)));
    }
    starts.sort_unstable();
    starts.dedup();
    let mut places: Vec<Option<usize>> = vec![None; starts.len()];
    // The first step at or behind each that no earlier range has taken.
    let mut free: Vec<usize> = (0..=starts.len()).collect();
    for (number, range) in ranges.iter().enumerate() {
        let before = |bound: i64| starts.partition_point(|start| *start < bound);
        let first = range.from.map_or(0, before);
        let end = range.until.and_then(|until| until.checked_add(1));
        let end = end.map_or(starts.len(), before);
        let mut step = first_free(&mut free, first);
        while step < end {
            places[step] = Some(number);
            free[step] = step + 1;
            step = first_free(&mut free, step);
        }
    }
    (starts, places)
}

/// Follows the links from `step` to a free step, and shortens them.
fn first_free(free: &mut [usize], mut step: usize) -> usize {
    while free[step] != step {
        free[step] = free[free[step]];
        step = free[step];
    }
    step
}

/// AliceO2's notation: `1-10=A/B`, `11-=A/C`, or the path alone if it has no bounds.
impl fmt::Display for PathRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.is_fallback() {
            let bound = |bound: Option<i64>| bound.map(|n| n.to_string()).unwrap_or_default();
            write!(f, "{}-{}=", bound(self.from), bound(self.until))?;
        }
        self.path.fmt(f)
    }
}

/// The path, or the paths in AliceO2's notation: `1-10=A/B;11-=A/C;A/D`.
impl fmt::Display for ColumnPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges = match self {
            Self::One(path) => return path.fmt(f),
            Self::ByRange(ranges) => ranges,
        };
        for (number, range) in ranges.iter().enumerate() {
            if number > 0 {
                f.write_str(";")?;
            }
            range.fmt(f)?;
        }
        Ok(())
    }
}

impl ColumnRequest {
    /// A column with the objects of one path, without conditions on their metadata.
    pub fn new(name: impl Into<Arc<str>>, path: ObjectPath) -> Self {
        let path = ColumnPath::One(path);
        Self { name: name.into(), path, metadata: BTreeMap::new(), key: None }
    }

    /// A column as the request's schema describes it: a path, or an object with path, key and more.
    ///
    /// # Errors
    /// An error that names the fault.
    pub fn from_json(name: &str, json: &str) -> Result<Self, serde_json::Error> {
        let OneColumn(column) = serde_json::from_str(json)?;
        checked(name.into(), column)
    }

    /// The path of a column with one path and no key.
    #[doc(hidden)]
    pub fn plain_path(&self) -> Option<&ObjectPath> {
        match (&self.path, &self.key) {
            (ColumnPath::One(path), None) => Some(path),
            _ => None,
        }
    }

    /// Whether the values of the key must be integers.
    pub(crate) fn needs_integers(&self) -> bool {
        matches!(self.path, ColumnPath::ByRange(_))
            || self.key.as_ref().is_some_and(|key| key.look_up == KeyLookUp::AtKey)
    }

    /// Approximate memory of the column, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        let metadata = self.metadata.iter().map(|(key, value)| key.len() + value.len() + 96);
        let path = match &self.path {
            ColumnPath::One(path) => path.as_str().len(),
            ColumnPath::ByRange(ranges) => {
                ranges.iter().map(|range| range.path.as_str().len() + size_of::<PathRange>()).sum()
            }
        };
        let key = self.key.as_ref().map_or(0, |key| key.key.len() + 64);
        (self.name.len() + path + key + 160 + metadata.sum::<usize>()) as u64
    }

    fn check(&self) -> Result<(), String> {
        check_ranges(&self.path)?;
        let Some(key) = &self.key else {
            return match &self.path {
                ColumnPath::One(_) => Ok(()),
                ColumnPath::ByRange(_) => Err("paths by range need a \"key\"".to_owned()),
            };
        };
        if let KeyLookUp::WithMetadata(name) = &key.look_up
            && self.metadata.contains_key(&**name)
        {
            return Err(format!("metadata {name:?} is given, and is the key's too"));
        }
        Ok(())
    }
}

fn check_ranges(path: &ColumnPath) -> Result<(), String> {
    let ColumnPath::ByRange(ranges) = path else { return Ok(()) };
    let Some((_, first)) = ranges.split_last() else {
        return Err("path: the list names no path".to_owned());
    };
    for range in ranges.iter() {
        if let (Some(from), Some(until)) = (range.from, range.until)
            && from > until
        {
            let path = &range.path;
            return Err(format!("path {path}: the range from {from} until {until} is empty"));
        }
    }
    if let Some(range) = first.iter().find(|range| range.is_fallback()) {
        return Err(format!(
            "path {}: an entry without bounds is the fallback, and must be the last one",
            range.path
        ));
    }
    check_reachable(ranges)
}

/// Whether each range is the first one for some value. A fallback may be for no value at all.
fn check_reachable(ranges: &[PathRange]) -> Result<(), String> {
    let (_, by_step) = steps_of(ranges);
    let mut reached = vec![false; ranges.len()];
    by_step.into_iter().flatten().for_each(|number| reached[number] = true);
    let mut numbered = ranges.iter().enumerate();
    let hidden = numbered.find(|(number, range)| !reached[*number] && !range.is_fallback());
    let Some((number, range)) = hidden else { return Ok(()) };
    let earlier = ranges[..number].iter().filter(|earlier| earlier.overlaps(range));
    let earlier: Vec<String> = earlier.take(3).map(ToString::to_string).collect();
    Err(format!(
        "path: the range {range} can never be chosen, since earlier ranges hold all of its values \
         and the first one wins ({}); put it before them, or leave it out",
        earlier.join(", ")
    ))
}

/// Columns in the order in which they were named; each name occurs once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ColumnList(pub Vec<ColumnRequest>);

impl<'de> Deserialize<'de> for ColumnPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = ColumnPath;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(r#"a path, or a list of {"from": …, "until": …, "path": …}"#)
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ColumnPath, E> {
                ObjectPath::new(text).map(ColumnPath::One).map_err(E::custom)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<ColumnPath, A::Error> {
                const MOST: usize = RequestLimits::MOST.path_ranges;
                let list = serde::de::value::SeqAccessDeserializer::new(list);
                let AtMost(ranges) = AtMost::<PathRange, MOST>::deserialize(list)?;
                Ok(ColumnPath::ByRange(ranges.into()))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl Serialize for ColumnPath {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::One(path) => path.serialize(serializer),
            Self::ByRange(ranges) => serializer.collect_seq(ranges.iter()),
        }
    }
}

const AS_TIMESTAMP: &str = "timestamp";
const AS_METADATA: &str = "metadata:";

/// JSON of a column, without its name.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawColumn {
    path: ColumnPath,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    key: Option<String>,
    #[serde(rename = "as")]
    look_up: Option<String>,
    uniform: Option<bool>,
}

impl RawColumn {
    fn named(self, name: Arc<str>) -> Result<ColumnRequest, String> {
        let Self { path, metadata, key, look_up, uniform } = self;
        let look_up = match look_up.as_deref() {
            None => None,
            Some(AS_TIMESTAMP) => Some(KeyLookUp::AtKey),
            Some(other) => match other.strip_prefix(AS_METADATA).filter(|name| !name.is_empty()) {
                Some(name) => Some(KeyLookUp::WithMetadata(name.into())),
                None => {
                    return Err(format!(
                        "as: {other:?}, expected \"{AS_TIMESTAMP}\" or \"{AS_METADATA}<name>\""
                    ));
                }
            },
        };
        let key = match key {
            Some(key) => {
                let look_up = look_up.unwrap_or(KeyLookUp::AtTimestamp);
                let uniform = uniform.unwrap_or(false);
                Some(KeyUse { key: key.into(), look_up, uniform })
            }
            None if look_up.is_some() => return Err("\"as\" needs a \"key\"".to_owned()),
            None if uniform == Some(true) => return Err("\"uniform\" needs a \"key\"".to_owned()),
            None => None,
        };
        let column = ColumnRequest { name, path, metadata, key };
        column.check()?;
        Ok(column)
    }
}

/// A column given as `"path"` or in full.
struct OneColumn(RawColumn);

impl<'de> Deserialize<'de> for OneColumn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = OneColumn;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(r#"a path, or {"path": …, "key": …, "metadata": {…}}"#)
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<OneColumn, E> {
                let path = ObjectPath::new(text).map(ColumnPath::One).map_err(E::custom)?;
                let metadata = BTreeMap::new();
                let raw = RawColumn { path, metadata, key: None, look_up: None, uniform: None };
                Ok(OneColumn(raw))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<OneColumn, A::Error> {
                RawColumn::deserialize(MapAccessDeserializer::new(map)).map(OneColumn)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// A name, parsed without an intermediate copy.
struct Name(Arc<str>);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Name;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Name, E> {
                Ok(Name(text.into()))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

impl<'de> Deserialize<'de> for ColumnList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = ColumnList;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(r#"columns as {"<name>": "<path>", …}"#)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ColumnList, A::Error> {
                let mut columns: Vec<ColumnRequest> = Vec::new();
                while let Some((name, column)) = map.next_entry::<Name, OneColumn>()? {
                    let (Name(name), OneColumn(column)) = (name, column);
                    if columns.len() == RequestLimits::MOST.columns {
                        let most = RequestLimits::MOST.columns;
                        return Err(A::Error::custom(format_args!("more than {most} columns")));
                    }
                    columns.push(checked(name, column)?);
                }
                check_column_names(&columns).map_err(A::Error::custom)?;
                Ok(ColumnList(columns))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

/// # Errors
/// A text that names a column which occurs twice.
pub(super) fn check_column_names(columns: &[ColumnRequest]) -> Result<(), String> {
    let mut names: Vec<&str> = columns.iter().map(|column| &*column.name).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(format!("column {:?} occurs twice", pair[0])),
        None => Ok(()),
    }
}

/// # Errors
/// An error of `E` that names the column and the fault.
fn checked<E: serde::de::Error>(name: Arc<str>, column: RawColumn) -> Result<ColumnRequest, E> {
    check_name("a column", &name)?;
    check_metadata(&column.metadata)?;
    if let Some(key) = &column.key {
        check_name("the key of a column", key)?;
    }
    if let Some(look_up) = &column.look_up
        && look_up.len() + metadata_bytes(&column.metadata) > RequestLimits::MOST.metadata_bytes
    {
        let most = RequestLimits::MOST.metadata_bytes;
        return Err(E::custom(format_args!("column {name:?}: as: it has more than {most} bytes")));
    }
    let named = column.named(Arc::clone(&name));
    named.map_err(|reason| E::custom(format_args!("column {name:?}: {reason}")))
}

impl Serialize for ColumnList {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|column| (&column.name, JsonColumn::of(column))))
    }
}

/// A column without its name, as it is written: a plain one is its path alone.
#[derive(Serialize)]
#[serde(untagged)]
enum JsonColumn<'a> {
    Plain(&'a ColumnPath),
    Full {
        path: &'a ColumnPath,
        #[serde(skip_serializing_if = "Option::is_none")]
        key: Option<&'a str>,
        #[serde(rename = "as", skip_serializing_if = "Option::is_none")]
        look_up: Option<String>,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        uniform: bool,
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        metadata: &'a BTreeMap<String, String>,
    },
}

impl<'a> JsonColumn<'a> {
    fn of(column: &'a ColumnRequest) -> Self {
        let ColumnRequest { path, metadata, key, .. } = column;
        if column.plain_path().is_some() && metadata.is_empty() {
            return Self::Plain(path);
        }
        let look_up = key.as_ref().and_then(|key| match &key.look_up {
            KeyLookUp::AtTimestamp => None,
            KeyLookUp::AtKey => Some(AS_TIMESTAMP.to_owned()),
            KeyLookUp::WithMetadata(name) => Some(format!("{AS_METADATA}{name}")),
        });
        let uniform = key.as_ref().is_some_and(|key| key.uniform);
        let key = key.as_ref().map(|key| &*key.key);
        Self::Full { path, key, look_up, uniform, metadata }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(column: &str) -> Result<ColumnRequest, String> {
        let json = format!(r#"{{"c": {column}}}"#);
        let list: Result<ColumnList, _> = serde_json::from_str(&json);
        list.map(|ColumnList(mut columns)| columns.remove(0)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_column_with_a_key_is_read_as_it_is_written() {
        for column in [
            r#"{"path": "A", "key": "run", "uniform": true}"#,
            r#"{"path": "A", "key": "run", "as": "timestamp"}"#,
            r#"{"path": "A", "key": "run", "as": "metadata:runNumber", "metadata": {"k": "v"}}"#,
            r#"{"path": [{"from": 1, "until": 10, "path": "A"}, {"path": "B"}], "key": "run"}"#,
            r#"{"path": [{"from": -3, "path": "A"}, {"until": 4, "path": "B"}], "key": "run"}"#,
        ] {
            let parsed = parse(column).unwrap();
            let written = serde_json::to_value(ColumnList(vec![parsed.clone()])).unwrap();
            let expected: serde_json::Value = serde_json::from_str(column).unwrap();
            assert_eq!(written["c"], expected);
            assert_eq!(parse(&written["c"].to_string()).unwrap(), parsed);
        }
    }

    #[test]
    fn faults_of_a_column_are_named_with_the_column() {
        let wrong = |column: &str, said: &str| {
            let error = parse(column).unwrap_err();
            assert!(error.contains(said) && error.contains("\"c\""), "{error}");
        };
        wrong(r#"{"path": "A", "as": "timestamp"}"#, "needs a \"key\"");
        wrong(r#"{"path": "A", "uniform": true}"#, "needs a \"key\"");
        wrong(r#"{"path": [{"path": "A"}]}"#, "need a \"key\"");
        wrong(r#"{"path": [], "key": "run"}"#, "names no path");
        wrong(r#"{"path": "A", "key": "run", "as": "metadata:"}"#, "metadata:<name>");
        wrong(r#"{"path": "A", "key": "run", "as": "noon"}"#, "noon");
        wrong(
            r#"{"path": [{"from": 9, "until": 8, "path": "A"}], "key": "run"}"#,
            "from 9 until 8 is empty",
        );
        wrong(r#"{"path": [{"path": "A"}, {"path": "B"}], "key": "run"}"#, "must be the last");
        wrong(
            r#"{"path": "A", "key": "run", "as": "metadata:k", "metadata": {"k": "v"}}"#,
            "the key's too",
        );
        assert!(parse(r#"{"path": "A", "key": ""}"#).unwrap_err().contains("needs a name"));
        assert!(parse(r#"{"path": [{"from": 1.5, "path": "A"}], "key": "k"}"#).is_err());
        let beyond = r#"{"path": [{"until": 9223372036854775808, "path": "A"}], "key": "k"}"#;
        assert!(parse(beyond).unwrap_err().contains("9223372036854775808"));
        assert!(parse(r#"{"path": "A", "uniform": false}"#).unwrap().key.is_none());
        let ranges = |count| {
            let one = |n| format!(r#"{{"from": {n}, "until": {n}, "path": "A"}}"#);
            let all: Vec<String> = (0..count).map(one).collect();
            format!(r#"{{"path": [{}], "key": "k"}}"#, all.join(","))
        };
        assert!(parse(&ranges(1_000)).is_ok());
        assert!(parse(&ranges(1_001)).unwrap_err().contains("1000"));
    }

    #[test]
    fn a_range_that_earlier_ones_cover_is_refused_by_name() {
        let of = |ranges: &str| parse(&format!(r#"{{"path": [{ranges}], "key": "run"}}"#));
        let wrong = |ranges: &str, said: &str| {
            let error = of(ranges).unwrap_err();
            assert!(error.contains(said) && error.contains("column \"c\""), "{error}");
        };
        let one = r#"{"from": 1, "until": 10, "path": "A"}"#;
        let same = r#"{"from": 1, "until": 10, "path": "B"}"#;
        wrong(&format!("{one}, {same}"), "1-10=B can never be chosen");
        let inner = r#"{"from": 3, "until": 5, "path": "B"}"#;
        wrong(&format!("{one}, {inner}"), "(1-10=A)");
        // Two together cover it; a third one has nothing to do with it.
        let both = r#"{"until": 4, "path": "A"}, {"from": 90, "path": "C"},
            {"from": 4, "until": 12, "path": "D"}, {"from": 0, "until": 12, "path": "B"}"#;
        wrong(both, "0-12=B can never be chosen");
        wrong(both, "(-4=A, 4-12=D)");
        let top = r#"{"from": 5, "path": "A"}, {"from": 9223372036854775807, "path": "B"}"#;
        wrong(top, "9223372036854775807-=B can never");
        // One value of its own is enough, and a fallback may be for no value.
        let wider = r#"{"from": 1, "until": 11, "path": "B"}"#;
        assert!(of(&format!("{one}, {wider}")).is_ok());
        let all = r#"{"until": 4, "path": "A"}, {"from": 5, "path": "C"}, {"path": "D"}"#;
        assert!(of(all).is_ok());
    }

    #[test]
    fn the_first_range_that_holds_a_value_wins() {
        let column = parse(
            r#"{"path": [{"from": 5, "until": 9, "path": "A"}, {"until": 6, "path": "B"},
                {"from": 20, "path": "A"}, {"from": 15, "path": "C"}],
                "key": "run"}"#,
        );
        let path = column.unwrap().path;
        assert_eq!(path.to_string(), "5-9=A;-6=B;20-=A;15-=C");
        let ColumnPath::ByRange(ranges) = &path else { panic!() };
        let paths = path.paths();
        let (starts, places) = path.steps();
        assert!(starts[0] == i64::MIN && starts.is_sorted_by(|a, b| a < b));
        for value in [i64::MIN, -1, 4, 5, 6, 7, 9, 10, 14, 15, 19, 20, 21, i64::MAX - 1, i64::MAX] {
            let step = starts.partition_point(|start| *start <= value) - 1;
            let got = places[step].map(|place| paths[place as usize]);
            let first = ranges.iter().find(|range| range.contains(value));
            assert_eq!(got, first.map(|range| &range.path), "{value}");
        }
    }
}
