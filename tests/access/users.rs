//! Other users of the node: a real second uid that tries to read, map, write and replace what it
//! can reach.

use std::ffi::CString;
use std::fs::{self, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use iovcache::shm::attach::{Announcement, LineReader};

use crate::common::{Service, until};
use crate::files::{Files, exists};

/// A user and a group that own no file.
const STRANGER: u32 = 65_534;
/// A group of which the stranger is only a member.
const GROUP: u32 = 4_242;

/// Not a test of its own: the tasks of a process of the second user.
#[test]
fn a_process_of_another_user() {
    let Ok(task) = std::env::var("IOVCACHE_TEST_AS_STRANGER") else { return };
    let service = std::env::var("IOVCACHE_TEST_SERVICE").unwrap();
    let (socket, pid) = service.split_once(' ').unwrap();
    let said = match task.as_str() {
        "connect" => {
            UnixStream::connect(socket).map_or_else(|error| error.to_string(), |_| "in".into())
        }
        "steal" => steal(Path::new(socket), pid),
        "misuse" => misuse(Path::new(socket)),
        other => panic!("{other}"),
    };
    println!("said: {said}");
}

/// Tries to reach the segments of a process of another user.
fn steal(folder: &Path, pid: &str) -> String {
    let mut got = Vec::new();
    for number in 0..64 {
        let name = format!("/proc/{pid}/fd/{number}");
        if OpenOptions::new().read(true).open(&name).is_ok() {
            got.push(name);
        }
    }
    if fs::File::open(format!("/proc/{pid}/mem")).is_ok() {
        got.push("mem".to_owned());
    }
    // Nor can it replace the sockets between the service and its clients.
    for name in ["flight.sock", "attach.sock", "lock"] {
        if fs::remove_file(folder.join(name)).is_ok() {
            got.push(format!("removed {name}"));
        }
    }
    if fs::rename(folder, folder.with_extension("moved")).is_ok() {
        got.push("moved the folder".to_owned());
    }
    if got.is_empty() { "nothing".to_owned() } else { got.join(", ") }
}

/// Attaches as a permitted user, and tries to write to the segments it receives.
fn misuse(socket: &Path) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(b"{\"hello\": 1, \"consumer\": \"stranger\"}\n").unwrap();
    let mut reader = LineReader::default();
    let line = loop {
        if let Some(line) = reader.line() {
            break line;
        }
        reader.read(&stream).unwrap();
    };
    let welcome: Announcement = serde_json::from_slice(&line).unwrap();
    assert!(!welcome.segments.is_empty());
    let segment = fs::File::from(reader.descriptor().unwrap());
    let mut got = Vec::new();
    let length = segment.metadata().unwrap().len();
    if segment.set_len(0).is_ok() || segment.set_len(length * 2).is_ok() {
        got.push("another size");
    }
    if (&segment).write_all(b"x").is_ok() {
        got.push("written");
    }
    // A memfd can be reopened for writing through its descriptor: the seals must hold then too.
    let own = CString::new(format!("/proc/self/fd/{}", segment.as_raw_fd())).unwrap();
    let own = own.to_str().unwrap();
    if let Ok(mut anew) = OpenOptions::new().read(true).write(true).open(own) {
        if anew.write_all(b"x").is_ok() {
            got.push("written anew");
        }
        if map_writable(&anew).is_ok() {
            got.push("mapped writable");
        }
        if anew.set_len(0).is_ok() {
            got.push("cut");
        }
    }
    if map_writable(&segment).is_ok() {
        got.push("mapped writable");
    }
    match got.is_empty() {
        true => format!("nothing of {length} bytes"),
        false => got.join(", "),
    }
}

fn map_writable(file: &fs::File) -> Result<(), ()> {
    // dd never writes through a mapping; Python maps as any process would.
    let script = "import mmap, sys; mmap.mmap(0, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE)";
    let mapped = Command::new("python3")
        .args(["-c", script])
        .stdin(Stdio::from(file.try_clone().unwrap()))
        .stderr(Stdio::null())
        .status()
        .unwrap();
    if mapped.success() { Ok(()) } else { Err(()) }
}

/// Runs this test program as the stranger; returns its output.
fn as_stranger(task: &str, socket: &Path, service: &Service) -> String {
    let program = std::env::current_exe().unwrap();
    let output = setpriv(&[])
        .arg(program)
        .args(["users::a_process_of_another_user", "--exact", "--nocapture"])
        .env("IOVCACHE_TEST_AS_STRANGER", task)
        .env("IOVCACHE_TEST_SERVICE", format!("{} {}", socket.display(), service.pid()))
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = told.lines().find_map(|line| line.split_once("said: "));
    said.unwrap_or_else(|| panic!("{told} {}", String::from_utf8_lossy(&output.stderr)))
        .1
        .to_owned()
}

