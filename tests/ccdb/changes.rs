//! The cost of a listed path while nothing changes, and how soon a change is seen.

use super::fake_ccdb::{Ask, Fault, Upload};
use super::*;

/// Every look-up asks the server, and compares only cheap fields.
fn always() -> CcdbOptions {
    CcdbOptions { refresh_millis: 0, ..short() }
}

async fn path_of(count: i64, kind: Kind) -> (FakeCcdb, Vec<Uuid>) {
    let server = FakeCcdb::start(kind).await;
    let upload = |n| server.upload(Upload::new("A/One", n * 10, n * 10 + 10).created(100 + n));
    let ids = (0..count).map(upload).collect();
    (server, ids)
}

#[tokio::test]
async fn a_path_is_asked_once_within_its_refresh_time_whatever_is_looked_up() {
    let (server, ids) = path_of(20, Kind::Local).await;
    let source = source(&server, CcdbOptions { refresh_millis: 60_000, ..short() });
    let look_ups = (0..20).map(|n| version_at(&source, "A/One", n * 10));
    let found = futures::future::join_all(look_ups).await;
    assert!(found.iter().zip(&ids).all(|(version, expected)| version.id == id(*expected)));
    assert_eq!(server.counts().listings, 1);
    source.forget(&ObjectPath::new("A/One").unwrap());
    version_at(&source, "A/One", 5).await;
    assert_eq!(server.counts().listings, 2);
}

#[tokio::test]
async fn a_quiet_path_of_256_versions_costs_some_hundred_bytes_per_check() {
    for kind in [Kind::Local, Kind::Sql, Kind::Memory] {
        let (server, _) = path_of(256, kind).await;
        let source = source(&server, always());
        let known = look_up(&source, "A/One", 5).await.unwrap();
        assert_eq!((known.span, known.versions.len()), (ValidityInterval::ALL, 256));
        let before = server.counts();
        for _ in 0..20 {
            look_up(&source, "A/One", 5).await.unwrap();
        }
        let after = server.counts();
        assert_eq!(after.listings - before.listings, 20);
        let bytes = (after.sent_bytes - before.sent_bytes) / 20;
        assert!(bytes < 500, "{kind:?}: {bytes}");
    }
}

#[tokio::test]
async fn uploads_changes_and_deletions_at_the_newest_version_are_seen_by_the_next_check() {
    for kind in [Kind::Local, Kind::Sql] {
        let (server, ids) = path_of(40, kind).await;
        let source = source(&server, always());
        assert_eq!(version_at(&source, "A/One", 15).await.id, id(ids[1]));
        let newer = server.upload(Upload::new("A/One", 15, 17).created(200));
        assert_eq!(version_at(&source, "A/One", 15).await.id, id(newer));
        server.change(newer, |version| version.until = 16);
        assert_eq!(version_at(&source, "A/One", 16).await.id, id(ids[1]));
        // Two versions with the same creation time.
        let twin = server.upload(Upload::new("A/One", 16, 17).created(200));
        assert_eq!(version_at(&source, "A/One", 16).await.id, id(twin));
        server.delete(twin);
        server.delete(newer);
        assert_eq!(version_at(&source, "A/One", 15).await.id, id(ids[1]), "{kind:?}");
    }
}

#[tokio::test]
async fn changes_of_older_versions_are_seen_once_the_checks_have_paid_for_a_comparison() {
    for kind in [Kind::Local, Kind::Sql] {
        let (server, ids) = path_of(40, kind).await;
        let source = source(&server, always());
        assert_eq!(version_at(&source, "A/One", 15).await.id, id(ids[1]));
        server.delete(ids[1]);
        server.change(ids[2], |version| (version.until, version.modified) = (25, 1_000));
        server.upload(Upload::new("A/One", -10, 0).created(5));
        let mut checks = 0;
        while winner(&look_up(&source, "A/One", 15).await.unwrap(), 15).is_some() {
            checks += 1;
            assert!(checks < 200);
        }
        let known = look_up(&source, "A/One", 25).await.unwrap();
        assert!(winner(&known, 25).is_none() && winner(&known, -5).is_some());
        assert!(checks > 10, "{checks}");
    }
}

