//! Which version, for which span: over listings and by time, on every kind of server.

use super::fake_ccdb::{Ask, Fault, Upload};
use super::*;

#[tokio::test]
async fn a_small_path_is_listed_whole_and_known_for_all_of_time() {
    for kind in EVERY_KIND {
        let server = FakeCcdb::start(kind).await;
        let old = server.upload(Upload::new("A/One", 1000, 3000).created(1));
        let new = server.upload(Upload::new("A/One", 1500, 2500).created(2).metadata("Run", "7"));
        let source = source(&server, short());
        let known = look_up(&source, "A/One", 1200).await.unwrap();
        assert_eq!(known.span, ValidityInterval::ALL, "{kind:?}");
        let wins = |millis| winner(&known, millis).map(|version| version.id);
        assert_eq!(
            [1000, 1500, 2499, 2500, 2999].map(wins),
            [Some(id(old)), Some(id(new)), Some(id(new)), Some(id(old)), Some(id(old))]
        );
        assert_eq!([999, 3000].map(wins), [None, None]);
        assert_eq!(
            winner(&known, 1500).unwrap().metadata.get("Run"),
            Some("7"),
            "spelled as uploaded"
        );
        assert_eq!(server.counts().look_ups, 1, "one that misses: it is answered with 404");
    }
}

#[tokio::test]
async fn a_large_path_is_asked_by_time_and_its_listing_left_alone() {
    for kind in EVERY_KIND {
        let server = FakeCcdb::start(kind).await;
        let mut ids = Vec::new();
        for n in 0..10 {
            let upload = Upload::new("A/Many", n * 10, n * 10 + 10).created(n + 1);
            ids.push(server.upload(upload.metadata("runNumber", "42")));
        }
        let source = source(&server, CcdbOptions { browse_limit: 9, ..short() });
        for n in 0..10 {
            let known = look_up(&source, "A/Many", n * 10 + 9).await.unwrap();
            assert_eq!(known.span, ValidityInterval::new(at(n * 10 + 9), at(n * 10 + 10)).unwrap());
            let version = winner(&known, n * 10 + 9).unwrap();
            assert_eq!(version.id, id(ids[n as usize]), "{kind:?}");
            // Header names have no case; the listing has the original spelling.
            assert_eq!(version.metadata.get("runNumber"), Some("42"));
        }
        let counts = server.counts();
        assert_eq!((counts.listings, counts.look_ups, counts.bodies_sent), (1, 10, 0), "{kind:?}");
    }
}

#[tokio::test]
async fn a_path_just_at_the_limit_is_listed() {
    let server = FakeCcdb::start(Kind::Sql).await;
    for n in 0..9 {
        server.upload(Upload::new("A/Many", n * 10, n * 10 + 10));
    }
    let source = source(&server, CcdbOptions { browse_limit: 9, ..short() });
    assert_eq!(look_up(&source, "A/Many", 5).await.unwrap().versions.len(), 9);
    assert_eq!(server.counts().look_ups, 1);
}

#[tokio::test]
async fn a_listing_that_holds_other_paths_is_filtered_by_exact_path() {
    let server = FakeCcdb::start(Kind::Sql).await;
    server.habits().browse_unanchored = true;
    let own = server.upload(Upload::new("A/One", 0, 100).created(1));
    server.upload(Upload::new("A/OneMore", 0, 100).created(2));
    server.upload(Upload::new("A/One/Deep", 0, 100).created(3));
    let source = source(&server, short());
    let known = look_up(&source, "A/One", 50).await.unwrap();
    assert_eq!(known.versions.iter().map(|v| v.id).collect::<Vec<_>>(), [id(own)]);
}

#[tokio::test]
async fn borders_are_half_open_by_time_too() {
    for kind in EVERY_KIND {
        let server = FakeCcdb::start(kind).await;
        server.upload(Upload::new("A/One", 1000, 2000));
        let source = source(&server, by_time());
        for (millis, holds) in [(999, false), (1000, true), (1999, true), (2000, false)] {
            let known = look_up(&source, "A/One", millis).await.unwrap();
            assert_eq!(winner(&known, millis).is_some(), holds, "{kind:?} at {millis}");
            assert_eq!(known.span, ValidityInterval::new(at(millis), at(millis + 1)).unwrap());
        }
    }
}

