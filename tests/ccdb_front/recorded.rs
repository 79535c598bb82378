//! Compares answers header by header with the recorded answers of real servers.
//!
//! The recordings are in a folder beside the project (`../shared`, or `$IOVCACHE_SHARED`); where
//! they are missing, these tests print so and pass.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use uuid::Uuid;

use super::fake_ccdb::{FakeCcdb, Kind, Upload};
use super::raw::{Answer, Connection};
use super::{address, before};

/// Permitted differences. Everything else must be equal, spelling of names included.
const DIFFERENCES: &[(&str, Differs, &str)] = &[
    ("Date", Differs::InValue, "it is another day"),
    ("Last-Modified", Differs::InValue, "sources tell no such time: it is that of Created"),
    ("Content-Type", Differs::Wholly, "sources do not tell with which it was uploaded, if any"),
    ("Content-Disposition", Differs::InValue, "likewise; the file is named like the path"),
    ("Location", Differs::InValue, "always in the form of file-backed servers"),
    ("Content-Location", Differs::Wholly, "there is one replica: the service itself"),
    ("Cache-Valid-Until", Differs::Wholly, "the recorded servers are too old to send it"),
    ("Transfer-Encoding", Differs::Wholly, "a HEAD has a length here, 0 on a redirect"),
    ("Content-Language", Differs::Wholly, "of a page in English, always told"),
];

/// Exchanges that cannot be equal.
const NOT_COMPARED: &[(&str, &str)] = &[
    ("L57.", "the path is outside of our grammar, so there is no such object"),
    ("S57.", "likewise"),
    ("S58.", "the real server sends the MD5 of bytes that it has overwritten"),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Differs {
    InValue,
    Wholly,
}

/// Statuses that differ, by the recorded exchange.
fn expected_status(recorded: &Exchange) -> u16 {
    match recorded.answer.status {
        // A page of usage has no ETag: with status 200 clients take it for an object.
        200 if recorded.answer.get("ETag").is_none() && !recorded.is_listing() => 400,
        status => status,
    }
}

type Headers = Vec<(String, String)>;

/// A recorded request and its answer.
#[derive(Debug)]
struct Exchange {
    name: String,
    method: String,
    target: String,
    headers: Headers,
    answer: Answer,
}

impl Exchange {
    fn is_listing(&self) -> bool {
        self.target.starts_with("/browse") || self.target.starts_with("/latest")
    }
}

fn folder() -> Option<PathBuf> {
    let folder = match std::env::var_os("IOVCACHE_SHARED") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"),
    };
    let folder = folder.join("facts/ccdb-transcripts");
    let there = folder.join("local-get.md").exists();
    if !there {
        println!("no recorded exchanges at {}", folder.display());
    }
    there.then_some(folder)
}

/// Every exchange of a file: curl's `>` and `<` lines, then the body.
fn exchanges(file: &Path) -> Vec<Exchange> {
    let text = std::fs::read_to_string(file).unwrap();
    let mut all: Vec<Exchange> = Vec::new();
    let mut name = "";
    let mut asked: Option<(String, String, Headers)> = None;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(title) = line.strip_prefix("### ") {
            name = title;
        } else if let Some(line) = line.strip_prefix("> ") {
            match line.strip_suffix(" HTTP/1.1").and_then(|l| l.split_once(' ')) {
                Some((method, target)) => {
                    asked = Some((method.to_owned(), target.to_owned(), Vec::new()));
                }
                None => {
                    if let (Some(asked), Some((n, v))) = (&mut asked, line.split_once(": ")) {
                        asked.2.push((n.to_owned(), v.to_owned()));
                    }
                }
            }
        } else if let Some(line) = line.strip_prefix("< ") {
            if let Some(status) = line.strip_prefix("HTTP/1.1 ") {
                let Some((method, target, headers)) = asked.take() else { continue };
                let status = status.trim().parse().unwrap();
                let answer = Answer { status, headers: Vec::new(), body: Vec::new() };
                all.push(Exchange { name: name.to_owned(), method, target, headers, answer });
            } else if let Some((n, v)) = line.split_once(": ") {
                let header = (n.to_owned(), v.to_owned());
                all.last_mut().unwrap().answer.headers.push(header);
            }
        } else if line.starts_with("--- body, ") {
            let size: usize =
                line.split([' ', ',']).find_map(|word| word.parse().ok()).unwrap_or_default();
            let body: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            let mut body = (body.join("\n") + "\n").into_bytes();
            body.truncate(size);
            if let Some(last) = all.last_mut().filter(|last| last.method == "GET") {
                last.answer.body = body;
            }
        }
    }
    all
}

