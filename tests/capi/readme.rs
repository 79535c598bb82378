//! The blocks of the README for C and C++ work as they are written.

use std::os::unix::fs::symlink;

use super::*;
use crate::common::{Service, until};

/// The blocks of one language in the section for C and C++.
fn blocks(language: &str) -> Vec<String> {
    blocks_of("README.md", "Five minutes: from C and C++", language)
}

/// The blocks of one language in a section of a page.
fn blocks_of(page: &str, section: &str, language: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(page)).unwrap();
    let (_, rest) = text.split_once(&format!("\n## {section}\n")).unwrap();
    let section = rest.split("\n## ").next().unwrap();
    let fence = format!("```{language}\n");
    let found = section.split(&fence).skip(1);
    found.map(|block| block.split("```").next().unwrap().to_owned()).collect()
}

#[test]
fn the_shell_block_of_the_readme_compiles_links_and_runs_the_examples() {
    if !target().join("python/bin/python").exists() {
        eprintln!("skipped: no pyarrow beneath target/python; ./test installs it");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // A checkout in which the libraries are built, in debug.
    fs::create_dir_all(folder.path().join("target")).unwrap();
    let links = [
        (LIBRARIES.clone(), "target/release"),
        (target().join("python"), "venv"),
        (root().join("schemas"), "schemas"),
        (root().join("examples"), "examples"),
    ];
    for (there, here) in links {
        symlink(there, folder.path().join(here)).unwrap();
    }
    let repo = folder.path().join("repo");
    put(&repo, &version("TPC/Calib/VDriftTgl", 1000, 9000, 1, b"drift 1"));
    put(&repo, &version("TPC/Calib/VDriftTgl", 3000, 5000, 2, b"drift 2"));
    let service = Service::over(&repo, &[]);
    let found = blocks("sh");
    let [script] = &found[..] else { panic!("one block") };
    let (cargo, script) = script.split_once('\n').unwrap();
    // `LIBRARIES` did the same, but for `--release`.
    assert!(cargo.starts_with("cargo rustc --release --lib --no-default-features --features capi"));
    let script = script.replace("grpc+unix:///tmp/iov/flight.sock", &service.unix());
    let script = format!("set -euo pipefail\n{script}");
    let output = Command::new("bash").args(["-c", &script]).current_dir(folder.path()).output();
    let printed = well("the block", &output.unwrap());
    // The device, the process that attaches to it, and the consumer of the service.
    let lines = "1000 7 drift 1\n4000 7 drift 2\n";
    assert_eq!(printed, lines.repeat(3));
}

#[test]
fn the_program_of_the_readme_in_cpp_compiles_and_attaches() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::over(&repository(folder.path()), &[]);
    let found = blocks("cpp");
    let [program] = &found[..] else { panic!("one block") };
    let attach = service.attach().display().to_string();
    let source = folder.path().join("print.cpp");
    fs::write(&source, program.replace("/tmp/iov/attach.sock", &attach)).unwrap();
    let source = source.display().to_string();
    let program = compile(folder.path(), "c++", &source, &with_library(&["-std=c++17"]));
    let session = well("the program", &run(&program, &[], b""));
    assert!(session.trim().len() >= 16, "{session}");
}

#[test]
fn the_program_of_the_page_about_look_ups_compiles_and_looks_up() {
    let folder = tempfile::tempdir().unwrap();
    let repository = folder.path().join("repository");
    for (from, until, created, bytes) in [(1000, 9000, 1, "drift 1"), (3000, 5000, 2, "drift 2")] {
        put(&repository, &version("TPC/Calib/VDriftTgl", from, until, created, bytes.as_bytes()));
    }
    let service = Service::over(&repository, &[]);
    let found = blocks_of("docs/local.md", "C++", "cpp");
    let [program] = &found[..] else { panic!("one block") };
    let attach = service.attach().display().to_string();
    let source = folder.path().join("look_up.cpp");
    fs::write(&source, program.replace("/tmp/iov/attach.sock", &attach)).unwrap();
    let source = source.display().to_string();
    let program = compile(folder.path(), "c++", &source, &with_library(&["-std=c++17"]));
    assert_eq!(well("the program", &run(&program, &[], b"")), "ask the service\n");
    // Another process requests the path; then the program finds the bytes.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let url = service.unix();
    let client = runtime.block_on(iovcache::client::Client::connect(&url)).unwrap();
    let drift = client.local().unwrap().path("TPC/Calib/VDriftTgl").unwrap();
    until("the path in shared memory", || {
        drift.at(iovcache::Timestamp::from_millis(4_000)).unwrap();
        drift.try_at(iovcache::Timestamp::from_millis(4_000)).ok().map(|_| ())
    });
    assert_eq!(well("the program", &run(&program, &[], b"")), "drift 2");
}