#[tokio::test]
async fn times_before_the_epoch_and_at_the_ends_of_all_time_can_be_asked() {
    let server = FakeCcdb::start(Kind::Local).await;
    let early = server.upload(Upload::new("A/One", -5000, -1000));
    for options in [short(), by_time()] {
        let source = source(&server, options);
        assert_eq!(version_at(&source, "A/One", -3000).await.id, id(early));
        for millis in [i64::MIN, i64::MAX - 1] {
            let known = look_up(&source, "A/One", millis).await.unwrap();
            assert!(winner(&known, millis).is_none());
        }
        let last = look_up(&source, "A/One", i64::MAX).await.unwrap();
        assert!(last.versions.is_empty(), "no interval holds the last millisecond");
    }
}

#[tokio::test]
async fn the_server_vouches_until_cache_valid_until_and_no_further_than_the_version() {
    let server = FakeCcdb::start(Kind::Sql).await;
    server.upload(Upload::new("A/One", 1000, 2000));
    let source = source(&server, by_time());
    for (vouched, until) in [(1700, 1700), (9000, 2000), (1500, 1501), (0, 1501)] {
        server.habits().cache_valid_until = Some(vouched);
        let known = look_up(&source, "A/One", 1500).await.unwrap();
        assert_eq!(known.span, ValidityInterval::new(at(1500), at(until)).unwrap());
    }
}

#[tokio::test]
async fn a_held_version_is_confirmed_by_304() {
    for kind in EVERY_KIND {
        let server = FakeCcdb::start(kind).await;
        server.upload(Upload::new("A/One", 1000, 2000));
        let source = source(&server, by_time());
        let held = version_at(&source, "A/One", 1500).await;
        let known = source.look_up(&query("A/One"), at(1600), Some(&held)).await.unwrap();
        assert!(Arc::ptr_eq(&known.versions[0], &held), "{kind:?}");
        assert_eq!(known.span, ValidityInterval::new(at(1600), at(1601)).unwrap());
        // A file-backed server may have the id at several places.
        let is_sql = matches!(kind, Kind::Sql | Kind::SqlLocalCopyFirst);
        assert_eq!(server.counts().not_modified, usize::from(is_sql), "{kind:?}");
        server.habits().cache_valid_until = Some(1800);
        let known = source.look_up(&query("A/One"), at(1600), Some(&held)).await.unwrap();
        assert_eq!(known.span, ValidityInterval::new(at(1600), at(1800)).unwrap());
    }
}

#[tokio::test]
async fn a_valid_until_that_changed_behind_a_304_is_not_missed() {
    let server = FakeCcdb::start(Kind::Sql).await;
    let old = server.upload(Upload::new("A/One", 1000, 2000));
    let source = source(&server, by_time());
    let held = version_at(&source, "A/One", 1500).await;
    // Made longer: beyond its known interval the version is requested without a condition.
    server.change(old, |version| version.until = 5000);
    let known = source.look_up(&query("A/One"), at(3000), Some(&held)).await.unwrap();
    assert_eq!(server.counts().not_modified, 0);
    assert_eq!(winner(&known, 3000).unwrap().validity.until(), at(5000));
    // A version received in full since then is not confirmed by a 304 any more, which would hide
    // that change.
    server.habits().cache_valid_until = Some(5000);
    let known = source.look_up(&query("A/One"), at(1600), Some(&held)).await.unwrap();
    assert_eq!(server.counts().not_modified, 0);
    assert_eq!(known.span, ValidityInterval::new(at(1600), at(5000)).unwrap());
    // Made shorter: the server itself no longer finds it.
    server.change(old, |version| version.until = 1550);
    let known = source.look_up(&query("A/One"), at(1600), Some(&held)).await.unwrap();
    assert!(winner(&known, 1600).is_none());
}

