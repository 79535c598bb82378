//! Requests with keys that are refused, and the rules of those that are not.

use std::sync::Arc;

use arrow_array::Array as _;
use iovcache::Cache;
use iovcache::cache::Caller;
use iovcache::error::{Coded as _, ErrorKind};
use iovcache::index::Timestamps;
use iovcache::source::{MemorySource, Source};
use iovcache::table::{Register, Request, TableRows};
use serde_json::{Value, json};

use crate::versions::{Made, ask, cache, memory};

fn one_column(column: Value, keys: Value, timestamps: Value) -> Value {
    json!({"columns": {"grp": column}, "keys": keys, "timestamps": timestamps})
}

async fn error(cache: &Cache, request: &Value) -> (ErrorKind, u16, String) {
    let error = ask(cache, request).await.unwrap_err();
    (error.kind(), error.code().0, error.message())
}

/// A cache with one version of the path `A/A`, valid from 0 until 100.
fn cache_of_one_version() -> Cache {
    let source = Arc::new(MemorySource::new());
    let all = Made { path: 0, from: 0, until: 100, run: None };
    source.put(all.info(0), Made::bytes(0));
    cache(source)
}

fn uniform() -> Value {
    json!({"path": "A/A", "key": "run", "uniform": true})
}

/// One range without a fallback.
fn by_range() -> Value {
    json!({"path": [{"from": 1, "until": 5, "path": "A/A"}], "key": "run"})
}

fn at_key() -> Value {
    json!({"path": "A/A", "key": "run", "as": "timestamp"})
}

/// The column `grp` at the timestamps 1, 2 and 3 with these keys is refused by the request's check, so
/// by GetSchema too, which loads nothing.
async fn refused(column: Value, keys: Value, expected_code: u16, said: &str) {
    let cache = cache_of_one_version();
    let request = one_column(column, keys, json!([1, 2, 3]));
    let (kind, code, message) = error(&cache, &request).await;
    assert_eq!((kind, code), (ErrorKind::InvalidArgument, expected_code), "{message}");
    assert!(message.contains(said), "{message}");
    let parsed = Request::parse(request.to_string().as_bytes());
    assert!(parsed.map_or(true, |request| cache.describe(&request).is_err()), "{message}");
}

#[tokio::test]
async fn a_key_that_the_request_does_not_give_is_named_beside_those_that_it_gives() {
    refused(uniform(), json!({}), 1040, "\"run\"").await;
    refused(uniform(), json!({"fill": [1, 1, 1]}), 1040, "given are: fill").await;
}

#[tokio::test]
async fn a_key_that_no_column_uses_is_named() {
    let keys = json!({"run": [1, 1, 1], "fill": [1, 1, 1]});
    refused(uniform(), keys, 1041, "\"fill\"").await;
}

#[tokio::test]
async fn a_key_of_another_length_than_the_timestamps_is_told_with_both_lengths() {
    refused(uniform(), json!({"run": [1, 1]}), 1042, "2 values for 3 timestamps").await;
    refused(uniform(), json!({"run": [1, 1, 1, 1]}), 1042, "4 values for 3 timestamps").await;
}

#[tokio::test]
async fn a_value_of_another_type_than_the_key_is_told_with_its_row() {
    refused(uniform(), json!({"run": [1, "a", 1]}), 1044, "row 1").await;
    refused(uniform(), json!({"run": ["a", "b", 1]}), 1044, "row 2").await;
    refused(uniform(), json!({"run": [1, 1, 1.5]}), 1044, "row 2").await;
    refused(uniform(), json!({"run": [1, 1, [1]]}), 1044, "row 2").await;
}

#[tokio::test]
async fn a_key_of_strings_where_integers_are_needed_is_told_with_its_column() {
    refused(by_range(), json!({"run": ["a", "b", "c"]}), 1045, "\"grp\"").await;
    refused(at_key(), json!({"run": ["a", "b", "c"]}), 1045, "\"grp\"").await;
}

#[tokio::test]
async fn a_key_that_overflows_an_i64_is_told_with_its_row() {
    refused(uniform(), json!({"run": [1, 1, u64::MAX]}), 1046, "row 2").await;
    refused(at_key(), json!({"run": [i64::MAX as u64 + 1, 1, 1]}), 1046, "row 0").await;
}

