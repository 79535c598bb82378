//! Metadata with every key and value that a server accepts: the newest version is found, with its
//! bytes, or there is an error. An older version is never served in its place.

use futures::StreamExt as _;
use iovcache::source::{Change, ChangeKind, Scan};

use super::fake_ccdb::{Repeat, Upload};
use super::*;

/// Keys of listings and headers in several spellings, and keys that are no header names.
const KEYS: &[&str] = &[
    "path",
    "Path",
    "PATH",
    "id",
    "ID",
    "ETag",
    "etag",
    "createTime",
    "CREATETIME",
    "Created",
    "created",
    "lastModified",
    "Last-Modified",
    "last-modified",
    "validFrom",
    "validfrom",
    "Valid-From",
    "valid-from",
    "validUntil",
    "VALIDUNTIL",
    "Valid-Until",
    "valid-until",
    "initialValidity",
    "InitialValidityLimit",
    "MD5",
    "md5",
    "Content-MD5",
    "content-md5",
    "fileName",
    "filename",
    "Content-Disposition",
    "contentType",
    "Content-Type",
    "size",
    "Size",
    "UploadedFrom",
    "metadata",
    "Metadata",
    "replicas",
    "Replicas",
    "objects",
    "subfolders",
    "Cache-Valid-Until",
    "cache-valid-until",
    "Content-Encoding",
    "Content-Location",
    "Set-Cookie",
    "link",
    "age",
    "server",
    " a",
    "a ",
    "a b",
    "a\tb",
    "a\nb",
    "a:b",
    "é",
    "\"q\"",
    "k,1",
    "x=y",
];

/// Values as found in practice, and values that look like those of the server.
const VALUES: &[&str] =
    &["7", "0", "", "x y", "\"q\"", "a\r\nb", "é✓", "9223372036854775807", "text/html", "OLD"];

/// Two versions of `path` for the same time: the newer one has the metadata.
fn pair(server: &FakeCcdb, path: &str, key: &str, value: &str) -> (Uuid, Uuid) {
    let old = server.upload(Upload::new(path, 1000, 2000).created(1).bytes("old"));
    let value = value.replace("OLD", &old.to_string());
    let new = Upload::new(path, 1000, 2000).created(2).metadata(key, &value);
    let new = server.upload(new.bytes("new!"));
    for n in 0..6 {
        let from = 3000 + n * 10;
        server.upload(Upload::new(path, from, from + 10).created(10 + n));
    }
    (old, new)
}

/// Sources that list paths whole, that list parts of them, and that list none.
fn every_way(server: &FakeCcdb) -> [CcdbSource; 3] {
    [short(), CcdbOptions { browse_limit: 5, ..short() }, by_time()]
        .map(|options| source(server, options))
}

/// Looks up the newest version of `path` and its bytes. An older one is never accepted.
async fn check(source: &CcdbSource, path: &str, old: Uuid, new: Uuid) -> Result<(), SourceError> {
    let known = look_up(source, path, 1500).await?;
    let version = winner(&known, 1500).expect("a version");
    assert_ne!(version.id, id(old), "{path}");
    assert_eq!(version.id, id(new), "{path}");
    assert_eq!(bytes_of(source, &version).await?, b"new!", "{path}");
    Ok(())
}

#[tokio::test]
async fn metadata_with_any_key_never_leave_an_older_version_in_the_place_of_the_newest() {
    for kind in EVERY_KIND {
        let server = FakeCcdb::start(kind).await;
        let ways = every_way(&server);
        for (n, key) in KEYS.iter().enumerate() {
            let path = format!("A/K{n}");
            let (old, new) = pair(&server, &path, key, "7");
            for (way, source) in ways.iter().enumerate() {
                let checked = check(source, &path, old, new).await;
                // Without a listing, a header that was replaced cannot be explained.
                assert!(checked.is_ok() || way == 2, "{kind:?} {key:?} {way}: {checked:?}");
            }
        }
    }
}

