//! This version beside the version before it (N with N-1), in both directions, by what crossed the
//! wire between a client and a service of the version before. As nothing is released yet, that is the
//! commit named in `before.json`.
//!
//! ```text
//!  client of this version ──▶ replay of the answers of the service before
//!  requests of the client before ──▶ service of this version
//! ```
//!
//! `IOVCACHE_RECORD=PROGRAM` records `before.json` anew with a program of the version before, and
//! `IOVCACHE_RECORDED_COMMIT` is its commit.
#![cfg(feature = "cli")]

#[path = "../common/mod.rs"]
mod common;

mod answers;
mod wire;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use common::{Service, Version, put};
use futures::FutureExt as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::wire::{Answer, Call};

const DRIFT: &str = "TPC/Calib/VDriftTgl";
const NOISE: &str = "ITS/Noise";

/// Recorded conversations of the version before.
#[derive(Serialize, Deserialize)]
struct Recorded {
    commit: String,
    version: String,
    conversations: Vec<Conversation>,
}

/// A command, its result, and the calls that it made.
#[derive(Serialize, Deserialize)]
struct Conversation {
    arguments: Vec<String>,
    status: Option<i32>,
    stdout: String,
    calls: Vec<Call>,
}

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compatibility/before.json")
}

/// The commands of a client, each but for `--server`.
fn commands() -> Vec<Vec<String>> {
    let columns = [
        "--column".to_owned(),
        format!("drift={DRIFT}"),
        "--column".to_owned(),
        format!("noise={NOISE}"),
    ];
    let table = |more: &str| {
        let words = more.split(' ').map(str::to_owned);
        ["table".to_owned()].into_iter().chain(columns.clone()).chain(words).collect()
    };
    let plain = |text: String| text.split(' ').map(str::to_owned).collect();
    vec![
        plain("ls --json".to_owned()),
        plain(format!("ls {DRIFT} --json")),
        plain(format!("timeline {DRIFT} --json")),
        plain("status --json".to_owned()),
        plain("status --check --json".to_owned()),
        plain(format!("cat {DRIFT} --at 4000 --remote")),
        plain(format!("cat {DRIFT} --at 20000 --remote")),
        table("--at 1000,3000,4000,8999 --cell payload --json"),
        table("--at 1000,3000,4000 --cell payload --encoding plain --json"),
        table("--at 1000,3000,4000 --cell payload --encoding dictionary --json"),
        table("--at 500,1000,9000 --cell payload --missing-as-null --json"),
        table("--range 1000:9000:500 --cell payload --output csv"),
        table("--at 1000,4000 --view objects --json"),
        table("--range 0:9000 --view intervals --cell payload --json"),
        table("--at 4000 --not-after 1 --cell payload --json"),
        table("--at 20000 --json"),
    ]
}

fn repository() -> tempfile::TempDir {
    let repository = tempfile::tempdir().unwrap();
    let versions: [(&str, i64, i64, i64, &[u8]); 4] = [
        (DRIFT, 1000, 9000, 1, b"drift 1"),
        (DRIFT, 3000, 5000, 2, b"drift 2"),
        (NOISE, 0, 8000, 1, b"noise 1"),
        (NOISE, 8000, 9000, 2, b""),
    ];
    for (path, from, until, created, bytes) in versions {
        put(repository.path(), &Version { path, from, until, created, bytes });
    }
    repository
}

