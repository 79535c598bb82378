//! `iovcache bench`: a short run of each profile, and its output files.

mod common;

use std::fs;
use std::path::Path;

use common::{Service, iovcache, run, run_well};
use serde_json::Value;

/// A run of some parts in a few seconds; returns its JSON and its page.
fn measure(folder: &Path, arguments: &[&str]) -> (Value, String) {
    let [json, html] = ["result.json", "page.html"].map(|name| folder.join(name));
    let files = ["--output", json.to_str().unwrap(), "--html", html.to_str().unwrap()];
    let quick = ["bench", "--quick", "--duration", "1s", "--memory", "64MiB"];
    let text = run_well(&[&quick[..], &files[..], arguments].concat());
    assert!(text.starts_with("iovcache "), "{text}");
    let json = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    check_schema(&json);
    (json, fs::read_to_string(html).unwrap())
}

/// The result conforms to its schema.
fn check_schema(result: &Value) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas/bench-result.schema.json");
    let schema = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let errors = validator.iter_errors(result).map(|error| error.to_string());
    let errors: Vec<String> = errors.collect();
    assert!(errors.is_empty(), "{errors:?}");
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no count"))
}

/// Checks that a histogram's counts sum up to `count` and its percentiles rise.
fn check_latency(latency: &Value, count: u64, what: &str) {
    let counts = latency["counts"].as_array().unwrap();
    let sum: u64 = counts.iter().map(|step| number(&step[1])).sum();
    assert_eq!((sum, number(&latency["count"])), (count, count), "{what}");
    let rising = ["min_us", "p50_us", "p90_us", "p99_us", "p99_9_us", "max_us"];
    let rising = rising.map(|name| number(&latency[name]));
    assert!(rising.is_sorted(), "{what}: {rising:?}");
}