#[tokio::test]
async fn a_value_that_no_range_holds_is_told_with_its_row_or_is_null_where_asked() {
    let cache = cache_of_one_version();
    let outside = one_column(by_range(), json!({"run": [1, 6, 7]}), json!([1, 2, 3]));
    let (kind, code, message) = error(&cache, &outside).await;
    assert_eq!((kind, code), (ErrorKind::NotFound, 2016), "{message}");
    assert!(message.contains("\"grp\": 2 rows, first row 1 with run=6"), "{message}");
    let mut null = outside;
    null["missing"] = "null".into();
    let batches = ask(&cache, &null).await.unwrap();
    assert_eq!(batches[0].column(0).logical_null_count(), 2);
}

#[tokio::test]
async fn a_uniform_value_whose_first_row_has_no_object_is_told_with_time_and_value() {
    let cache = cache_of_one_version();
    let gone = one_column(uniform(), json!({"run": [8, 8, 9]}), json!([500, 1, 2]));
    let (kind, code, message) = error(&cache, &gone).await;
    assert_eq!((kind, code), (ErrorKind::NotFound, 2010), "{message}");
    for part in ["(A/A): 2 rows, first at 500", "run=8"] {
        assert!(message.contains(part), "{message}");
    }
}

#[tokio::test]
async fn a_null_key_is_a_null_cell_whatever_missing_says() {
    let cache = cache_of_one_version();
    for column in [uniform(), by_range(), at_key()] {
        let request = one_column(column, json!({"run": [1, null, 5]}), json!([1, 2, 3]));
        let batches = ask(&cache, &request).await.unwrap();
        assert_eq!(batches[0].column(0).logical_null_count(), 1);
    }
}

/// The contract's rule for ranges that overlap: the first that holds the value wins.
#[tokio::test]
async fn a_range_that_no_value_can_reach_is_refused() {
    let covered = json!({
        "path": [{"from": 1, "until": 5, "path": "A/A"}, {"from": 2, "until": 3, "path": "B/B"}],
        "key": "run",
    });
    let request = one_column(covered, json!({"run": [1, 2, 3]}), json!([1, 2, 3]));
    let (kind, _, message) = error(&cache_of_one_version(), &request).await;
    assert_eq!(kind, ErrorKind::InvalidArgument, "{message}");
    assert!(message.contains("\"grp\"") && message.contains("2-3=B/B can never"), "{message}");
}

#[tokio::test]
async fn a_key_at_either_end_of_time_is_looked_up_as_a_timestamp() {
    let keys = json!({"run": [1, i64::MAX, i64::MIN]});
    let request = one_column(at_key(), keys, json!([1, 2, 3]));
    let (kind, code, message) = error(&cache_of_one_version(), &request).await;
    assert_eq!((kind, code), (ErrorKind::NotFound, 2010), "{message}");
    assert!(message.contains("(A/A): 2 rows"), "{message}");
}

#[tokio::test]
async fn keys_go_with_timestamps_alone() {
    let cache = cache_of_one_version();
    let steps = json!({"from": 0, "until": 9, "step": 1});
    let request = json!({"columns": {"grp": uniform()}, "range": steps});
    assert_eq!(error(&cache, &request).await.1, 1040);
    let request = json!({"columns": {"grp": uniform()}, "range": steps, "keys": {"run": [1]}});
    assert_eq!(error(&cache, &request).await.1, 1002);
    let spans = json!({"from": 0, "until": 9});
    let request = json!({"columns": {"grp": by_range()}, "range": spans, "view": "intervals"});
    assert_eq!(error(&cache, &request).await.1, 1048);
}

#[tokio::test]
async fn the_number_of_distinct_values_is_limited_only_where_each_has_a_look_up() {
    let source = Arc::new(MemorySource::new());
    let all = Made { path: 0, from: 0, until: 100, run: None };
    source.put(all.info(0), Made::bytes(0));
    let cache = Cache::builder().source(source).memory(memory()).max_key_values(2).build().unwrap();
    let (keys, times) = (json!({"run": [1, 2, 3]}), json!([1, 2, 3]));
    let (kind, code, message) =
        error(&cache, &one_column(uniform(), keys.clone(), times.clone())).await;
    assert_eq!((kind, code), (ErrorKind::InvalidArgument, 1047), "{message}");
    assert!(message.contains("at most 2"), "{message}");
    assert!(ask(&cache, &one_column(at_key(), keys, times)).await.is_ok());
}

