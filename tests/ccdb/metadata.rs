//! Metadata with every key and value that a server accepts: the newest version is found, with its
//! bytes, or there is an error. An older version is never served in its place.

use super::fake_ccdb::Upload;
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