#[tokio::test]
async fn changes_of_any_version_of_a_short_path_are_seen_by_the_next_checks() {
    for (count, checks) in [(1, 2), (2, 5), (3, 8)] {
        for kind in [Kind::Local, Kind::Sql] {
            let (server, ids) = path_of(count, kind).await;
            let source = source(&server, always());
            assert_eq!(version_at(&source, "A/One", 5).await.id, id(ids[0]));
            server.change(ids[0], |version| (version.until, version.modified) = (8, 1_000));
            for _ in 1..checks {
                look_up(&source, "A/One", 5).await.unwrap();
            }
            let known = look_up(&source, "A/One", 8).await.unwrap();
            assert!(winner(&known, 8).is_none(), "{kind:?} {count}");
        }
    }
}

#[tokio::test]
async fn a_put_of_metadata_is_seen_although_an_sql_backed_server_lists_no_time_of_it() {
    for kind in [Kind::Local, Kind::Sql] {
        let (server, ids) = path_of(3, kind).await;
        server.change(ids[0], |version| version.metadata.push(("run".into(), "1".into())));
        server.change(ids[2], |version| version.metadata.push(("run".into(), "2".into())));
        let source = source(&server, always());
        let run = async |at: i64| {
            version_at(&source, "A/One", at).await.metadata.get("run").unwrap().to_owned()
        };
        assert_eq!((run(5).await.as_str(), run(25).await.as_str()), ("1", "2"));
        // The next check shows it at the newest version, the next comparison at others.
        let put = |version: &mut super::fake_ccdb::Version, run: &str| {
            version.metadata[0].1 = run.into();
            version.modified += 1;
        };
        server.change(ids[2], |version| put(version, "3"));
        let mut checks = 1;
        while run(25).await != "3" {
            checks += 1;
            assert!(checks < 20, "{kind:?}");
        }
        assert!(checks == 1 || kind == Kind::Sql, "the metadata are too long: {checks}");
        server.change(ids[0], |version| put(version, "4"));
        while run(5).await != "4" {
            checks += 1;
            assert!(checks < 40, "{kind:?}");
        }
    }
}

#[tokio::test]
async fn new_metadata_of_an_older_version_are_seen_by_the_next_whole_listing() {
    let (server, ids) = path_of(40, Kind::Sql).await;
    let options = CcdbOptions { listing_recheck_millis: 100, ..always() };
    let source = source(&server, options);
    assert!(!version_at(&source, "A/One", 15).await.metadata.contains_key("new"));
    server.change(ids[1], |version| version.metadata.push(("new".into(), "1".into())));
    tokio::time::sleep(std::time::Duration::from_millis(350)).await;
    assert_eq!(version_at(&source, "A/One", 15).await.metadata.get("new"), Some("1"));
}

#[tokio::test]
async fn a_hundred_quiet_paths_of_256_versions_cost_at_most_30_kilobytes_per_second() {
    // One path, its checks at the pace of a service with a refresh time of 10 s.
    for kind in [Kind::Local, Kind::Sql] {
        let server = FakeCcdb::start(kind).await;
        for n in 0..256_i64 {
            let from = 1_730_000_000_000 + n * 1_000;
            let upload = Upload::new("A/One", from, from + 1_000).created(from);
            server.upload(upload.metadata("runNumber", "545210"));
        }
        let source = source(&server, CcdbOptions { browse_limit: 100_000, ..always() });
        let at = 1_730_000_000_500;
        look_up(&source, "A/One", at).await.unwrap();
        let cost = async |source: &CcdbSource| {
            let before = server.counts().sent_bytes;
            look_up(source, "A/One", at).await.unwrap();
            server.counts().sent_bytes - before
        };
        let newest = cost(&source).await;
        let mut all = newest;
        for _ in 0..2_000 {
            all = cost(&source).await;
            if all > 4 * newest {
                break;
            }
        }
        let whole = {
            source.forget(&ObjectPath::new("A/One").unwrap());
            cost(&source).await
        };
        // Per path and second: a check each 15 s, a comparison each 200 s, a listing each 1,800 s.
        let per_second = newest as f64 / 15.0 + all as f64 / 200.0 + whole as f64 / 1_800.0;
        println!("{kind:?}: {newest} B, {all} B, {whole} B: {per_second:.0} B/s per path");
        assert!(all > 4 * newest && whole > 2 * all, "{kind:?}: {newest} {all} {whole}");
        assert!(100.0 * per_second < 30_000.0, "{kind:?}: {per_second}");
        assert!(newest as f64 / 1.5 <= 300.0, "{newest}");
    }
}

