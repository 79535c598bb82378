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

#[tokio::test(flavor = "multi_thread")]
async fn the_programs_for_timeframes_compile_take_a_table_and_report_it() {
    let folder = tempfile::tempdir().unwrap();
    let repository = folder.path().join("repository");
    for (from, until, created, bytes) in [(1000, 9000, 1, "drift 1"), (3000, 5000, 2, "drift 2")] {
        put(&repository, &version("TPC/Calib/VDriftTgl", from, until, created, bytes.as_bytes()));
    }
    let service = Service::over(&repository, &[]);
    let found = blocks_of("docs/local.md", "Timeframes", "cpp");
    let [program] = &found[..] else { panic!("one block") };
    let attach = service.attach().display().to_string();
    let source = folder.path().join("timeframe.cpp");
    fs::write(&source, program.replace("/tmp/iov/attach.sock", &attach)).unwrap();
    let source = source.display().to_string();
    let walk = compile(folder.path(), "c++", &source, &with_library(&["-std=c++17"]));
    let printed = well("the program", &run(&walk, &[], b""));
    assert!(printed.starts_with("[IOV-7160] ask the service for timeframe 42"), "{printed}");
    let path = iovcache::ObjectPath::new("TPC/Calib/VDriftTgl").unwrap();
    let columns = [iovcache::table::ColumnRequest::new("vdrift", path)];
    let client = Client::connect(&service.unix()).await.unwrap();
    let register = async |id| {
        let times = vec![Some(2000), Some(4000), Some(8000)];
        client.put_timeframe(id, times, &columns, &["tracker".to_owned()]).await.unwrap();
    };
    // A session that reads the directory, so that timeframes are published.
    let session = iovcache::client::Attachment::open_local(&service.attach(), "other", None);
    register(42).await;
    let printed = until("the table in shared memory", || {
        let printed = well("the program", &run(&walk, &[], b""));
        (!printed.contains("[IOV-7160]")).then_some(printed)
    });
    assert_eq!(printed, "drift 1drift 2drift 1");
    let options = with_library(&["-std=c11"]);
    let example = compile(folder.path(), "cc", "examples/c/timeframe.c", &options);
    let lines = |id| {
        let line = |row, drift| format!("{id} vdrift {row} 7 drift {drift}\n");
        line(0, 1) + &line(1, 2) + &line(2, 1)
    };
    // A table can be published a moment after the registration.
    let deadline = std::time::Instant::now() + crate::common::PATIENCE;
    for first in (1..).step_by(2) {
        register(first).await;
        register(first + 1).await;
        let ids = [first, first + 1].map(|id| id.to_string());
        let output = run(&example, &[&attach, "tracker", &ids[0], &ids[1]], b"");
        if String::from_utf8_lossy(&output.stderr).contains("[IOV-7160]") {
            assert!(std::time::Instant::now() < deadline, "they are not published");
            let below = client.oldest_possible("tracker", first + 2);
            below.await.unwrap();
            continue;
        }
        let printed = well("the example", &output);
        let halves = [lines(first), lines(first + 1)];
        assert!(
            printed == halves.concat() || printed == halves[1].clone() + &halves[0],
            "{printed}"
        );
        break;
    }
    // All were reported as consumed by their only consumer.
    assert!(client.status().await.unwrap().timeframes.is_empty());
    drop(session);
}
