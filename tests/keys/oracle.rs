//! Random rules, keys and versions, in both directions of time, compared with a look-up row by row;
//! and the look-ups that reach the source.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow_array::cast::AsArray as _;
use arrow_array::types::Int64Type;
use arrow_array::{Array as _, RecordBatch};
use async_trait::async_trait;
use iovcache::index::{KeyBuilder, KeyColumn, KeyType, KeyValue, Timestamps};
use iovcache::source::{
    Body, Knowledge, MemorySource, PathSummary, Source, SourceError, SourceHealth,
};
use iovcache::table::{CellValue, KeyColumns, Register, Request, TableRows, column_runs};
use iovcache::{ObjectInfo, Query, Timestamp, ValidityInterval};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::versions::{Made, PATHS, ask, cache, put_all};

/// A source that answers only for the requested time, and records its look-ups.
#[derive(Debug, Default)]
struct Counting {
    memory: MemorySource,
    asked: Mutex<Vec<Asked>>,
}

/// Path, metadata and time of a look-up.
type Asked = (String, BTreeMap<String, String>, i64);

#[async_trait]
impl Source for Counting {
    fn url(&self) -> &str {
        self.memory.url()
    }
    fn refresh(&self) -> Duration {
        Duration::from_secs(3600)
    }
    async fn look_up(
        &self,
        query: &Query,
        at: Timestamp,
        held: Option<&Arc<ObjectInfo>>,
    ) -> Result<Knowledge, SourceError> {
        let asked = (query.path.to_string(), query.metadata.clone(), at.as_millis());
        self.asked.lock().unwrap().push(asked);
        let mut knowledge = self.memory.look_up(query, at, held).await?;
        let next = Timestamp::from_millis(at.as_millis() + 1);
        knowledge.span = ValidityInterval::new(at, next).unwrap();
        knowledge.versions.retain(|version| version.validity.contains(at));
        Ok(knowledge)
    }
    async fn list(&self, query: &Query) -> Result<Option<Vec<Arc<ObjectInfo>>>, SourceError> {
        self.memory.list(query).await
    }
    async fn fetch(&self, version: &ObjectInfo, body: &mut dyn Body) -> Result<(), SourceError> {
        self.memory.fetch(version, body).await
    }
    async fn paths(&self, prefix: &str) -> Result<Vec<PathSummary>, SourceError> {
        self.memory.paths(prefix).await
    }
    fn health(&self) -> Vec<SourceHealth> {
        self.memory.health()
    }
}

/// A column of the request, with the facts that the oracle needs.
#[derive(Debug, Clone)]
struct Column {
    /// `None`: the bounds are those of its only path.
    ranges: Vec<(Option<i64>, Option<i64>, usize)>,
    /// One path, no range.
    one: Option<usize>,
    key: Option<&'static str>,
    at_key: bool,
    metadata: bool,
    uniform: bool,
}

impl Column {
    fn json(&self) -> Value {
        let path = match self.one {
            Some(path) => json!(PATHS[path]),
            None => self
                .ranges
                .iter()
                .map(|(from, until, path)| {
                    let mut range = json!({"path": PATHS[*path]});
                    from.map(|from| range["from"] = from.into());
                    until.map(|until| range["until"] = until.into());
                    range
                })
                .collect(),
        };
        let mut column = json!({"path": path});
        if let Some(key) = self.key {
            column["key"] = key.into();
        }
        if self.at_key {
            column["as"] = "timestamp".into();
        }
        if self.metadata {
            column["as"] = "metadata:run".into();
        }
        if self.uniform {
            column["uniform"] = true.into();
        }
        column
    }

    fn path_of(&self, key: Option<i64>) -> Option<usize> {
        if self.one.is_some() {
            return self.one;
        }
        let key = key?;
        let holds = |(from, until, _): &&(Option<i64>, Option<i64>, usize)| {
            from.is_none_or(|from| from <= key) && until.is_none_or(|until| key <= until)
        };
        self.ranges.iter().find(holds).map(|(.., path)| *path)
    }
}

