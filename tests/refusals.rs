//! Refusals of commands, and their messages: folders, names, times, files, configurations.
#![cfg(feature = "cli")]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{Service, Version, iovcache, put, run, run_well, until};

const DRIFT: &str = "TPC/Calib/VDrift";

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Output of a command, which may not wait for anything.
fn ended(arguments: &[&str]) -> Output {
    let mut command = iovcache();
    let command = command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    until("the end of the command", || child.try_wait().unwrap());
    child.wait_with_output().unwrap()
}

/// The messages of a command that ends with `status`.
fn refused(status: i32, arguments: &[&str]) -> String {
    let output = ended(arguments);
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {}", said(&output));
    said(&output)
}

fn drift(repository: &Path, from: i64, until: i64) -> String {
    put(repository, &Version { path: DRIFT, from, until, created: 1, bytes: b"drift" })
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_folder_may_be_a_file_url_and_other_urls_are_refused() {
    let place = tempfile::tempdir().unwrap();
    let (folder, file) = (place.path().join("repository"), place.path().join("object"));
    fs::write(&file, "drift").unwrap();
    let url = format!("file://{}", folder.display());
    run_well(&["put", "--repository", &url, DRIFT, text(&file), "--from", "1"]);
    let manifest = place.path().join("m.csv");
    let header = "path,valid_from_ms,valid_until_ms,created_ms,file\n";
    fs::write(&manifest, format!("{header}A/B,1,2,3,object\n")).unwrap();
    run_well(&["import", "--repository", &url, text(&manifest)]);
    assert!(run_well(&["verify", "--repository", &url]).starts_with("2 files are intact"));
    assert!(run_well(&["index", &url]).starts_with("2 versions of 2 paths"));
    assert!(folder.join(DRIFT).is_dir());

    // In a folder of its own, so that a folder made of a URL would be seen.
    let here = tempfile::tempdir().unwrap();
    let limited = format!("{url}#TPC");
    let copy_limited = format!("file://{}/copy#TPC", place.path().display());
    for (arguments, expected) in [
        (&["put", "--repository", "s3://b/x", "A/B", text(&file), "--from", "1"][..], "no folder"),
        (&["put", "--repository", &limited, "A/B", text(&file), "--from", "1"], "limits a source"),
        (&["put", "--repository", "file://x", "A/B", text(&file), "--from", "1"], "file:///dir"),
        (&["import", "--repository", "s3://b/x", text(&manifest)], "no folder"),
        (&["verify", "--repository", "http://host"], "no folder"),
        (&["verify", "--disk", "memory:"], "no folder"),
        (&["index", "gopher://x"], "no folder"),
        (&["index", "s3://b/x#TPC"], "limits a source"),
        (&["copy", &url, &copy_limited], "limits a source"),
    ] {
        let output = iovcache().args(arguments).current_dir(here.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", said(&output));
        assert!(said(&output).contains(expected), "{arguments:?}: {}", said(&output));
    }
    assert_eq!(fs::read_dir(here.path()).unwrap().count(), 0);
    assert!(!place.path().join("copy#TPC").exists());
}

#[test]
fn an_object_that_is_not_there_is_told_from_an_empty_one() {
    let place = tempfile::tempdir().unwrap();
    let repository = place.path().join("repository");
    drift(&repository, 10, 20);
    put(&repository, &Version { path: "A/Empty", from: 10, until: 20, created: 1, bytes: b"" });
    let config = place.path().join("iovcache.toml");
    fs::write(&config, "[[path]]\npath = \"\"\nmissing = \"optional\"\n").unwrap();
    let service = Service::over(&repository, &["--config", text(&config)]);
    let server = service.unix();
    for more in [&[][..], &["--remote"]] {
        let cat = |path: &'static str, at: &'static str| {
            [&["cat", "--server", &server, path, "--at", at], more].concat()
        };
        assert_eq!(run_well(&cat("A/Empty", "15")), "");
        let told = refused(3, &cat(DRIFT, "25"));
        assert!(told.contains("its last interval is [") && told.contains("[IOV-"), "{told}");
        let told = refused(3, &cat("TPC/Calib/VDrfit", "15"));
        assert!(told.contains("did you mean TPC/Calib/VDrift?"), "{told}");
    }
}

#[test]
fn an_unknown_path_of_a_copy_is_told_with_the_nearest_ones() {
    let place = tempfile::tempdir().unwrap();
    drift(&place.path().join("from"), 10, 20);
    let url = |name: &str| format!("file://{}", place.path().join(name).display());
    let copy = |path: &'static str| refused(3, &["copy", &url("from"), &url("to"), "--path", path]);
    let told = copy("TPC/Calib/VDrfit");
    assert!(told.contains("[IOV-3043] the source has no path that is TPC/Calib/VDrfit"), "{told}");
    assert!(told.contains("did you mean TPC/Calib/VDrift?"), "{told}");
    let copied = run_well(&["copy", &url("from"), &url("to"), "--path", "TPC"]);
    assert!(copied.starts_with("1 versions copied"), "{copied}");
    // A known path without versions in the range is no error.
    run_well(&["copy", &url("from"), &url("to"), "--path", "TPC", "--range", "100:200"]);
}

#[test]
fn a_file_named_by_an_upper_case_uuid_is_served() {
    let repository = tempfile::tempdir().unwrap();
    let id = drift(repository.path(), 10, 20);
    let folder = repository.path().join(DRIFT).join("10");
    for end in ["", ".properties"] {
        let name = format!("{}{end}", id.to_uppercase());
        fs::rename(folder.join(format!("{id}{end}")), folder.join(name)).unwrap();
    }
    let service = Service::over(repository.path(), &[]);
    assert_eq!(run_well(&["cat", "--server", &service.unix(), DRIFT, "--at", "15"]), "drift");
    let verified = run_well(&["verify", "--repository", text(repository.path())]);
    assert!(verified.starts_with("1 files are intact"), "{verified}");
}

#[test]
fn the_nearest_interval_is_named_at_every_time_without_an_object() {
    let repository = tempfile::tempdir().unwrap();
    drift(repository.path(), 5_000, 9_000);
    put(
        repository.path(),
        &Version { path: "One/Open", from: 5, until: i64::MAX, created: 1, bytes: b"x" },
    );
    let service = Service::over(repository.path(), &[]);
    let server = service.unix();
    let told = refused(3, &["cat", "--server", &server, DRIFT, "--at", "9223372036854775807"]);
    assert!(told.contains("its last interval is [1970-01-01T00:00:05Z"), "{told}");
    let timeline =
        |more: &[&str]| refused(3, &[&["timeline", "--server", &server, DRIFT], more].concat());
    for until in ["1000", "5000"] {
        let told = timeline(&["--until", until]);
        assert!(told.contains("its first interval is [1970-01-01T00:00:05Z"), "{told}");
    }
    let told = timeline(&["--not-after", "0"]);
    assert!(told.contains("versions created after 1970-01-01T00:00:00Z are valid there"), "{told}");
    // One finite border, at each side of the picture.
    let chart =
        |more: &[&str]| run_well(&[&["timeline", "--server", &server, "One/Open"], more].concat());
    assert!(chart(&[]).contains('█') && chart(&["--from", "7"]).contains('█'));
}

#[test]
fn faults_that_keep_a_service_from_starting_are_found_by_the_check_with_their_lines() {
    let place = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let file = place.path().join(name);
        fs::write(&file, bytes).unwrap();
        text(&file).to_owned()
    };
    let small = file("small", b"8 bytes.");
    let fifo = place.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let config = place.path().join("iovcache.toml");
    for (lines, key) in [
        ("log = \"iovcache=zzz\"".to_owned(), "log"),
        ("log = \"a=b=c\"".to_owned(), "log"),
        ("socket = \"\"".to_owned(), "socket"),
        ("disk = \"/proc/x\"".to_owned(), "disk"),
        (format!("shm_folder = \"{small}\"\nbacking = \"shm\""), "shm_folder"),
        ("region = \"7=/dev/null\"".to_owned(), "region"),
        (format!("region = \"7={small}\""), "region"),
        ("limits.calls = 0".to_owned(), "limits.calls"),
    ] {
        fs::write(&config, format!("\n{lines}\n")).unwrap();
        let place = format!("{}:2: {key}: ", text(&config));
        let check = run(&["config", "check", text(&config)]);
        assert!(!check.status.success() && said(&check).contains(&place), "{}", said(&check));
        let serve = ["serve", "--config", text(&config), "--source", "memory:"];
        let served = ended(&[&serve[..], &["--listen", "127.0.0.1:0"]].concat());
        assert!(!served.status.success() && said(&served).contains(&place), "{}", said(&served));
    }
    let default = format!("[[path]]\npath = \"A\"\ndefault = \"{}\"\n", text(&fifo));
    fs::write(&config, default).unwrap();
    let told = refused(2, &["config", "check", text(&config)]);
    assert!(told.contains("path[0].default") && told.contains("no regular file"), "{told}");
    // A folder of a running service: it may be the service of this configuration.
    let service = Service::start(&["--source", "memory:"]);
    let socket = service.attach().parent().unwrap().to_owned();
    fs::write(&config, format!("listen = \"127.0.0.1:0\"\nsocket = \"{}\"\n", text(&socket)))
        .unwrap();
    let check = run(&["config", "check", text(&config)]);
    let note = format!("note: socket: process {} has", service.pid());
    assert!(check.status.success() && said(&check).contains(&note), "{}", said(&check));
}

#[test]
fn options_that_contradict_themselves_are_refused() {
    let repository = tempfile::tempdir().unwrap();
    drift(repository.path(), 10, 20);
    let service = Service::over(repository.path(), &[]);
    let column = format!("drift={DRIFT}");
    let table = ["table", "--server", &service.unix(), "--column", &column];
    let twice = ["--at", "15", "--key", "run=4000", "--key", "run=1000"];
    let told = refused(2, &[&table[..], &twice].concat());
    assert!(told.contains("\"run\" is given twice"), "{told}");
    let folder = text(repository.path());
    let put = ["put", "--repository", folder, "A/B", "/dev/null", "--from", "1", "--id", "nouuid"];
    assert!(refused(2, &put).contains("\"nouuid\" is no UUID"));
    let told = refused(3, &["bench", "--quick", "--output", "/nosuch/x.json"]);
    assert!(told.contains("/nosuch/x.json: No such file"), "{told}");
    // An empty variable is no misspelled one.
    let output = iovcache().args(["config", "new"]).env("IOVCACHE_TOKEN", "").output().unwrap();
    assert_eq!(said(&output), "");
}

#[test]
fn an_arrow_file_without_a_batch_has_no_times() {
    use arrow_schema::{DataType, Field, Schema};
    let repository = tempfile::tempdir().unwrap();
    drift(repository.path(), 10, 20);
    let service = Service::over(repository.path(), &[]);
    let column = format!("drift={DRIFT}");
    let schema = Schema::new(vec![Field::new("timestamp", DataType::Int64, true)]);
    let (stream, file) = (repository.path().join("stream"), repository.path().join("file"));
    let out = |path: &Path| fs::File::create(path).unwrap();
    arrow_ipc::writer::StreamWriter::try_new(out(&stream), &schema).unwrap().finish().unwrap();
    arrow_ipc::writer::FileWriter::try_new(out(&file), &schema).unwrap().finish().unwrap();
    let empty = repository.path().join("empty");
    fs::write(&empty, "").unwrap();
    for times in [&stream, &file, &empty] {
        let table = ["table", "--server", &service.unix(), "--column", &column, "--json"];
        let table = run_well(&[&table[..], &["--timestamps", text(times)]].concat());
        assert_eq!(table.trim(), "[]", "{}", times.display());
    }
}