#[tokio::test]
async fn an_empty_path_is_filled_by_the_next_check() {
    let server = FakeCcdb::start(Kind::Local).await;
    let source = source(&server, always());
    assert!(look_up(&source, "A/One", 5).await.unwrap().versions.is_empty());
    let one = server.upload(Upload::new("A/One", 0, 10));
    assert_eq!(version_at(&source, "A/One", 5).await.id, id(one));
}

#[tokio::test]
async fn a_server_that_cannot_be_asked_for_changes_is_down_and_forgets_nothing() {
    let (server, ids) = path_of(3, Kind::Local).await;
    let source = source(&server, CcdbOptions { retries: 0, ..always() });
    version_at(&source, "A/One", 5).await;
    server.inject(Ask::Listing, Fault::Status(503), 1);
    assert!(matches!(look_up(&source, "A/One", 5).await, Err(SourceError::Down { .. }) | Ok(_)));
    assert_eq!(version_at(&source, "A/One", 15).await.id, id(ids[1]));
}

#[tokio::test]
async fn a_large_path_is_listed_once_look_ups_by_time_have_cost_as_much() {
    let (server, ids) = path_of(3000, Kind::Local).await;
    server.habits().latency = std::time::Duration::from_millis(25);
    let source = source(&server, CcdbOptions { first_byte_millis: 5000, ..short() });
    let mut look_ups = 0;
    for n in 0..600 {
        let known = look_up(&source, "A/One", n * 10).await.unwrap();
        assert_eq!(winner(&known, n * 10).unwrap().id, id(ids[n as usize]));
        if known.span == ValidityInterval::ALL {
            break;
        }
        look_ups += 1;
    }
    assert!((2..500).contains(&look_ups), "{look_ups}");
    let counts = server.counts();
    assert_eq!(counts.listings, 3, "256, 2,048, 16,384");
}

#[tokio::test]
async fn all_versions_are_listed_at_once_however_many_there_are() {
    let (server, _) = path_of(3000, Kind::Local).await;
    let source = source(&server, CcdbOptions { first_byte_millis: 5000, ..short() });
    let versions = source.list(&query("A/One")).await.unwrap();
    assert_eq!(versions.map(|versions| versions.len()), Some(3000));
    let few = CcdbOptions { browse_limit: 2000, first_byte_millis: 5000, ..short() };
    let few = super::source(&server, few);
    assert!(few.list(&query("A/One")).await.unwrap().is_none());
}

#[tokio::test]
async fn the_listing_of_a_cache_in_front_of_another_server_is_not_taken_for_the_whole() {
    let upstream = FakeCcdb::start(Kind::Local).await;
    let cache = FakeCcdb::start(Kind::Memory).await;
    cache.habits().upstream = Some(upstream.url());
    let here = cache.upload(Upload::new("A/One", 0, 10));
    let there = upstream.upload(Upload::new("A/One", 10, 20));
    upstream.upload(Upload::new("A/Two", 10, 20));
    let allowed_redirects = vec!["127.0.0.1".to_owned()];
    let source = source(&cache, CcdbOptions { allowed_redirects, ..short() });
    assert_eq!(version_at(&source, "A/One", 5).await.id, id(here));
    let found = version_at(&source, "A/One", 15).await;
    assert_eq!(found.id, id(there));
    assert!(bytes_of(&source, &found).await.is_ok());
    assert!(winner(&look_up(&source, "A/Two", 15).await.unwrap(), 15).is_some());
    assert!(winner(&look_up(&source, "A/One", 25).await.unwrap(), 25).is_none());
    // Where the redirect may not be followed, the error says so.
    let strict = super::source(&cache, short());
    let error = look_up(&strict, "A/One", 15).await.unwrap_err();
    assert!(matches!(error, SourceError::Unusable { .. }), "{error:?}");
    assert!(error.to_string().contains("allowed_redirects"), "{error}");
}

