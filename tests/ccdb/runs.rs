//! Run-dependent objects as ALICE has them: by timestamp (mode 0), with the run in the metadata
//! (mode 1), the run in place of the timestamp (mode 2), and the time of a run.

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray as _;
use arrow_array::types::Int64Type;
use iovcache::Cache;
use iovcache::cache::{CacheError, Caller};
use iovcache::error::{Coded as _, ErrorKind};
use iovcache::shm::PoolOptions;
use iovcache::table::{CellValue, Request, column_runs};
use serde_json::{Value, json};

use super::fake_ccdb::{FakeCcdb, Kind, Upload};
use super::*;

const RUNS: [i64; 2] = [544_123, 544_124];

fn cache_over(server: &FakeCcdb, options: CcdbOptions) -> Cache {
    let source = Arc::new(source(server, options));
    let memory =
        PoolOptions { memory_bytes: 16 << 20, segment_bytes: 1 << 20, ..PoolOptions::default() };
    Cache::builder().source(source).memory(memory).build().unwrap()
}

/// Two runs that overlap in time, and an object of each kind for them.
async fn server_with_runs(kind: Kind) -> FakeCcdb {
    let server = FakeCcdb::start(kind).await;
    for (run, (sor, eor)) in RUNS.into_iter().zip([(1_000, 5_000), (4_000, 9_000)]) {
        server.upload(
            Upload::new("RCT/Info/RunInformation", run, run + 1)
                .metadata("SOR", &sor.to_string())
                .metadata("EOR", &eor.to_string())
                .bytes(format!("information {run}").into_bytes()),
        );
        server.upload(
            Upload::new("GLO/Config/GRPECS", 0, 10_000)
                .created(run)
                .metadata("runNumber", &run.to_string())
                .bytes(format!("ecs {run}").into_bytes()),
        );
    }
    for (path, from, until) in [
        ("GLO/Calib/Old", 0, 10_000),
        ("GLO/Calib/New", 0, 4_500),
        ("GLO/Calib/New", 4_500, 10_000),
    ] {
        server.upload(Upload::new(path, from, until).bytes(format!("{path} {from}").into_bytes()));
    }
    server
}

async fn ask(cache: &Cache, request: Value) -> Result<Vec<RecordBatch>, CacheError> {
    let request = Request::parse(request.to_string().as_bytes())?;
    Ok(cache.answer(&request, &Caller::default()).await?.to_batches().unwrap())
}

/// The bytes of each row of a column.
fn texts(batches: &[RecordBatch], column: &str) -> Vec<Option<String>> {
    let mut rows = Vec::new();
    for batch in batches {
        let before = rows.len();
        let runs = column_runs(batch.column_by_name(column).unwrap()).unwrap();
        for (end, cell) in runs.iter() {
            let text = match cell {
                CellValue::Payload(bytes) => Some(String::from_utf8(bytes.to_vec()).unwrap()),
                _ => None,
            };
            rows.resize(before + end, text);
        }
    }
    rows
}

fn request() -> Value {
    json!({
        "columns": {
            "information": {"path": "RCT/Info/RunInformation", "key": "run", "as": "timestamp"},
            "ecs": {"path": "GLO/Config/GRPECS", "key": "run", "as": "metadata:runNumber"},
            "vertex": {
                "path": [
                    {"from": 500_000, "until": RUNS[0], "path": "GLO/Calib/Old"},
                    {"path": "GLO/Calib/New"},
                ],
                "key": "run",
            },
            "once": {"path": "GLO/Calib/New", "key": "run", "uniform": true},
            "plain": "GLO/Calib/New",
        },
        // The runs overlap: at 4,200 ms there are rows of both.
        "timestamps": [4_000, 4_200, 4_200, 4_600, 4_700, 4_800],
        "keys": {"run": [RUNS[0], RUNS[0], RUNS[1], RUNS[1], RUNS[0], null]},
        "cell": "payload", "encoding": "run_end",
    })
}

#[tokio::test]
async fn each_run_gets_its_own_object_from_every_kind_of_server() {
    for kind in EVERY_KIND {
        for options in [short(), by_time()] {
            let server = server_with_runs(kind).await;
            let cache = cache_over(&server, options);
            let table = ask(&cache, request()).await.unwrap();
            let (one, two) = (RUNS[0].to_string(), RUNS[1].to_string());
            let of = |prefix: &str| {
                let text = |run: &String| Some(format!("{prefix} {run}"));
                [text(&one), text(&one), text(&two), text(&two), text(&one), None]
            };
            let [old, early, late] = ["GLO/Calib/Old 0", "GLO/Calib/New 0", "GLO/Calib/New 4500"]
                .map(|text| Some(text.to_owned()));
            assert_eq!(texts(&table, "information"), of("information"), "{kind:?}");
            assert_eq!(texts(&table, "ecs"), of("ecs"), "{kind:?}");
            let vertex = [&old, &old, &early, &late, &old, &None].map(Clone::clone);
            assert_eq!(texts(&table, "vertex"), vertex, "{kind:?}");
            // At the timestamp of the first row of each run: 4,000 and 4,200.
            let once = [&early, &early, &early, &early, &early, &None].map(Clone::clone);
            assert_eq!(texts(&table, "once"), once, "{kind:?}");
            let plain = [&early, &early, &early, &late, &late, &late].map(Clone::clone);
            assert_eq!(texts(&table, "plain"), plain, "{kind:?}");
        }
    }
}