fn setpriv(groups: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    let user = STRANGER.to_string();
    command.args(["--reuid", &user, "--regid", &user]);
    match groups {
        [] => command.arg("--clear-groups"),
        groups => command.args(["--groups", &groups.join(",")]),
    };
    command
}

/// `iovcache status` as the stranger.
fn status(service: &Service, groups: &[&str]) -> Output {
    setpriv(groups)
        .arg(env!("CARGO_BIN_EXE_iovcache"))
        .args(["status", "--json", "--server", &service.unix()])
        .output()
        .unwrap()
}

/// Whether a second user is possible here: only root can become another user.
fn is_root() -> bool {
    let root = rustix_uid() == 0;
    if !root {
        eprintln!("only root can become another user: skipped");
    }
    root
}

fn rustix_uid() -> u32 {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata("/proc/self").unwrap().uid()
}

/// Opens the path to the sockets, so that only the service itself can refuse others.
fn open_folder(service: &Service) {
    for path in [service.folder.path().to_owned(), service.folder.path().join("s")] {
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn another_user_gets_at_nothing_and_swaps_nothing() {
    if !is_root() {
        return;
    }
    let files = Files::new();
    let service = files.serve(&[]);
    let sockets = service.folder.path().join("s");
    let mode = |name: &str| fs::metadata(sockets.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("."), mode("flight.sock"), mode("attach.sock")), (0o750, 0o660, 0o660));
    // The folder above belongs to the test; the service's own folder must refuse.
    fs::set_permissions(service.folder.path(), Permissions::from_mode(0o755)).unwrap();
    for name in ["flight.sock", "attach.sock"] {
        let said = as_stranger("connect", &sockets.join(name), &service);
        assert!(said.contains("Permission denied"), "{name}: {said}");
    }
    assert_eq!(as_stranger("steal", &sockets, &service), "nothing");
    open_folder(&service);
    assert_eq!(as_stranger("steal", &sockets, &service), "nothing");
    assert!(exists(&sockets.join("flight.sock")) && exists(&sockets.join("attach.sock")));
}

#[test]
fn the_kernel_identifies_every_process_that_reaches_the_sockets() {
    if !is_root() {
        return;
    }
    let files = Files::new();
    let stranger = STRANGER.to_string();
    let group = GROUP.to_string();
    for (arguments, groups, let_in) in [
        (&[][..], &[][..], false),
        (&["--allow-uid", &stranger], &[], true),
        (&["--allow-gid", &stranger], &[], true),
        (&["--allow-gid", &group], &[], false),
        (&["--allow-gid", &group], &[group.as_str()], true),
    ] {
        let service = files.serve(&[&["--socket-mode", "0666"], arguments].concat());
        open_folder(&service);
        let output = status(&service, groups);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(if let_in { 0 } else { 5 }), "{arguments:?} {told}");
        if !let_in {
            assert!(told.contains("[IOV-6005]") && told.contains("65534"), "{told}");
        }
        let cat = setpriv(groups)
            .arg(env!("CARGO_BIN_EXE_iovcache"))
            .args(["cat", "--server", &service.unix(), crate::files::DRIFT, "--at", "5"])
            .output()
            .unwrap();
        assert_eq!(cat.stdout == b"drift", let_in, "{arguments:?} {cat:?}");
    }
}

#[test]
fn a_user_that_the_configuration_lists_is_let_in_after_sighup_and_out_after_another_one() {
    if !is_root() {
        return;
    }
    let files = Files::new();
    let text = format!("[[source]]\nurl = \"file://{}\"\n", files.repository().display());
    let config = files.write("iovcache.toml", &text);
    let service = Service::start(&["--config", &config, "--socket-mode", "0666"]);
    open_folder(&service);
    assert_eq!(status(&service, &[]).status.code(), Some(5));
    for (lists, code) in [(format!("allow_uids = [{STRANGER}]\n{text}"), 0), (text.clone(), 5)] {
        files.write("iovcache.toml", &lists);
        service.signal("HUP");
        until("the list takes effect", || {
            (status(&service, &[]).status.code() == Some(code)).then_some(())
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_of_another_user_can_read_its_segments_and_do_nothing_else() {
    if !is_root() {
        return;
    }
    let files = Files::new();
    let stranger = STRANGER.to_string();
    let service = files.serve(&["--socket-mode", "0666", "--allow-uid", &stranger]);
    open_folder(&service);
    let client = crate::files::client(&service.unix(), "").await;
    let table = client.table(crate::files::drift()).await.unwrap();
    let said = as_stranger("misuse", &service.attach(), &service);
    assert!(said.starts_with("nothing of "), "{said}");
    assert_eq!(table.column("drift").unwrap().get(0).unwrap(), Some(&b"drift"[..]));
}
