//! Look-ups in shared memory from C++.

use std::io::{BufRead as _, BufReader, Write as _};
use std::time::Duration;

use iovcache::Coded as _;

use super::*;
use crate::common::Service;

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_in_cpp_looks_up_by_itself_what_was_asked_for_in_its_session() {
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder.path());
    let service = Service::over(&repository, &[]);
    let options = with_library(&["-std=c++17", "-fno-exceptions"]);
    let program = compile(folder.path(), "c++", "tests/capi/programs/local.cpp", &options);
    let socket = service.attach();
    let times = TIMES.map(|at| at.to_string());
    let mut child = Command::new("timeout")
        .args(["--kill-after=5", "120"])
        .arg(&program)
        .args([socket.to_str().unwrap(), DRIFT])
        .args(&times)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut session = String::new();
    stdout.read_line(&mut session).unwrap();
    let client = Client::connect(&service.unix()).await.unwrap();
    // As its own Flight client would: the request names the session, and so is seen to be local.
    let request = TableRequest::new().column("drift", DRIFT).timestamps(TIMES);
    let request = request.session(session.trim());
    let stop = std::sync::atomic::AtomicBool::new(false);
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let told = std::thread::scope(|scope| {
        let told = scope.spawn(|| {
            let mut told = String::new();
            while stdout.read_line(&mut told).unwrap() > 0 {
                if let Some(before) = told.strip_suffix("waits\n") {
                    told.truncate(before.len());
                    let (path, bytes) = (DRIFT, b"newer");
                    let newer = Version { path, from: 0, until: 9000, created: 99, bytes };
                    put(&repository, &newer);
                }
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            told
        });
        let asking = async {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                match client.batches(&request).await {
                    // The program's session ends a moment before its output.
                    Err(error) if [5001, 5003].contains(&error.code().0) => break,
                    asked => drop(asked.unwrap()),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(asking));
        told.join().unwrap()
    });
    let output = child.wait_with_output().unwrap();
    well("local", &output);
    assert_eq!(told, lines());
}
