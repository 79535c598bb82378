//! Segments that FairMQ's shared-memory transport, and Boost beneath it, open like their own.

use std::time::Instant;

use super::*;
use crate::common::{PATIENCE, Service};
use iovcache::table::{CellKind, Encoding, View};

/// FairMQ's number for a session's name, as documented for users.
fn shmid(session: &str) -> String {
    let script = r#"printf '%s%s' "$(id -u)" "$1" | sha256sum | cut -c 1-8"#;
    let output = Command::new("sh").args(["-c", script, "sh", session]).output().unwrap();
    well("sha256sum", &output).trim().to_owned()
}

pub(super) struct Session {
    pub(super) name: String,
    pub(super) shmid: String,
}

impl Session {
    pub(super) fn new() -> Self {
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

/// `examples/fairmq/register.cpp`, against FairMQ or its stand-in.
pub(super) fn register_program(folder: &Path) -> PathBuf {
    let options = host_memory::fairmq("-std=c++17").expect("Boost is there");
    compile(folder, "c++", "examples/fairmq/register.cpp", &options)
}

/// FairMQ's registry has nothing left of the session's segment 8.
fn assert_unregistered(program: &str, session: &Session) {
    let removed = run(Path::new(program), &["--remove", &session.shmid, "8:1"], b"");
    assert_eq!(well("register", &removed), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_registers_its_segments_itself_and_takes_them_out_of_the_book_at_its_end() {
    if !boost() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let session = Session::new();
    let program = register_program(folder.path());
    let decimal = u32::from_str_radix(&session.shmid, 16).unwrap();
    // A decimal number of 8 digits is told from hexadecimal digits by a leading 0.
    let decimal = format!("0{decimal:08}");
    let program = program.display().to_string();
    let named =
        ["--fairmq-shmid", &decimal, "--fairmq-segment", "8", "--fairmq-register", &program];
    let service = Service::over(&repository(folder.path()), &named);
    assert_eq!(service.ready["fairmq"]["shmid"], session.shmid.as_str());
    assert!(session.file("mng").exists(), "the program made the book");
    assert_eq!(service.stop().0, Some(0));
    // Nothing is left to be taken out.
    assert_unregistered(&program, &session);

    let mut refused = Command::new(env!("CARGO_BIN_EXE_iovcache"));
    let source = format!("file://{}", folder.path().join("repository").display());
    refused.args(["serve", "--source", &source, "--listen", "127.0.0.1:0", "--memory", "64MiB"]);
    refused.args(["--segment", "16MiB", "--fairmq-shmid", &session.shmid, "--fairmq-segment", "8"]);
    let output = refused.args(["--fairmq-register", "/bin/false"]).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{told}");
    assert!(told.contains("[IOV-8030]") && told.contains("/bin/false"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_caches_share_a_session_by_their_numbers_and_each_removes_its_own_leftovers_alone()
{
    let folder = tempfile::tempdir().unwrap();
    let session = Session::new();
    let repository = repository(folder.path());
    let at = |first: &'static str| ["--fairmq-shmid", &session.shmid, "--fairmq-segment", first];
    let numbers = |service: &Service| -> Vec<u64> {
        let segments = service.ready["fairmq"]["segments"].as_array().unwrap();
        segments.iter().map(|segment| segment["id"].as_u64().unwrap()).collect()
    };
    let one = Service::over(&repository, &at("8"));
    let other = Service::over(&repository, &at("10"));
    assert_eq!(numbers(&one), [8, 9, 10, 11]);
    assert_eq!(numbers(&other), [12, 13, 14, 15], "no number twice in a session");
    // The same range is taken, and the refusal says what to do.
    let mut refused = Command::new(env!("CARGO_BIN_EXE_iovcache"));
    let source = format!("file://{}", repository.display());
    refused.args(["serve", "--source", &source, "--listen", "127.0.0.1:0", "--memory", "64MiB"]);
    let output = refused.args(at("8")).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && told.contains("[IOV-4004]"), "{told}");
    assert!(told.contains("fairmq_segment of its own"), "{told}");
    // One is killed and comes back: its own leftovers go, and those of the other stay.
    one.kill();
    assert!(session.file("m_8").exists());
    let one = Service::over(&repository, &at("8"));
    assert_eq!(numbers(&one), [16, 17, 18, 19]);
    assert!(!session.file("m_8").exists() && session.file("m_12").exists());
    drop((one, other));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_lost_is_told_by_readyz_status_metrics_and_log() {
    let folder = tempfile::tempdir().unwrap();
    let session = Session::new();
    let named =
        ["--fairmq-shmid", &session.shmid, "--fairmq-segment", "8", "--http", "127.0.0.1:0"];
    let service = Service::over(&repository(folder.path()), &named);
    let get = |path: &str| -> (u16, String) {
        let mut stream = std::net::TcpStream::connect(service.http()).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        std::io::Read::read_to_string(&mut stream, &mut answer).unwrap();
        (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
    };
    assert_eq!(get("/readyz").0, 200);
    fs::remove_file(session.file("m_9")).unwrap();
    // As `fairmq-shmmonitor --reset-content` does: an empty heap in place of the full one.
    let file = fs::OpenOptions::new().write(true).open(session.file("m_10")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0; 8], 96).unwrap();
    let (status, text) = get("/readyz");
    assert_eq!(status, 503, "{text}");
    assert!(text.contains("m_9 was removed") && text.contains("m_10 was reset"), "{text}");
    let (_, metrics) = get("/metrics");
    assert!(metrics.contains("iovcache_segments_lost 2"), "{metrics}");
    // The status page shows them.
    let mut stream = std::net::TcpStream::connect(service.http()).unwrap();
    write!(stream, "GET /events HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(stream));
    let mut frames =
        lines.filter_map(|line| Some(line.unwrap().strip_prefix("data: {")?.to_owned()));
    let frame: serde_json::Value =
        serde_json::from_str(&format!("{{{}", frames.next().unwrap())).unwrap();
    let lost = frame["lost"].as_array().unwrap();
    assert!(lost.len() == 2 && lost[0].as_str().unwrap().contains("m_9 was removed"), "{lost:?}");
    let client = Client::connect(&service.unix()).await.unwrap();
    assert_eq!(client.status().await.unwrap().lost_segments.len(), 2);
    // The watch looks once a second.
    tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
    // A file of another program under the name stays.
    fs::write(session.file("m_9"), "of another program").unwrap();
    drop(client);
    let (status, log) = service.stop();
    assert_eq!(status, Some(0));
    assert_eq!(log.matches("m_9 was removed").count(), 1, "{log}");
    assert!(session.file("m_9").exists());
}

/// The objects of [`TIMES`] as a device reads them by the names of segments, and their segments;
/// `None` if a cell names a file that is not there.
async fn by_name(client: &Client, session: &Session) -> Option<(String, Vec<u16>)> {
    let request = TableRequest::new().column("drift", DRIFT).timestamps(TIMES);
    let table = client.table(request).await.unwrap();
    let column = table.column("drift").unwrap();
    let (mut lines, mut segments) = (String::new(), Vec::new());
    for (row, at) in TIMES.iter().enumerate() {
        let header = column.header(row).unwrap();
        let file = fs::read(session.file(&format!("m_{}", header.segment_id))).ok()?;
        let bytes = &file[header.handle as usize + 16..][..header.size as usize];
        lines += &format!("{at} {} {}\n", header.size, String::from_utf8_lossy(bytes));
        segments.push(header.segment_id);
    }
    segments.dedup();
    Some((lines, segments))
}

/// The numbers of a service's segments, as it tells them.
async fn numbers(client: &Client) -> Vec<u16> {
    client.segments().await.unwrap().segments.iter().map(|one| one.id).collect()
}

async fn wait_for(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_names_are_made_anew_under_fresh_numbers_and_consumers_by_name_get_the_right_bytes() {
    if !boost() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let session = Session::new();
    let program = register_program(folder.path()).display().to_string();
    let named = ["--fairmq-shmid", &session.shmid, "--fairmq-segment", "8"];
    let named = [&named[..], &["--fairmq-register", &program, "--fairmq-renew"]].concat();
    let service = Service::over(&repository(folder.path()), &named);
    let client = Client::connect(&service.unix()).await.unwrap();
    assert_eq!(by_name(&client, &session).await, Some((lines(), vec![8])));
    // No client holds an object: lost segments are replaced at once.
    fs::remove_file(session.file("m_9")).unwrap();
    let reset = fs::OpenOptions::new().write(true).open(session.file("m_10")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&reset, &[0; 512], 0).unwrap();
    wait_for("9 and 10 are replaced", async || numbers(&client).await == [8, 11, 12, 13]).await;
    assert!(!session.file("m_10").exists(), "no device can open it any more");
    // The one with the objects, while a table holds them.
    let request = TableRequest::new().column("drift", DRIFT).timestamps(TIMES);
    let held = client.table(request.clone()).await.unwrap();
    fs::remove_file(session.file("m_8")).unwrap();
    wait_for("new requests get other places", async || {
        by_name(&client, &session).await == Some((lines(), vec![11]))
    })
    .await;
    assert!(numbers(&client).await.contains(&8), "a table still holds its objects");
    let column = held.column("drift").unwrap();
    assert_eq!(column.get(0).unwrap().unwrap(), b"drift 1");
    drop(held);
    wait_for("8 is replaced", async || numbers(&client).await == [11, 12, 13, 14]).await;
    assert_eq!(by_name(&client, &session).await, Some((lines(), vec![11])));
    assert_eq!(client.check(true).await.unwrap().faults, [""; 0]);
    drop(client);
    let (status, log) = service.stop();
    assert_eq!(status, Some(0), "{log}");
    for told in ["m_8 was removed", "m_9 was removed", "m_10 was overwritten"] {
        assert_eq!(log.matches(told).count(), 1, "{told}: {log}");
    }
    // No number comes back after a restart, and FairMQ's registry has none of them.
    assert_unregistered(&program, &session);
    let again = Service::over(&repository(folder.path()), &named);
    let segments = again.ready["fairmq"]["segments"].as_array().unwrap().clone();
    assert!(segments.iter().all(|one| one["id"].as_u64() > Some(14)), "{segments:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_segments_that_are_needed_are_created_and_registered_and_each_before_its_use() {
    if !boost() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let session = Session::new();
    let register = register_program(folder.path());
    // Notes each call, and whether the file was there.
    let (calls, program) = (folder.path().join("calls"), folder.path().join("noting"));
    let script = format!(
        "#!/bin/sh\necho \"$@\" >> {}\nexec {} \"$@\"\n",
        calls.display(),
        register.display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let program = program.display().to_string();
    let named = ["--fairmq-shmid", &session.shmid, "--fairmq-segment", "8"];
    let needed = ["--fairmq-register", &program, "--fairmq-create", "needed"];
    let repository = repository(folder.path());
    for number in 0..3 {
        let (path, bytes) = (format!("Large/P{number}"), vec![number; 10 << 20]);
        put(&repository, &version(&path, 0, 9000, 1, &bytes));
    }
    let service = Service::over(&repository, &[&named[..], &needed].concat());
    assert_eq!(service.ready["fairmq"]["segments"].as_array().unwrap().len(), 0);
    assert!(!session.file("m_8").exists() && !calls.exists());
    let client = Client::connect(&service.unix()).await.unwrap();
    assert_eq!(by_name(&client, &session).await, Some((lines(), vec![8])));
    let told = || fs::read_to_string(&calls).unwrap();
    let call = |id: u16| format!("{} {id}:{}\n", session.shmid, 16 << 20);
    assert_eq!(told(), call(8));
    let request = TableRequest::new().timestamps([5]);
    let request = (0..3).fold(request, |request, number| {
        request.column(format!("c{number}"), format!("Large/P{number}"))
    });
    let table = client.table(request).await.unwrap();
    for number in 0..3 {
        let column = table.column(&format!("c{number}")).unwrap();
        assert!(column.get(0).unwrap().unwrap().iter().all(|byte| *byte == number));
    }
    // The first large object fits beside the small ones.
    assert_eq!(told(), [8, 9, 10].map(call).concat());
    assert_eq!(numbers(&client).await, [8, 9, 10]);
    drop((table, client));
    assert_eq!(service.stop().0, Some(0));
    assert!(told().ends_with("8:16777216 9:16777216 10:16777216\n") && told().contains("--remove"));

    // Without the program no device would find them.
    let mut refused = Command::new(env!("CARGO_BIN_EXE_iovcache"));
    refused.args(["serve", "--source", "memory:"]).args(named);
    let output = refused.args(["--fairmq-create", "needed"]).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains("fairmq_create: fairmq_register is needed"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_that_another_program_has_is_refused_or_skipped_and_its_file_stays() {
    let folder = tempfile::tempdir().unwrap();
    let session = Session::new();
    let repository = repository(folder.path());
    let foreign = b"of another program".repeat(1000);
    fs::write(session.file("m_8"), &foreign).unwrap();
    fs::write(session.file("rg_8"), &foreign).unwrap();
    let named = ["--fairmq-shmid", &session.shmid, "--fairmq-segment", "8"];
    let mut refused = Command::new(env!("CARGO_BIN_EXE_iovcache"));
    let source = format!("file://{}", repository.display());
    refused.args(["serve", "--source", &source, "--listen", "127.0.0.1:0", "--memory", "64MiB"]);
    let output = refused.args(named).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && told.contains("[IOV-4004]"), "{told}");
    let file = session.file("m_8").display().to_string();
    assert!(told.contains(&file) && told.contains("fairmq_segment"), "{told}");
    assert_eq!(fs::read(session.file("m_8")).unwrap(), foreign);
    // Later numbers are skipped.
    fs::rename(session.file("m_8"), session.file("m_9")).unwrap();
    let service = Service::over(&repository, &named);
    let segments = service.ready["fairmq"]["segments"].as_array().unwrap();
    let ids: Vec<_> = segments.iter().map(|one| one["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, [8, 10, 11, 12]);
    let (status, log) = service.stop();
    assert_eq!(status, Some(0));
    assert!(log.contains("segment number 9 is skipped") && log.contains("m_9"), "{log}");
    for kept in ["m_9", "rg_8"] {
        assert_eq!(fs::read(session.file(kept)).unwrap(), foreign, "{kept}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_carries_the_keys_that_aliceo2s_consumers_look_for_if_they_are_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::over(&repository(folder.path()), &[]);
    let client = Client::connect(&service.unix()).await.unwrap();
    let keys = ["outputRoute", "outputBinding", "sourceTable", "sourceMatcher"];
    let metadata = |suffix: &str| -> std::collections::BTreeMap<String, String> {
        keys.iter().map(|key| ((*key).to_owned(), format!("{key} {suffix}"))).collect()
    };
    let request = || TableRequest::new().column("fDrift", DRIFT).timestamps(TIMES);
    // Twice each: schemas are cached.
    for suffix in ["one", "two", "one", "two"] {
        let plain = request().cell(CellKind::O2).encoding(Encoding::Plain);
        for asked in [plain, request(), request().view(View::Objects)] {
            let batches = client.batches(&asked.schema_metadata(metadata(suffix))).await.unwrap();
            let schema = batches[0].schema();
            for key in keys {
                assert_eq!(schema.metadata()[key], format!("{key} {suffix}"));
            }
            assert!(schema.metadata().contains_key("iovcache.version"));
        }
    }
    let asked = request().cell(CellKind::O2).encoding(Encoding::Plain);
    let schema = client.batches(&asked).await.unwrap()[0].schema();
    assert!(keys.iter().all(|key| !schema.metadata().contains_key(key)), "not asked for");
    let field = schema.field_with_name("fDrift").unwrap();
    assert_eq!(field.metadata()["url"], DRIFT);

    // The command line gives and refuses them too.
    let run = |metadata: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_iovcache"));
        command.args(["table", "--server", &service.unix(), "--at", "1000"]);
        command.args(["--column", "fDrift=TPC/Calib/VDrift", "--output", "arrow"]);
        command.args(["--schema-metadata", metadata]).output().unwrap()
    };
    let given = run("outputRoute=ATIM/GLOGRP/0");
    assert!(given.status.success());
    let has = |text: &[u8]| given.stdout.windows(text.len()).any(|part| part == text);
    assert!(has(b"outputRoute") && has(b"ATIM/GLOGRP/0"));
    for (wrong, told) in [("iovcache.lease=x", "reserved"), ("novalue", "KEY=VALUE")] {
        let output = run(wrong);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(told), "{text}");
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
    // Each refresh confirms the published timelines, which lie in the segment.
    let named = ["--backing", "shm", "--fairmq-shmid", &session.shmid, "--fairmq-segment", "3"];
    let named = [&named[..], &["--refresh", "1h"]].concat();
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

    let program = register_program(folder.path());
    let mut arguments = vec![session.shmid.as_str()];
    arguments.extend(segments.iter().map(String::as_str));
    let told = well("register", &run(&program, &arguments, b""));
    assert_eq!(told.lines().count(), 4, "{told}");
    assert!(session.file("mng").exists());
    let refused = run(&program, &[&session.shmid, "12:16777216"], b"");
    assert_eq!(refused.status.code(), Some(1));
    assert!(!session.file("m_12").exists());
    // The counterpart takes out what is told, and what has no file any more.
    fs::remove_file(session.file("m_9")).unwrap();
    let told = well("register", &run(&program, &["--remove", &session.shmid, "8:1"], b""));
    assert_eq!(told.lines().count(), 2, "{told}");
    assert!(told.contains("m_8: removed") && told.contains("m_9: removed"), "{told}");
    for wrong in ["12", "x:1", "8:0", "70000:5", "8:5x"] {
        assert_eq!(run(&program, &[&session.shmid, wrong], b"").status.code(), Some(2), "{wrong}");
    }

    // A cell of AliceO2's tables carries all fields that are needed.
    let client = Client::connect(&service.unix()).await.unwrap();
    let request = TableRequest::new().column("drift", DRIFT).timestamps(TIMES);
    let table =
        client.batches(&request.cell(CellKind::O2).encoding(Encoding::Plain)).await.unwrap();
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