#[tokio::test]
async fn metadata_with_any_value_never_leave_an_older_version_in_the_place_of_the_newest() {
    for kind in [Kind::Local, Kind::Sql] {
        let server = FakeCcdb::start(kind).await;
        let ways = every_way(&server);
        for key in ["path", "id", "ETag", "validUntil", "Valid-From", "Created", "replicas", "run"]
        {
            for (n, value) in VALUES.iter().enumerate() {
                let path = format!("A/{key}/V{n}");
                let (old, new) = pair(&server, &path, key, value);
                for (way, source) in ways.iter().enumerate() {
                    let checked = check(source, &path, old, new).await;
                    // A source without a listing may return an error.
                    assert!(checked.is_ok() || way == 2, "{kind:?} {key}={value:?}: {checked:?}");
                }
            }
        }
    }
}

#[tokio::test]
async fn constraints_with_any_key_find_the_version_that_the_server_finds() {
    for kind in [Kind::Local, Kind::Sql] {
        let server = FakeCcdb::start(kind).await;
        let ways = every_way(&server);
        for (n, key) in KEYS.iter().enumerate().filter(|(_, key)| !key.contains('=')) {
            let path = format!("A/K{n}");
            let (_, new) = pair(&server, &path, key, "7");
            for (way, source) in ways.iter().enumerate() {
                for (value, expected) in [("7", Some(id(new))), ("8", None)] {
                    let mut asked = query(&path);
                    asked.metadata.insert((*key).into(), value.into());
                    // A source without a whole listing may return an error.
                    let Ok(known) = source.look_up(&asked, at(1500), None).await else {
                        assert!(way > 0, "{kind:?} {key:?}");
                        continue;
                    };
                    let found = winner(&known, 1500).map(|version| version.id);
                    assert_eq!(found, expected, "{kind:?} {key:?}={value} {way}");
                }
            }
        }
    }
}

#[tokio::test]
async fn metadata_named_cache_valid_until_promise_nothing() {
    for kind in EVERY_KIND {
        let server = FakeCcdb::start(kind).await;
        let (_, new) = pair(&server, "A/One", "Cache-Valid-Until", "1990");
        let later = server.upload(Upload::new("A/One", 1600, 1700).created(3));
        let source = source(&server, CcdbOptions { browse_limit: 5, ..short() });
        for _ in 0..2 {
            let known = look_up(&source, "A/One", 1500).await.unwrap();
            assert_eq!(known.span, ValidityInterval::new(at(1500), at(1501)).unwrap(), "{kind:?}");
            assert_eq!(winner(&known, 1500).unwrap().id, id(new));
        }
        assert_eq!(version_at(&source, "A/One", 1650).await.id, id(later));
    }
}

#[tokio::test]
async fn metadata_that_replace_times_in_headers_are_told_apart_by_the_listing() {
    for kind in [Kind::Local, Kind::Sql] {
        let server = FakeCcdb::start(kind).await;
        let (_, new) = pair(&server, "A/One", "Valid-Until", "1600");
        // The part of the listing that is read shows that the path has such metadata.
        server.upload(Upload::new("A/One", 5000, 6000).created(99).metadata("Valid-Until", "1"));
        let source = source(&server, CcdbOptions { browse_limit: 5, ..short() });
        let version = version_at(&source, "A/One", 1500).await;
        assert_eq!((version.id, version.validity.until()), (id(new), at(2000)), "{kind:?}");
    }
}

/// Values of metadata `path` that resemble the path `A/B/One` or lead to others.
const OTHER_PATHS: &[&str] = &[
    "One",
    "B/One",
    "A/B/One",
    "/A/B/One",
    "A/B/One/",
    "A/B",
    "A",
    "Two",
    "A/B/Two",
    "x/A/B/One",
    "7",
    "",
    "a b",
    "A//One",
    ".",
    "..",
    "*",
    ".*",
    "A/.*",
];

