//! What commands refuse, with what they say instead: folders, names, times, files, configurations.
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

/// What a command says that ends with `status`.
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
