//! Requests of CCDB clients, byte by byte.

use md5::{Digest as _, Md5};
use uuid::Uuid;

use super::fake_ccdb::{FakeCcdb, Fault, Kind, Upload};
use super::raw::{Connection, get};
use super::{address, before};
use crate::fake_ccdb::Ask;

fn id(n: u8) -> Uuid {
    Uuid::from_bytes([n; 16])
}

/// Two versions of `A/B`; the later one hides the earlier from 1500 to 1800.
async fn server() -> FakeCcdb {
    let server = FakeCcdb::start(Kind::Local).await;
    let first = Upload::new("A/B", 1000, 2000).id(id(1)).created(10).metadata("RunNumber", "42");
    server.upload(first.metadata("partName", "blob").bytes(b"0123456789".to_vec()));
    let second = Upload::new("A/B", 1500, 1800).id(id(2)).created(20).metadata("RunNumber", "43");
    server.upload(second.bytes(b"second".to_vec()));
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn header_names_go_out_as_ccdb_spells_them() {
    let server = server().await;
    for how in ["redirect", "body"] {
        let service = before(&server, &["--ccdb-answer", how]);
        let answer = get(&address(&service), "/A/B/1200", &[]);
        for name in ["Valid-Until", "Valid-From", "Created", "ETag", "Last-Modified"] {
            assert!(answer.get(name).is_some(), "{how}: {name}: {answer:?}");
        }
        assert_eq!(answer.get("ETag"), Some(&*format!("\"{}\"", id(1))));
        assert_eq!((answer.get("RunNumber"), answer.get("partName")), (Some("42"), Some("blob")));
        // The end of the effective span, where the second version begins.
        assert_eq!(answer.get("Cache-Valid-Until"), Some("1500"));
        let direct = format!("/A/B/1000/{}", id(1));
        let body = match how {
            "redirect" => {
                assert_eq!((answer.status, answer.get("Location")), (303, Some(&*direct)));
                get(&address(&service), &direct, &[])
            }
            _ => answer,
        };
        assert_eq!((body.status, &*body.text()), (200, "0123456789"));
        assert_eq!(body.get("Content-MD5"), Some("781e5e245d69b566979b86e28d23f2c7"));
        assert_eq!(body.get("Accept-Ranges"), Some("bytes"));
        let same = get(&address(&service), &format!("/download/{}", id(1)), &[]);
        assert_eq!((same.status, &same.body), (200, &body.body));
        assert_eq!(same.get("Cache-Control"), None);
    }
    assert_eq!(server.counts().bodies_sent, 2, "one body for each service");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_if_none_match_lines_as_o2_sends_them_are_answered_with_304() {
    let server = server().await;
    let service = before(&server, &[]);
    let mut connection = Connection::open(&address(&service));
    let tag = format!("\"{}\"", id(1));
    for lines in [
        [("If-None-Match", &*tag), ("If-None-Match", "1200")],
        [("If-None-Match", "1200"), ("If-None-Match", &*tag)],
    ] {
        let answer = connection.ask("GET", "/A/B/1200", &lines);
        assert_eq!((answer.status, answer.get("Cache-Valid-Until")), (304, Some("1500")));
        assert_eq!(connection.ask("GET", "/A/B/1600", &lines).status, 303);
    }
    let direct = format!("/A/B/1000/{}", id(1));
    assert_eq!(connection.ask("GET", &direct, &[("If-None-Match", &tag)]).status, 304);
    assert_eq!(connection.ask("HEAD", &direct, &[("If-None-Match", "*")]).status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_and_metadata_choose_the_version() {
    let server = server().await;
    let service = before(&server, &[]);
    let mut connection = Connection::open(&address(&service));
    let mut winner = |target: &str, headers: &[(&str, &str)]| {
        let answer = connection.ask("HEAD", target, headers);
        let tag = answer.get("ETag").map(|tag| Uuid::parse_str(tag.trim_matches('"')).unwrap());
        assert_eq!(answer.status, if tag.is_some() { 303 } else { 404 });
        tag
    };
    assert_eq!(winner("/A/B/1600", &[]), Some(id(2)));
    assert_eq!(winner("/A/B/1800", &[]), Some(id(1)));
    assert_eq!(winner("/A/B/2000", &[]), None);
    assert_eq!(winner("/A/B/1600", &[("If-Not-After", "19")]), Some(id(1)));
    assert_eq!(winner("/A/B/1600", &[("If-Not-After", "20")]), Some(id(2)));
    assert_eq!(winner("/A/B/1600", &[("If-Not-After", "0")]), Some(id(2)));
    assert_eq!(winner("/A/B/1600", &[("If-Not-Before", "21")]), None);
    assert_eq!(winner("/A/B/1200", &[("If-Not-Before", "11")]), None);
    assert_eq!(winner("/A/B/1600/RunNumber=42", &[]), Some(id(1)));
    assert_eq!(winner("/A/B/RunNumber=42/1600/1700", &[]), Some(id(1)));
    assert_eq!(winner("/A/B/1600/runnumber=42", &[]), None);
    assert_eq!(winner("/A/B/1600/Other=1", &[]), None);
    assert_eq!(winner("/A/b/1600", &[]), None);
    assert_eq!(winner("/A/B%20C/1600", &[]), None);
    // A version that never wins can still be fetched at its own address.
    assert_eq!(get(&address(&service), &format!("/A/B/1000/{}", id(1)), &[]).status, 200);
    assert_eq!(get(&address(&service), &format!("/A/B/1000/{}", id(3)), &[]).status, 404);
    assert_eq!(get(&address(&service), &format!("/A/C/1000/{}", id(1)), &[]).status, 404);
    assert_eq!(get(&address(&service), &format!("/download/{}", id(3)), &[]).status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_of_a_body_are_sent_as_asked_for() {
    let server = server().await;
    let service = before(&server, &[]);
    let direct = format!("/A/B/1000/{}", id(1));
    let mut connection = Connection::open(&address(&service));
    let mut part = |range: &str| {
        let answer = connection.ask("GET", &direct, &[("Range", range)]);
        let range = answer.get("Content-Range").map(str::to_owned);
        (answer.status, range, answer.text())
    };
    let one = |range: &str, text: &str| (206, Some(format!("bytes {range}/10")), text.to_owned());
    assert_eq!(part("bytes=0-3"), one("0-3", "0123"));
    assert_eq!(part("bytes=7-99"), one("7-9", "789"));
    assert_eq!(part("bytes=-2"), one("8-9", "89"));
    assert_eq!(part("bytes=10-"), (416, Some("bytes */10".to_owned()), String::new()));
    assert_eq!(part("bytes=0-8,1-9"), (200, None, "0123456789".to_owned()));
    let several = connection.ask("GET", &direct, &[("Range", "bytes=0-1,4-5")]);
    let kind = several.get("Content-Type").unwrap().to_owned();
    let boundary = kind.strip_prefix("multipart/byteranges; boundary=").unwrap();
    let expected = |range: &str, bytes: &str| {
        format!(
            "\r\n--{boundary}\r\nContent-Type: text/plain\r\n\
             Content-Range: bytes {range}/10\r\n\r\n{bytes}"
        )
    };
    let end = format!("\r\n--{boundary}--");
    assert_eq!(several.status, 206);
    assert_eq!(several.text(), expected("0-1", "01") + &expected("4-5", "45") + &end);
    let tags = [format!("\"{}\"", id(1)), format!("\"{}\"", id(2))];
    for (tag, status) in tags.iter().zip([206, 200]) {
        let headers = [("Range", "bytes=0-3"), ("If-Range", tag)];
        assert_eq!(connection.ask("GET", &direct, &headers).status, status);
    }
    let head = connection.ask("HEAD", &direct, &[("Range", "bytes=0-3")]);
    assert_eq!((head.status, head.get("Content-Length")), (200, Some("10")));
    assert!(head.get("Content-MD5").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_cannot_be_parsed_is_never_answered_with_200() {
    let server = server().await;
    let service = before(&server, &[]);
    assert_eq!(Connection::open(&address(&service)).ask("FETCH", "/A/B/1", &[]).status, 501);
    let long = format!("/A/B/1/k={}", "x".repeat(20_000));
    assert_eq!(get(&address(&service), &long, &[]).status, 414);
    for (target, status) in [
        ("/", 400),
        ("/A/B", 400),
        ("/A/B/99999999999999999999", 400),
        ("/A/B/1/2/3", 400),
        ("/A/B/1/x", 400),
        ("/a/b/c/d/e/f/g/h/i/j/k/1", 400),
        ("/A/%zz/1", 400),
        ("/A/%00/1", 400),
        ("/download/x", 400),
        ("/../etc/1", 404),
        ("/%2e%2e/A/1", 404),
    ] {
        assert_eq!(get(&address(&service), target, &[]).status, status, "{target}");
    }
    let mut connection = Connection::open(&address(&service));
    connection.send(b"\x16\x03\x01 what?\r\n\r\n");
    assert_eq!(connection.receive(false).status, 400);
    assert!(connection.has_ended());
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_come_together_are_answered_in_order() {
    let server = server().await;
    let service = before(&server, &["--ccdb-answer", "body"]);
    let mut connection = Connection::open(&address(&service));
    let one = |method: &str, at: i64| format!("{method} /A/B/{at} HTTP/1.1\r\nHost: x\r\n\r\n");
    let all = one("GET", 1200) + &one("HEAD", 1200) + &one("GET", 1600) + &one("GET", 3000);
    for half in [&all.as_bytes()[..70], &all.as_bytes()[70..]] {
        connection.send(half);
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(connection.receive(false).text(), "0123456789");
    assert_eq!(connection.receive(true).get("Content-Length"), Some("10"));
    assert_eq!(connection.receive(false).text(), "second");
    assert_eq!(connection.receive(false).status, 404);
    // HTTP/1.0 without keep-alive closes the connection.
    connection.send(b"GET /A/B/1200 HTTP/1.0\r\n\r\n");
    assert_eq!(connection.receive(false).text(), "0123456789");
    assert!(connection.has_ended());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_down_is_told_and_what_is_known_is_served_on() {
    let server = server().await;
    let service = before(&server, &[]);
    let address = address(&service);
    assert_eq!(get(&address, "/A/B/1200", &[]).status, 303);
    let direct = format!("/A/B/1000/{}", id(1));
    assert_eq!(get(&address, &direct, &[]).status, 200);
    for ask in [Ask::LookUp, Ask::Listing, Ask::Body] {
        server.inject(ask, Fault::Status(503), 0);
    }
    std::thread::sleep(std::time::Duration::from_millis(400));
    assert_eq!(get(&address, "/A/B/1200", &[]).status, 303, "an older answer");
    assert_eq!(get(&address, &direct, &[]).status, 200, "it is in memory");
    let unknown = get(&address, "/A/Unknown/1200", &[]);
    assert_eq!((unknown.status, unknown.get("Retry-After")), (503, Some("1")));
    let absent = get(&address, &format!("/A/B/1500/{}", id(2)), &[]);
    assert_eq!(absent.status, 503, "its bytes cannot be had");
    server.heal();
    assert_eq!(get(&address, &format!("/A/B/1500/{}", id(2)), &[]).status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_counters_of_the_service_are_listed_as_a_real_server_lists_its_own() {
    let server = server().await;
    let service = before(&server, &[]);
    let address = address(&service);
    assert_eq!(get(&address, "/A/B/1200", &[]).status, 303);
    let all = get(&address, "/monitor/", &[]);
    assert_eq!((all.status, all.get("Content-Type")), (200, Some("application/json")));
    let nodes = all.json()["iovcache"].as_object().unwrap().clone();
    let (node, values) = nodes.iter().next().unwrap();
    let values = values.as_array().unwrap();
    let requests = values.iter().find(|one| one["param"] == "ccdb_requests").unwrap();
    assert!(requests["value"].as_u64().unwrap() >= 1 && requests["updated"].is_u64());
    for (filter, count) in [
        (format!("iovcache/{node}/ccdb_requests"), 1),
        ("iovcache/.*/ccdb_.*".to_owned(), 3),
        ("iovcache".to_owned(), values.len()),
    ] {
        let some = get(&address, &format!("/monitor/{filter}"), &[]).json();
        assert_eq!(some["iovcache"][node].as_array().unwrap().len(), count, "{filter}");
    }
    let none = get(&address, "/monitor/other", &[]);
    assert_eq!((none.status, none.json()), (200, serde_json::json!({})));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_counts_the_versions_and_bytes_of_each_folder() {
    for kind in [Kind::Local, Kind::Sql] {
        let server = FakeCcdb::start(kind).await;
        for (path, bytes) in
            [("A/B", 10), ("A/B", 20), ("A/B/C", 3), ("A/B/C/D", 4), ("A/E", 7), ("F", 1)]
        {
            server.upload(Upload::new(path, 0, 10).bytes(vec![0; bytes]));
        }
        let service = before(&server, &[]);
        let target = "/browse/A?report=true&Accept=application/json";
        let report = get(&address(&service), target, &[]).json();
        let folder = |name: &str, numbers: [u64; 4]| {
            serde_json::json!({
                "name": name, "ownFiles": numbers[0], "ownSize": numbers[1],
                "filesInSubfolders": numbers[2], "sizeOfSubfolders": numbers[3],
            })
        };
        let expected = [folder("A/B", [2, 30, 2, 7]), folder("A/E", [1, 7, 0, 0])];
        assert_eq!(report["subfolders"], serde_json::json!(expected), "{kind:?}");
        let plain = get(&address(&service), "/browse/A?Accept=application/json", &[]).json();
        assert_eq!(plain["subfolders"], serde_json::json!(["A/B", "A/E"]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn folders_are_listed_once_per_refresh_time_and_the_listing_of_a_part_is_no_other() {
    let server = FakeCcdb::start(Kind::Local).await;
    for n in 0..20 {
        server.upload(Upload::new(&format!("A/P{n}"), 0, 10).created(100 + n));
        server.upload(Upload::new(&format!("A/P{n}"), 0, 10).created(n));
    }
    let url = server.url();
    let all = ["--source", url.as_str(), "--refresh", "1h", "--ccdb", "127.0.0.1:0"];
    let service = super::common::Service::start(&all);
    let address = address(&service);
    let folders = || get(&address, "/browse/A?Accept=application/json", &[]).json();
    assert_eq!(folders()["subfolders"].as_array().unwrap().len(), 20);
    let listings = server.counts().listings;
    for _ in 0..5 {
        assert_eq!(folders()["subfolders"].as_array().unwrap().len(), 20);
    }
    assert_eq!(server.counts().listings, listings);
    let created = |target: &str, limit: &str| -> Vec<i64> {
        let headers = [("Browse-Limit", limit), ("Accept", "application/json")];
        let page = get(&address, target, &headers).json();
        let objects = page["objects"].as_array().unwrap().iter();
        objects.map(|object| object["createTime"].as_i64().unwrap()).collect()
    };
    let mut latest = created("/latest/A/.*", "0");
    latest.sort_unstable();
    assert_eq!(latest, (100..120).collect::<Vec<_>>());
    assert_eq!(created("/browse/A/.*", "3"), [117, 118, 119]);
}

#[tokio::test(flavor = "multi_thread")]
async fn methods_that_are_not_served_are_told_as_at_a_real_server() {
    let server = server().await;
    let service = before(&server, &[]);
    let trace = Connection::open(&address(&service)).ask("TRACE", "/", &[]);
    assert_eq!(trace.status, 405);
    assert!(trace.get("Allow").is_some_and(|methods| methods.contains("OPTIONS")));
    // A path like any other.
    assert_eq!(get(&address(&service), "/metadata/A/B/1200", &[]).status, 404);
    let preflight = [
        ("Origin", "http://a"),
        ("Access-Control-Request-Method", "GET"),
        ("Access-Control-Request-Headers", "range,if-none-match"),
    ];
    let allowed = Connection::open(&address(&service)).ask("OPTIONS", "/A/B/1200", &preflight);
    assert_eq!(allowed.status, 200);
    assert_eq!(allowed.get("Access-Control-Allow-Origin"), Some("*"));
    for (header, value) in [
        ("Access-Control-Allow-Methods", "GET"),
        ("Access-Control-Allow-Headers", "range"),
        ("Access-Control-Allow-Headers", "if-none-match"),
        ("Access-Control-Expose-Headers", "content-range"),
    ] {
        assert!(allowed.get(header).is_some_and(|text| text.contains(value)), "{header}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_at_two_places_of_a_ccdb_is_served_with_the_bytes_of_each() {
    for how in ["redirect", "body"] {
        let server = FakeCcdb::start(Kind::Local).await;
        let same = Uuid::from_bytes([9; 16]);
        server.upload(Upload::new("V/S", 1, 100).id(same).created(1).bytes("one"));
        server.upload(Upload::new("V/S", 50, 200).id(same).created(2).bytes("three"));
        server.upload(Upload::new("V/T", 1, 100).id(same).created(3).bytes("other path"));
        let service = before(&server, &["--ccdb-answer", how]);
        let front = address(&service);
        let follow = |target: &str| {
            let answer = get(&front, target, &[]);
            match answer.status {
                303 => get(&front, answer.get("Location").unwrap(), &[]),
                _ => answer,
            }
        };
        let bytes_at = |target: &str| {
            let mut body = follow(target);
            // The bytes of the other place are replaced once no answer needs them.
            while body.status == 503 && body.text().contains("IOV-3010") {
                std::thread::sleep(std::time::Duration::from_millis(20));
                body = follow(target);
            }
            let from = body.get("Valid-From").unwrap_or_default().to_owned();
            let md5 = body.get("Content-MD5").unwrap_or_default().to_owned();
            assert_eq!(body.status, 200, "{target}: {}", body.text());
            let sum: [u8; 16] = Md5::digest(&body.body).into();
            assert_eq!(md5, sum.map(|byte| format!("{byte:02x}")).concat(), "{target}");
            (from, body.text())
        };
        let expected = |from: &str, text: &str| (from.to_owned(), text.to_owned());
        for _ in 0..3 {
            assert_eq!(bytes_at("/V/S/30"), expected("1", "one"), "{how}");
            assert_eq!(bytes_at("/V/S/60"), expected("50", "three"), "{how}");
            assert_eq!(bytes_at("/V/T/60"), expected("1", "other path"), "{how}");
            assert_eq!(bytes_at(&format!("/V/S/1/{same}")), expected("1", "one"), "{how}");
            assert_eq!(bytes_at(&format!("/V/S/50/{same}")), expected("50", "three"), "{how}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_and_formats_are_chosen_as_at_a_real_server() {
    let server = server().await;
    let service = before(&server, &[]);
    let keys = |fields: &[&str]| {
        let mut headers = vec![("Accept", "application/json")];
        headers.extend(fields.iter().map(|fields| ("X-Filter-Fields", *fields)));
        let page = get(&address(&service), "/browse/A/B?Accept=", &headers).json();
        page["objects"][0].as_object().unwrap().len()
    };
    for fields in ["path,id,size", "path id size", "path;id\tsize", " ,path,, id ;size "] {
        assert_eq!(keys(&[fields]), 3, "{fields:?}");
    }
    assert_eq!(keys(&["path", "path,id,size"]), 1);
    let all = keys(&[]);
    assert!(all > 10 && keys(&[""]) == all && keys(&[" ,;"]) == all, "{all}");
}