/// A server with an older and a newer version of `A/B/One`, the newer one with the metadata, and
/// versions of the paths that these could be taken for.
async fn with_metadata(kind: Kind, key: &str, value: &str) -> (FakeCcdb, Uuid, Uuid) {
    let server = FakeCcdb::start(kind).await;
    for path in ["One", "B/One", "A/B/Two", "Two"] {
        server.upload(Upload::new(path, 1000, 2000).created(1).bytes(path));
    }
    let old = server.upload(Upload::new("A/B/One", 1000, 2000).created(1).bytes("old"));
    let new = Upload::new("A/B/One", 1000, 2000).created(2).metadata(key, value);
    let new = server.upload(new.bytes("new!"));
    (server, old, new)
}

#[tokio::test]
async fn metadata_with_the_end_of_the_path_never_leave_an_older_version_in_its_place() {
    for kind in EVERY_KIND {
        for value in OTHER_PATHS {
            let (server, old, new) = with_metadata(kind, "path", value).await;
            for (way, source) in every_way(&server).iter().enumerate() {
                let checked = check(source, "A/B/One", old, new).await;
                assert!(checked.is_ok(), "{kind:?} {value:?} {way}: {checked:?}");
                for path in ["One", "B/One", "A/B/Two", "Two"] {
                    let version = version_at(source, path, 1500).await;
                    let bytes = bytes_of(source, &version).await.unwrap();
                    assert_eq!(bytes, path.as_bytes(), "{kind:?} {value:?} {way}");
                }
            }
        }
    }
}

#[tokio::test]
async fn metadata_beside_the_keys_of_a_listing_are_told_apart_or_the_path_is_asked_by_time() {
    let own = Uuid::new_v4().to_string();
    let sum = "d41d8cd98f00b204e9800998ecf8427e";
    for kind in EVERY_KIND {
        for repeat in [Repeat::Before, Repeat::After] {
            for key in KEYS {
                for value in ["One", &own, sum] {
                    let (server, old, new) = with_metadata(kind, key, value).await;
                    server.habits().repeats_keys = Some(repeat);
                    let source = source(&server, short());
                    let checked = check(&source, "A/B/One", old, new).await;
                    // Without a listing, a header that was replaced cannot be explained.
                    let is_header = ["ETag", "Created", "Valid-From", "Valid-Until", "Content-MD5"]
                        .iter()
                        .any(|name| name.eq_ignore_ascii_case(key));
                    let is_right = checked.is_ok() || is_header;
                    assert!(is_right, "{kind:?} {repeat:?} {key}={value}: {checked:?}");
                }
            }
        }
    }
}

#[tokio::test]
async fn uploads_and_puts_of_such_metadata_are_seen_by_the_next_checks() {
    let always = CcdbOptions { refresh_millis: 0, ..short() };
    for kind in [Kind::Local, Kind::Sql] {
        for key in ["path", "id", "ETag", "createTime", "validUntil", "lastModified", "replicas"] {
            let server = FakeCcdb::start(kind).await;
            let first = server.upload(Upload::new("A/B/One", 1000, 2000).created(1));
            let source = source(&server, always.clone());
            assert_eq!(version_at(&source, "A/B/One", 1500).await.id, id(first));
            let second = Upload::new("A/B/One", 1000, 2000).created(2).metadata(key, "One");
            let second = server.upload(second.bytes("new!"));
            check(&source, "A/B/One", first, second).await.unwrap();
            let third = server.upload(Upload::new("A/B/One", 1000, 2000).created(3));
            assert_eq!(version_at(&source, "A/B/One", 1500).await.id, id(third), "{kind:?} {key}");
            server.delete(third);
            check(&source, "A/B/One", first, second).await.unwrap();
            // The listing of a CCDB lacks metadata named `replicas`.
            if key == "replicas" {
                continue;
            }
            server.change(second, |version| {
                version.metadata[0].1 = "Two".into();
                version.modified += 1;
            });
            let mut checks = 0;
            while version_at(&source, "A/B/One", 1500).await.metadata.get(key) != Some("Two") {
                checks += 1;
                assert!(checks < 150, "{kind:?} {key}");
            }
        }
    }
}