/// Checks of each phase of a profile: the counters agree with each other.
fn check_phases(result: &Value, columns: u64, rows: u64) {
    let [profile] = &result["profiles"].as_array().unwrap()[..] else { panic!("{result}") };
    assert_eq!((number(&profile["columns"]), number(&profile["rows"])), (columns, rows));
    let consumers = number(&profile["consumers"]);
    let phases = profile["phases"].as_array().unwrap();
    let names: Vec<&str> = phases.iter().map(|phase| phase["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["cold", "warm"]);
    for phase in phases {
        let [expected, done, failed, lost] =
            ["expected", "done", "failed", "lost"].map(|name| number(&phase["tables"][name]));
        let timeframes = number(&phase["timeframes"]);
        assert_eq!(expected, timeframes * consumers, "{phase}");
        assert_eq!(done + failed + lost, expected, "{phase}");
        assert!(done > 0, "{phase}");
        check_latency(&phase["latency"], done, "latency");
        check_latency(&phase["table"], done, "table");
        check_latency(&phase["late"], timeframes, "late");
        // Latency counted from the due time is at least the latency counted from the request.
        assert!(phase["latency"]["p50_us"].as_u64() >= phase["table"]["p50_us"].as_u64());
        let throughput = |name: &str| phase["throughput"][name].as_f64().unwrap();
        let tables = done as f64 / phase["seconds"].as_f64().unwrap();
        assert!((throughput("tables") - tables).abs() < 1e-6 * tables);
        let cells = tables * (rows * columns) as f64;
        assert!((throughput("cells") - cells).abs() < 1e-6 * cells, "{phase}");
        let service = &phase["service"];
        assert!(number(&service["memory"]["rss_bytes"]) > 0 && number(&service["used_bytes"]) > 0);
        assert!(service["cpu_seconds"].as_f64().unwrap() > 0.0);
    }
    assert_eq!(number(&profile["left_pinned_bytes"]), 0);
    assert_eq!(number(&profile["left_in_flight"]), 0);
}

/// The page is self-contained and has its plots.
fn check_page(html: &str, plots: &[&str]) {
    for outside in ["<script", "<link", "<img", "<iframe", "<object", "@import", "url("] {
        assert!(!html.contains(outside), "{outside:?} stands in the page");
    }
    // Tags only: the text between them may name an address, for example in an error of the source.
    for tag in html.split('<').skip(1).map(|part| part.split('>').next().unwrap()) {
        for outside in ["http:", "https:", "\"//"] {
            assert!(!tag.contains(outside), "{outside:?} stands in <{tag}>");
        }
    }
    assert!(html.contains("prefers-color-scheme: dark"));
    for plot in plots {
        let figure = html.split("<figure").find(|part| part.contains(&format!("<b>{plot}</b>")));
        let figure = figure.unwrap_or_else(|| panic!("no plot {plot:?}"));
        let line = figure.split("<path class=\"line").nth(1);
        assert!(line.is_some_and(|line| line.contains("d=\"M")), "{plot:?} has no line");
        assert!(!figure.contains("NaN") && !figure.contains("inf"), "{plot:?}");
    }
    let opened = html.matches("<svg").count();
    assert_eq!(opened, html.matches("</svg>").count());
}

const PROFILE_PLOTS: [&str; 4] =
    ["Latency of a table", "Where it goes", "Latency over time", "Shared memory over time"];

#[test]
fn sync_is_measured_and_two_runs_are_compared() {
    let folder = tempfile::tempdir().unwrap();
    let (result, html) =
        measure(folder.path(), &["--profile", "sync", "--rate", "20", "--consumers", "2"]);
    check_phases(&result, 100, 1);
    check_page(&html, &PROFILE_PLOTS);
    let phases = result["profiles"][0]["phases"].as_array().unwrap();
    let loads = |phase: &Value| phase["throughput"]["loads"].as_f64().unwrap();
    assert!(loads(&phases[0]) > 0.0, "nothing was cold");
    assert_eq!(loads(&phases[1]), 0.0, "a phase was not warm");

    // An equal result, and one that is ten times as slow.
    let before = folder.path().join("result.json");
    let after = folder.path().join("slower.json");
    let mut slower = result.clone();
    for phase in slower["profiles"][0]["phases"].as_array_mut().unwrap() {
        for step in phase["latency"]["counts"].as_array_mut().unwrap() {
            step[0] = (number(&step[0]) * 10).into();
        }
    }
    fs::write(&after, slower.to_string()).unwrap();
    let [before, after] = [before, after].map(|file| file.to_str().unwrap().to_owned());
    let text = run_well(&["bench", "--compare", &before, &before, "--fail-above", "1"]);
    assert!(text.contains("sync, warm") && !text.contains("worse"), "{text}");
    let page = folder.path().join("compared.html");
    let page = page.to_str().unwrap();
    let text = run_well(&["bench", "--compare", &before, &after, "--html", page]);
    let line = text.lines().find(|line| line.starts_with("sync, warm, 20/s: p50")).unwrap();
    assert!(line.contains('+') && line.ends_with("worse"), "{line}");
    let html = fs::read_to_string(page).unwrap();
    check_page(&html, &PROFILE_PLOTS);
    assert!(html.contains("line c0 dashed"), "what was before is not drawn");
    let output = run(&["bench", "--compare", &before, &after, "--fail-above", "50"]);
    assert_eq!(output.status.code(), Some(1));
    let json = run_well(&["bench", "--json", "--compare", &before, &after]);
    let pairs: Value = serde_json::from_str(&json).unwrap();
    assert!(pairs.as_array().unwrap().iter().any(|pair| pair["verdict"] == "worse"));
}

#[test]
fn analysis_is_measured_at_two_rates() {
    let folder = tempfile::tempdir().unwrap();
    let quick = ["bench", "--quick", "--json", "--profile", "analysis", "--duration", "1s"];
    let (result, html) =
        measure(folder.path(), &["--profile", "analysis", "--rate", "4", "--consumers", "3"]);
    check_phases(&result, 10, 100_000);
    check_page(&html, &PROFILE_PLOTS);
    let rates = ["--memory", "64MiB", "--consumers", "1", "--rate", "2,4"];
    let json = run_well(&[&quick[..], &rates[..]].concat());
    let result: Value = serde_json::from_str(&json).unwrap();
    let phases = result["profiles"][0]["phases"].as_array().unwrap();
    let rates: Vec<f64> = phases[1..].iter().map(|one| one["rate"].as_f64().unwrap()).collect();
    assert_eq!(rates, [2.0, 4.0]);
}

/// Consumers die, the source fails, memory is short; and every byte is still right.
#[test]
fn the_adversary_finds_no_wrong_byte() {
    let folder = tempfile::tempdir().unwrap();
    let (result, html) = measure(folder.path(), &["--profile", "adversarial"]);
    check_phases(&result, 8, 1_000);
    check_page(&html, &PROFILE_PLOTS);
    let profile = &result["profiles"][0];
    let sum = |name: &str| {
        let phases = profile["phases"].as_array().unwrap();
        phases.iter().map(|phase| number(&phase["tables"][name])).sum::<u64>()
    };
    assert_eq!(sum("cells_wrong"), 0, "{profile}");
    assert_eq!(sum("cells_checked"), sum("done") * 8 * 1_000);
    assert!(sum("deaths") > 0, "no consumer died");
    let faults = profile["source_faults"].as_object().unwrap();
    assert!(faults.contains_key("503") && faults.len() > 3, "the source did not fail: {faults:?}");
    assert!(html.contains("cells wrong") && html.contains("were killed (SIGKILL)"));
}

/// The guard against wrong bytes, broken once: a service whose objects differ from the right ones
/// of the same paths and times.
#[test]
fn wrong_bytes_fail_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let repository = folder.path().join("repository");
    let repository = repository.to_str().unwrap();
    run_well(&["bench", "--prepare", repository, "--profile", "adversarial", "--memory", "64MiB"]);
    let service =
        Service::over(Path::new(repository), &["--memory", "256MiB", "--segment", "64MiB"]);
    let url = service.unix();
    // Equal versions, with large objects of twice the size.
    let other = ["--profile", "adversarial", "--memory", "128MiB", "--duration", "500ms"];
    let one = ["bench", "--server", &url, "--consumers", "1", "--json"];
    let output = run(&[&one[..], &other[..]].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("cells were wrong"), "{said}");
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    let phases = result["profiles"][0]["phases"].as_array().unwrap();
    let sum = |name: &str| phases.iter().map(|one| number(&one["tables"][name])).sum::<u64>();
    assert!(0 < sum("cells_wrong") && sum("cells_wrong") < sum("cells_checked"), "{said}");
}

#[test]
fn the_curves_are_measured() {
    let folder = tempfile::tempdir().unwrap();
    let (result, html) = measure(folder.path(), &["--profile", "curves"]);
    let plots = [
        "Throughput over clients",
        "Latency over clients",
        "Cost over rows",
        "Cost over rows sent",
        "Cost over columns",
        "Cost over distinct objects",
        "Cost over versions in the index",
    ];
    check_page(&html, &plots);
    let curves = result["curves"].as_array().unwrap();
    let names: Vec<&str> = curves.iter().map(|curve| curve["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["clients", "rows", "rows sent", "columns", "objects", "versions"]);
    for curve in curves {
        let points = curve["points"].as_array().unwrap();
        assert!(points.len() >= 4 && points.is_sorted_by_key(|point| number(&point["x"])));
        for point in points {
            check_latency(&point["latency"], number(&point["latency"]["count"]), "curve");
            assert!(point["requests_per_second"].as_f64().unwrap() > 0.0);
        }
    }
}

#[test]
fn a_service_that_runs_already_is_measured_with_what_was_prepared_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let repository = folder.path().join("repository");
    let profile = ["--profile", "analysis", "--memory", "64MiB"];
    let prepare = ["bench", "--prepare", repository.to_str().unwrap()];
    let told = run_well(&[&prepare[..], &profile[..]].concat());
    assert!(told.starts_with("iovcache serve --source file://"), "{told}");
    // A service that requires a token.
    let keys = folder.path().join("keys");
    let keys = keys.to_str().unwrap();
    let token = run_well(&["token", "bench", "--role", "register", "--tokens", keys]);
    let file = folder.path().join("token");
    fs::write(&file, token).unwrap();
    let file = file.to_str().unwrap();
    let memory = ["--memory", "64MiB", "--segment", "32MiB", "--tokens", keys];
    let service = Service::over(&repository, &memory);
    let url = service.unix();
    let more =
        ["--server", url.as_str(), "--quick", "--consumers", "1", "--duration", "1s", "--json"];
    let output = run(&[&["bench"][..], &profile[..], &more[..]].concat());
    assert_eq!(output.status.code(), Some(5), "{}", String::from_utf8_lossy(&output.stderr));
    let json =
        run_well(&[&["bench"][..], &profile[..], &more[..], &["--token-file", file]].concat());
    let result: Value = serde_json::from_str(&json).unwrap();
    check_phases(&result, 10, 100_000);
    // Another profile was not prepared.
    let other = ["--profile", "sync", "--quick", "--token-file", file];
    let output = run(&[&["bench", "--server", &url][..], &other[..]].concat());
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("--prepare"), "{said}");
}

#[test]
fn a_measurement_that_cannot_be_made_ends_with_its_status() {
    let status = |arguments: &[&str]| {
        let output = iovcache().arg("bench").args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(status(&["--rate", "0"]).0, Some(2));
    assert_eq!(status(&["--profile", "fast"]).0, Some(2));
    assert_eq!(status(&["--memory", "1MiB"]).0, Some(2));
    assert_eq!(status(&["--compare", "only-one.json"]).0, Some(2));
    assert_eq!(status(&["--fail-above", "3"]).0, Some(2));
    let (code, said) = status(&["--compare", "/no/such.json", "/no/such.json"]);
    assert!(code == Some(3) && said.contains("/no/such.json"), "{said}");
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "{}").unwrap();
    let name = file.path().to_str().unwrap();
    let (code, said) = status(&["--compare", name, name]);
    assert!(code == Some(2) && said.contains("no result of iovcache bench"), "{said}");
    let gone = "grpc+unix:///no/such/flight.sock";
    assert_eq!(status(&["--server", gone, "--profile", "analysis"]).0, Some(4));
}