/// Uploads each version that the answers show, with its bytes if they were recorded.
fn upload_all(server: &FakeCcdb, all: &[Exchange]) {
    const PROTOCOL: &[&str] = &[
        "Accept-Ranges",
        "Cache-Control",
        "Content-Disposition",
        "Content-Language",
        "Content-Length",
        "Content-Location",
        "Content-MD5",
        "Content-Range",
        "Content-Type",
        "Created",
        "Date",
        "ETag",
        "InitialValidityLimit",
        "Last-Modified",
        "Location",
        "Transfer-Encoding",
        "Valid-From",
        "Valid-Until",
    ];
    let id = |answer: &Answer| Uuid::parse_str(answer.get("ETag")?.trim_matches('"')).ok();
    // The first recording counts: later versions were altered behind the server's back.
    let bytes: BTreeMap<Uuid, &[u8]> = all
        .iter()
        .rev()
        .filter(|exchange| exchange.answer.status == 200 && exchange.method == "GET")
        .filter_map(|exchange| Some((id(&exchange.answer)?, &exchange.answer.body[..])))
        .collect();
    let mut known = Vec::new();
    for exchange in all.iter().filter(|exchange| matches!(exchange.answer.status, 200 | 303)) {
        let answer = &exchange.answer;
        let Some(id) = id(answer).filter(|id| !known.contains(id)) else { continue };
        let is_path = |element: &&str| element.parse::<i64>().is_err();
        let elements = exchange.target.split('/').filter(|element| !element.is_empty());
        let path: Vec<&str> = elements.take_while(is_path).collect();
        if path[0] == "download" || exchange.target.contains('%') {
            continue;
        }
        known.push(id);
        let number = |name: &str| answer.get(name).unwrap().parse::<i64>().unwrap();
        let mut upload = Upload::new(&path.join("/"), number("Valid-From"), number("Valid-Until"))
            .id(id)
            .created(number("Created"))
            .bytes(bytes.get(&id).copied().unwrap_or(b"AAAA object A\n").to_vec());
        for (name, value) in &answer.headers {
            if !PROTOCOL.contains(&name.as_str()) && !name.starts_with("Access-Control-") {
                upload = upload.metadata(name, value);
            }
        }
        server.upload(upload);
    }
}

/// The headers to be compared, each with its value where that is compared too.
fn comparable(answer: &Answer, is_head: bool) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = Vec::new();
    for (name, value) in &answer.headers {
        let differs = DIFFERENCES.iter().find(|(n, ..)| n == name).map(|(_, differs, _)| *differs);
        let page = name == "Content-Length" && (answer.status >= 400 || is_head);
        match differs {
            Some(Differs::Wholly) => {}
            _ if page => {}
            Some(Differs::InValue) => all.push((name.clone(), String::new())),
            None => all.push((name.clone(), value.clone())),
        }
    }
    all.sort();
    all
}