#[tokio::test]
async fn a_change_through_the_source_is_seen_at_once_with_any_metadata() {
    for kind in [Kind::Local, Kind::Sql] {
        for key in ["path", "id", "validUntil", "ETag"] {
            let (server, old, new) = with_metadata(kind, key, "One").await;
            let source = source(&server, CcdbOptions { refresh_millis: 60_000, ..short() });
            check(&source, "A/B/One", old, new).await.unwrap();
            let change = Change {
                path: ObjectPath::new("A/B/One").unwrap(),
                at: at(1500),
                until: None,
                id: None,
                metadata: Default::default(),
                limits: Default::default(),
                kind: ChangeKind::Delete,
            };
            source.change(&change, None).await.unwrap();
            assert_eq!(version_at(&source, "A/B/One", 1500).await.id, id(old), "{kind:?} {key}");
        }
    }
}

/// Paths, ids and doubts of the listing of all paths below `prefix`; `None`: each path is listed by
/// itself.
async fn scan_of(
    source: &CcdbSource,
    prefix: &str,
    only_latest: bool,
) -> Option<(Vec<(String, ObjectId)>, Vec<String>)> {
    let scan = Scan {
        prefix: prefix.to_owned(),
        below: true,
        at: None,
        only_latest,
        newest: None,
        limits: Default::default(),
    };
    let mut pieces = source.scan(&scan).await.unwrap()?;
    let (mut versions, mut in_doubt) = (Vec::new(), Vec::new());
    while let Some(piece) = pieces.next().await {
        let piece = piece.unwrap();
        versions.extend(piece.versions.iter().map(|v| (v.info.path.to_string(), v.info.id)));
        in_doubt.extend(piece.in_doubt);
    }
    Some((versions, in_doubt))
}

#[tokio::test]
async fn a_listing_of_many_paths_has_each_version_under_its_own_path() {
    for kind in EVERY_KIND {
        for value in OTHER_PATHS {
            let (server, old, new) = with_metadata(kind, "path", value).await;
            let source = source(&server, short());
            for prefix in ["", "A", "A/B"] {
                for only_latest in [false, true] {
                    let shown = format!("{kind:?} {value:?} {prefix:?} {only_latest}");
                    match scan_of(&source, prefix, only_latest).await {
                        None => assert_ne!(kind, Kind::Local, "{shown}"),
                        Some((versions, in_doubt)) => {
                            assert_eq!(kind, Kind::Local, "{shown}");
                            assert!(in_doubt.is_empty(), "{shown}: {in_doubt:?}");
                            let listed = |one| {
                                versions.iter().filter(|(_, it)| *it == id(one)).collect::<Vec<_>>()
                            };
                            assert_eq!(listed(new), [&("A/B/One".to_owned(), id(new))], "{shown}");
                            assert_eq!(listed(old).len(), usize::from(!only_latest), "{shown}");
                        }
                    }
                }
            }
            let paths = source.paths("").await.unwrap();
            let paths: Vec<_> = paths.iter().map(|one| (one.path.as_str(), one.versions)).collect();
            let expected = [("A/B/One", 2), ("A/B/Two", 1), ("B/One", 1), ("One", 1), ("Two", 1)];
            assert_eq!(paths, expected, "{kind:?} {value:?}");
            assert_eq!(source.subfolders("A").await.unwrap(), ["A/B"], "{kind:?} {value:?}");
        }
    }
}

#[tokio::test]
async fn an_sql_backed_server_without_metadata_path_is_listed_as_a_whole() {
    for kind in [Kind::Sql, Kind::SqlLocalCopyFirst] {
        let (server, old, new) = with_metadata(kind, "run", "One").await;
        let source = source(&server, short());
        let (versions, in_doubt) = scan_of(&source, "A", false).await.expect("a listing");
        assert_eq!((versions.len(), in_doubt.len()), (3, 0));
        let one = "A/B/One".to_owned();
        assert!([old, new].iter().all(|each| versions.contains(&(one.clone(), id(*each)))));
        // One listing, and one request that shows that no version has such metadata.
        assert_eq!(server.counts().listings, 2);
    }
}