/// Timestamp, run, period.
type CaseRow = (Option<i64>, Option<i64>, Option<i64>);

/// Rows per timestamp of interleaved rows.
const INTERLEAVED: usize = 24;

#[derive(Debug, Clone)]
struct Case {
    versions: Vec<Made>,
    rows: Vec<CaseRow>,
    columns: Vec<Column>,
}

impl Case {
    /// The value of a key in a row: `run` is a number, `period` the text of one.
    fn key(&self, name: &str, row: usize) -> Option<i64> {
        let (_, run, period) = self.rows[row];
        if name == "run" { run } else { period }
    }

    /// Path, metadata and time of a row's look-up; `None`: its cell is always null.
    fn look_up(&self, column: &Column, row: usize) -> Option<(usize, Option<i64>, i64)> {
        let at = self.rows[row].0?;
        let Some(name) = column.key else { return Some((column.path_of(None)?, None, at)) };
        let value = self.key(name, row)?;
        let path = column.path_of(Some(value))?;
        let same =
            |other: &usize| self.key(name, *other) == Some(value) && self.rows[*other].0.is_some();
        let first = (0..self.rows.len()).find(same)?;
        let at = match (column.at_key, column.uniform) {
            (true, _) => value,
            (false, true) => self.rows[first].0?,
            (false, false) => at,
        };
        Some((path, column.metadata.then_some(value), at))
    }

    fn expected(&self, column: &Column, row: usize) -> Option<usize> {
        let (path, run, at) = self.look_up(column, row)?;
        let holds = |(_, made): &(usize, &Made)| {
            made.path == path
                && made.from <= at
                && at < made.until
                && run.is_none_or(|run| made.run == Some(run))
        };
        // The version created last wins.
        self.versions.iter().enumerate().filter(holds).map(|(n, _)| n).next_back()
    }

    fn keys(&self) -> Value {
        let used = |name| self.columns.iter().any(|column| column.key == Some(name));
        let mut keys = json!({});
        if used("run") {
            keys["run"] = self.rows.iter().map(|row| json!(row.1)).collect();
        }
        if used("period") {
            let text = |row: &(_, _, Option<i64>)| json!(row.2.map(|n| n.to_string()));
            keys["period"] = self.rows.iter().map(text).collect();
        }
        keys
    }

    fn request(&self, extra: &[(&str, Value)]) -> Value {
        let columns = self.columns.iter().enumerate().map(|(n, one)| (format!("c{n}"), one.json()));
        let mut request = json!({
            "columns": columns.collect::<serde_json::Map<_, _>>(),
            "timestamps": self.rows.iter().map(|row| row.0).collect::<Vec<_>>(),
            "missing": "null",
        });
        let keys = self.keys();
        if keys.as_object().is_some_and(|keys| !keys.is_empty()) {
            request["keys"] = keys;
        }
        extra.iter().for_each(|(field, value)| request[*field] = value.clone());
        request
    }

    fn table_rows(&self) -> TableRows {
        let timestamps: Timestamps = self.rows.iter().map(|row| row.0).collect();
        let run: KeyColumn = self.rows.iter().map(|row| row.1).collect();
        let texts: Vec<Option<String>> =
            self.rows.iter().map(|row| row.2.map(|n| n.to_string())).collect();
        let mut period = KeyBuilder::new(KeyType::Texts);
        texts.iter().for_each(|text| period.push(1, text.as_deref().map(KeyValue::Text)));
        let used = |name: &str| self.columns.iter().any(|column| column.key == Some(name));
        let keys = [("run", run), ("period", period.finish())];
        let keys: KeyColumns = keys
            .into_iter()
            .filter(|(name, _)| used(name))
            .map(|(name, key)| (name.into(), key))
            .collect();
        TableRows { timestamps: Arc::new(timestamps), keys }
    }
}

