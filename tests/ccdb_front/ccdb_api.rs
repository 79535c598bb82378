//! The cases of AliceO2's tests of CcdbApi and BasicCCDBManager (release of October 2024), request
//! by request as that client sends them, with each kind of source.
//!
//! Not here, because they send nothing to the server: `store_max_size_test`, `TestHeaderParsing` and
//! `trim_host_url_test`; and the case of the Grid.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::address;
use super::raw::{Answer, Connection, get};
use super::writes::Writable;

const DAY: i64 = 86_400_000;

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

/// CcdbApi's requests.
struct Api<'a>(&'a Writable);

impl Api<'_> {
    fn front(&self) -> String {
        address(&self.0.service)
    }

    /// `getFullUrlForRetrieval`: with a slash at the end.
    fn url(path: &str, at: i64, metadata: &[(&str, &str)]) -> String {
        let metadata: String =
            metadata.iter().map(|(key, value)| format!("{key}={value}/")).collect();
        format!("/{path}/{at}/{metadata}")
    }

    /// `storeAsTFile`: the object type comes before the metadata.
    fn store(&self, path: &str, interval: (i64, i64), metadata: &[(&str, &str)], bytes: &str) {
        let (from, until) = interval;
        let metadata: String =
            metadata.iter().map(|(key, value)| format!("{key}={value}/")).collect();
        let target = format!("/{path}/{from}/{until}/ObjectType=TH1F/{metadata}");
        let stored = super::writes::post(&self.front(), &target, bytes.as_bytes(), "");
        assert_eq!(stored.status, 201, "{target}: {}", stored.text());
        let (from, until) = (from.to_string(), until.to_string());
        assert_eq!(stored.get("Valid-From"), Some(&*from));
        assert_eq!(stored.get("Valid-Until"), Some(&*until));
        for name in ["Created", "ETag", "Last-Modified", "Location"] {
            assert!(stored.get(name).is_some(), "{target}: {name}: {stored:?}");
        }
    }

    /// Follows redirects as libcurl does: the answers, the last one at the end.
    fn follow(&self, method: &str, target: &str, headers: &[(&str, &str)]) -> Vec<Answer> {
        let mut connection = Connection::open(&self.front());
        let mut answers = vec![connection.ask(method, target, headers)];
        while let Some(place) = answers.last().filter(|a| a.status == 303) {
            let place = place.get("Location").unwrap().to_owned();
            answers.push(connection.ask(method, &place, headers));
            assert!(answers.len() < 5, "{target}");
        }
        answers
    }

    /// `retrieveFromTFile`: the bytes, and the headers of all answers.
    fn retrieve(
        &self,
        path: &str,
        at: i64,
        metadata: &[(&str, &str)],
        headers: &[(&str, &str)],
    ) -> Option<(String, BTreeMap<String, String>)> {
        let answers = self.follow("GET", &Self::url(path, at, metadata), headers);
        let last = answers.last().unwrap();
        match last.status {
            200 => Some((last.text(), headers_of(&answers))),
            404 => None,
            status => panic!("{path} {at}: {status}: {}", last.text()),
        }
    }

    /// `retrieveHeaders`: HEAD with the time as a tag.
    fn headers(&self, path: &str, metadata: &[(&str, &str)]) -> BTreeMap<String, String> {
        let tag = [("If-None-Match", "-1")];
        let answers = self.follow("HEAD", &Self::url(path, now(), metadata), &tag);
        match answers.last().unwrap().status {
            404 => BTreeMap::new(),
            _ => headers_of(&answers),
        }
    }

    /// `updateMetadata`: each pair ends with `&`.
    fn update(&self, path: &str, at: i64, id: Option<&str>, metadata: &[(&str, &str)]) -> u16 {
        let id = id.map(|id| format!("/{id}")).unwrap_or_default();
        let pairs: String = metadata.iter().map(|(key, value)| format!("{key}={value}&")).collect();
        self.0.ask("PUT", &format!("/{path}/{at}{id}?{pairs}")).status
    }

    fn delete(&self, path: &str) -> u16 {
        self.0.ask("DELETE", &format!("/{path}/{}", now())).status
    }

    fn truncate(&self, path: &str) {
        let status = self.0.ask("GET", &format!("/truncate/{path}")).status;
        assert!(matches!(status, 204 | 304), "{path}: {status}");
    }

    /// `list`: number of objects, and of folders if they are listed.
    fn list(&self, path: &str, latest: bool) -> (usize, usize) {
        let command = if latest { "latest" } else { "browse" };
        let json = [("Accept", "application/json"), ("Content-Type", "application/json")];
        let page = get(&self.front(), &format!("/{command}/{path}"), &json).json();
        let count = |key: &str| page[key].as_array().map_or(0, Vec::len);
        (count("objects"), count("subfolders"))
    }

    /// `getAllFolders`: from the text, folder by folder.
    fn folders(&self, top: &str) -> Vec<String> {
        let plain = [("Accept", "text/plain")];
        let text = get(&self.front(), &format!("/browse/{top}"), &plain).text();
        let after = text.split("Subfolders:\n").nth(1).unwrap_or_default();
        let mut all = vec![top.to_owned()];
        for folder in after.lines().map(str::trim).filter(|line| !line.is_empty()) {
            all.extend(self.folders(folder));
        }
        all
    }
}

