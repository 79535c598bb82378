//! Faults of servers: none of them leads to a wrong answer.

use std::time::{Duration, Instant};

use super::fake_ccdb::{Ask, Fault, Upload};
use super::*;

/// A server with one version, a source with that version known, and the version.
async fn one_version(
    kind: Kind,
    options: CcdbOptions,
    bytes: Vec<u8>,
) -> (FakeCcdb, CcdbSource, Arc<ObjectInfo>) {
    let server = FakeCcdb::start(kind).await;
    server.upload(Upload::new("A/One", 1000, 2000).bytes(bytes));
    let source = source(&server, options);
    let version = version_at(&source, "A/One", 1500).await;
    (server, source, version)
}

#[tokio::test]
async fn transient_failures_are_healed_by_retries() {
    for fault in [Fault::Status(500), Fault::Status(502), Fault::Status(503), Fault::Status(429)] {
        for options in [short(), by_time()] {
            let (server, source, version) = one_version(Kind::Sql, options, vec![1; 10]).await;
            for ask in [Ask::Listing, Ask::LookUp, Ask::Body] {
                server.inject(ask, fault.clone(), 2);
            }
            assert_eq!(version_at(&source, "A/One", 1500).await.id, version.id, "{fault:?}");
            assert_eq!(bytes_of(&source, &version).await.unwrap(), vec![1; 10], "{fault:?}");
        }
    }
}

#[tokio::test]
async fn the_last_status_host_path_and_time_are_named_when_retries_do_not_help() {
    let server = FakeCcdb::start(Kind::Sql).await;
    server.upload(Upload::new("A/One", 1000, 2000));
    server.inject(Ask::LookUp, Fault::Status(503), 0);
    let source = source(&server, CcdbOptions { retries: 2, ..by_time() });
    let error = look_up(&source, "A/One", 1500).await.unwrap_err();
    assert!(matches!(error, SourceError::Down { .. }), "{error:?}");
    let text = error.to_string();
    for part in ["503", "A/One", "1500", "3 attempts", &server.url()] {
        assert!(text.contains(part), "{part:?} is missing in {text}");
    }
    assert_eq!(server.counts().look_ups, 3);
}

