//! The bytes of a version, from every place that has them.

use super::fake_ccdb::{Ask, Fault, Upload};
use super::*;

#[tokio::test]
async fn a_body_is_fetched_by_uuid_from_every_kind_of_server() {
    for kind in EVERY_KIND {
        for options in [short(), by_time()] {
            let server = FakeCcdb::start(kind).await;
            server.upload(Upload::new("A/One", 1000, 2000).bytes("hello"));
            let source = source(&server, options);
            let version = version_at(&source, "A/One", 1500).await;
            assert_eq!(bytes_of(&source, &version).await.unwrap(), b"hello", "{kind:?}");
            let counts = server.counts();
            assert_eq!((counts.bodies, counts.bodies_sent), (1, 1), "straight there: {kind:?}");
        }
    }
}

#[tokio::test]
async fn after_a_restart_the_id_alone_leads_to_the_body() {
    for kind in EVERY_KIND {
        let server = FakeCcdb::start(kind).await;
        server.upload(Upload::new("A/One", 1000, 2000).bytes("hello"));
        let version = version_at(&source(&server, short()), "A/One", 1500).await;
        let restarted = source(&server, short());
        assert_eq!(bytes_of(&restarted, &version).await.unwrap(), b"hello", "{kind:?}");
        assert_eq!(server.counts().bodies_sent, 1);
    }
}

#[tokio::test]
async fn bodies_of_no_bytes_and_of_many_arrive_whole() {
    let server = FakeCcdb::start(Kind::Sql).await;
    let source = source(&server, short());
    for size in [0usize, 1, 65_535, 262_144, 9_000_001] {
        let bytes: Vec<u8> = (0..size).map(|n| (n * 31 % 251) as u8).collect();
        let path = format!("A/Size-{size}");
        server.upload(Upload::new(&path, 0, 100).bytes(bytes.clone()));
        let version = version_at(&source, &path, 50).await;
        let mut body = Buffer::default();
        source.fetch(&version, &mut body).await.unwrap();
        assert_eq!(body.reservations, 1);
        assert!(body.into_bytes() == bytes, "{size}");
    }
}

#[tokio::test]
async fn a_body_without_a_length_is_grown_into() {
    let server = FakeCcdb::start(Kind::Sql).await;
    let bytes = vec![5; 2_000_000];
    server.upload(Upload::new("A/One", 0, 100).bytes(bytes.clone()));
    server.inject(Ask::Body, Fault::Chunked, 0);
    let source = source(&server, by_time());
    let version = version_at(&source, "A/One", 50).await;
    assert_eq!(version.size_bytes, None);
    let mut body = Buffer::default();
    source.fetch(&version, &mut body).await.unwrap();
    assert!(body.reservations > 1);
    assert!(body.spare().is_empty(), "a block has the size of its object");
    assert!(body.into_bytes() == bytes);
}

#[tokio::test]
async fn the_grid_is_passed_over_for_the_replica_over_http() {
    for absolute in [false, true] {
        let server = FakeCcdb::start(Kind::Sql).await;
        server.habits().on_grid = true;
        server.habits().absolute_urls = absolute;
        server.upload(Upload::new("A/One", 0, 100).bytes("hello"));
        for options in [short(), by_time()] {
            let source = source(&server, options);
            let version = version_at(&source, "A/One", 50).await;
            let before = server.counts().bodies;
            assert_eq!(bytes_of(&source, &version).await.unwrap(), b"hello");
            assert_eq!(server.counts().bodies - before, 1);
        }
    }
}

#[tokio::test]
async fn a_body_that_only_the_grid_has_is_asked_for_over_http_once() {
    let server = FakeCcdb::start(Kind::Sql).await;
    server.habits().only_on_grid = true;
    server.upload(Upload::new("A/One", 0, 100));
    let source = source(&server, short());
    let version = version_at(&source, "A/One", 50).await;
    let error = bytes_of(&source, &version).await.unwrap_err();
    assert!(matches!(error, SourceError::Unusable { .. }), "{error}");
    assert!(error.to_string().contains("no replica over HTTP"), "{error}");
    // /path/from/uuid, /download/uuid, and again with HTTPOnly: no retries of permanent failures.
    assert_eq!(server.counts().bodies, 3);
}

#[tokio::test]
async fn http_only_finds_what_the_first_answer_kept_to_itself() {
    let server = FakeCcdb::start(Kind::Sql).await;
    let other = FakeCcdb::start(Kind::Sql).await;
    let uuid = Uuid::new_v4();
    server.upload(Upload::new("A/One", 0, 100).id(uuid).bytes("hello"));
    other.upload(Upload::new("A/One", 0, 100).id(uuid).bytes("hello"));
    server.habits().replicas = Some(vec!["alien:///alice/{id}".into()]);
    let options =
        CcdbOptions { allowed_redirects: vec![other.url().replace("http://", "")], ..short() };
    let source = source(&server, options);
    let version = version_at(&source, "A/One", 50).await;
    // The server's own copy is missing too; with HTTPOnly the answer names the Grid's HTTP door.
    server.inject_for("/download/", Ask::Body, Fault::Status(404), 0);
    server.inject_for(
        "HTTPOnly=true",
        Ask::Body,
        Fault::Redirect(format!("{}/download/{uuid}", other.url())),
        0,
    );
    assert_eq!(bytes_of(&source, &version).await.unwrap(), b"hello");
    assert_eq!(other.counts().bodies_sent, 1);
}