/// Removes the ranges that earlier ones cover, which are refused.
fn keep_reachable(ranges: &mut Vec<(Option<i64>, Option<i64>, usize)>) {
    let holds = |range: &(Option<i64>, Option<i64>, usize), value: i64| {
        range.0.is_none_or(|from| from <= value) && range.1.is_none_or(|until| value <= until)
    };
    let all = ranges.clone();
    let mut number = 0;
    ranges.retain(|range| {
        number += 1;
        let earlier = &all[..number - 1];
        (-9..9).any(|value| holds(range, value) && !earlier.iter().any(|one| holds(one, value)))
    });
}

fn column() -> impl Strategy<Value = Column> {
    let bound = || proptest::option::of(-2_i64..7);
    let range =
        (bound(), bound(), 0..3_usize).prop_map(|(from, until, path)| match (from, until) {
            (Some(a), Some(b)) => (Some(a.min(b)), Some(a.max(b)), path),
            (None, None) => (Some(1), None, path),
            other => (other.0, other.1, path),
        });
    let ranges = (proptest::collection::vec(range, 1..4), proptest::option::of(0..3_usize));
    let path = prop_oneof![
        (0..3_usize).prop_map(|path| (Vec::new(), Some(path))),
        ranges.prop_map(|(mut ranges, fallback)| {
            keep_reachable(&mut ranges);
            ranges.extend(fallback.map(|path| (None, None, path)));
            (ranges, None)
        }),
    ];
    (path, 0..4_u8, any::<bool>(), any::<bool>()).prop_map(
        |((ranges, one), kind, uniform, text)| {
            let needs_run = one.is_none() || kind == 1;
            let key = match (kind, needs_run, text) {
                (3, false, _) => None,
                (_, false, true) => Some("period"),
                _ => Some("run"),
            };
            Column {
                ranges,
                one,
                key,
                at_key: kind == 1,
                metadata: kind == 2,
                uniform: uniform && key.is_some(),
            }
        },
    )
}

/// Many rows in the order of their timestamps, none of which is null, whose keys change on each row.
fn interleaved(rows: &[CaseRow]) -> Vec<CaseRow> {
    let mut times: Vec<i64> = rows.iter().map(|row| row.0.unwrap_or(7)).collect();
    times.sort_unstable();
    let all = 0..rows.len() * INTERLEAVED;
    all.map(|row| {
        let (_, run, period) = rows[row % rows.len()];
        (Some(times[row / INTERLEAVED]), run, period)
    })
    .collect()
}

fn case() -> impl Strategy<Value = Case> {
    let made = (0..3_usize, -10_i64..60, 1..40_i64, proptest::option::of(-1_i64..5))
        .prop_map(|(path, from, length, run)| Made { path, from, until: from + length, run });
    let maybe =
        |range: std::ops::Range<i64>| prop_oneof![9 => range.prop_map(Some), 1 => Just(None)];
    let row = (maybe(-5..60), maybe(-1..6), maybe(0..3));
    let rows = proptest::collection::vec((row, 1..90_usize), 1..24);
    let columns = proptest::collection::vec(column(), 1..6);
    (proptest::collection::vec(made, 0..24), rows, columns, 0..5_u8).prop_map(
        |(versions, rows, columns, order)| {
            let mut rows: Vec<_> = rows
                .into_iter()
                .flat_map(|(row, times)| {
                    std::iter::repeat_n(row, if order == 3 { times } else { 1 })
                })
                .collect();
            match order {
                0 => rows.sort_by_key(|row| row.0),
                1 => rows.sort_by_key(|row| std::cmp::Reverse(row.0)),
                2 => rows.sort_by_key(|row| (row.1, row.0)),
                4 => rows = interleaved(&rows),
                _ => {}
            }
            Case { versions, rows, columns }
        },
    )
}