/// Runs a command of `program` at the service of `server`: its status and stdout.
fn run(program: &Path, arguments: &[String], server: &str) -> (Option<i32>, String) {
    let output = Command::new(program)
        .args(arguments)
        .args(["--server", server])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

/// The recorded conversations. With `IOVCACHE_RECORD` they are recorded first.
fn recorded() -> Recorded {
    static RECORDING: Mutex<()> = Mutex::new(());
    let _one = RECORDING.lock();
    if let Some(program) = std::env::var_os("IOVCACHE_RECORD") {
        let text = serde_json::to_string_pretty(&record(Path::new(&program))).unwrap();
        std::fs::write(file(), format!("{text}\n")).unwrap();
    }
    serde_json::from_slice(&std::fs::read(file()).unwrap()).unwrap()
}

fn record(program: &Path) -> Recorded {
    let repository = repository();
    let source = format!("file://{}", repository.path().display());
    let service =
        Service::start_by(Command::new(program), "64MiB", "16MiB", &["--source", &source]);
    let address = service.tcp().trim_start_matches("grpc://").to_owned();
    let conversations = commands().into_iter().map(|arguments| {
        let calls = Arc::new(Mutex::new(Vec::new()));
        let (seen, service) = (calls.clone(), address.clone());
        let proxy = wire::serve(move |path, request| {
            let (seen, service) = (seen.clone(), service.clone());
            async move {
                let answer = wire::ask(&service, &path, &request).await;
                seen.lock().unwrap().push(Call { path, request, answer: answer.clone() });
                answer
            }
        });
        let (status, stdout) = run(program, &arguments, &proxy);
        let calls = std::mem::take(&mut *calls.lock().unwrap());
        assert!(!calls.is_empty(), "{arguments:?} asked nothing");
        Conversation { arguments, status, stdout, calls }
    });
    Recorded {
        conversations: conversations.collect(),
        commit: std::env::var("IOVCACHE_RECORDED_COMMIT").unwrap(),
        version: service.ready["version"].as_str().unwrap_or(env!("CARGO_PKG_VERSION")).to_owned(),
    }
}

/// Answers each call as the service before answered it.
fn replay(calls: Vec<Call>) -> String {
    let calls = Arc::new(Mutex::new(calls));
    wire::serve(move |path, request| {
        let mut calls = calls.lock().unwrap();
        let action = path.ends_with("/DoAction").then(|| wire::action(&request).to_vec());
        let is_known = action.as_ref().is_none_or(|name| {
            calls.iter().any(|call| call.path == path && wire::action(&call.request) == name)
        });
        if !is_known {
            // As the service before answers to an action of a later version.
            return futures::future::ready(Answer::unknown_action()).left_future();
        }
        let same = |exact: bool| {
            let (path, request, action) = (path.clone(), request.clone(), action.clone());
            move |call: &Call| {
                call.path == path
                    && (!exact || call.request == request)
                    && action.as_ref().is_none_or(|name| wire::action(&call.request) == name)
            }
        };
        let found = calls.iter().position(same(true));
        let found = found.or_else(|| calls.iter().position(same(false)));
        let answer = found.map_or_else(Answer::unimplemented, |at| calls.remove(at).answer);
        futures::future::ready(answer).right_future()
    })
}

#[test]
fn a_client_of_this_version_reads_the_answers_of_the_version_before() {
    let recorded = recorded();
    assert_eq!(recorded.conversations.len(), commands().len());
    for Conversation { arguments, status, stdout, calls } in recorded.conversations {
        let program = Path::new(env!("CARGO_BIN_EXE_iovcache"));
        let (new_status, new_stdout) = run(program, &arguments, &replay(calls));
        assert_eq!(new_status, status, "{arguments:?}");
        match arguments[0].as_str() {
            "status" => {
                let [old, new] =
                    [&stdout, &new_stdout].map(|text| serde_json::from_str::<Value>(text).unwrap());
                assert!(
                    answers::has_all_of(&new, &old),
                    "{arguments:?}: {new} lacks some of {old}"
                );
            }
            _ => assert_eq!(new_stdout, stdout, "{arguments:?}"),
        }
    }
}

#[test]
fn a_service_of_this_version_answers_the_requests_of_the_version_before() {
    let recorded = recorded();
    let repository = repository();
    let service = Service::over(repository.path(), &[]);
    let address = service.tcp().trim_start_matches("grpc://").to_owned();
    let mut compared = 0;
    for Conversation { arguments, calls, .. } in recorded.conversations {
        // A lease that the client released has another id at this service.
        let mut leases: Vec<[String; 2]> = Vec::new();
        for Call { path, mut request, answer } in calls {
            for [old, new] in &leases {
                request = wire::replaced(&request, old.as_bytes(), new.as_bytes());
            }
            let new = wire::block_on(wire::ask(&address, &path, &request));
            assert_eq!(new.status(), answer.status(), "{arguments:?}, {path}: {new:?}");
            answers::compare(&path, &answer, &new);
            if path.ends_with("/DoGet") {
                let both = [&answer, &new].map(answers::lease);
                if let [Some(old), Some(new)] = both {
                    leases.push([old, new]);
                }
            }
            compared += 1;
        }
    }
    assert!(compared >= commands().len(), "{compared}");
}