#[tokio::test]
async fn a_held_version_that_is_not_asked_for_makes_no_condition() {
    let server = FakeCcdb::start(Kind::Sql).await;
    server.upload(Upload::new("A/One", 1000, 2000).created(10));
    server.upload(Upload::new("A/One", 1000, 2000).created(20));
    let source = source(&server, by_time());
    let held = version_at(&source, "A/One", 1500).await;
    let mut pinned = query("A/One");
    pinned.limits.not_after = Some(at(15));
    let known = source.look_up(&pinned, at(1500), Some(&held)).await.unwrap();
    assert_eq!(winner(&known, 1500).unwrap().created, at(10));
    assert_eq!(server.counts().not_modified, 0);
}

#[tokio::test]
async fn creation_limits_are_inclusive_on_both_ways() {
    for options in [short(), by_time()] {
        let server = FakeCcdb::start(Kind::Sql).await;
        for created in [10, 20, 30] {
            server.upload(Upload::new("A/One", 0, 100).created(created));
        }
        let source = source(&server, options);
        for (not_before, not_after, wins) in [
            (None, None, Some(30)),
            (None, Some(20), Some(20)),
            (None, Some(19), Some(10)),
            (None, Some(9), None),
            (Some(30), None, Some(30)),
            (Some(31), None, None),
            (Some(11), Some(29), Some(20)),
            // For the server 0 and less mean no limit; for us they are limits.
            (None, Some(0), None),
            (None, Some(-5), None),
            (Some(-5), None, Some(30)),
        ] {
            let mut query = query("A/One");
            query.limits.not_before = not_before.map(at);
            query.limits.not_after = not_after.map(at);
            let known = source.look_up(&query, at(50), None).await.unwrap();
            let created = winner(&known, 50).map(|version| version.created.as_millis());
            assert_eq!(created, wins, "{not_before:?} to {not_after:?}");
        }
    }
}

#[tokio::test]
async fn metadata_are_matched_exactly_by_listing_and_by_time() {
    for kind in EVERY_KIND {
        for options in [short(), by_time()] {
            let server = FakeCcdb::start(kind).await;
            let one = Upload::new("A/One", 0, 100).created(1).metadata("runNumber", "1");
            let one = server.upload(one.metadata("odd", "a+b c/d=é%"));
            let two = Upload::new("A/One", 0, 100).created(2).metadata("runNumber", "2");
            let two = server.upload(two);
            let source = source(&server, options);
            for (key, value, wins) in [
                ("runNumber", "1", Some(one)),
                ("runNumber", "2", Some(two)),
                ("runNumber", "3", None),
                ("odd", "a+b c/d=é%", Some(one)),
                ("never", "seen", None),
                ("Content-Type", "text/plain", None),
            ] {
                let mut query = query("A/One");
                query.metadata.insert(key.into(), value.into());
                let known = source.look_up(&query, at(50), None).await.unwrap();
                let found = winner(&known, 50);
                assert_eq!(found.as_ref().map(|v| v.id), wins.map(id), "{kind:?} {key}={value}");
                assert!(found.is_none_or(|version| version.metadata.get(key) == Some(value)));
            }
        }
    }
}

#[tokio::test]
async fn a_filter_that_the_server_inverts_changes_no_answer() {
    // File-backed: a key that matches except for its case is inverted.
    let server = FakeCcdb::start(Kind::Local).await;
    server.upload(Upload::new("A/One", 0, 100).created(2).metadata("quality", "good"));
    let right = server.upload(Upload::new("A/One", 0, 100).created(1).metadata("QUALITY", "bad"));
    let source = source(&server, by_time());
    let mut query = query("A/One");
    query.metadata.insert("QUALITY".into(), "bad".into());
    let known = source.look_up(&query, at(50), None).await.unwrap();
    assert_eq!(winner(&known, 50).map(|version| version.id), Some(id(right)));
    assert_eq!(server.counts().listings, 1, "only the versions of that time were listed");
}