/// For each column the number of the version in each row.
fn versions_of(batches: &[RecordBatch]) -> Vec<Vec<Option<usize>>> {
    let columns = batches[0].num_columns();
    let mut all = vec![Vec::new(); columns];
    for batch in batches {
        for (column, rows) in all.iter_mut().enumerate() {
            let before = rows.len();
            for (end, cell) in column_runs(batch.column(column)).unwrap().iter() {
                let number = match cell {
                    CellValue::Payload(bytes) => {
                        let text = std::str::from_utf8(bytes).unwrap();
                        Some(text.strip_prefix("version ").unwrap().parse().unwrap())
                    }
                    CellValue::Null => None,
                    other => panic!("{other:?}"),
                };
                rows.resize(before + end, number);
            }
        }
    }
    all
}

/// Converts the rows of an objects view to a lock.
fn lock_of(batches: &[RecordBatch]) -> Vec<Value> {
    let mut rows = Vec::new();
    for batch in batches {
        let text = |name: &str, row: usize| {
            let column = batch.column_by_name(name).unwrap().as_string::<i32>();
            column.is_valid(row).then(|| column.value(row).to_owned())
        };
        let number = |name: &str, row: usize| {
            batch.column_by_name(name).unwrap().as_primitive::<Int64Type>().value(row)
        };
        for row in 0..batch.num_rows() {
            let mut entry = json!({
                "column": text("column", row), "path": text("path", row),
                "object_id": text("object_id", row),
                "valid_from": number("valid_from", row), "valid_until": number("valid_until", row),
                "created": number("created", row), "row_start": number("row_start", row),
                "row_end": number("row_end", row),
            });
            if batch.column_by_name("key").is_some()
                && let Some(key) = text("key", row)
            {
                entry["key"] = key.into();
            }
            rows.push(entry);
        }
    }
    rows
}

