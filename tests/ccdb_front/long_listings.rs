//! Listings of more versions than are kept in memory: whole, in order, bounded, and beside other
//! requests.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use uuid::Uuid;

use super::common::Service;
use super::fake_ccdb::{Ask, FakeCcdb, Fault, Kind, Upload};
use super::raw::{Answer, get};
use super::{address, before};

/// A version of the tests: `created` is its number.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Planned {
    path: &'static str,
    from: i64,
    until: i64,
    created: i64,
    run: i64,
    id: Uuid,
}

impl Planned {
    fn address(&self) -> String {
        format!("/{}/{}/{}", self.path, self.from, self.id)
    }
}

/// Many versions of one path, whose times have different numbers of digits, and some of others.
fn plans(count: i64) -> Vec<Planned> {
    let mut plans = Vec::new();
    let mut plan = |path, from, n: i64| {
        let id = Uuid::from_u128(((n * 7_919) as u128) << 64 | n as u128);
        plans.push(Planned { path, from, until: from + 5_000, created: n, run: n % 10, id });
    };
    for n in 0..count {
        // Several versions begin at one time.
        let from = match n % 4 {
            0 => n / 8,
            1 => 1_000 + n,
            2 => 99_000 + n / 3,
            _ => 1_700_000_000_000 + n,
        };
        plan("Big/Path", from, n + 1);
    }
    for (place, path) in ["Big/Path-x", "Big/Path/Deep", "Big/A", "Small/One"].iter().enumerate() {
        plan(path, 10 + place as i64, count + 1 + place as i64);
    }
    plans
}

/// A repository with these versions, in the layout of a file-backed server.
fn store(folder: &Path, plans: &[Planned]) {
    for plan in plans {
        let place = folder.join(plan.path).join(plan.from.to_string());
        fs::create_dir_all(&place).unwrap();
        let properties = format!(
            "ValidUntil={}\nCreateTime={}\nFile-Size=0\nrun={}\n\
             Content-MD5=d41d8cd98f00b204e9800998ecf8427e\nOriginalFileName=a.bin\n",
            plan.until, plan.created, plan.run
        );
        fs::write(place.join(format!("{}.properties", plan.id)), properties).unwrap();
        fs::write(place.join(plan.id.to_string()), "").unwrap();
    }
}

fn asked(service: &Service, target: &str, headers: &[(&str, &str)]) -> Answer {
    let answer = get(&address(service), target, headers);
    assert_eq!(answer.status, 200, "{target}: {}", answer.text());
    answer
}

/// The addresses in a JSON listing.
fn addresses(service: &Service, target: &str, headers: &[(&str, &str)]) -> Vec<String> {
    let mut all = vec![("Accept", "application/json")];
    all.extend_from_slice(headers);
    let page = asked(service, target, &all).json();
    let objects = page["objects"].as_array().unwrap().iter();
    let address = |object: &Value| object["replicas"][0].as_str().unwrap().to_owned();
    objects.map(address).collect()
}

fn sorted<'a>(plans: impl Iterator<Item = &'a Planned>) -> Vec<String> {
    let mut all: Vec<String> = plans.map(Planned::address).collect();
    all.sort_unstable();
    all
}

/// The versions created last.
fn newest<'a>(plans: impl Iterator<Item = &'a Planned>, limit: usize) -> Vec<&'a Planned> {
    let mut all: Vec<&Planned> = plans.collect();
    all.sort_unstable_by_key(|plan| std::cmp::Reverse(plan.created));
    all.truncate(limit);
    all
}