#[tokio::test]
async fn retry_after_is_waited_for_within_the_deadline_only() {
    let server = FakeCcdb::start(Kind::Sql).await;
    server.upload(Upload::new("A/One", 1000, 2000));
    let source = source(&server, by_time());
    server.inject(Ask::LookUp, Fault::RetryAfter(1), 1);
    let started = Instant::now();
    version_at(&source, "A/One", 1500).await;
    assert!(started.elapsed() >= Duration::from_secs(1));
    server.inject(Ask::LookUp, Fault::RetryAfter(3600), 1);
    let started = Instant::now();
    assert!(matches!(look_up(&source, "A/One", 1500).await, Err(SourceError::Down { .. })));
    assert!(started.elapsed() < Duration::from_millis(900));
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up_in_time() {
    let (server, source, version) =
        one_version(Kind::Sql, CcdbOptions { retries: 1, ..by_time() }, vec![1; 10]).await;
    server.inject(Ask::LookUp, Fault::Hang, 0);
    server.inject(Ask::Body, Fault::Hang, 0);
    let started = Instant::now();
    assert!(matches!(look_up(&source, "A/One", 1500).await, Err(SourceError::Down { .. })));
    assert!(matches!(bytes_of(&source, &version).await, Err(SourceError::Down { .. })));
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_connection_that_ends_without_an_answer_is_tried_again() {
    let (server, source, version) = one_version(Kind::Sql, by_time(), vec![1; 10]).await;
    server.inject(Ask::LookUp, Fault::HangUp, 2);
    server.inject(Ask::Body, Fault::HangUp, 2);
    assert_eq!(version_at(&source, "A/One", 1500).await.id, version.id);
    assert_eq!(bytes_of(&source, &version).await.unwrap(), vec![1; 10]);
}

#[tokio::test]
async fn a_slow_body_is_given_up_and_delays_no_other() {
    let (server, source, version) =
        one_version(Kind::Sql, CcdbOptions { retries: 0, ..short() }, vec![1; 1000]).await;
    server.upload(Upload::new("A/Two", 1000, 2000).bytes("quick"));
    let other = version_at(&source, "A/Two", 1500).await;
    server.inject_for(
        &version.id.to_string(),
        Ask::Body,
        Fault::SlowBody(Duration::from_millis(50)),
        0,
    );
    let started = Instant::now();
    let slow = async {
        let error = bytes_of(&source, &version).await.unwrap_err();
        (error, started.elapsed())
    };
    let quick = async {
        assert_eq!(bytes_of(&source, &other).await.unwrap(), b"quick");
        started.elapsed()
    };
    let ((error, gave_up), done) = tokio::join!(slow, quick);
    assert!(matches!(&error, SourceError::Down { .. }), "{error:?}");
    assert!(error.to_string().contains("too slow"), "{error}");
    // Several places are tried, each for one window of 200 ms.
    assert!(gave_up < Duration::from_secs(2), "{gave_up:?}");
    assert!(done < gave_up, "{done:?} after {gave_up:?}");
}

#[tokio::test]
async fn a_body_that_is_not_the_version_is_never_handed_on() {
    let bytes: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
    for kind in EVERY_KIND {
        for options in [short(), by_time()] {
            let options = CcdbOptions { retries: 0, ..options };
            let (server, source, version) = one_version(kind, options, bytes.clone()).await;
            for fault in [
                Fault::Torn(1),
                Fault::TruncatedWithMatchingLength(1),
                Fault::TruncatedWithMatchingLength(100_000),
                Fault::FlippedBit,
                Fault::WrongMd5,
                Fault::Usage,
                Fault::Without("ETag"),
                Fault::Header("ETag", "foo".into()),
                Fault::Header("ETag", format!("\"{}\"", Uuid::new_v4())),
                Fault::Header("Content-Encoding", "gzip".into()),
            ] {
                server.heal();
                server.inject(Ask::Body, fault.clone(), 0);
                let error = bytes_of(&source, &version).await.unwrap_err();
                assert!(matches!(error, SourceError::Unusable { .. }), "{fault:?}: {error:?}");
            }
            server.heal();
            assert!(bytes_of(&source, &version).await.unwrap() == bytes);
        }
    }
}

#[tokio::test]
async fn bytes_of_a_failed_body_are_never_reported_as_written() {
    let (server, source, version) =
        one_version(Kind::Sql, CcdbOptions { retries: 0, ..short() }, vec![3; 500_000]).await;
    for fault in [Fault::FlippedBit, Fault::Torn(1000)] {
        server.inject(Ask::Body, fault, 0);
        let mut body = Buffer::default();
        assert!(source.fetch(&version, &mut body).await.is_err());
        assert_eq!(body.written_bytes(), 0);
        server.heal();
    }
}

#[tokio::test]
async fn answers_to_look_ups_that_do_not_fit_together_are_unusable() {
    for kind in EVERY_KIND {
        let server = FakeCcdb::start(kind).await;
        server.upload(Upload::new("A/One", 1000, 2000));
        let source = source(&server, by_time());
        let faults = [
            Fault::Usage,
            Fault::Without("ETag"),
            Fault::Without("Valid-From"),
            Fault::Without("Valid-Until"),
            Fault::Without("Created"),
            Fault::Status(400),
            Fault::Status(304),
        ];
        for fault in faults {
            server.heal();
            server.inject(Ask::LookUp, fault.clone(), 0);
            let result = look_up(&source, "A/One", 1500).await;
            let unusable = matches!(result, Err(SourceError::Unusable { .. }));
            assert!(unusable, "{kind:?} {fault:?}: {result:?}");
        }
    }
}

#[tokio::test]
async fn headers_that_do_not_fit_together_are_settled_by_the_listing_or_unusable() {
    for kind in EVERY_KIND {
        let server = FakeCcdb::start(kind).await;
        let one = server.upload(Upload::new("A/One", 1000, 2000));
        let source = source(&server, by_time());
        for fault in [
            Fault::Without("Location"),
            Fault::Header("ETag", "foo".into()),
            Fault::Header("Valid-From", "7000".into()),
            Fault::Header("Valid-Until", "8".into()),
            // Where the answer names the place of the body, an ETag of another version is detected.
            Fault::Header("ETag", format!("\"{}\"", Uuid::new_v4())),
        ] {
            if kind == Kind::SqlLocalCopyFirst && matches!(fault, Fault::Without("Location")) {
                continue;
            }
            server.heal();
            server.inject(Ask::LookUp, fault.clone(), 0);
            assert_eq!(version_at(&source, "A/One", 1500).await.id, id(one), "{kind:?} {fault:?}");
            server.inject(Ask::Listing, Fault::Status(404), 0);
            let result = look_up(&source, "A/One", 1500).await;
            let unusable = matches!(result, Err(SourceError::Unusable { .. }));
            assert!(unusable, "{kind:?} {fault:?}: {result:?}");
        }
    }
}

#[tokio::test]
async fn metadata_that_imitate_headers_never_publish_a_wrong_version() {
    for kind in EVERY_KIND {
        let server = FakeCcdb::start(kind).await;
        let other = server.upload(Upload::new("B/Other", 1000, 2000).bytes("another object"));
        let fake = Upload::new("A/One", 1000, 2000).created(5).bytes("truth");
        let truth = server.upload(fake.metadata("ETag", &format!("\"{other}\"")));
        // The keys that were not replaced and the replicas are right, in the listing of the path
        // and in that of the time; the bytes are verified by their checksum.
        for options in [by_time(), short()] {
            let source = source(&server, options);
            let version = version_at(&source, "A/One", 1500).await;
            assert_eq!(version.id, id(truth), "{kind:?}");
            assert_eq!(version.metadata.get("ETag"), Some(&*format!("\"{other}\"")));
            assert_eq!(bytes_of(&source, &version).await.unwrap(), b"truth", "{kind:?}");
            server.inject(Ask::Body, Fault::FlippedBit, 0);
            let error = bytes_of(&source, &version).await.unwrap_err();
            assert!(matches!(error, SourceError::Unusable { .. }), "{kind:?}: {error:?}");
            server.heal();
        }
    }
}

#[tokio::test]
async fn an_imitated_valid_from_is_seen_through_where_there_is_other_evidence() {
    let server = FakeCcdb::start(Kind::Local).await;
    server.upload(Upload::new("A/One", 1000, 2000).metadata("Valid-From", "7"));
    for options in [by_time(), short()] {
        let source = source(&server, options);
        let version = version_at(&source, "A/One", 1500).await;
        assert_eq!(version.validity.from(), at(1000));
        assert_eq!(version.metadata.get("Valid-From"), Some("7"));
        assert!(bytes_of(&source, &version).await.is_ok());
    }
}

#[tokio::test]
async fn an_imitated_md5_does_not_stand_in_for_the_listed_one() {
    let server = FakeCcdb::start(Kind::Local).await;
    server.upload(Upload::new("A/One", 1000, 2000).metadata("Content-MD5", "feed"));
    let listing = source(&server, short());
    let version = version_at(&listing, "A/One", 1500).await;
    assert!(bytes_of(&listing, &version).await.is_ok());
    server.inject(Ask::Body, Fault::FlippedBit, 0);
    let error = bytes_of(&listing, &version).await.unwrap_err();
    assert!(matches!(error, SourceError::Unusable { .. }), "{error:?}");
}

#[tokio::test]
async fn a_redirect_loop_ends_after_five_hops() {
    let (server, source, version) = one_version(Kind::Sql, by_time(), vec![1; 10]).await;
    let before = server.counts();
    server.inject(Ask::LookUp, Fault::RedirectToItself, 0);
    let error = look_up(&source, "A/One", 1500).await.unwrap_err();
    assert!(matches!(error, SourceError::Unusable { .. }), "{error:?}");
    assert_eq!(server.counts().look_ups - before.look_ups, 6);
    server.inject(Ask::Body, Fault::RedirectToItself, 0);
    let error = bytes_of(&source, &version).await.unwrap_err();
    assert!(matches!(error, SourceError::Unusable { .. }), "{error:?}");
    assert!(server.counts().bodies - before.bodies <= 3);
}

#[tokio::test]
async fn a_chain_of_redirects_is_cut_after_five() {
    let (server, source, version) = one_version(Kind::Sql, short(), vec![1; 10]).await;
    for n in 0..20 {
        // Each redirects to another address of the same kind.
        let next = Uuid::new_v4();
        server.inject(Ask::Body, Fault::Redirect(format!("/download/{next}?{n}")), 1);
    }
    let error = bytes_of(&source, &version).await.unwrap_err();
    assert!(error.to_string().contains("more than 5 redirects"), "{error}");
}

#[tokio::test]
async fn redirects_lead_to_no_other_scheme_and_no_other_host() {
    let (server, source, version) = one_version(Kind::Sql, by_time(), vec![1; 10]).await;
    let elsewhere = FakeCcdb::start(Kind::Sql).await;
    for place in [
        "alien:///alice/x".to_owned(),
        "file:///etc/passwd".to_owned(),
        "ftp://127.0.0.1/x".to_owned(),
        format!("{}/download/{}", elsewhere.url(), version.id),
        format!("//{}/x", elsewhere.url().replace("http://", "")),
    ] {
        server.heal();
        server.inject(Ask::LookUp, Fault::Redirect(place.clone()), 0);
        server.inject(Ask::Body, Fault::Redirect(place.clone()), 0);
        let error = look_up(&source, "A/One", 1500).await.unwrap_err();
        assert!(matches!(error, SourceError::Unusable { .. }), "{place}: {error:?}");
        let error = bytes_of(&source, &version).await.unwrap_err();
        assert!(matches!(error, SourceError::Unusable { .. }), "{place}: {error:?}");
    }
    assert_eq!(elsewhere.counts().connections, 0);
}

#[tokio::test]
async fn credentials_do_not_travel_to_another_origin() {
    let elsewhere = FakeCcdb::start(Kind::Sql).await;
    let server = FakeCcdb::start(Kind::Sql).await;
    let uuid = Uuid::new_v4();
    server.upload(Upload::new("A/One", 0, 100).id(uuid).bytes("hello"));
    elsewhere.upload(Upload::new("A/One", 0, 100).id(uuid).bytes("hello"));
    server.habits().replicas = Some(vec![format!("{}/download/{{id}}", elsewhere.url())]);
    let url = server.url().replace("http://", "http://me:secret@");
    let allowed_redirects = vec!["127.0.0.0/8".to_owned()];
    let source = CcdbSource::new(&url, CcdbOptions { allowed_redirects, ..short() }).unwrap();
    let version = version_at(&source, "A/One", 50).await;
    assert_eq!(bytes_of(&source, &version).await.unwrap(), b"hello");
    // The listing, and the look-up that shows the server's answer to a miss.
    assert_eq!(server.counts().with_credentials, 2);
    assert_eq!(elsewhere.counts().bodies_sent, 1);
    assert_eq!(elsewhere.counts().with_credentials, 0);
    assert!(!format!("{source:?} {}", source.url()).contains("secret"));
}

#[tokio::test]
async fn sizes_beyond_the_limit_are_refused_before_any_room_is_made() {
    let options = CcdbOptions { max_size_bytes: 1000, ..by_time() };
    let (server, source, version) = one_version(Kind::Sql, options, vec![1; 10]).await;
    server.inject(Ask::Body, Fault::Length(u64::MAX / 2), 0);
    let mut body = Buffer::default();
    let error = source.fetch(&version, &mut body).await.unwrap_err();
    assert!(
        matches!(&error, SourceError::Body { error: BodyError::TooLarge { .. }, .. }),
        "{error:?}"
    );
    assert_eq!(body.reservations, 0);
}

#[tokio::test]
async fn a_body_that_never_ends_is_cut_at_the_limit() {
    let options = CcdbOptions { max_size_bytes: 1_000_000, ..by_time() };
    let (server, source, version) = one_version(Kind::Sql, options, vec![1; 8000]).await;
    server.inject(Ask::Body, Fault::Endless, 0);
    let mut body = Buffer::default();
    let error = source.fetch(&version, &mut body).await.unwrap_err();
    assert!(
        matches!(&error, SourceError::Body { error: BodyError::TooLarge { .. }, .. }),
        "{error:?}"
    );
    assert!(body.written_bytes() <= 1_000_000);
}

#[tokio::test]
async fn a_listing_that_never_ends_is_cut_and_the_path_asked_by_time() {
    let (server, source, version) = one_version(Kind::Sql, short(), vec![1; 10]).await;
    server.inject(Ask::Listing, Fault::Endless, 0);
    assert_eq!(version_at(&source, "A/One", 1500).await.id, version.id);
    assert_eq!(server.counts().look_ups, 1);
}

#[tokio::test]
async fn a_refusal_is_no_outage() {
    let server = FakeCcdb::start(Kind::Sql).await;
    server.inject(Ask::LookUp, Fault::Status(403), 0);
    let error = look_up(&source(&server, by_time()), "A/One", 1500).await.unwrap_err();
    assert!(matches!(error, SourceError::NotAllowed { .. }), "{error:?}");
    assert_eq!(server.counts().look_ups, 1, "it is not asked again");
}