async fn check(case: &Case) -> Result<(), TestCaseError> {
    let source = Arc::new(Counting::default());
    put_all(&source.memory, &case.versions);
    let cache = cache(Arc::clone(&source) as Arc<dyn Source>);
    let expected: Vec<Vec<Option<usize>>> = case
        .columns
        .iter()
        .map(|column| (0..case.rows.len()).map(|row| case.expected(column, row)).collect())
        .collect();
    let payload = [("cell", json!("payload")), ("encoding", json!("run_end"))];
    let got = ask(&cache, &case.request(&payload)).await.unwrap();
    prop_assert_eq!(&versions_of(&got), &expected);
    // The source received exactly the look-ups that the rows need, each once.
    let asked = std::mem::take(&mut *source.asked.lock().unwrap());
    let distinct: BTreeSet<_> = asked.iter().cloned().collect();
    prop_assert_eq!(asked.len(), distinct.len());
    let needed = case.columns.iter().flat_map(|column| {
        let rows = (0..case.rows.len()).filter_map(|row| case.look_up(column, row));
        rows.map(|(path, run, at)| {
            let run = run.map(|run| ("run".to_owned(), run.to_string()));
            (PATHS[path].to_owned(), run.into_iter().collect::<BTreeMap<_, _>>(), at)
        })
    });
    prop_assert_eq!(distinct, needed.collect::<BTreeSet<_>>());
    // The objects view lists the same versions, each with its value of the key, and its lock serves
    // them.
    let objects = ask(&cache, &case.request(&[("view", json!("objects"))])).await.unwrap();
    let lock = lock_of(&objects);
    let mut served: Vec<Vec<Option<usize>>> =
        case.columns.iter().map(|_| vec![None; case.rows.len()]).collect();
    for entry in &lock {
        let column: usize = entry["column"].as_str().unwrap()[1..].parse().unwrap();
        let [start, end] = ["row_start", "row_end"].map(|f| entry[f].as_u64().unwrap() as usize);
        let id = entry["object_id"].as_str().unwrap();
        let version = (0..case.versions.len())
            .find(|n| case.versions[*n].info(*n).id.to_string() == id)
            .unwrap();
        for (row, served) in (start..end).zip(&mut served[column][start..end]) {
            *served = Some(version);
            let key = case.columns[column].key.and_then(|name| case.key(name, row));
            prop_assert_eq!(entry["key"].as_str().map(str::to_owned), key.map(|n| n.to_string()));
        }
    }
    prop_assert_eq!(&served, &expected);
    let mut locked = payload.to_vec();
    locked.push(("lock", json!(lock)));
    // A lock holds each version for its own interval: all versions of a look-up without a value of
    // its own compete, and the same version wins.
    let got = ask(&cache, &case.request(&locked)).await.unwrap();
    prop_assert_eq!(&versions_of(&got), &expected);
    // The distinct view is the dictionary of the rows view.
    let distinct = ask(&cache, &case.request(&[("view", json!("distinct"))])).await.unwrap();
    check_distinct(case, &distinct, &expected)?;
    // A timeframe and a stream with these rows yield the same table.
    let template = {
        let mut request = case.request(&payload);
        request
            .as_object_mut()
            .unwrap()
            .retain(|field, _| field != "timestamps" && field != "keys");
        request
    };
    let exchange =
        cache.exchange(Request::parse_template(template.to_string().as_bytes()).unwrap()).unwrap();
    let answer = exchange.answer(1, case.table_rows()).await.unwrap();
    prop_assert_eq!(&versions_of(&answer.to_batches().unwrap()), &expected);
    let register = json!({"columns": template["columns"]}).to_string();
    let register = Register::parse(register.as_bytes()).unwrap();
    cache.register(7, case.table_rows(), &register, None).await.unwrap();
    cache.register(7, case.table_rows(), &register, None).await.unwrap();
    let mut request = template.clone();
    request["timeframe"] = 7.into();
    prop_assert_eq!(&versions_of(&ask(&cache, &request).await.unwrap()), &expected);
    // One of its columns under another name uses the registered keys.
    request["columns"] = json!({"other": template["columns"]["c0"]});
    let got = ask(&cache, &request).await.unwrap();
    prop_assert_eq!(&versions_of(&got)[0], &expected[0]);
    Ok(())
}

fn check_distinct(
    case: &Case,
    distinct: &[RecordBatch],
    expected: &[Vec<Option<usize>>],
) -> Result<(), TestCaseError> {
    let mut told: Vec<(usize, usize, i64, i64)> = Vec::new();
    for batch in distinct {
        let text = |name: &str| batch.column_by_name(name).unwrap().as_string::<i32>();
        let number = |name: &str| batch.column_by_name(name).unwrap().as_primitive::<Int64Type>();
        for row in 0..batch.num_rows() {
            let column = text("column").value(row)[1..].parse().unwrap();
            let id = text("object_id").value(row);
            let is_it = |n: &usize| case.versions[*n].info(*n).id.to_string() == id;
            let version = (0..case.versions.len()).find(is_it).unwrap();
            prop_assert_eq!(text("path").value(row), PATHS[case.versions[version].path]);
            let [first, rows] = ["first_row", "rows"].map(|name| number(name).value(row));
            told.push((column, version, first, rows));
        }
    }
    let mut wanted = Vec::new();
    for (column, rows) in expected.iter().enumerate() {
        let mut seen = BTreeSet::new();
        for (row, version) in rows.iter().enumerate() {
            if let Some(version) = version.filter(|version| seen.insert(*version)) {
                let count = rows.iter().filter(|other| **other == Some(version)).count();
                wanted.push((column, version, row as i64, count as i64));
            }
        }
    }
    prop_assert_eq!(told, wanted);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn each_row_gets_the_version_that_its_key_and_timestamp_decide(case in case()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(check(&case))?;
    }
}
