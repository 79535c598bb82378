//! The name of a consumer that another user begins to use is refused before the next table.

use std::fs::{self, Permissions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::{Command, Stdio};

use iovcache::Coded as _;
use iovcache::object::ObjectPath;
use iovcache::table::ColumnRequest;

use crate::setup::{Consumer, service};

/// Names the service to the process of the other user.
const URL: &str = "IOVCACHE_NAMES_URL";
/// Not the user of the service, and allowed to attach.
const STRANGER: &str = "65534";

/// Takes a timeframe for the name `x`: whether it came from shared memory, or the code of the error.
fn take(consumer: &Consumer, id: u64) -> String {
    match consumer.runtime.block_on(consumer.client.timeframe(id, "x")) {
        Ok(table) => format!("local {}", table.is_local()),
        Err(error) => error.code().to_string(),
    }
}

/// Not a test by itself: a process of another user, which takes timeframes for a name that is not
/// that of its session.
#[test]
#[ignore = "a process of the other test in this file"]
fn the_process_of_another_user() {
    let Ok(url) = std::env::var(URL) else { return };
    let consumer = Consumer::with_local_tables(&url, "stranger");
    let is_local = (0..1_000).any(|_| take(&consumer, 1) == "local true");
    println!("said: {is_local}");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    println!("said: {}", take(&consumer, 2));
}

#[test]
fn a_name_that_another_user_begins_to_use_is_refused_before_the_next_table() {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        eprintln!("skipped: only root can become another user");
        return;
    }
    let allowed = ["--socket-mode", "0666", "--allow-uid", STRANGER, "--allow-uid", "0"];
    let (service, _repository) = service(&[("A/B", (0, 100), 1)], &allowed);
    for path in [service.folder.path().to_owned(), service.folder.path().join("s")] {
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }
    let registers = Consumer::new(&service.unix(), "registers");
    let columns = [ColumnRequest::new("b", ObjectPath::new("A/B").unwrap())];
    for id in [1, 2] {
        let names = ["x".to_owned()];
        let put = registers.client.put_timeframe(id, vec![Some(5)], &columns, &names);
        registers.runtime.block_on(put).unwrap();
    }
    let mut child = Command::new("setpriv")
        .args(["--reuid", STRANGER, "--regid", STRANGER, "--clear-groups"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "names::the_process_of_another_user", "--ignored", "--nocapture"])
        .env(URL, service.unix())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut said = || {
        let mut said = lines.by_ref().map_while(Result::ok);
        said.find_map(|line| line.split_once("said: ").map(|(_, said)| said.to_owned()))
    };
    assert_eq!(said().as_deref(), Some("true"), "the name is free");
    // Another user begins to use the name: it attaches with it.
    let owner = Consumer::with_local_tables(&service.unix(), "x");
    assert!(owner.runtime.block_on(owner.client.timeframe(1, "x")).is_ok());
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert_eq!(said().as_deref(), Some("IOV-5017"));
    assert!(child.wait().unwrap().success());
    service.adds_up();
}