async fn compare(file: &str, names: &[&str], how: &str) {
    let Some(folder) = folder() else { return };
    let server = FakeCcdb::start(Kind::Local).await;
    let all = exchanges(&folder.join(file));
    upload_all(&server, &all);
    let service = before(&server, &["--ccdb-answer", how]);
    // Where the body is sent at once, the file-backed server's own address is as good as
    // `/download`.
    let mut connection = Connection::open(&address(&service));
    let mut compared = 0;
    for recorded in &all {
        let wanted = |name: &&str| {
            recorded.name.strip_prefix(*name).is_some_and(|rest| rest.starts_with('.'))
        };
        if !names.is_empty() && !names.iter().any(wanted) {
            continue;
        }
        if NOT_COMPARED.iter().any(|(name, _)| recorded.name.starts_with(name)) {
            continue;
        }
        let headers: Vec<(&str, &str)> = recorded
            .headers
            .iter()
            .filter(|(name, _)| name != "Host")
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let ours = connection.ask(&recorded.method, &recorded.target, &headers);
        let shown = || format!("{}: {} {}", recorded.name, recorded.method, recorded.target);
        assert_eq!(ours.status, expected_status(recorded), "{}", shown());
        compared += 1;
        if ours.status == recorded.answer.status {
            let is_head = recorded.method == "HEAD";
            let [ours_h, theirs] = [&ours, &recorded.answer].map(|a| comparable(a, is_head));
            assert_eq!(ours_h, theirs, "{}", shown());
            if ours.status == 200 {
                assert_eq!(ours.body, recorded.answer.body, "{}", shown());
            }
        }
        if ours.get("Connection") == Some("close") {
            connection = Connection::open(&address(&service));
        }
    }
    assert!(compared > 3, "{compared} of {}", all.len());
    println!("{file}: {compared} exchanges compared");
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_are_answered_as_the_file_backed_server_does() {
    compare("local-get.md", &[], "redirect").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_are_answered_as_the_sql_backed_server_does() {
    compare("sql-get.md", &[], "redirect").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_at_once_are_sent_as_the_sql_backed_server_does() {
    compare("sql-local-copy-first.md", &["S2", "S5", "S9", "S13", "S14"], "body").await;
}

/// Permitted differences in an entry of a listing: see [`DIFFERENCES`].
const OTHER_FIELDS: [&str; 6] = [
    "fileName",
    "contentType",
    "Content-Disposition",
    "Content-Type",
    "lastModified",
    "Last-Modified",
];

fn plain(mut page: Value) -> Value {
    for object in page["objects"].as_array_mut().unwrap() {
        for field in OTHER_FIELDS {
            object.as_object_mut().unwrap().remove(field);
        }
    }
    page
}

#[tokio::test(flavor = "multi_thread")]
async fn listings_are_those_of_the_file_backed_server() {
    let Some(folder) = folder() else { return };
    let server = FakeCcdb::start(Kind::Local).await;
    let all = exchanges(&folder.join("local-browse.md"));
    let listings: Vec<(&Exchange, Value)> = all
        .iter()
        .filter(|e| ["/browse/A", "/latest/A"].iter().any(|begin| e.target.starts_with(begin)))
        .filter(|e| !e.target.contains("report=true") && e.method == "GET")
        .filter_map(|e| Some((e, serde_json::from_slice(&e.answer.body).ok()?)))
        .collect();
    let mut known = Vec::new();
    for object in listings.iter().flat_map(|(_, page)| page["objects"].as_array().unwrap()) {
        let Some(id) = object["id"].as_str().filter(|id| !known.contains(id)) else { continue };
        known.push(id);
        let number = |key: &str| object[key].as_i64().unwrap();
        let text = |key: &str| object[key].as_str().unwrap();
        let mut upload = Upload::new(text("path"), number("validFrom"), number("validUntil"))
            .id(Uuid::parse_str(id).unwrap())
            .created(number("createTime"))
            .bytes(vec![b'x'; number("size") as usize]);
        if let Some(run) = object["run"].as_str() {
            upload = upload.metadata("run", run);
        }
        let id = server.upload(upload);
        server.change(id, |version| version.md5 = text("MD5").to_owned());
    }
    let service = before(&server, &[]);
    let mut connection = Connection::open(&address(&service));
    assert!(listings.len() > 20, "{}", listings.len());
    for (recorded, page) in listings {
        let headers: Vec<(&str, &str)> = recorded
            .headers
            .iter()
            .filter(|(name, _)| name != "Host")
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let ours = connection.ask("GET", &recorded.target, &headers);
        assert_eq!(ours.status, 200, "{}", recorded.name);
        assert_eq!(ours.get("Content-Type"), recorded.answer.get("Content-Type"));
        assert_eq!(plain(ours.json()), plain(page), "{}: {}", recorded.name, recorded.target);
    }
    let text = connection.ask("GET", "/browse/A/Two", &[("Accept", "text/plain")]).text();
    for line in ["Path: /A/Two/1000/", "  run = 1\n", "Subfolders:\n  A/Two/Deep\n"] {
        assert!(text.contains(line), "{text}");
    }
}
