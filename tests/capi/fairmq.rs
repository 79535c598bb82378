//! Segments that FairMQ's shared-memory transport, and Boost beneath it, open like their own.

use std::time::Instant;

use super::*;
use crate::common::{PATIENCE, Service};

/// FairMQ's number for a session's name, as documented for users.
fn shmid(session: &str) -> String {
    let script = r#"printf '%s%s' "$(id -u)" "$1" | sha256sum | cut -c 1-8"#;
    let output = Command::new("sh").args(["-c", script, "sh", session]).output().unwrap();
    well("sha256sum", &output).trim().to_owned()
}

/// Whether Boost.Interprocess is installed; `.ci/run` does that.
fn boost() -> bool {
    let there = Path::new("/usr/include/boost/interprocess/managed_shared_memory.hpp").exists();
    if !there {
        eprintln!("skipped: Boost.Interprocess is not installed (Debian: libboost-dev)");
    }
    there
}

struct Session {
    name: String,
    shmid: String,
}

impl Session {
    fn new() -> Self {
        let name = uuid::Uuid::new_v4().simple().to_string();
        Self { shmid: shmid(&name), name }
    }

    fn file(&self, what: &str) -> PathBuf {
        PathBuf::from(format!("/dev/shm/fmq_{}_{what}", self.shmid))
    }
}

/// A service killed by a test leaves its names behind; this removes them.
impl Drop for Session {
    fn drop(&mut self) {
        let prefixes = [format!("fmq_{}_", self.shmid), format!("iovcache_{}.", self.shmid)];
        for entry in fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if prefixes.iter().any(|prefix| name.starts_with(prefix)) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

#[test]
fn the_id_of_a_session_is_that_of_fairmq() {
    // FairMQ: the first 4 bytes of SHA-256 of effective user id and session.
    if rustix::process::geteuid().is_root() {
        assert_eq!(shmid("default"), "f8fb93a1");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn boost_opens_a_segment_with_a_name_of_fairmq_as_its_own() {
    if !boost() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let session = Session::new();
    let named = ["--backing", "shm", "--fairmq-shmid", &session.shmid, "--fairmq-segment", "3"];
    let service = Service::over(&repository(folder.path()), &named);
    let (cells, _table, _client) = cells(&service.unix()).await;
    let options = ["-std=c++17".to_owned()];
    let program = compile(folder.path(), "c++", "tests/capi/programs/boost.cpp", &options);
    let name = format!("fmq_{}_m_3", session.shmid);
    let before = fs::read(session.file("m_3")).unwrap();
    let told = well("boost", &run(&program, &[&name], &cells));
    let (size, told) = told.split_once('\n').unwrap();
    assert_eq!(size, (16 << 20).to_string(), "the size of the segment, as Boost sees it");
    let wanted: String =
        lines().lines().map(|line| line.split_once(' ').unwrap().1.to_owned() + "\n").collect();
    assert_eq!(told, wanted);
    assert!(fs::read(session.file("m_3")).unwrap() == before, "opening it changes nothing");

    // The header has the bytes of the same fields in C++.
    let header = iovcache::shm::MetaHeader::managed(
        0x3132,
        0x2122_2324_2526_2730,
        0x0102_0304_0506_0708,
        0x1112_1314_1516_1718,
    );
    let output = run(&program, &["header"], b"");
    assert!(output.status.success());
    assert_eq!(output.stdout, header.to_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shim_registers_what_the_service_has_made_and_makes_nothing_itself() {
    if !boost() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let session = Session::new();
    let named = ["--backing", "shm", "--fairmq-session", &session.name, "--fairmq-segment", "8"];
    let service = Service::over(&repository(folder.path()), &named);
    // All segments exist before any load, and the ready line lists them.
    let fairmq = &service.ready["fairmq"];
    assert_eq!(fairmq["shmid"], session.shmid.as_str());
    let segments: Vec<String> = fairmq["segments"]
        .as_array()
        .unwrap()
        .iter()
        .map(|segment| format!("{}:{}", segment["id"], segment["size"]))
        .collect();
    assert_eq!(segments, [8, 9, 10, 11].map(|id| format!("{id}:{}", 16 << 20)));
    assert!((8..12).all(|id| session.file(&format!("m_{id}")).exists()));

    // FairMQ's own header is used where it is installed.
    let stands_in = root().join("tests/capi/programs").display().to_string();
    let options = ["-std=c++17".to_owned(), "-idirafter".to_owned(), stands_in];
    let program = compile(folder.path(), "c++", "examples/fairmq/register.cpp", &options);
    let mut arguments = vec![session.shmid.as_str()];
    arguments.extend(segments.iter().map(String::as_str));
    let told = well("register", &run(&program, &arguments, b""));
    assert_eq!(told.lines().count(), 4, "{told}");
    assert!(session.file("mng").exists());
    let refused = run(&program, &[&session.shmid, "12:16777216"], b"");
    assert_eq!(refused.status.code(), Some(1));
    assert!(!session.file("m_12").exists());
    for wrong in ["12", "x:1", "8:0", "70000:5", "8:5x"] {
        assert_eq!(run(&program, &[&session.shmid, wrong], b"").status.code(), Some(2), "{wrong}");
    }

    // A cell of AliceO2's tables carries all fields that are needed.
    let client = Client::connect(&service.unix()).await.unwrap();
    let request = TableRequest::new().column("drift", DRIFT).timestamps(TIMES);
    let table = client.batches(&request.cell("o2").encoding("plain")).await.unwrap();
    let cells = arrow_array::cast::AsArray::as_fixed_size_list(table[0].column(0));
    for (row, at) in TIMES.iter().enumerate() {
        let cell = cells.value(row);
        let cell = arrow_array::cast::AsArray::as_primitive::<arrow_array::types::Int64Type>(&cell);
        let [handle, segment, size] = [0, 1, 2].map(|place| cell.value(place) as usize);
        let bytes = fs::read(session.file(&format!("m_{segment}"))).unwrap();
        let bytes = &bytes[handle + 16..][..size];
        let line = format!("{at} {size} {}", String::from_utf8_lossy(bytes));
        assert_eq!(Some(line.as_str()), lines().lines().nth(row));
    }
    drop(client);
    assert_eq!(service.stop().0, Some(0));
    let deadline = Instant::now() + PATIENCE;
    while (8..12).any(|id| session.file(&format!("m_{id}")).exists()) {
        assert!(Instant::now() < deadline, "its segments go with the service");
    }
}