#[tokio::test]
async fn a_table_has_at_most_as_many_queries_as_the_limit_allows() {
    let source = Arc::new(MemorySource::new());
    let all = Made { path: 0, from: 0, until: 100, run: Some(1) };
    source.put(all.info(0), Made::bytes(0));
    let limited = |queries| {
        let source = Arc::clone(&source) as Arc<dyn Source>;
        Cache::builder().source(source).memory(memory()).max_queries(queries).build().unwrap()
    };
    let with_metadata = json!({"path": "A/A", "key": "run", "as": "metadata:run"});
    let request = json!({
        "columns": {"a": with_metadata, "b": with_metadata, "c": "A/A"},
        "timestamps": [1, 1, 1], "keys": {"run": [1, 2, 3]}, "missing": "null",
    });
    assert!(ask(&limited(7), &request).await.is_ok());
    let (kind, code, message) = error(&limited(6), &request).await;
    assert_eq!((kind, code), (ErrorKind::ResourceExhausted, 2017), "{message}");
    assert!(message.contains("7 queries") && message.contains("at most 6"), "{message}");
    // With a lock each value of a key selects its own versions.
    let mut locked = request.clone();
    locked["lock"] = json!([]);
    assert_eq!(error(&limited(6), &locked).await.1, 2017);
    assert!(ask(&limited(7), &locked).await.is_ok());
}

#[tokio::test]
async fn by_default_ten_thousand_distinct_keys_have_look_ups_and_one_more_is_refused() {
    let source = Arc::new(MemorySource::new());
    let all = Made { path: 0, from: 0, until: 100, run: None };
    source.put(all.info(0), Made::bytes(0));
    let cache = cache(source);
    let column = json!({"path": "A/A", "key": "run", "uniform": true});
    let request = |values: i64| {
        let keys = json!({"run": (0..values).collect::<Vec<_>>()});
        one_column(column.clone(), keys, json!(vec![1; values as usize]))
    };
    assert!(ask(&cache, &request(10_000)).await.is_ok());
    let (kind, code, message) = error(&cache, &request(10_001)).await;
    assert_eq!((kind, code), (ErrorKind::InvalidArgument, 1047), "{message}");
    for part in ["\"grp\"", "\"run\"", "10001 distinct", "at most 10000"] {
        assert!(message.contains(part), "{message}");
    }
}

#[tokio::test]
async fn fields_are_nullable_where_their_own_key_has_nulls() {
    let source = Arc::new(MemorySource::new());
    let all = Made { path: 0, from: 0, until: 100, run: None };
    source.put(all.info(0), Made::bytes(0));
    let cache = cache(source);
    let request = |run: Value| {
        let columns = json!({
            "plain": "A/A",
            "grp": {"path": "A/A", "key": "run", "uniform": true},
            "fill": {"path": "A/A", "key": "fill"},
        });
        let request = json!({
            "columns": columns, "timestamps": [1, 2], "keys": {"run": run, "fill": [1, 1]},
        });
        Request::parse(request.to_string().as_bytes()).unwrap()
    };
    for (run, nullable) in
        [(json!([1, 1]), false), (json!([1, null]), true), (json!([2, 1]), false)]
    {
        let request = request(run);
        let schema = cache.describe(&request).unwrap().schema;
        let answer = cache.answer(&request, &Caller::default()).await.unwrap();
        assert_eq!(answer.schema().fields(), schema.fields());
        let fields: Vec<bool> = schema.fields().iter().map(|field| field.is_nullable()).collect();
        assert_eq!(fields, [false, nullable, false]);
        let nulls = answer.to_batches().unwrap()[0].column(1).logical_null_count();
        assert_eq!(nulls, usize::from(nullable));
    }
}

#[tokio::test]
async fn a_timeframe_with_other_keys_is_another_one() {
    let source = Arc::new(MemorySource::new());
    let all = Made { path: 0, from: 0, until: 100, run: None };
    source.put(all.info(0), Made::bytes(0));
    let cache = cache(source);
    let register = br#"{"columns": {"grp": {"path": "A/A", "key": "run", "uniform": true}}}"#;
    let register = Register::parse(register).unwrap();
    let rows = |run: i64| TableRows {
        timestamps: Arc::new(Timestamps::new(vec![1, 2], None)),
        keys: [("run".into(), [Some(run), Some(run)].into_iter().collect())].into_iter().collect(),
    };
    cache.register(1, rows(5), &register, None).await.unwrap();
    cache.register(1, rows(5), &register, None).await.unwrap();
    let error = cache.register(1, rows(6), &register, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert!(error.message().contains("other keys"));
    let without = Timestamps::new(vec![1, 2], None);
    assert_eq!(cache.register(2, without, &register, None).await.unwrap_err().code().0, 1040);
    // Another column can use the key that the timeframe has, and no other one.
    let other = |key: &str| json!({"timeframe": 1, "columns": {"x": {"path": "A/A", "key": key}}});
    assert!(ask(&cache, &other("run")).await.is_ok());
    assert_eq!(ask(&cache, &other("fill")).await.unwrap_err().code().0, 1040);
}