#[tokio::test]
async fn replicas_are_tried_in_order_until_one_is_right() {
    let server = FakeCcdb::start(Kind::Sql).await;
    let good = FakeCcdb::start(Kind::Sql).await;
    let uuid = Uuid::new_v4();
    for one in [&server, &good] {
        one.upload(Upload::new("A/One", 0, 100).id(uuid).bytes(vec![9; 300_000]));
    }
    server.habits().replicas = Some(vec![
        "root://eos//x/{id}".into(),
        "/download/{id}".into(),
        format!("{}/download/{{id}}", good.url()),
    ]);
    for fault in [
        Fault::FlippedBit,
        Fault::WrongMd5,
        Fault::Torn(7),
        Fault::TruncatedWithMatchingLength(7),
        Fault::Without("ETag"),
        Fault::Status(404),
        Fault::Status(503),
        Fault::Usage,
    ] {
        server.heal();
        server.inject(Ask::Body, fault.clone(), 0);
        let allowed_redirects = vec!["127.0.0.1".to_owned()];
        let source = source(&server, CcdbOptions { allowed_redirects, ..short() });
        let version = version_at(&source, "A/One", 50).await;
        let before = good.counts().bodies_sent;
        assert!(bytes_of(&source, &version).await.unwrap() == vec![9; 300_000], "{fault:?}");
        assert_eq!(good.counts().bodies_sent - before, 1, "{fault:?}");
    }
}

#[tokio::test]
async fn a_base_path_is_kept_and_added_to_locations_that_lack_it() {
    let server = FakeCcdb::start(Kind::Sql).await;
    // The fake has no base path; its object path contains the base, so only prefixed requests
    // succeed.
    server.upload(Upload::new("ccdb/A/One", 0, 100).bytes("hello"));
    let url = format!("{}/ccdb", server.url());
    let source = CcdbSource::new(&url, by_time()).unwrap();
    let version = version_at(&source, "A/One", 50).await;
    assert_eq!(bytes_of(&source, &version).await.unwrap(), b"hello");
    assert_eq!(source.url(), url);
}

#[tokio::test]
async fn a_file_backed_server_that_ignores_the_uuid_is_asked_by_creation_time() {
    let server = FakeCcdb::start(Kind::Local).await;
    server.upload(Upload::new("A/One", -10, 100).created(10).bytes("old"));
    server.upload(Upload::new("A/One", -10, 100).created(20).bytes("new"));
    let source = source(&server, short());
    let known = look_up(&source, "A/One", 50).await.unwrap();
    for version in &known.versions {
        let bytes = bytes_of(&source, version).await.unwrap();
        let expected = if version.created == at(10) { "old" } else { "new" };
        assert_eq!(bytes, expected.as_bytes());
    }
}

#[tokio::test]
async fn a_version_that_is_gone_is_said_to_be_gone() {
    let server = FakeCcdb::start(Kind::Sql).await;
    server.upload(Upload::new("A/One", 0, 100));
    let source = source(&server, short());
    let mut gone = ObjectInfo::clone(&*version_at(&source, "A/One", 50).await);
    gone.id = id(Uuid::new_v4());
    let error = bytes_of(&source, &gone).await.unwrap_err();
    assert!(matches!(error, SourceError::NoSuchVersion { .. }), "{error}");
}

#[tokio::test]
async fn an_id_at_two_places_of_a_path_never_stands_for_the_bytes_of_the_other() {
    for options in [short(), by_time()] {
        let server = FakeCcdb::start(Kind::Local).await;
        let same = Uuid::from_bytes([9; 16]);
        server.upload(Upload::new("A/One", 1, 100).id(same).created(1).bytes("one"));
        server.upload(Upload::new("A/One", 50, 200).id(same).created(2).bytes("three"));
        let source = source(&server, options);
        let one = version_at(&source, "A/One", 30).await;
        // A 304 would confirm the other one.
        let known = source.look_up(&query("A/One"), at(60), Some(&one)).await.unwrap();
        let three = winner(&known, 60).unwrap();
        assert_eq!((one.validity.from(), three.validity.from()), (at(1), at(50)));
        // Each place of the id is named last once.
        for _ in 0..2 {
            assert_eq!(bytes_of(&source, &one).await.unwrap(), b"one");
            assert_eq!(bytes_of(&source, &three).await.unwrap(), b"three");
            version_at(&source, "A/One", 30).await;
        }
        // A new upload replaces the bytes of the id.
        server.change(same, |version| {
            let upload = Upload::new("A/One", 1, 100).id(same).created(3).bytes("one, again");
            *version = upload.into_version();
        });
        let error = bytes_of(&source, &one).await.unwrap_err();
        assert!(matches!(error, SourceError::NoSuchVersion { .. }), "{error}");
        source.forget(&one.path);
        let again = version_at(&source, "A/One", 30).await;
        assert_eq!(bytes_of(&source, &again).await.unwrap(), b"one, again");
    }
}
