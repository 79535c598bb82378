//! Columns that depend on a key beside the same table without keys: 1,000,000 rows x 50 columns, of
//! which 10 have keys; the run number sorted, interleaved, and at random.
//!
//! Two kinds of rows: each run has its own time, so rows that are out of the order of their runs are
//! out of the order of their timestamps too; and all runs at the same time, so the timestamps ascend
//! for every order of the runs, and the table without keys has 100 runs of rows per column.
//!
//! `cargo bench --bench keys`; the results are in `benches/README.md`.

mod beside;
#[path = "../tests/in_process/mod.rs"]
mod in_process;

use std::sync::Arc;

use beside::beside;
use in_process::steady::Steady;
use iovcache::cache::Caller;
use iovcache::index::{KeyColumn, Timestamps};
use iovcache::shm::PoolOptions;
use iovcache::source::MemorySource;
use iovcache::table::{
    ColumnPath, ColumnRequest, Columns, KeyLookUp, KeyUse, PathRange, Request, TableRows, When,
};
use iovcache::{Cache, ObjectId, ObjectInfo, ObjectPath, Timestamp, ValidityInterval};
use tokio::runtime::Runtime;

const ROWS: i64 = 1_000_000;
const COLUMNS: usize = 50;
const WITH_KEYS: usize = 10;
const RUNS: i64 = 10;
/// Versions of each path.
const VERSIONS: i64 = 100;

fn path(column: usize) -> ObjectPath {
    ObjectPath::new(&format!("Bench/Column{column}/X")).unwrap()
}

fn version(column: usize, n: i64) -> ObjectInfo {
    let length = ROWS / VERSIONS;
    let [from, until] = [n * length, (n + 1) * length].map(Timestamp::from_millis);
    let mut id = [0; 16];
    id[..8].copy_from_slice(&(column as u64).to_be_bytes());
    id[8..].copy_from_slice(&n.to_be_bytes());
    ObjectInfo {
        path: path(column),
        id: ObjectId::from_bytes(id),
        validity: ValidityInterval::new(from, until).unwrap(),
        created: from,
        size_bytes: None,
        md5: None,
        metadata: Default::default(),
    }
}

/// A cache over 100 versions of each path. The last path is in the number of the run.
fn cache() -> Cache {
    let source = MemorySource::new();
    for column in 0..=COLUMNS {
        for n in 0..VERSIONS {
            source.put(version(column, n), vec![n as u8; 100]);
        }
    }
    let memory =
        PoolOptions { memory_bytes: 64 << 20, segment_bytes: 64 << 20, ..PoolOptions::default() };
    Cache::builder().source(Arc::new(Steady(source))).memory(memory).build().unwrap()
}

/// The columns; of the last ten four are uniform, four have paths by ranges, two are looked up at the
/// number of the run.
fn columns(with_keys: bool) -> Vec<ColumnRequest> {
    (0..COLUMNS)
        .map(|number| {
            let column = ColumnRequest::new(format!("c{number}"), path(number));
            let Some(nth) = number.checked_sub(COLUMNS - WITH_KEYS).filter(|_| with_keys) else {
                return column;
            };
            let used = |look_up, uniform| Some(KeyUse { key: "run".into(), look_up, uniform });
            match nth {
                0..4 => ColumnRequest { key: used(KeyLookUp::AtTimestamp, true), ..column },
                4..8 => {
                    let range = |from, until, path| PathRange { from, until, path };
                    let ranges = [
                        range(Some(0), Some(4), path(number)),
                        range(Some(5), Some(6), path(number - 1)),
                        range(None, None, path(number - 2)),
                    ];
                    let path = ColumnPath::ByRange(ranges.into());
                    ColumnRequest { path, key: used(KeyLookUp::AtTimestamp, false), ..column }
                }
                _ => ColumnRequest { key: used(KeyLookUp::AtKey, false), ..column },
            }
        })
        .collect()
}

fn request(with_keys: bool, encoding: &str, rows: TableRows) -> Request {
    let json = format!(r#"{{"table": "t", "timestamps": [], "encoding": "{encoding}"}}"#);
    let columns = Columns::Own(columns(with_keys));
    let request = Request::parse(json.as_bytes()).unwrap();
    Request { columns, when: When::Timestamps(rows), ..request }
}

/// The table, and its messages as they cross the wire.
fn answer(runtime: &Runtime, cache: &Cache, request: &Request) {
    let answer = runtime.block_on(cache.answer(request, &Caller::default())).unwrap();
    for message in answer.messages().unwrap() {
        std::hint::black_box(message.unwrap());
    }
    cache.release(answer.lease());
}

/// Timestamps of rows of these runs: a tenth of all time for each run, one after the other.
fn own_times(runs: &[i64]) -> Arc<Timestamps> {
    let mut next: Vec<i64> = (0..RUNS).map(|run| run * ROWS / RUNS).collect();
    let times = runs.iter().map(|&run| {
        let at = next[run as usize];
        next[run as usize] = (at + 1).min((run + 1) * ROWS / RUNS - 1);
        at
    });
    Arc::new(Timestamps::new(times.collect::<Vec<_>>(), None))
}

fn main() {
    let (runtime, cache) = (Runtime::new().unwrap(), {
        let runtime = Runtime::new().unwrap();
        let _inside = runtime.enter();
        let cache = cache();
        std::mem::forget(runtime);
        cache
    });
    let ascending = Arc::new(Timestamps::new((0..ROWS).collect::<Vec<_>>(), None));
    let mut state = 1_u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as i64 % RUNS
    };
    let sorted: Vec<i64> = (0..ROWS).map(|row| row * RUNS / ROWS).collect();
    let interleaved: Vec<i64> = (0..ROWS).map(|row| row % RUNS).collect();
    let random: Vec<i64> = (0..ROWS).map(|_| random()).collect();
    let orders = [("sorted", sorted), ("interleaved", interleaved), ("random", random)];
    let own = orders.iter().map(|(order, runs)| (*order, "own time", own_times(runs), runs));
    let same = orders.iter().map(|(order, runs)| (*order, "same time", ascending.clone(), runs));
    for (order, times, timestamps, runs) in own.chain(same) {
        let key: KeyColumn = runs.iter().map(|run| Some(*run)).collect();
        for encoding in ["run_end", "dictionary"] {
            let plain = request(false, encoding, Arc::clone(&timestamps).into());
            let keys = [("run".into(), key.clone())].into_iter().collect();
            let rows = TableRows { timestamps: Arc::clone(&timestamps), keys };
            let keyed = request(true, encoding, rows);
            beside(
                &format!("1,000,000 rows x 50 columns, 10 with keys, {times}, {order}, {encoding}"),
                1.2,
                || answer(&runtime, &cache, &plain),
                || answer(&runtime, &cache, &keyed),
            );
        }
    }
}
