//! The rules one by one, request by request.

use uuid::Uuid;

use super::fake_ccdb::{Ask, FakeCcdb, Fault, Kind as Server, Upload};
use super::proxy::{Kind, Proxy};
use super::raw::{Connection, get};

fn id(n: u8) -> Uuid {
    Uuid::from_bytes([n; 16])
}

async fn server(kind: Server) -> FakeCcdb {
    let server = FakeCcdb::start(kind).await;
    for n in 1..=9 {
        let bytes = vec![n; 1_000_000 * usize::from(n == 9) + 1_000];
        server.upload(Upload::new("A/B", i64::from(n) * 1000, 9_000_000).id(id(n)).bytes(bytes));
    }
    server
}

fn body(n: u8) -> String {
    format!("/A/B/{}000/{}", n, id(n))
}

/// All rules for a proxy in front of a CCDB.
async fn rules(kind: Kind) {
    let server = server(Server::Local).await;
    let Some(proxy) = Proxy::start(kind, &server.url()) else { return };
    let at = proxy.address();

    // Every look-up for a time is forwarded, with its headers.
    for _ in 0..3 {
        let before = server.counts();
        let answer = get(&at, "/A/B/1500", &[("If-Not-After", "1000000")]);
        assert_eq!(answer.status, 303);
        assert!(answer.get("Location").unwrap().ends_with(&body(1)), "{answer:?}");
        assert_eq!(answer.get("ETag"), Some(&*format!("\"{}\"", id(1))));
        assert_eq!(get(&at, "/A/B/1500", &[("If-Not-After", "1")]).status, 404);
        assert_eq!(get(&at, "/browse/A/B", &[("Accept", "application/json")]).status, 200);
        let tag = format!("\"{}\"", id(1));
        // nginx refuses the two header lines that AliceO2 sends; our services send one.
        let lines = if kind == Kind::Nginx { 1 } else { 2 };
        let known = [("If-None-Match", &*tag), ("If-None-Match", "1500")];
        assert_eq!(get(&at, "/A/B/1500", &known[..lines]).status, 304);
        let after = server.counts();
        assert_eq!((after.look_ups, after.listings), (before.look_ups + 3, before.listings + 1));
    }

    // Bodies are fetched once, and keep the spelling of their headers.
    for _ in 0..3 {
        let answer = get(&at, &body(1), &[]);
        assert_eq!((answer.status, answer.body.len()), (200, 1_000));
        for name in ["ETag", "Content-MD5", "Valid-From", "Valid-Until", "Created"] {
            assert!(answer.get(name).is_some(), "{name}: {answer:?}");
        }
        assert_eq!(server.counts().bodies, 1);
    }
    let part = get(&at, &body(1), &[("Range", "bytes=10-19")]);
    assert_eq!((part.status, part.body.len()), (206, 10));
    let part = get(&at, &body(2), &[("Range", "bytes=10-19")]);
    assert_eq!((part.status, part.body.len()), (206, 10));
    assert_eq!(get(&at, &body(2), &[]).body.len(), 1_000);
    assert_eq!(server.counts().bodies, 2, "a part is cut out of the whole");

    // Of many simultaneous requests one causes a fetch.
    server.habits().latency = std::time::Duration::from_millis(300);
    let asking: Vec<_> = (0..30)
        .map(|_| {
            let at = at.clone();
            tokio::task::spawn_blocking(move || get(&at, &body(9), &[("Accept", "*/*")]).status)
        })
        .collect();
    for asked in asking {
        assert_eq!(asked.await.unwrap(), 200);
    }
    server.habits().latency = std::time::Duration::ZERO;
    assert_eq!(server.counts().bodies, 3);

    // A page of usage, or a body of another version, is never stored; if the proxy can detect it,
    // it is not even forwarded.
    let spoiled = [
        Fault::Usage,
        Fault::Without("ETag"),
        Fault::Header("ETag", format!("\"{}\"", id(8))),
        Fault::Status(500),
        Fault::Torn(500),
    ];
    for (n, fault) in (3..).zip(spoiled) {
        let has_none = matches!(fault, Fault::Usage | Fault::Without(_));
        let is_torn = matches!(fault, Fault::Torn(_));
        let other = matches!(fault, Fault::Header(..));
        if other && kind == Kind::Squid {
            continue; // Squid cannot compare the two.
        }
        let before = server.counts().bodies;
        server.inject_for(&body(n), Ask::Body, fault, 1);
        if is_torn {
            let at = at.clone();
            let broken = tokio::task::spawn_blocking(move || get(&at, &body(n), &[])).await;
            assert!(broken.map_or(true, |answer| answer.status != 200));
        } else {
            let answer = get(&at, &body(n), &[]);
            let told = answer.status != 200 || answer.get("ETag").is_some();
            assert!(told || (has_none && kind == Kind::Nginx), "{n}: {answer:?}");
        }
        server.heal();
        crate::common::until("the true body", || {
            let answer = get(&at, &body(n), &[]);
            let tag = format!("\"{}\"", id(n));
            (answer.status == 200 && answer.get("ETag") == Some(&*tag)).then_some(())
        });
        assert!(server.counts().bodies >= before + 2, "{n}");
    }

    // No request that changes data passes.
    let before = server.counts();
    for method in ["POST", "PUT", "DELETE"] {
        let answer = Connection::open(&at).ask(method, "/A/B/1/2", &[("Content-Length", "0")]);
        assert!(matches!(answer.status, 403 | 405), "{method}: {answer:?}");
    }
    assert_eq!(get(&at, "/truncate/A/B", &[]).status, 403);
    assert_eq!(server.counts(), before);

    // With the server gone, fetched bodies are still served.
    drop(server);
    for n in [1, 2, 9] {
        let answer = get(&at, &body(n), &[]);
        assert_eq!(answer.status, 200, "{n}");
        assert!(answer.get("ETag").is_some());
    }
    assert!(get(&at, "/A/B/1500", &[]).status >= 500);
    assert!(get(&at, &body(8), &[]).status >= 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn varnish_keeps_bodies_and_nothing_else() {
    rules(Kind::Varnish).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_keeps_bodies_and_nothing_else() {
    rules(Kind::Nginx).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn squid_keeps_bodies_and_nothing_else() {
    rules(Kind::Squid).await;
}

/// A store that speaks S3: objects by key, each with an ETag; listings are forwarded.
async fn rules_of_a_store(kind: Kind) {
    let server = server(Server::Local).await;
    server.upload(Upload::new("bucket/A/B", 1000, 2000).id(id(1)).bytes(b"bytes".to_vec()));
    let Some(proxy) = Proxy::start(kind, &server.url()) else { return };
    let at = proxy.address();
    let key = format!("/bucket/A/B/1000/{}", id(1));
    // A store's ETag is not a UUID.
    let sum = Fault::Header("ETag", "\"4b8ab4ef3b6eb5e0ed9e5b5a7b6a2d3c\"".into());
    server.inject(Ask::Body, sum, 1);
    for _ in 0..3 {
        let answer = get(&at, &key, &[("Authorization", "AWS4-HMAC-SHA256 …")]);
        assert_eq!((answer.status, &*answer.text()), (200, "bytes"));
    }
    assert_eq!(server.counts().bodies, 1);
    for n in 1..=2 {
        assert_eq!(get(&at, "/bucket/?list-type=2&prefix=A/", &[]).status, 200);
        get(&at, &format!("{key}.properties"), &[]);
        assert_eq!(server.counts().look_ups, 2 * n, "these pass");
    }
    // Another version of the key is a separate entry.
    let before = server.counts().bodies;
    for _ in 0..2 {
        get(&at, &format!("{key}?versionId=1"), &[]);
    }
    assert_eq!(server.counts().bodies, before + 2);
    drop(server);
    assert_eq!(get(&at, &key, &[]).text(), "bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_keeps_the_objects_of_a_store() {
    rules_of_a_store(Kind::NginxS3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn varnish_keeps_the_objects_of_a_store() {
    rules_of_a_store(Kind::Varnish).await;
}
