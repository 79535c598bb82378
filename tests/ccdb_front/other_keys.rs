//! Listings of versions with metadata named like a key of a CCDB's listing: a version is listed
//! under its own path, or the path is named as not listed.

use serde_json::Value;
use uuid::Uuid;

use super::fake_ccdb::{FakeCcdb, Kind, Upload};
use super::raw::get;
use super::{address, before};

const KINDS: [Kind; 3] = [Kind::Local, Kind::Sql, Kind::Memory];

/// A server with an older and a newer version of `A/B/One`, the newer one with the metadata, among
/// `more` versions for other times, and with other paths.
async fn with_metadata(kind: Kind, more: i64, key: &str, value: &str) -> (FakeCcdb, Uuid, Uuid) {
    let server = FakeCcdb::start(kind).await;
    for path in ["One", "B/One", "A/B/Two", "Two"] {
        server.upload(Upload::new(path, 1000, 2000).created(1));
    }
    for n in 0..more {
        server.upload(Upload::new("A/B/One", 3000 + n, 3001 + n).created(1));
    }
    let old = server.upload(Upload::new("A/B/One", 1000, 2000).created(1));
    let new = server.upload(Upload::new("A/B/One", 1000, 2000).created(2).metadata(key, value));
    (server, old, new)
}

/// The paths under which a version is listed.
fn paths_of(page: &Value, id: Uuid) -> Vec<&str> {
    let objects = page["objects"].as_array().unwrap().iter();
    let listed = objects.filter(|object| object["ETag"] == format!("\"{id}\""));
    listed.map(|object| object["path"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_listing_has_an_older_version_without_the_newest_or_one_under_another_path() {
    let json = [("Accept", "application/json")];
    for kind in KINDS {
        for value in ["One", "B/One", "B/Two", "A/B", "7", ""] {
            for more in [0, 300] {
                let (server, old, new) = with_metadata(kind, more, "path", value).await;
                let service = before(&server, &[]);
                let front = address(&service);
                for target in [
                    "/browse/*",
                    "/browse/A/*",
                    "/browse/A/B/One",
                    "/browse/A/B/One/1500",
                    "/latest/*",
                    "/latest/A/B/One",
                    "/latest/A/B/One/1500",
                    "/latest/A/B/*",
                ] {
                    let answer = get(&front, target, &json);
                    let shown = format!("{kind:?} {value:?} {more} {target}");
                    if answer.status == 501 {
                        assert!(kind != Kind::Local && target.contains("One"), "{shown}");
                        continue;
                    }
                    assert_eq!(answer.status, 200, "{shown}: {}", answer.text());
                    let page = answer.json();
                    let is_named =
                        answer.get("Warning").is_some_and(|w| w.ends_with(": A/B/One\""));
                    assert!(!is_named || kind != Kind::Local, "{shown}");
                    let is_latest = target.starts_with("/latest");
                    let expected: &[&str] = if is_named { &[] } else { &["A/B/One"] };
                    assert_eq!(paths_of(&page, new), expected, "{shown}");
                    let older = if is_latest { &[] } else { expected };
                    assert_eq!(paths_of(&page, old), older, "{shown}");
                }
                let found = get(&front, "/A/B/One/1500", &[]);
                assert_eq!(found.get("ETag"), Some(&*format!("\"{new}\"")), "{kind:?} {value:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_listing_with_an_entry_in_doubt_breaks_off() {
    let (server, old, new) = with_metadata(Kind::Sql, 1500, "path", "One").await;
    let service = before(&server, &[]);
    for accept in ["application/json", "text/plain", "text/xml"] {
        let front = address(&service);
        let listed =
            std::thread::spawn(move || get(&front, "/browse/A/B/One", &[("Accept", accept)]));
        // A client sees that the listing has no end.
        assert!(listed.join().is_err(), "{accept}");
    }
    // A pattern names the path: others of it are listed.
    let answer = get(&address(&service), "/browse/A/*", &[("Accept", "application/json")]);
    let page = answer.json();
    let warning = "199 iovcache \"1 paths are not listed: A/B/One\"";
    assert_eq!(answer.get("Warning"), Some(warning));
    let paths: Vec<&Value> =
        page["objects"].as_array().unwrap().iter().map(|o| &o["path"]).collect();
    assert_eq!(paths, ["A/B/Two"]);
    let found = get(&address(&service), "/A/B/One/1500", &[]);
    assert_eq!(found.get("ETag"), Some(&*format!("\"{new}\"")));
    assert_ne!(old, new);
}