#[tokio::test]
async fn an_answer_that_does_not_keep_the_limits_is_replaced_by_our_own_choice() {
    let server = FakeCcdb::start(Kind::Sql).await;
    let old = server.upload(Upload::new("A/One", 0, 100).created(10));
    server.upload(Upload::new("A/One", 0, 100).created(20));
    // Like a cache in between that ignores `If-Not-After`.
    server.inject(Ask::LookUp, Fault::Header("Created", "20".into()), 1);
    let source = source(&server, by_time());
    let mut query = query("A/One");
    query.limits.not_after = Some(at(15));
    let known = source.look_up(&query, at(50), None).await.unwrap();
    let found = winner(&known, 50).unwrap();
    assert_eq!((found.id, found.created), (id(old), at(10)));
    assert_eq!(server.counts().listings, 1);
}

#[tokio::test]
async fn a_run_number_can_stand_for_the_time() {
    let server = FakeCcdb::start(Kind::Sql).await;
    let run = server.upload(Upload::new("RCT/Info/RunInformation", 544_123, 544_124));
    let source = source(&server, by_time());
    assert_eq!(version_at(&source, "RCT/Info/RunInformation", 544_123).await.id, id(run));
}

#[tokio::test]
async fn an_upload_is_seen_by_the_next_look_up_after_the_refresh_time() {
    for options in [short(), by_time()] {
        let server = FakeCcdb::start(Kind::Sql).await;
        server.upload(Upload::new("A/One", 0, 100).created(1));
        let source = source(&server, CcdbOptions { refresh_millis: 0, ..options });
        let held = version_at(&source, "A/One", 50).await;
        let new = server.upload(Upload::new("A/One", 0, 100).created(2));
        let known = source.look_up(&query("A/One"), at(50), Some(&held)).await.unwrap();
        assert_eq!(winner(&known, 50).unwrap().id, id(new));
    }
}

#[tokio::test]
async fn a_server_without_head_is_asked_with_get_and_its_body_not_read() {
    for kind in [Kind::Sql, Kind::SqlLocalCopyFirst] {
        let server = FakeCcdb::start(kind).await;
        server.habits().no_head = true;
        let one = server.upload(Upload::new("A/One", 0, 100).bytes(vec![7; 1 << 20]));
        let source = source(&server, by_time());
        let version = version_at(&source, "A/One", 50).await;
        assert_eq!(version.id, id(one));
        assert_eq!(bytes_of(&source, &version).await.unwrap().len(), 1 << 20);
    }
}

#[tokio::test]
async fn a_listing_that_cannot_be_had_does_not_cost_the_path() {
    for fault in [Fault::Status(404), Fault::Status(500), Fault::Usage, Fault::Hang] {
        let server = FakeCcdb::start(Kind::Sql).await;
        let one = server.upload(Upload::new("A/One", 0, 100));
        server.inject(Ask::Listing, fault.clone(), 0);
        let source = source(&server, CcdbOptions { retries: 1, ..short() });
        assert_eq!(version_at(&source, "A/One", 50).await.id, id(one), "{fault:?}");
        let listings = server.counts().listings;
        version_at(&source, "A/One", 51).await;
        assert_eq!(server.counts().listings, listings, "it is left alone then: {fault:?}");
    }
}

#[tokio::test]
async fn paths_are_listed_below_a_prefix_with_their_counts() {
    for kind in [Kind::Local, Kind::Sql] {
        let server = FakeCcdb::start(kind).await;
        for path in ["A/One", "A/One", "A/One/Deep", "AB/One", "B"] {
            server.upload(Upload::new(path, 0, 100));
        }
        let source = source(&server, short());
        let paths = async |prefix: &str| {
            let found = source.paths(prefix).await.unwrap();
            found.iter().map(|p| format!("{} {}", p.path, p.versions)).collect::<Vec<_>>()
        };
        assert_eq!(paths("A").await, ["A/One 2", "A/One/Deep 1"], "{kind:?}");
        assert_eq!(paths("A/One").await, ["A/One 2", "A/One/Deep 1"]);
        assert_eq!(paths("").await, ["A/One 2", "A/One/Deep 1", "AB/One 1", "B 1"]);
        assert_eq!(paths("Nope").await, Vec::<String>::new());
    }
}
