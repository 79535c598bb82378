//! The example `workflow`: real processes around an embedded cache, with and without a kill, and
//! for longer. Every run is bounded, and checks itself byte by byte.

mod common;

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The example's program. Cargo builds examples along with tests only if no test is selected, so
/// this builds it; if it is up to date, that takes a moment.
fn workflow() -> Command {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let program = PROGRAM.get_or_init(|| {
        let mut cargo = common::cargo();
        cargo.args(["build", "--quiet", "--example", "workflow", "--message-format=json"]);
        cargo.args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")]);
        if !cfg!(debug_assertions) {
            cargo.arg("--release");
        }
        let output = cargo.stderr(Stdio::inherit()).output().unwrap();
        assert!(output.status.success(), "cargo build: {}", output.status);
        let built = output.stdout.split(|&byte| byte == b'\n').find_map(|line| {
            let message: Value = serde_json::from_slice(line).ok()?;
            let is_it = message["target"]["name"] == "workflow";
            is_it.then(|| message["executable"].as_str().map(PathBuf::from))?
        });
        built.expect("cargo names the program that it built")
    });
    Command::new(program)
}

/// Runs it to its end, within `limit`; returns whether it passed, and its report.
fn run(arguments: &[&str], limit: Duration) -> (bool, Value) {
    // One run at a time: each has some twenty processes.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let report = tempfile::NamedTempFile::new().unwrap();
    let mut child = workflow()
        .args(arguments)
        .arg("--json")
        .stdin(Stdio::null())
        .stdout(report.reopen().unwrap())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            // Its devices end when it is killed.
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("workflow {arguments:?} took longer than {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let report = std::fs::read(report.path()).unwrap();
    let report = serde_json::from_slice(&report).unwrap_or_else(|_| {
        panic!("workflow {arguments:?}: {status}, and no report");
    });
    (status.success(), report)
}

const LIMIT: Duration = Duration::from_secs(150);

/// Runs it and checks its guarantees: nothing wrong, nothing lost, nothing left.
fn run_well(arguments: &[&str], limit: Duration) -> Value {
    let (content, report) = run(arguments, limit);
    assert!(content, "{}", report["failures"]);
    assert_eq!(report["failures"], serde_json::json!([]));
    for nothing in ["wrong_rows", "wrong_bytes", "pins_left_bytes"] {
        assert_eq!(report[nothing], 0, "{nothing}");
    }
    assert!(report["bytes"].as_u64() > Some(0));
    report
}

fn number(report: &Value, pointer: &str) -> u64 {
    let value = report.pointer(pointer).and_then(Value::as_u64);
    value.unwrap_or_else(|| panic!("{pointer} in {report}"))
}

#[test]
fn a_workflow_of_real_processes_reads_every_byte_right_and_leaves_nothing_pinned() {
    // Whether instances pass each other is up to the scheduler, so several runs may be needed.
    let passed_each_other = (0..3).any(|_| whole_workflow() > 0);
    assert!(passed_each_other, "instances pass each other");
}

/// Checks a run of the whole workflow; the number of its timeframes that arrived out of order.
fn whole_workflow() -> u64 {
    let report = run_well(&["--timeframes", "40"], LIMIT);
    assert_eq!((number(&report, "/timeframes"), number(&report, "/gone")), (40, 0));
    // Three consumers, each of which reads every row of three columns and of two that depend on the
    // run.
    assert_eq!(number(&report, "/rows"), 3 * 40 * 200 * 5);
    assert!(number(&report, "/sink/devices/quality/nulls") > 0, "there are gaps");
    assert!(report["memory"].as_array().unwrap().len() > 3);
    number(&report, "/sink/out_of_order")
}

#[test]
fn a_run_that_changes_inside_of_a_timeframe_gives_each_row_the_objects_of_its_own_run() {
    let report = run_well(&["--timeframes", "40", "--consumer", "quality=1:0"], LIMIT);
    // A run has 500 rows: 15 of the 40 timeframes of 200 rows have rows of two runs.
    assert_eq!(number(&report, "/sink/devices/quality/run_changes"), 15);
    // A run without a path and the rows between runs have null cells, as the repository's gaps have.
    let nulls = number(&report, "/sink/devices/quality/nulls");
    assert!(nulls > 40 * 200 / 4, "{nulls}");
    // A timeframe of one row has no change inside.
    let single = ["--timeframes", "12", "--rows", "1", "--consumer", "quality=1:0"];
    let report = run_well(&single, LIMIT);
    assert_eq!(number(&report, "/sink/devices/quality/run_changes"), 0);
}

#[test]
fn a_consumer_killed_while_it_holds_a_table_ends_no_other() {
    let report = run_well(&["--timeframes", "40", "--kill", "tracker_t1@13"], LIMIT);
    assert_eq!(number(&report, "/timeframes"), 40);
    assert_eq!(number(&report, "/cache/ended_holding"), 1);
    // It was to get 1, 4, 7 …, and was killed at 13, which another may have passed meanwhile.
    let gone = number(&report, "/gone");
    assert_eq!(number(&report, "/sink/devices/tracker_t1/timeframes") + gone, 13);
    assert!((1..=12).contains(&gone), "{gone}");
    assert_eq!(number(&report, "/sink/devices/quality/timeframes"), 40);
    assert_eq!(report["killed"], serde_json::json!(["tracker_t1 at timeframe 13"]));
}

#[test]
fn the_real_objects_go_through_the_workflow_with_and_without_a_kill() {
    let Some(shared) = common::shared() else { return };
    let data = shared.join("data/alice-lhc24");
    let data = ["--data", data.to_str().unwrap()];
    let report = run_well(&data, LIMIT);
    // More versions than fit in memory: they are evicted and reloaded.
    assert!(number(&report, "/cache/evictions") > 0);
    let kill = ["--kill", "quality@7", "--kill", "clusterizer_t0@20"];
    let report = run_well(&[&data[..], &kill].concat(), LIMIT);
    assert_eq!(report["killed"].as_array().unwrap().len(), 2);
    assert_eq!(number(&report, "/cache/ended_holding"), 2);
    let quality = number(&report, "/sink/devices/quality/timeframes");
    assert!((1..60).contains(&quality), "{quality}");
}

#[test]
fn a_kill_that_does_not_happen_and_a_name_that_is_none_are_failures() {
    let (content, report) = run(&["--timeframes", "5", "--kill", "quality@99"], LIMIT);
    assert!(!content);
    assert!(report["failures"][0].as_str().unwrap().contains("never reached timeframe 99"));
    let output = workflow().args(["--timeframes", "5", "--kill", "sink@3"]).output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("expected one of tracker_t0"), "{said}");
}

/// 20 consumers, 64 timeframes in flight, four times as many objects as there is memory, and every
/// second a consumer that is killed and restarted.
#[test]
fn consumers_that_die_every_second_and_come_back_harm_no_other() {
    let seconds = std::env::var("IOVCACHE_SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    let seconds: u64 = seconds.unwrap_or(60);
    let soak = format!("{seconds}s");
    let report = run_well(&["--soak", &soak], LIMIT + Duration::from_secs(seconds));
    let killed = report["killed"].as_array().unwrap().len() as u64;
    assert!(killed >= seconds.saturating_sub(2), "{killed} kills in {seconds} s");
    assert!(number(&report, "/cache/evictions") > 0);
    // Nearly every timeframe sent to live consumers was completed.
    assert!(number(&report, "/timeframes") > seconds * 5, "{}", report["timeframes"]);
}