#[tokio::test]
async fn metadata_of_a_path_that_is_not_listed_are_spelled_as_uploaded() {
    for kind in [Kind::Local, Kind::Sql] {
        let (server, _) = path_of(10, kind).await;
        let odd = Upload::new("A/One", 1000, 2000).metadata("Run Number", "5").created(500);
        let odd = odd.metadata("Detector", "TPC").metadata("path", "x").metadata("id", "abc");
        let odd = server.upload(odd.bytes("odd"));
        let two = Upload::new("A/One", 2000, 3000).metadata("beamType", "pp");
        let two = server.upload(two.metadata("two words", "2").bytes("two").created(2));
        let source = source(&server, CcdbOptions { browse_limit: 5, ..short() });
        let version = version_at(&source, "A/One", 2500).await;
        assert_eq!(version.id, id(two));
        assert_eq!(version.metadata.get("beamType"), Some("pp"));
        assert_eq!(version.metadata.get("two words"), Some("2"), "{kind:?}");
        assert_eq!(bytes_of(&source, &version).await.unwrap(), b"two");
        // No answer has all metadata of this one; it is found, and never in the place of another.
        assert_eq!(version_at(&source, "A/One", 1500).await.id, id(odd));
        let mut asked = query("A/One");
        asked.metadata.insert("id".into(), "abc".into());
        let known = source.look_up(&asked, at(1500), None).await.unwrap();
        assert_eq!(winner(&known, 1500).unwrap().id, id(odd), "{kind:?}");
    }
}

#[tokio::test]
async fn a_version_with_metadata_path_never_leaves_an_older_one_in_its_place() {
    for kind in EVERY_KIND {
        let server = FakeCcdb::start(kind).await;
        server.upload(Upload::new("A/One", 0, 100).created(1));
        let new = Upload::new("A/One", 0, 100).created(2).metadata("path", "B/Two");
        let new = server.upload(new.bytes("new"));
        let source = source(&server, short());
        let version = version_at(&source, "A/One", 50).await;
        assert_eq!(version.id, id(new), "{kind:?}");
        assert_eq!(bytes_of(&source, &version).await.unwrap(), b"new");
    }
}

#[tokio::test]
async fn constraints_on_keys_that_listings_have_themselves_find_what_the_server_finds() {
    for kind in [Kind::Local, Kind::Sql] {
        for key in ["id", "size", "createTime", "validFrom", "metadata"] {
            let server = FakeCcdb::start(kind).await;
            let one = server.upload(Upload::new("A/One", 0, 100).created(1).metadata(key, "7"));
            server.upload(Upload::new("A/One", 0, 100).created(2).metadata(key, "8"));
            let source = source(&server, short());
            let mut asked = query("A/One");
            asked.metadata.insert(key.into(), "7".into());
            let known = source.look_up(&asked, at(50), None).await.unwrap();
            assert_eq!(winner(&known, 50).map(|v| v.id), Some(id(one)), "{kind:?} {key}");
        }
    }
}

#[tokio::test]
async fn a_put_at_a_path_that_is_not_listed_is_seen_after_the_refresh_time() {
    let server = FakeCcdb::start(Kind::Sql).await;
    let put = server.upload(Upload::new("A/One", 0, 100).metadata("run", "1"));
    let source = source(&server, CcdbOptions { refresh_millis: 500, ..by_time() });
    let held = version_at(&source, "A/One", 5).await;
    server.change(put, |version| version.metadata[0].1 = "2".into());
    let one = query("A/One");
    let ask = || source.look_up(&one, at(5), Some(&held));
    // Within that time a 304 is enough.
    assert_eq!(winner(&ask().await.unwrap(), 5).unwrap().metadata.get("run"), Some("1"));
    tokio::time::sleep(std::time::Duration::from_millis(600)).await;
    assert_eq!(winner(&ask().await.unwrap(), 5).unwrap().metadata.get("run"), Some("2"));
}
