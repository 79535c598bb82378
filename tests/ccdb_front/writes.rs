//! Uploads, changes and deletions, with a repository in a folder and in an object store, with a CCDB
//! behind the service, and with a chain of both; and access control.

use std::io::Write as _;
use std::net::TcpStream;

use uuid::Uuid;

use super::common::{Service, run_well};
use super::fake_ccdb::{Ask, FakeCcdb, Fault, Kind, Upload};
use super::raw::{Answer, Connection, get};
use super::s3_server::S3Server;
use super::{address, before};

/// A service that accepts changes.
pub(super) struct Writable {
    pub(super) service: Service,
    _folder: Option<tempfile::TempDir>,
    _server: Option<FakeCcdb>,
    /// Beginning of the paths that a CCDB keeps.
    forwarded: Option<&'static str>,
}

impl Writable {
    fn over_a_repository() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file://{}", folder.path().display());
        let all =
            ["--source", &url, "--refresh", "10s", "--ccdb", "127.0.0.1:0", "--ccdb-writable"];
        Self {
            service: Service::start(&all),
            _folder: Some(folder),
            _server: None,
            forwarded: None,
        }
    }

    async fn over_a_ccdb(kind: Kind) -> Self {
        let server = FakeCcdb::start(kind).await;
        let service = before(&server, &["--refresh", "10s", "--ccdb-writable"]);
        Self { service, _folder: None, _server: Some(server), forwarded: Some("") }
    }

    fn over_an_object_store() -> Self {
        let server = S3Server::start();
        let environment = server.environment();
        let environment: Vec<(&str, &str)> =
            environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let url = "s3://bucket/repository";
        let all = ["--source", url, "--refresh", "10s", "--ccdb", "127.0.0.1:0", "--ccdb-writable"];
        let service = Service::start_with(&all, &environment);
        Self { service, _folder: None, _server: None, forwarded: None }
    }

    /// A chain: a CCDB for the paths below `Test`, and a repository for all others.
    async fn over_a_chain() -> Self {
        let (server, folder) = (FakeCcdb::start(Kind::Local).await, tempfile::tempdir().unwrap());
        let (repository, file) = (folder.path().join("repository"), folder.path().join("c.toml"));
        std::fs::create_dir(&repository).unwrap();
        let text = format!(
            "[[source]]\nurl = \"{}\"\npaths = [\"Test\"]\n[[source]]\nurl = \"file://{}\"\n",
            server.url(),
            repository.display()
        );
        std::fs::write(&file, text).unwrap();
        let file = file.to_str().unwrap();
        let all =
            ["--config", file, "--refresh", "10s", "--ccdb", "127.0.0.1:0", "--ccdb-writable"];
        let service = Service::start(&all);
        Self { service, _folder: Some(folder), _server: Some(server), forwarded: Some("Test") }
    }

    pub(super) async fn each() -> [Self; 5] {
        [
            Self::over_a_repository(),
            Self::over_an_object_store(),
            Self::over_a_ccdb(Kind::Local).await,
            Self::over_a_ccdb(Kind::Sql).await,
            Self::over_a_chain().await,
        ]
    }

    /// Whether changes of a path are passed on to a CCDB.
    pub(super) fn is_forwarded(&self, path: &str) -> bool {
        self.forwarded.is_some_and(|begin| path.starts_with(begin))
    }

    /// Like an upload of CcdbApi: a form with one part named `send`.
    fn store(&self, path: &str, from: i64, until: i64, metadata: &str, bytes: &[u8]) -> Answer {
        let metadata = if metadata.is_empty() { String::new() } else { format!("/{metadata}") };
        let target = format!("/{path}/{from}/{until}/ObjectType=TH1F{metadata}");
        post(&address(&self.service), &target, bytes, "")
    }

    /// Like a retrieval of CcdbApi: by time, following the redirect.
    fn retrieve(&self, path: &str, at: i64) -> Option<Answer> {
        let address = address(&self.service);
        let answer = get(&address, &format!("/{path}/{at}"), &[]);
        match answer.status {
            303 => Some(get(&address, answer.get("Location").unwrap(), &[])),
            200 => Some(answer),
            404 => None,
            status => panic!("{status}: {}", answer.text()),
        }
    }

    pub(super) fn ask(&self, method: &str, target: &str) -> Answer {
        Connection::open(&address(&self.service)).ask(method, target, &[])
    }

    fn list(&self, path: &str) -> (usize, Vec<String>) {
        let json = [("Accept", "application/json")];
        let page = get(&address(&self.service), &format!("/browse/{path}"), &json).json();
        let folders = page["subfolders"].as_array().cloned().unwrap_or_default();
        let folders = folders.iter().map(|folder| folder.as_str().unwrap().to_owned()).collect();
        (page["objects"].as_array().unwrap().len(), folders)
    }
}