/// Compares every kind of listing with a scan of the plans. `in_order`: the order counts.
fn check(service: &Service, plans: &[Planned], in_order: bool) {
    let of = |path: &'static str| plans.iter().filter(move |plan| plan.path == path);
    let below = |prefix: &'static str| plans.iter().filter(move |p| p.path.starts_with(prefix));
    let compare = |target: &str, headers: &[(&str, &str)], expected: Vec<String>| {
        let mut found = addresses(service, target, headers);
        if !in_order {
            found.sort_unstable();
        }
        assert_eq!(found.len(), expected.len(), "{target} {headers:?}");
        let differs = found.iter().zip(&expected).find(|(found, expected)| found != expected);
        assert_eq!(differs, None, "{target} {headers:?}");
    };
    compare("/browse/Big/Path", &[], sorted(of("Big/Path")));
    compare("/browse/Big/.*", &[], sorted(below("Big/")));
    compare("/browse/.*", &[], sorted(plans.iter()));
    let at = 1_700_000_000_500;
    let is_valid = |plan: &&Planned| plan.from <= at && at < plan.until;
    compare(&format!("/browse/Big/Path/{at}"), &[], sorted(of("Big/Path").filter(is_valid)));
    compare("/browse/Big/Path/run=3", &[], sorted(of("Big/Path").filter(|plan| plan.run == 3)));
    for limit in [1, 100, 5_000, 20_000] {
        let text = limit.to_string();
        let limits = [("Browse-Limit", &*text)];
        compare("/browse/Big/.*", &limits, sorted(newest(below("Big/"), limit).into_iter()));
        let with_key = newest(of("Big/Path").filter(|plan| plan.run == 7), limit);
        compare("/browse/Big/Path/run=7", &limits, sorted(with_key.into_iter()));
    }
    let not_after = [("If-Not-After", "2500")];
    let early = of("Big/Path").filter(|plan| plan.created <= 2_500);
    compare("/browse/Big/Path", &not_after, sorted(early.clone()));
    compare("/latest/Big/Path", &not_after, sorted(newest(early, 1).into_iter()));
    compare("/latest/Big/Path", &[], sorted(newest(of("Big/Path"), 1).into_iter()));
    let then = newest(of("Big/Path").filter(is_valid), 1);
    compare(&format!("/latest/Big/Path/{at}"), &[], sorted(then.into_iter()));
    let odd = newest(of("Big/Path").filter(|plan| plan.run == 2), 1);
    compare("/latest/Big/Path/run=2", &[], sorted(odd.into_iter()));
    let paths: std::collections::BTreeSet<&str> = plans.iter().map(|plan| plan.path).collect();
    let latest = |path| newest(of(path), 1).into_iter();
    compare("/latest/.*", &[], sorted(paths.into_iter().flat_map(latest)));
    let one = of("Big/Path").nth(4_321).unwrap();
    let target = format!("/browse/Big/Path/{}/{}", one.from, one.id);
    compare(&target, &[], vec![one.address()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_lists_more_versions_than_are_collected_whole_and_in_order() {
    let (folder, plans) = (tempfile::tempdir().unwrap(), plans(6_000));
    store(folder.path(), &plans);
    let service = Service::over(folder.path(), &["--ccdb", "127.0.0.1:0"]);
    check(&service, &plans, true);
    let count = plans.iter().filter(|plan| plan.path == "Big/Path").count();
    let text = asked(&service, "/browse/Big/Path", &[]).text();
    assert_eq!(text.matches("\nPath: /Big/Path/").count(), count);
    assert!(text.ends_with("\nSubfolders:\n  Big/Path/Deep\n\n"), "{:?}", &text[text.len() - 99..]);
    let xml = asked(&service, "/browse/Big/Path?Accept=text/xml", &[]).text();
    assert_eq!(xml.matches("<object id='").count(), count);
    assert!(xml.ends_with("</folders>\n</document>\n"));
    let html = asked(&service, "/browse/Big/Path?Accept=text/html", &[]).text();
    assert_eq!(html.matches("<td data-name=\"Created\"").count(), 1_000);
    assert!(html.contains("more than 1000"), "{html:.3000}");
    assert!(html.contains("created 6000<"), "the chart has the versions created last");
    // Also a version that others hide at all times is found at its address.
    for plan in plans.iter().step_by(997) {
        assert_eq!(get(&address(&service), &plan.address(), &[]).status, 200, "{plan:?}");
        let elsewhere = format!("/Big/Path/{}/{}", plan.from + 1, Uuid::from_u128(5));
        assert_eq!(get(&address(&service), &elsewhere, &[]).status, 404);
    }
    let json = asked(&service, "/browse/Big?Accept=application/json", &[]).json();
    assert_eq!(json["subfolders"], serde_json::json!(["Big/A", "Big/Path", "Big/Path-x"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ccdb_lists_more_versions_than_the_service_keeps() {
    let plans = plans(6_000);
    for kind in [Kind::Local, Kind::Sql] {
        let server = FakeCcdb::start(kind).await;
        for plan in &plans {
            let upload = Upload::new(plan.path, plan.from, plan.until).id(plan.id);
            server.upload(upload.created(plan.created).metadata("run", &plan.run.to_string()));
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("iovcache.toml");
        fs::write(&file, "[ccdb]\nbrowse_limit = 1000\n").unwrap();
        let service = before(&server, &["--config", file.to_str().unwrap()]);
        // The one address of a version is that of this service, whatever the server's.
        check(&service, &plans, false);
        let listed = addresses(&service, "/browse/Big/Path", &[]);
        assert_eq!(get(&address(&service), &listed[77], &[]).status, 200, "{}", listed[77]);
        // The first entry comes from the server, and then no more: the answer breaks off.
        server.inject_for("/browse/Big/.*", Ask::Listing, Fault::Torn(500), 100);
        let target = "/browse/Big/.*?Accept=application/json";
        assert!(is_cut_off(&address(&service), target), "a torn listing must not look whole");
        server.heal();
    }
}

/// Whether an answer has no regular end.
fn is_cut_off(address: &str, target: &str) -> bool {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(super::common::PATIENCE)).unwrap();
    write!(stream, "GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    let text = String::from_utf8_lossy(&all);
    assert!(text.starts_with("HTTP/1.1 200"), "{}", &text[..text.len().min(99)]);
    assert!(text.contains("\r\nTransfer-Encoding: chunked\r\n"));
    !text.ends_with("\r\n0\r\n\r\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_do_not_read_their_listings_hold_little_memory_and_delay_no_other() {
    let (folder, plans) = (tempfile::tempdir().unwrap(), plans(20_000));
    store(folder.path(), &plans);
    let service = Service::over(folder.path(), &["--ccdb", "127.0.0.1:0"]);
    let small = || {
        let began = Instant::now();
        assert_eq!(get(&address(&service), "/Small/One/20", &[]).status, 303);
        assert_eq!(addresses(&service, "/browse/Small/One", &[]).len(), 1);
        began.elapsed()
    };
    small();
    asked(&service, "/browse/Big/Path", &[]);
    let before = resident_bytes(service.pid());
    let stalled: Vec<TcpStream> = (0..40)
        .map(|_| {
            let mut stream = TcpStream::connect(address(&service)).unwrap();
            let head = "GET /browse/Big/Path HTTP/1.1\r\nHost: x\r\n\r\n";
            stream.write_all(head.as_bytes()).unwrap();
            stream
        })
        .collect();
    std::thread::sleep(Duration::from_secs(2));
    let slowest = (0..20).map(|_| small()).max().unwrap();
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    let grown = resident_bytes(service.pid()).saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes");
    drop(stalled);
    // Their places are free again.
    assert_eq!(addresses(&service, "/browse/Big/Path", &[]).len(), 20_000);
}

fn resident_bytes(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}