#[tokio::test]
async fn uniform_asks_the_server_once_for_each_run() {
    let server = server_with_runs(Kind::Sql).await;
    let cache = cache_over(&server, by_time());
    let rows = 20_000;
    let runs: Vec<i64> = (0..rows).map(|row| RUNS[row % 2]).collect();
    let timestamps: Vec<i64> = (0..rows as i64).map(|row| row % 9_000).collect();
    let column = json!({
        "path": "GLO/Config/GRPECS", "key": "run", "as": "metadata:runNumber", "uniform": true,
    });
    let request = json!({
        "columns": {"ecs": column}, "timestamps": timestamps, "keys": {"run": runs},
    });
    ask(&cache, request.clone()).await.unwrap();
    assert_eq!((server.counts().look_ups, server.counts().bodies), (2, 2));
    let mut distinct = request;
    distinct["view"] = "distinct".into();
    let distinct = ask(&cache, distinct).await.unwrap();
    let rows = distinct[0].column_by_name("rows").unwrap().as_primitive::<Int64Type>();
    assert_eq!(rows.values()[..], [10_000, 10_000]);
    assert_eq!(server.counts().look_ups, 2);
}

#[tokio::test]
async fn a_range_can_be_the_time_of_a_run() {
    for kind in EVERY_KIND {
        let server = server_with_runs(kind).await;
        let cache = cache_over(&server, short());
        let request = json!({
            "columns": {"new": "GLO/Calib/New"}, "range": {"run": RUNS[1], "step": 500},
            "timestamps_column": true, "cell": "payload", "encoding": "run_end",
        });
        let parsed = Request::parse(request.to_string().as_bytes()).unwrap();
        assert_eq!(cache.describe(&parsed).unwrap().rows, None);
        let table = ask(&cache, request).await.unwrap();
        let times = table[0].column(0).as_primitive::<Int64Type>();
        // From 4,000 to before 9,000.
        assert_eq!(times.values()[..], (0..10).map(|n| 4_000 + n * 500).collect::<Vec<_>>());
        assert_eq!(
            texts(&table, "new")[..2],
            vec![Some("GLO/Calib/New 0".to_owned()), Some("GLO/Calib/New 4500".to_owned())]
        );
        let spans = json!({
            "columns": {"new": "GLO/Calib/New"}, "range": {"run": RUNS[1]}, "view": "intervals",
        });
        let spans = ask(&cache, spans).await.unwrap();
        let of = |name: &str| {
            let column = spans[0].column_by_name(name).unwrap();
            column.as_primitive::<Int64Type>().values().to_vec()
        };
        assert_eq!((of("from"), of("until")), (vec![4_000, 4_500], vec![4_500, 9_000]));
    }
}

#[tokio::test]
async fn a_run_whose_time_is_not_known_is_told() {
    let server = server_with_runs(Kind::Local).await;
    let path = "RCT/Info/RunInformation";
    server.upload(Upload::new(path, 1, 2));
    server.upload(Upload::new(path, 2, 3).metadata("SOR", "noon").metadata("EOR", "1"));
    server.upload(Upload::new(path, 3, 4).metadata("SOR", "9").metadata("EOR", "8"));
    server.upload(
        Upload::new(path, 4, 5)
            .metadata("SOR", "0")
            .metadata("EOR", "9000")
            .metadata("STF", "1000")
            .metadata("ETF", "2000"),
    );
    let cache = cache_over(&server, short());
    let request =
        |run: i64| json!({"columns": {"old": "GLO/Calib/Old"}, "range": {"run": run, "step": 100}});
    for (run, said) in
        [(1, "none of STF and ETF"), (2, "\"noon\""), (3, "from < until"), (9, "no version")]
    {
        let error = ask(&cache, request(run)).await.unwrap_err();
        assert_eq!((error.kind(), error.code().0), (ErrorKind::NotFound, 2018), "{error}");
        let message = error.message();
        assert!(message.contains(said) && message.contains(&format!("run {run} ")), "{message}");
    }
    let rows = ask(&cache, request(4)).await.unwrap();
    assert_eq!(rows.iter().map(RecordBatch::num_rows).sum::<usize>(), 10);
}