pub(super) fn post(address: &str, target: &str, bytes: &[u8], more: &str) -> Answer {
    let mut body =
        b"--B\r\nContent-Disposition: form-data; name=\"send\"; filename=\"th1_1.root\"\r\n\
                     Content-Type: application/octet-stream\r\n\r\n"
            .to_vec();
    body.extend_from_slice(bytes);
    body.extend_from_slice(b"\r\n--B--\r\n");
    let head = format!(
        "POST {target} HTTP/1.1\r\nHost: here\r\nUser-Agent: host-1-abc\r\n{more}\
         Content-Type: multipart/form-data; boundary=B\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut connection = Connection::open(address);
    connection.send(&[head.as_bytes(), &body].concat());
    connection.receive(false)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_version_is_retrieved_with_its_metadata_at_once() {
    for writable in Writable::each().await {
        let stored = writable.store("Test/th1", 1000, 2000, "Hello=World", b"histogram");
        assert_eq!(stored.status, 201, "{}", stored.text());
        assert_eq!(
            (stored.get("Valid-From"), stored.get("Valid-Until")),
            (Some("1000"), Some("2000"))
        );
        let found = writable.retrieve("Test/th1", 1500).unwrap();
        assert_eq!(found.text(), "histogram");
        assert_eq!((found.get("Hello"), found.get("ObjectType")), (Some("World"), Some("TH1F")));
        assert_eq!(found.get("ETag"), stored.get("ETag"));
        // Another version hides it at once: no older version is served.
        assert_eq!(writable.store("Test/th1", 1400, 1600, "", b"other").status, 201);
        assert_eq!(writable.retrieve("Test/th1", 1500).unwrap().text(), "other");
        assert_eq!(writable.retrieve("Test/th1", 1399).unwrap().text(), "histogram");
        assert!(writable.retrieve("Wrong/wrong", 1500).is_none());
        let empty = writable.store("Test/empty", 1000, 2000, "", b"");
        assert_eq!(empty.status, 201);
        assert_eq!(writable.retrieve("Test/empty", 1500).unwrap().text(), "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interval_holds_its_beginning_and_not_its_end() {
    for writable in Writable::each().await {
        assert_eq!(writable.store("Test/CCDBPath", 1000, 1010, "Hello=World", b"x").status, 201);
        assert!((1000..1010).all(|at| writable.retrieve("Test/CCDBPath", at).is_some()));
        assert!(writable.retrieve("Test/CCDBPath", 999).is_none());
        assert!(writable.retrieve("Test/CCDBPath", 1010).is_none());
        let reversed = writable.ask("GET", "/browse/Test/CCDBPath");
        assert_eq!(reversed.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_takes_the_version_that_is_found_and_truncating_all() {
    for writable in Writable::each().await {
        for n in 0..3 {
            let bytes = format!("object {n}");
            assert_eq!(writable.store("Test/Detector", 0, 5000, "", bytes.as_bytes()).status, 201);
        }
        assert_eq!(writable.retrieve("Test/Detector", 100).unwrap().text(), "object 2");
        assert_eq!(writable.ask("DELETE", "/Test/Detector/100").status, 204);
        assert_eq!(writable.retrieve("Test/Detector", 100).unwrap().text(), "object 1");
        let truncated = writable.ask("GET", "/truncate/Test/Detector");
        assert_eq!((truncated.status, truncated.get("Deleted")), (204, Some("2 objects")));
        assert!(writable.retrieve("Test/Detector", 100).is_none());
        assert_eq!(writable.ask("GET", "/truncate/Test/Detector").status, 304);
        assert_eq!(writable.ask("DELETE", "/Test/Detector/100").status, 404);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pattern_truncates_all_that_it_matches() {
    for writable in Writable::each().await {
        for path in ["Test/pid1/A", "Test/pid1/B/C", "Test/pid2/A"] {
            assert_eq!(writable.store(path, 0, 100, "", b"x").status, 201);
        }
        assert_eq!(writable.ask("GET", "/truncate/Test/pid1/*").get("Deleted"), Some("2 objects"));
        assert!(writable.retrieve("Test/pid1/B/C", 5).is_none());
        assert!(writable.retrieve("Test/pid2/A", 5).is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn truncating_deletes_no_version_that_a_listing_with_the_same_address_lacks() {
    for writable in Writable::each().await {
        for (n, from) in [1, 11, 21, 31, 41].into_iter().enumerate() {
            let metadata = format!("n={}", n % 2);
            writable.store("Test/P", from, from + 24, &metadata, b"x");
        }
        let truncate = |target: &str, headers: &[(&str, &str)]| {
            let mut connection = Connection::open(&address(&writable.service));
            let answer = connection.ask("GET", &format!("/truncate/{target}"), headers);
            let deleted = answer.get("Deleted").unwrap().strip_suffix(" objects").unwrap();
            (answer.status, deleted.parse::<usize>().unwrap(), writable.list("Test/P").0)
        };
        let id_at = |at: i64| {
            let found = writable.retrieve("Test/P", at).unwrap();
            found.get("ETag").unwrap().trim_matches('"').to_owned()
        };
        assert_eq!(truncate("Test/P/5000", &[]), (304, 0, 5));
        assert_eq!(truncate("Test/P/0", &[]), (304, 0, 5));
        let id = id_at(5);
        // As at a real server, a UUID before the time is an element of the path.
        assert_eq!(truncate(&format!("Test/P/{id}"), &[]), (304, 0, 5));
        assert_eq!(truncate(&format!("Test/P/5000/{id}"), &[]), (304, 0, 5));
        assert_eq!(truncate("Test/P/15/n=1", &[("If-Not-After", "5")]), (304, 0, 5));
        assert_eq!(truncate("Test/P/15/n=1", &[]), (204, 1, 4));
        assert_eq!(truncate(&format!("Test/P/1/{id}"), &[]), (204, 1, 3));
        assert_eq!(truncate("Test/P", &[("Browse-Limit", "1")]), (204, 1, 2));
        // The one that was stored last is gone.
        assert!(writable.retrieve("Test/P", 60).is_none());
        assert!(writable.retrieve("Test/P", 50).is_some());
        assert_eq!(truncate("Test/P/30", &[]), (204, 1, 1));
        assert_eq!(truncate("Test/P", &[]), (204, 1, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_a_truncation_holds_for_all_paths_of_a_pattern_together() {
    for writable in Writable::each().await {
        for path in ["Test/W/A", "Test/W/B", "Test/W/A", "Test/W/B", "Test/W/B"] {
            assert_eq!(writable.store(path, 1, 100, "", b"x").status, 201);
        }
        let mut connection = Connection::open(&address(&writable.service));
        let limit = [("Browse-Limit", "4")];
        let answer = connection.ask("GET", "/truncate/Test/W/*/5000", &limit);
        assert_eq!(answer.status, 304);
        let answer = connection.ask("GET", "/truncate/Test/W/*/50", &limit);
        assert_eq!((answer.status, answer.get("Deleted")), (204, Some("4 objects")));
        assert_eq!((writable.list("Test/W/A").0, writable.list("Test/W/B").0), (1, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn folders_and_objects_are_listed_as_they_were_stored() {
    for writable in Writable::each().await {
        assert_eq!(writable.list("Test/Detector"), (0, Vec::new()));
        for from in [1, 2, 3] {
            writable.store("Test/Detector", from, 100, "", b"x");
        }
        writable.store("Test/Detector/Sub/abc", 1, 100, "", b"x");
        writable.store("Test", 1, 100, "", b"x");
        assert_eq!(writable.list("Test/Detector"), (3, vec!["Test/Detector/Sub".to_owned()]));
        assert_eq!(writable.list(""), (0, vec!["Test".to_owned()]));
        assert_eq!(writable.list("Test/Detector*").0, 4);
        let json = [("Accept", "application/json")];
        let latest = get(&address(&writable.service), "/latest/Test/Detector", &json).json();
        assert_eq!(latest["objects"].as_array().unwrap().len(), 1);
        // Like CcdbApi, which parses folders from the text.
        let text = get(&address(&writable.service), "/browse/Test/Detector", &[]).text();
        assert!(text.contains("\nSubfolders:\n  Test/Detector/Sub\n"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_and_validity_are_updated_and_seen_at_once() {
    for writable in Writable::each().await {
        // AliceO2's own test uses `id` as a key.
        writable.store("Test/Update", 1000, 2000, "id=first", b"bytes");
        assert_eq!(writable.retrieve("Test/Update", 1500).unwrap().get("id"), Some("first"));
        let updated = writable.ask("PUT", "/Test/Update/1500?id=custom&custom=whatever%20else");
        assert_eq!(updated.status, 204);
        let found = writable.retrieve("Test/Update", 1500).unwrap();
        assert_eq!((found.get("id"), found.get("custom")), (Some("custom"), Some("whatever else")));
        assert_eq!(writable.ask("PUT", "/Test/Update/1500/3000").status, 204);
        assert_eq!(writable.retrieve("Test/Update", 2999).unwrap().text(), "bytes");
        let found = writable.retrieve("Test/Update", 1500).unwrap();
        let id = found.get("ETag").unwrap().trim_matches('"').to_owned();
        // By id, like CcdbApi; an empty value removes the key.
        assert_eq!(writable.ask("PUT", &format!("/Test/Update/1500/{id}?custom=")).status, 204);
        assert_eq!(writable.retrieve("Test/Update", 1500).unwrap().get("custom"), None);
        assert_eq!(writable.ask("PUT", "/Test/Update/9999?a=b").status, 404);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_upload_is_streamed_and_whole() {
    for writable in Writable::each().await {
        let bytes: Vec<u8> = (0..20_000_000_u32).map(|n| (n * 7 % 251) as u8).collect();
        assert_eq!(writable.store("Test/Large", 0, 100, "", &bytes).status, 201);
        assert!(writable.retrieve("Test/Large", 5).unwrap().body == bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_breaks_off_is_stored_nowhere() {
    for writable in Writable::each().await {
        let mut stream = TcpStream::connect(address(&writable.service)).unwrap();
        let head = "POST /Test/Torn/0/100 HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\
                    Content-Type: multipart/form-data; boundary=B\r\n\r\n\
                    --B\r\nContent-Disposition: form-data; name=\"blob\"\r\n\r\nsome of it";
        stream.write_all(head.as_bytes()).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(200));
        drop(stream);
        std::thread::sleep(std::time::Duration::from_millis(500));
        assert!(writable.retrieve("Test/Torn", 5).is_none());
        assert_eq!(writable.list("Test/Torn").0, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_acknowledged_that_the_source_has_not_acknowledged() {
    let server = FakeCcdb::start(Kind::Local).await;
    let service = before(&server, &["--ccdb-writable"]);
    for fault in [Fault::Status(500), Fault::Status(403), Fault::HangUp, Fault::Usage] {
        server.inject(Ask::LookUp, fault.clone(), 1);
        let answer = post_broken(&address(&service), "/Test/A/0/100");
        assert!(!(200..400).contains(&answer), "{fault:?}: {answer}");
        server.heal();
        assert_eq!(get(&address(&service), "/Test/A/5", &[]).status, 404, "{fault:?}");
    }
}

/// The status of an answer that may be cut off.
fn post_broken(address: &str, target: &str) -> u16 {
    broken_off(address, "POST", target, "").0
}

/// The status of an answer, and whether it was cut off, as libcurl would report.
fn broken_off(address: &str, method: &str, target: &str, more: &str) -> (u16, bool) {
    use std::io::Read as _;
    let body = "--B\r\nContent-Disposition: form-data; name=\"send\"; filename=\"f\"\r\n\r\nx\r\n--B--\r\n";
    let body = if method == "POST" { body } else { "" };
    let head = format!(
        "{method} {target} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n{more}\
         Content-Type: multipart/form-data; boundary=B\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(super::common::PATIENCE)).unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    let mut all = Vec::new();
    // The connection may end in a reset: the bytes before it count.
    let _ = stream.read_to_end(&mut all);
    let text = String::from_utf8_lossy(&all).into_owned();
    let status = text.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    let length: usize = length.and_then(|length| length.parse().ok()).unwrap_or(0);
    (status, body.len() < length)
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_may_be_written_ccdbapi_is_told_an_error_or_sent_to_the_source() {
    let server = FakeCcdb::start(Kind::Local).await;
    server.upload(Upload::new("A/B", 0, 100).id(Uuid::from_bytes([1; 16])));
    let service = before(&server, &[]);
    let front = address(&service);
    // Uploads and updates follow redirects.
    let uploaded = post(&front, "/A/B/1/2/k=v", b"x", "");
    let there = |target: &str| format!("{}{target}", server.url());
    assert_eq!((uploaded.status, uploaded.get("Location")), (307, Some(&*there("/A/B/1/2/k=v"))));
    let mut connection = Connection::open(&front);
    let updated = connection.ask("PUT", "/A/B/1/2?k=v&l=", &[]);
    assert_eq!((updated.status, updated.get("Location")), (307, Some(&*there("/A/B/1/2?k=v&l="))));
    // Deletions do not: libcurl reports the answer as incomplete.
    assert_eq!(broken_off(&front, "DELETE", "/A/B/1", ""), (403, true));
    assert_eq!(broken_off(&front, "GET", "/truncate/A/B", ""), (403, true));
    assert_eq!(get(&front, "/A/B/5", &[]).status, 303);
    // A repository has no other address to redirect to.
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().display());
    let service = Service::start(&["--source", &url, "--ccdb", "127.0.0.1:0"]);
    for method in ["POST", "PUT", "DELETE"] {
        assert_eq!(broken_off(&address(&service), method, "/A/B/1/2", ""), (403, true), "{method}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_there_are_tokens_only_administrators_write() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens.toml");
    let tokens = tokens.to_str().unwrap();
    let make = |name, role| {
        run_well(&["token", name, "--tokens", tokens, "--role", role]).trim().to_owned()
    };
    let (reader, boss) = (make("reader", "read"), make("boss", "administer"));
    let repository = folder.path().join("repository");
    std::fs::create_dir(&repository).unwrap();
    let url = format!("file://{}", repository.display());
    let service = Service::start(&[
        "--source",
        &url,
        "--ccdb",
        "127.0.0.1:0",
        "--ccdb-writable",
        "--tokens",
        tokens,
    ]);
    let front = address(&service);
    for more in [
        String::new(),
        "Authorization: Bearer wrong\r\n".to_owned(),
        format!("Authorization: Bearer {reader}\r\n"),
        // The headers of a page in a browser, with any token.
        format!("Origin: http://evil.example\r\nAuthorization: Bearer {boss}\r\n"),
    ] {
        assert_eq!(broken_off(&front, "POST", "/A/B/1/2", &more), (403, true), "{more}");
    }
    let more = format!("Authorization: Bearer {boss}\r\n");
    assert_eq!(post(&front, "/A/B/1/200", b"x", &more).status, 201);
    assert_eq!(get(&front, "/A/B/5", &[]).status, 303, "reading needs no role");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_before_1970_is_changed_by_its_id_or_not_at_all() {
    for kind in [Kind::Local, Kind::Sql] {
        let writable = Writable::over_a_ccdb(kind).await;
        let server = writable._server.as_ref().unwrap();
        let old = server.upload(Upload::new("A/B", -10, 100).created(1));
        let new = server.upload(Upload::new("A/B", -10, 100).created(2));
        // A file-backed server would take the newest version in the place of the requested one.
        let front = address(&writable.service);
        let (status, is_cut) = broken_off(&front, "PUT", &format!("/A/B/-5/{old}?k=v"), "");
        assert_eq!((status == 204, is_cut), (kind == Kind::Sql, kind == Kind::Local), "{status}");
        let other = Uuid::from_bytes([7; 16]);
        assert_eq!(writable.ask("DELETE", &format!("/A/B/-5/{other}")).status, 404);
        assert_eq!(writable.ask("GET", &format!("/truncate/A/B/-5/{other}")).status, 304);
        if kind == Kind::Local {
            let (status, is_cut) =
                broken_off(&front, "GET", &format!("/truncate/A/B/-5/{old}"), "");
            assert!(status >= 400 && is_cut, "{status}");
        }
        assert_eq!(writable.list("A/B").0, 2);
        let status = writable.ask("DELETE", &format!("/A/B/-5/{new}")).status;
        assert_eq!(status, 204, "{kind:?}");
        let left = get(&front, "/A/B/50", &[]);
        assert_eq!(left.get("ETag"), Some(&*format!("\"{old}\"")), "{kind:?}");
        assert_eq!(left.get("k"), (kind == Kind::Sql).then_some("v"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_was_deleted_at_its_server_is_not_found() {
    for kind in [Kind::Local, Kind::Sql] {
        for how in ["redirect", "body"] {
            let server = FakeCcdb::start(kind).await;
            let old = server.upload(Upload::new("A/B", 0, 100).created(1).bytes("old"));
            let new = server.upload(Upload::new("A/B", 0, 100).created(2).bytes("new"));
            let service = before(&server, &["--refresh", "60s", "--ccdb-answer", how]);
            let front = address(&service);
            // Both are known, and no bytes are loaded.
            assert_eq!(get(&front, "/browse/A/B", &[]).status, 200);
            server.delete(new);
            let gone = get(&front, &format!("/A/B/0/{new}"), &[]);
            assert_eq!(gone.status, 404, "{kind:?} {how}: {}", gone.text());
            assert!(gone.text().contains("404 – Not Found"), "{}", gone.text());
            let now = get(&front, "/A/B/50", &[]);
            assert_eq!(now.get("ETag"), Some(&*format!("\"{old}\"")), "{kind:?} {how}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_stored_below_the_addresses_of_pages() {
    for writable in [Writable::over_a_repository(), Writable::over_a_ccdb(Kind::Local).await] {
        let front = address(&writable.service);
        for page in ["browse", "latest", "truncate", "monitor", "download", "%62rowse"] {
            for method in ["POST", "PUT", "DELETE"] {
                let (status, is_cut) = broken_off(&front, method, &format!("/{page}/A/1/100"), "");
                assert_eq!((status, is_cut), (405, true), "{method} /{page}");
            }
        }
        assert_eq!(writable.store("Test/A", 1, 100, "", b"x").status, 201);
        assert_eq!(writable.ask("HEAD", "/truncate/Test/A").status, 405);
        assert_eq!(writable.list("*").0, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encoded_equals_sign_is_part_of_a_name_and_the_first_value_of_a_key_counts() {
    for writable in Writable::each().await {
        assert_eq!(writable.store("Test/M", 1, 100, "k%3Dx=y", b"x").status, 201);
        assert_eq!(writable.ask("GET", "/Test/M/50/k%3Dx=y").status, 303);
        assert_eq!(writable.ask("GET", "/Test/M/50/k=x%3Dy").status, 404);
        assert_eq!(writable.ask("PUT", "/Test/M/50?a=1&b=2&a=3").status, 204);
        let found = writable.retrieve("Test/M", 50).unwrap();
        assert_eq!((found.get("a"), found.get("b")), (Some("1"), Some("2")));
    }
    let folder = Writable::over_a_repository();
    assert_eq!(folder.store("Test/M", 1, 100, "", b"x").status, 201);
    assert_eq!(folder.ask("PUT", "/Test/M/50?=v").status, 304);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_before_the_beginning_is_a_bad_request_and_changes_nothing() {
    for writable in Writable::each().await {
        let front = address(&writable.service);
        let stored = writable.store("Test/R", 1000, 5000, "", b"x");
        let id = stored.get("ETag").unwrap().trim_matches('"').to_owned();
        for target in [
            "/Test/R/3000/500?k=v".to_owned(),
            "/Test/R/3000/1000?k=v".to_owned(),
            "/Test/R/1000/-7/ObjectType=TH1F".to_owned(),
            format!("/Test/R/3000/999/{id}?k=v"),
        ] {
            assert_eq!(broken_off(&front, "PUT", &target, ""), (400, true), "{target}");
        }
        for at in [1000, 4999] {
            let found = writable.retrieve("Test/R", at).unwrap();
            assert_eq!((found.get("Valid-Until"), found.get("k")), (Some("5000"), None));
        }
        // An end that lies before the time in the address is allowed: the version begins earlier.
        assert_eq!(writable.ask("PUT", "/Test/R/3000/2000?k=v").status, 204);
        assert_eq!(writable.retrieve("Test/R", 1999).unwrap().get("k"), Some("v"));
        assert!(writable.retrieve("Test/R", 2000).is_none());
        assert_eq!(broken_off(&front, "POST", "/Test/R/7/7", ""), (400, true));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_refuses_reserved_metadata_and_another_content_of_an_id() {
    let id = Uuid::from_bytes([9; 16]);
    for writable in [Writable::over_a_repository(), Writable::over_an_object_store()] {
        let front = address(&writable.service);
        for key in ["CreateTime", "OriginalFileName", "ValidUntil"] {
            let target = format!("/Test/K/1/100/{key}=5");
            assert_eq!(broken_off(&front, "POST", &target, ""), (400, true), "{key}");
        }
        assert_eq!(writable.list("Test/K").0, 0);
        let target = format!("/Test/K/1/100/{id}");
        assert_eq!(post(&front, &target, b"one", "").status, 201);
        assert_eq!(broken_off(&front, "POST", &target, ""), (409, true));
        assert_eq!(writable.retrieve("Test/K", 50).unwrap().text(), "one");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_without_a_value_are_not_stored() {
    for writable in Writable::each().await {
        assert_eq!(writable.store("Test/M", 1, 100, "k=/l=v/m=%20", b"x").status, 201);
        let found = writable.retrieve("Test/M", 50).unwrap();
        assert_eq!((found.get("k"), found.get("l"), found.get("m")), (None, Some("v"), None));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_name_of_an_uploaded_file_is_shown_or_else_the_id() {
    for writable in [Writable::over_a_repository(), Writable::over_an_object_store()] {
        let front = address(&writable.service);
        let names = [
            ("; filename=\"plain.root\"", Some(("plain.root", "plain.root"))),
            ("; filename=\"a\\\"b.root\"", Some(("a\\\"b.root", "a\"b.root"))),
            ("; filename=\"\"", None),
            ("", None),
        ];
        for (n, (parameter, expected)) in names.into_iter().enumerate() {
            let body = format!(
                "--B\r\nContent-Disposition: form-data; name=\"send\"{parameter}\r\n\r\nx\r\n--B--\r\n"
            );
            let path = format!("Test/F{n}");
            let head = format!(
                "POST /{path}/1/100 HTTP/1.1\r\nHost: here\r\nContent-Type: \
                 multipart/form-data; boundary=B\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            let mut connection = Connection::open(&front);
            connection.send(&[head.as_bytes(), body.as_bytes()].concat());
            let stored = connection.receive(false);
            assert_eq!(stored.status, 201, "{parameter}: {}", stored.text());
            let id = stored.get("ETag").unwrap().trim_matches('"').to_owned();
            let (header, name) = expected.unwrap_or((&id, &id));
            let found = writable.retrieve(&path, 50).unwrap();
            let disposition = format!("inline;filename=\"{header}\"");
            assert_eq!(found.get("Content-Disposition"), Some(&*disposition));
            let json = [("Accept", "application/json")];
            let listed = get(&front, &format!("/browse/{path}"), &json).json();
            assert_eq!(listed["objects"][0]["fileName"], name, "{parameter}");
        }
    }
}