/// The headers of all answers, the last of each name.
fn headers_of(answers: &[Answer]) -> BTreeMap<String, String> {
    answers.iter().flat_map(|answer| answer.headers.clone()).collect()
}

const HELLO: &[(&str, &str)] = &[("Hello", "World")];

#[tokio::test(flavor = "multi_thread")]
async fn store_t_mem_file_and_retrieve_t_mem_file() {
    for writable in Writable::each().await {
        let api = Api(&writable);
        let day = (now() - 10, now() + DAY);
        for name in ["th1", "graph", "tree"] {
            api.store(&format!("Test/pid/{name}"), day, HELLO, name);
        }
        for name in ["th1", "graph", "tree"] {
            let path = format!("Test/pid/{name}");
            let (bytes, headers) = api.retrieve(&path, now(), HELLO, &[]).unwrap();
            assert_eq!((bytes.as_str(), &*headers["Hello"]), (name, "World"));
            assert_eq!(headers["ObjectType"], "TH1F");
        }
        assert!(api.retrieve("Wrong/wrong", now(), HELLO, &[]).is_none());
        assert!(api.retrieve("Test/pid/th1", now(), &[("Hello", "there")], &[]).is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn store_retrieve_templated_and_its_snapshot() {
    for writable in Writable::each().await {
        let api = Api(&writable);
        let day = (now() - 10, now() + DAY);
        api.store("Test/pid/CCDBPath", day, HELLO, "path");
        api.store("Test/pid/tree2", day, HELLO, "tree");
        let tags = [("If-None-Match", "-1")];
        let (bytes, headers) = api.retrieve("Test/pid/CCDBPath", now(), HELLO, &tags).unwrap();
        assert_eq!((bytes.as_str(), &*headers["Hello"]), ("path", "World"));
        // A snapshot retrieves what each folder has.
        let folders = api.folders("Test");
        assert_eq!(folders, ["Test", "Test/pid", "Test/pid/CCDBPath", "Test/pid/tree2"]);
        let found: Vec<String> = folders
            .iter()
            .filter_map(|folder| api.retrieve(folder, now(), &[], &[]))
            .map(|(bytes, _)| bytes)
            .collect();
        assert_eq!(found, ["path", "tree"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn timestamptest_and_retrieve_templated_with_headers() {
    for writable in Writable::each().await {
        let api = Api(&writable);
        api.store("Test/CCDBPathUnitTest", (1000, 1010), HELLO, "path");
        for at in 1000..1010 {
            assert!(api.retrieve("Test/CCDBPathUnitTest", at, HELLO, &[]).is_some(), "{at}");
        }
        for at in [999, 1010] {
            assert!(api.retrieve("Test/CCDBPathUnitTest", at, HELLO, &[]).is_none(), "{at}");
        }
        let from = now();
        api.store("Test/CCDBPathUnitTest", (from, from + 3650 * DAY), HELLO, "later");
        let tag = (from + 1).to_string();
        let tags = [("If-None-Match", tag.as_str())];
        let (bytes, headers) = api.retrieve("Test/CCDBPathUnitTest", from + 1, &[], &tags).unwrap();
        assert_eq!((bytes.as_str(), &*headers["Hello"]), ("later", "World"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn truncate_test_and_delete_test() {
    for writable in Writable::each().await {
        let api = Api(&writable);
        api.store("Test/pid/Detector", (now() - 10, now() + DAY), HELLO, "one");
        assert!(api.retrieve("Test/pid/Detector", now(), HELLO, &[]).is_some());
        api.truncate("Test/pid/Detector");
        assert!(api.retrieve("Test/pid/Detector", now(), HELLO, &[]).is_none());
        api.store("Test/pid/Detector", (now() - 10, now() + 3650 * DAY), HELLO, "two");
        let (_, headers) = api.retrieve("Test/pid/Detector", now(), HELLO, &[]).unwrap();
        assert_eq!(api.delete("Test/pid/Detector"), 204);
        assert!(api.retrieve("Test/pid/Detector", now(), HELLO, &[]).is_none());
        // The address of the deleted version is not found either.
        let gone = writable.ask("GET", &headers["Location"]);
        assert_eq!(gone.status, 404, "{}", gone.text());
        assert_eq!(api.delete("Test/pid/Detector"), 404);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn list_test() {
    for writable in Writable::each().await {
        let api = Api(&writable);
        api.truncate("Test/pid/Detector*");
        assert_eq!(api.list("Test/pid/Detector", false).0, 0);
        let day = (now() - 10, now() + DAY);
        for n in ["2", "3", "4"] {
            api.store("Test/pid/Detector", day, HELLO, n);
        }
        api.store("Test/pid/Detector/Sub/abc", day, HELLO, "5");
        assert_eq!(api.list("Test/pid/Detector", false), (3, 1));
        assert_eq!(api.list("Test/pid/Detector*", false), (4, 0));
        assert_eq!(api.list("Test/pid/Detector", true).0, 1);
        assert!(api.list("", false).1 > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn test_fetching_headers() {
    for writable in Writable::each().await {
        let api = Api(&writable);
        api.store("Test/objectETag", (now() - 10, now() + DAY), HELLO, "object");
        let target = format!("/Test/objectETag/{}", now());
        // The first request has no tag yet.
        let answers = api.follow("HEAD", &target, &[("If-None-Match", "")]);
        assert_eq!(answers.iter().map(|a| a.status).collect::<Vec<_>>(), [303, 200]);
        let etag = answers[0].get("ETag").unwrap().to_owned();
        assert!(answers[0].get("Content-Location").is_some());
        let again = api.follow("HEAD", &target, &[("If-None-Match", &etag)]);
        assert_eq!(again.len(), 1);
        assert_eq!(again[0].status, 304);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn test_retrieve_headers() {
    for writable in Writable::each().await {
        let api = Api(&writable);
        let whatever: &[(&str, &str)] = &[("custom", "whatever")];
        api.store("Test/pid/Test", (now() - 10, now() + DAY), whatever, "object");
        for _ in 0..2 {
            assert_eq!(api.headers("Test/pid/Test", whatever)["custom"], "whatever");
        }
        assert!(api.headers("Test/pid/Test", &[("custom", "something")]).is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn test_update_metadata() {
    for writable in Writable::each().await {
        let api = Api(&writable);
        let day = (now() - 10, now() + DAY);
        let id_of =
            |headers: &BTreeMap<String, String>| headers["ETag"].trim_matches('"').to_owned();
        let first: &[(&str, &str)] = &[("custom", "whatever"), ("id", "first")];
        api.store("Test/pid/Test", day, first, "1");
        let headers = api.headers("Test/pid/Test", first);
        assert_eq!(headers["custom"], "whatever");
        let first_id = id_of(&headers);
        let else_: &[(&str, &str)] = &[("custom", "somethingelse")];
        assert_eq!(api.update("Test/pid/Test", now(), None, else_), 204);
        assert_eq!(api.headers("Test/pid/Test", else_)["custom"], "somethingelse");
        let second: &[(&str, &str)] = &[("custom", "whatever"), ("id", "second")];
        api.store("Test/pid/Test", day, second, "2");
        let second_id = id_of(&api.headers("Test/pid/Test", second));
        assert_ne!(first_id, second_id);
        // By id, at a time that is not the beginning of the interval.
        for (id, value) in [(&first_id, "first"), (&second_id, "second")] {
            let change = [("custom", value)];
            assert_eq!(api.update("Test/pid/Test", now(), Some(id), &change), 204, "{value}");
        }
        for (name, id) in [("first", first_id), ("second", second_id)] {
            let headers = api.headers("Test/pid/Test", &[("id", name)]);
            assert_eq!((&*headers["custom"], id_of(&headers)), (name, id));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn store_and_retrieve_with_two_times_as_multiple_urls_does() {
    for writable in Writable::each().await {
        let api = Api(&writable);
        let at = now();
        api.store("ccdb/TObject/TEST", (at, at + DAY), HELLO, "object");
        let path = format!("ccdb/TObject/TEST/{at}");
        assert_eq!(api.retrieve(&path, at, HELLO, &[]).unwrap().0, "object");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn vectored_and_the_downloaders_batches() {
    for writable in Writable::each().await {
        let api = Api(&writable);
        api.store("Analysis/ALICE3/Centrality", (1_645_780_010_000, 1_645_780_011_000), &[], "c");
        let front = api.front();
        let one = move |front: String| {
            let target = "/Analysis/ALICE3/Centrality/1645780010602/";
            let mut connection = Connection::open(&front);
            (0..5).all(|_| {
                let named = connection.ask("GET", target, &[]);
                let place = named.get("Location").map(str::to_owned);
                place.is_some_and(|place| connection.ask("GET", &place, &[]).text() == "c")
            })
        };
        let running: Vec<_> = (0..20)
            .map(|_| {
                let front = front.clone();
                std::thread::spawn(move || one(front))
            })
            .collect();
        assert!(running.into_iter().all(|thread| thread.join().unwrap()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn test_basic_ccdb_manager() {
    for writable in Writable::each().await {
        let api = Api(&writable);
        for path in ["Test/CachingA", "Test/CachingB"] {
            api.store(path, (1000, 2000), &[], "testObjectO");
        }
        api.store("Test/CachingA", (2000, 3000), &[], "testObjectN");
        let (bytes, headers) = api.retrieve("Test/CachingA", 1500, &[], &[]).unwrap();
        assert_eq!(bytes, "testObjectO");
        // The manager asks again with the ETag and the time, on two lines.
        let tags = [("If-None-Match", headers["ETag"].as_str()), ("If-None-Match", "1500")];
        let cached = api.follow("GET", "/Test/CachingA/1500/", &tags);
        assert_eq!(cached[0].status, 304);
        assert_eq!(api.retrieve("Test/CachingB", 1500, &[], &[]).unwrap().0, "testObjectO");
        assert!(api.retrieve("Test/CachingA", 500, &[], &[]).is_none());
        let (bytes, _) = api.retrieve("Test/CachingA", 2500, &[], &tags).unwrap();
        assert_eq!(bytes, "testObjectN");
        for limit in [("If-Not-After", "1"), ("If-Not-Before", "4108971600000")] {
            assert!(api.retrieve("Test/CachingA", 1500, &[], &[limit]).is_none(), "{limit:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn head_has_the_headers_of_get_and_listings_have_the_facts_of_the_upload() {
    for writable in Writable::each().await {
        let api = Api(&writable);
        let stored = super::writes::post(
            &api.front(),
            "/Test/Facts/1000/2000/ObjectType=TH1F/Hello=World/",
            b"bytes",
            "",
        );
        let own = |answer: &Answer| -> Vec<(String, String)> {
            let ignored = ["Date", "Content-Length"];
            let headers = answer.headers.iter().filter(|(name, _)| !ignored.contains(&&**name));
            headers.cloned().collect()
        };
        let place = stored.get("Location").unwrap().to_owned();
        for target in ["/Test/Facts/1500", &place] {
            let [head, got] = ["HEAD", "GET"].map(|method| writable.ask(method, target));
            assert_eq!(head.status, got.status, "{target}");
            assert_eq!(own(&head), own(&got), "{target}");
        }
        let got = writable.ask("GET", &place);
        assert_eq!(got.get("Content-MD5"), Some("4b3a6218bb3e3a7303e8a171a60fcf92"));
        let is_here = !writable.is_forwarded("Test/Facts");
        let json = [("Accept", "application/json")];
        let page = get(&api.front(), "/browse/Test/Facts", &json).json();
        let entry = &page["objects"][0];
        assert_eq!((&entry["validFrom"], &entry["initialValidity"]), (&1000.into(), &2000.into()));
        assert_eq!(entry["Hello"], "World");
        if is_here {
            let disposition = "inline;filename=\"th1_1.root\"";
            assert_eq!(got.get("Content-Disposition"), Some(disposition));
            assert_eq!(got.get("Content-Type"), Some("application/octet-stream"));
            for (key, value) in [
                ("fileName", "th1_1.root"),
                ("UploadedFrom", "127.0.0.1"),
                ("Content-Disposition", disposition),
            ] {
                assert_eq!(entry[key], value, "{key}: {entry}");
            }
        }
        // A change of validity leaves the initial one, and moves the time of the change.
        std::thread::sleep(Duration::from_millis(1_100));
        assert_eq!(writable.ask("PUT", "/Test/Facts/1500/1800").status, 204);
        let got = writable.ask("HEAD", "/Test/Facts/1500");
        let page = get(&api.front(), "/browse/Test/Facts", &json).json();
        let entry = &page["objects"][0];
        assert_eq!(entry["validUntil"], 1800);
        if is_here {
            assert_eq!(got.get("InitialValidityLimit"), Some("2000"));
            assert_eq!(entry["initialValidity"], 2000);
            assert!(entry["lastModified"].as_i64() > entry["createTime"].as_i64());
        }
    }
}
