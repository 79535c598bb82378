//! Repositories: their index, several writers, kills, detected changes.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use common::new_version;
use iovcache::source::repository::verify;
use iovcache::source::repository::{
    Bucket, Durability, Imported, ManifestError, NewVersion, RepositoryOptions, RepositorySource,
    RepositoryWriter, import, index,
};
use iovcache::source::{Destination, Selection, Source, VecBody, copy};
use iovcache::{
    Coded as _, CreationLimits, ObjectInfo, ObjectPath, Query, Timestamp, ValidityInterval,
};

const PATH: &str = "TPC/Calib/VDrift";

fn put(repository: &Path, from: i64, created: i64) -> ObjectInfo {
    let writer = RepositoryWriter::new(repository).unwrap();
    let bytes = format!("{from} {created}").into_bytes();
    writer.put(&new_version(PATH, from, from + 100, created), &mut &bytes[..]).unwrap().info
}

/// Indexes the existing versions: versions that are put singly extend an existing index.
fn begin_index(repository: &Path) {
    fs::create_dir_all(repository).unwrap();
    index(repository, false, |_, _| {}).unwrap();
}

fn open(repository: &Path, refresh: Duration) -> RepositorySource {
    RepositorySource::open_folder(repository, RepositoryOptions { refresh }).unwrap()
}

/// All versions listed by the source, by (from, created).
async fn listed(source: &dyn Source) -> Vec<(i64, i64)> {
    let query = Query::all(ObjectPath::new(PATH).unwrap());
    let page = source.list_page(&query, None, usize::MAX).await.unwrap();
    let key = |info: &Arc<ObjectInfo>| (info.validity.from().as_millis(), info.created.as_millis());
    let mut found: Vec<_> = page.versions.iter().map(key).collect();
    found.sort_unstable();
    found
}

fn index_files(repository: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(repository.join(".iovcache~")).unwrap();
    let files = entries.map(|entry| entry.unwrap().path());
    files.filter(|file| file.extension().is_some_and(|end| end == "arrow")).collect()
}

const NEVER: Duration = Duration::from_secs(3600);

#[tokio::test(flavor = "multi_thread")]
async fn the_index_is_used_as_far_as_the_folders_say_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    begin_index(root);
    let [first, second, third] = [0, 100, 200].map(|from| put(root, from, 1));
    assert_eq!(listed(&open(root, NEVER)).await, [(0, 1), (100, 1), (200, 1)]);
    assert!(index(root, true, |_, _| {}).unwrap().is_current());
    let place = |info: &ObjectInfo| {
        root.join(PATH).join(info.validity.from().to_string()).join(info.id.to_string())
    };
    // One folder is removed, one gets another version, properties of one are changed in place.
    fs::remove_dir_all(place(&first).parent().unwrap()).unwrap();
    let other = tempfile::tempdir().unwrap();
    let foreign = put(other.path(), 100, 7);
    for end in ["", ".properties"] {
        let name = format!("{}{end}", foreign.id);
        let from = other.path().join(PATH).join("100").join(&name);
        fs::copy(from, place(&second).with_file_name(name)).unwrap();
    }
    let properties = format!("{}.properties", place(&third).display());
    let text = fs::read_to_string(&properties).unwrap();
    fs::write(&properties, text.replace("CreateTime=1", "CreateTime=9")).unwrap();
    let report = index(root, true, |_, _| {}).unwrap();
    assert_eq!((report.missing, report.surplus), (2, 1));
    assert_eq!(listed(&open(root, NEVER)).await, [(100, 1), (100, 7), (200, 9)]);
    index(root, false, |_, _| {}).unwrap();
    assert!(index(root, true, |_, _| {}).unwrap().is_current());
    assert_eq!(listed(&open(root, NEVER)).await, [(100, 1), (100, 7), (200, 9)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn index_files_that_are_torn_or_of_another_folder_are_ignored_and_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("repository");
    begin_index(&root);
    [0, 100].iter().for_each(|from| drop(put(&root, *from, 1)));
    let expected = [(0, 1), (100, 1)];
    // Copied with its index, which is valid only for its original folder.
    let copy = folder.path().join("copy");
    let copied = Command::new("cp").arg("-a").args([&root, &copy]).status().unwrap();
    assert!(copied.success());
    put(&copy, 200, 1);
    assert_eq!(listed(&open(&copy, NEVER)).await, [(0, 1), (100, 1), (200, 1)]);
    assert_eq!(index(&copy, true, |_, _| {}).unwrap().unusable.len(), 2);
    for file in index_files(&root) {
        let bytes = fs::read(&file).unwrap();
        fs::write(&file, &bytes[..bytes.len() - 100]).unwrap();
    }
    assert_eq!(listed(&open(&root, NEVER)).await, expected);
    let report = index(&root, false, |_, _| {}).unwrap();
    assert_eq!((report.unusable.len(), report.missing, report.versions), (2, 2, 2));
    assert!(index(&root, true, |_, _| {}).unwrap().is_current());
    assert_eq!(index_files(&root).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_writers_at_once_lose_nothing_and_the_index_has_it_all() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    begin_index(root);
    std::thread::scope(|scope| {
        for writer in 0..4 {
            scope.spawn(move || (0..40).for_each(|n| drop(put(root, n * 10, writer))));
        }
    });
    assert_eq!(listed(&open(root, NEVER)).await.len(), 160);
    assert!(index(root, true, |_, _| {}).unwrap().is_current());
    assert!(index_files(root).len() < 32, "they are merged");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_seen_when_it_is_committed_and_leaves_nothing_when_it_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let writer = RepositoryWriter::new(root).unwrap().with_durability(Durability::Batch);
    let source = open(root, Duration::ZERO);
    let mut batch = writer.batch();
    for n in 0..10 {
        let bytes = format!("{n}").into_bytes();
        assert!(batch.put(&new_version(PATH, n * 10, n * 10 + 5, n), &mut &bytes[..]).unwrap().new);
        // An identical put adds no second version.
        assert!(
            !batch.put(&new_version(PATH, n * 10, n * 10 + 5, n), &mut &bytes[..]).unwrap().new
        );
    }
    assert_eq!(listed(&source).await, []);
    batch.commit().unwrap();
    assert_eq!(listed(&source).await.len(), 10);
    let mut dropped = writer.batch();
    dropped.put(&new_version(PATH, 5000, 5001, 1), &mut &b"gone"[..]).unwrap();
    drop(dropped);
    assert_eq!(listed(&source).await.len(), 10);
    assert_eq!(verify(root, false).unwrap().damaged, []);
}

#[test]
fn a_given_id_is_found_wherever_its_interval_begins() {
    let folder = tempfile::tempdir().unwrap();
    let writer = RepositoryWriter::new(folder.path()).unwrap();
    let id = Some("f73a6a3f-4b8e-4d1c-9d5f-0a2b3c4d5e6f".to_owned());
    let first = NewVersion { id, ..new_version(PATH, 0, 10, 1) };
    assert!(writer.put(&first, &mut &b"bytes"[..]).unwrap().new);
    for writer in [writer, RepositoryWriter::new(folder.path()).unwrap()] {
        assert!(!writer.put(&first, &mut &b"bytes"[..]).unwrap().new);
        let moved = NewVersion { validity: new_version(PATH, 5, 10, 1).validity, ..first.clone() };
        let error = writer.put(&moved, &mut &b"bytes"[..]).unwrap_err().to_string();
        assert!(error.contains("another interval"), "{error}");
    }
}

/// Paths with their numbers of versions, as the source lists them.
async fn counted(source: &dyn Source) -> Vec<(String, u64)> {
    let paths = source.paths("").await.unwrap();
    paths.into_iter().map(|found| (found.path.to_string(), found.versions)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_negative_number_is_an_element_of_a_path_a_begin_or_both() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let writer = RepositoryWriter::new(root).unwrap();
    let put = |path: &str, from: i64| {
        writer.put(&new_version(path, from, from + 100, 1), &mut &b"bytes"[..]).unwrap();
    };
    [-5, -7, 3].iter().for_each(|from| put("A/One", *from));
    // Both: -5 has a version of A/One, and is the last element of A/One/-5.
    [-5, 10].iter().for_each(|from| put("A/One/-5", *from));
    put("A/-9/Two", 20);
    put("-1", -1);
    // No number of a repository: they were written by hand, and hold no version.
    for name in ["+5", "-007"] {
        fs::create_dir_all(root.join("A/One").join(name)).unwrap();
    }
    let expected = [("-1", 1), ("A/-9/Two", 1), ("A/One", 3), ("A/One/-5", 2)];
    let expected = expected.map(|(path, count)| (path.to_owned(), count)).to_vec();
    let source = open(root, Duration::ZERO);
    assert_eq!(counted(&source).await, expected);
    let indexed = index(root, false, |_, _| {}).unwrap();
    assert_eq!((indexed.paths, indexed.versions, &indexed.problems[..]), (4, 7, &[][..]));
    assert!(index(root, true, |_, _| {}).unwrap().is_current());
    std::thread::sleep(Duration::from_millis(100));
    index(root, false, |_, _| {}).unwrap();
    assert_eq!(counted(&open(root, NEVER)).await, expected, "with an index of settled folders");

    let store: Arc<dyn object_store::ObjectStore> = Arc::new(object_store::memory::InMemory::new());
    let bucket = Bucket::of("memory".to_owned(), Arc::clone(&store), "repo".into());
    let selection = Selection::Range {
        prefixes: Vec::new(),
        range: ValidityInterval::ALL,
        limits: CreationLimits::default(),
        step: None,
    };
    let destination = Destination::Bucket(bucket.clone());
    let copied = copy(&source, &destination, &selection, 4, |_, _, _| {}).await.unwrap();
    assert_eq!((copied.new, copied.failed.len()), (7, 0));
    // Files beside folders of versions, in folders of other numbers.
    for name in ["+5", "-007"] {
        for file in ["x", "x.properties"] {
            let place = object_store::path::Path::from(format!("repo/A/One/{name}/{file}"));
            store.put_opts(&place, "".into(), Default::default()).await.unwrap();
        }
    }
    let stored = RepositorySource::new(bucket, RepositoryOptions { refresh: Duration::ZERO });
    assert_eq!(counted(&stored).await, expected);
    for source in [&source, &stored] {
        let query = Query::all(ObjectPath::new("A/One").unwrap());
        let page = source.list_page(&query, None, usize::MAX).await.unwrap();
        let froms: Vec<i64> =
            page.versions.iter().map(|info| info.validity.from().as_millis()).collect();
        assert_eq!((froms, page.problems.len()), (vec![-7, -5, 3], 0));
    }
}

/// A manifest of `count` objects in a folder of its own.
fn manifest(folder: &Path, count: usize) -> std::path::PathBuf {
    let mut text =
        "path,valid_from_ms,valid_until_ms,created_ms,id,file,size,md5,note\n".to_owned();
    for n in 0..count {
        fs::write(folder.join(n.to_string()), format!("object {n}")).unwrap();
        text += &format!("{PATH},{},{},{n},,{n},,,\n", n * 10, n * 10 + 10);
    }
    let manifest = folder.join("manifest.csv");
    fs::write(&manifest, text).unwrap();
    manifest
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_is_killed_anywhere_leaves_whole_versions_and_goes_on() {
    const COUNT: usize = 2000;
    let folder = tempfile::tempdir().unwrap();
    let objects = tempfile::tempdir().unwrap();
    let manifest = manifest(objects.path(), COUNT);
    let import = || {
        let mut command = common::iovcache();
        command.arg("import").arg("--repository").arg(folder.path()).arg(&manifest);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let seed = 0x5eed_u64;
    eprintln!("seed {seed}");
    let mut state = seed;
    let mut seen = 0;
    for _ in 0..6 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let mut child = import().spawn().unwrap();
        std::thread::sleep(Duration::from_millis(100 + (state >> 33) % 900));
        child.kill().unwrap();
        child.wait().unwrap();
        let source = open(folder.path(), NEVER);
        let query = Query::all(ObjectPath::new(PATH).unwrap());
        let page = source.list_page(&query, None, usize::MAX).await.unwrap();
        assert!(page.versions.len() >= seen, "what was there is there");
        seen = page.versions.len();
        for version in page.versions.iter().step_by(97) {
            let mut body = VecBody::default();
            source.fetch(version, &mut body).await.unwrap();
            assert_eq!(body.bytes(), format!("object {}", version.created.as_millis()).as_bytes());
        }
    }
    assert!(import().status().unwrap().success());
    assert_eq!(listed(&open(folder.path(), NEVER)).await.len(), COUNT);
    assert!(index(folder.path(), false, |_, _| {}).unwrap().surplus == 0);
    assert!(index(folder.path(), true, |_, _| {}).unwrap().is_current());
}

#[test]
fn an_import_costs_the_same_for_each_version() {
    let time = |count: usize| {
        let (folder, objects) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let manifest = manifest(objects.path(), count);
        let writer = RepositoryWriter::new(folder.path()).unwrap();
        let writer = writer.with_durability(Durability::Batch);
        let began = Instant::now();
        iovcache::source::repository::import(&manifest, &writer, |_| {}).unwrap();
        began.elapsed()
    };
    time(200);
    let (few, many) = (time(500), time(3000));
    assert!(many < few * 6 * 3, "500: {few:?}, 3,000: {many:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_of_other_writers_are_announced_and_seen_at_once() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let root = folder.path();
    put(root, 0, 1);
    let source = open(root, NEVER);
    let (sender, receiver) = channel();
    source.subscribe(Arc::new(move |paths| {
        let _ = sender.send(paths.clone());
    }));
    assert_eq!(listed(&source).await, [(0, 1)]);
    // A new folder, then a version in an existing folder.
    for (from, created, expected) in [(100, 1, 2), (0, 5, 3)] {
        let foreign = put(other.path(), from, created);
        let began = Instant::now();
        let place = root.join(PATH).join(from.to_string());
        fs::create_dir_all(&place).unwrap();
        for end in [".properties", ""] {
            let name = format!("{}{end}", foreign.id);
            fs::copy(other.path().join(PATH).join(from.to_string()).join(&name), place.join(&name))
                .unwrap();
        }
        loop {
            let told = receiver.recv_timeout(Duration::from_secs(10)).unwrap();
            assert!(told.contains(&ObjectPath::new(PATH).unwrap()));
            if listed(&source).await.len() == expected {
                break;
            }
        }
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_of_many_versions_is_right_at_every_border_and_in_its_listing() {
    let (folder, objects) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let manifest = manifest(objects.path(), 3000);
    let writer = RepositoryWriter::new(folder.path()).unwrap();
    let writer = writer.with_durability(Durability::Batch);
    iovcache::source::repository::import(&manifest, &writer, |_| {}).unwrap();
    // One that is valid everywhere and always loses; one that wins in the middle.
    writer.put(&new_version(PATH, -5, 100_000, -1), &mut &b"below"[..]).unwrap();
    writer.put(&new_version(PATH, 15_001, 15_003, 1 << 40), &mut &b"above"[..]).unwrap();
    let source = open(folder.path(), NEVER);
    let query = Query::all(ObjectPath::new(PATH).unwrap());
    for (at, created) in [
        (-6, None),
        (-5, Some(-1)),
        (0, Some(0)),
        (15_000, Some(1500)),
        (15_001, Some(1 << 40)),
        (15_003, Some(1500)),
        (29_999, Some(2999)),
        (30_000, Some(-1)),
        (99_999, Some(-1)),
        (100_000, None),
    ] {
        let time = Timestamp::from_millis(at);
        let known = source.look_up(&query, time, None).await.unwrap();
        assert!(known.span.contains(time));
        let valid = known.versions.iter().filter(|version| version.validity.contains(time));
        let winner = valid.max_by_key(|version| version.rank());
        assert_eq!(winner.map(|version| version.created.as_millis()), created, "at {at}");
    }
    let mut after = None;
    let mut all = Vec::new();
    loop {
        let page = source.list_page(&query, after, 500).await.unwrap();
        after = page.versions.last().map(|info| (info.validity.from(), info.id));
        all.extend(page.versions);
        if !page.more {
            break;
        }
    }
    assert_eq!(all.len(), 3002);
    assert!(all.is_sorted_by_key(|info| (info.validity.from(), info.id)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_serves_what_is_put_long_before_its_refresh() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    put(root, 0, 1);
    let service = common::Service::over(root, &["--refresh", "3600s"]);
    let client = iovcache::client::Client::connect(&service.unix()).await.unwrap();
    let served = async || {
        let request = iovcache::client::TableRequest::new().column("drift", PATH).timestamps([5]);
        let table = client.table(request).await.unwrap();
        table.column("drift").unwrap().get(0).unwrap().unwrap().to_vec()
    };
    assert_eq!(served().await, b"0 1");
    // Requested continuously, and not requested for a long time.
    for (created, pause) in [(2, Duration::ZERO), (3, Duration::from_secs(11))] {
        tokio::time::sleep(pause).await;
        put(root, 0, created);
        let began = Instant::now();
        let expected = format!("0 {created}").into_bytes();
        while served().await != expected {
            assert!(began.elapsed() < Duration::from_secs(5), "{created} is not seen");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// The versions of the path, in order.
async fn versions(source: &dyn Source) -> Vec<Arc<ObjectInfo>> {
    let query = Query::all(ObjectPath::new(PATH).unwrap());
    source.list_page(&query, None, usize::MAX).await.unwrap().versions
}

fn properties_of(root: &Path, version: &ObjectInfo) -> std::path::PathBuf {
    let folder = root.join(PATH).join(version.validity.from().to_string());
    folder.join(format!("{}.properties", version.id))
}

#[tokio::test(flavor = "multi_thread")]
async fn facts_about_many_uploads_come_from_the_index_and_need_no_file_each() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let writer = RepositoryWriter::new(root).unwrap().with_durability(Durability::Batch);
    // Several files of the index.
    for part in 0..3 {
        let mut batch = writer.batch();
        for n in part * 1_000..(part + 1) * 1_000 {
            let file_name = format!("{n}.root");
            let version = NewVersion { file_name, ..new_version(PATH, n, n + 10, n) };
            batch.put(&version, &mut &n.to_le_bytes()[..]).unwrap();
        }
        batch.commit().unwrap();
    }
    // The times of the last changes become distinct from those of other states.
    std::thread::sleep(Duration::from_millis(100));
    index(root, false, |_, _| {}).unwrap();
    let source = open(root, NEVER);
    let all = versions(&source).await;
    assert_eq!(all.len(), 3_000);
    let right: Vec<_> = futures::future::join_all(all.iter().map(|one| source.details(one))).await;
    let right: Vec<_> = right.into_iter().map(Result::unwrap).collect();
    assert_eq!(right[77].file_name.as_deref(), Some("77.root"));
    assert_eq!(right[77].initial_until, Some(Timestamp::from_millis(87)));
    // Without the properties, only the index has them. Those of the first versions are read.
    all.iter().skip(100).for_each(|one| fs::remove_file(properties_of(root, one)).unwrap());
    for (one, right) in all.iter().zip(&right) {
        assert_eq!(source.known_details(one).as_ref(), Some(right), "{one:?}");
    }
    for (one, right) in all.iter().zip(&right).rev().step_by(13) {
        assert_eq!(source.known_details(one).as_ref(), Some(right), "{one:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn facts_about_a_changed_upload_come_from_its_properties() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let writer = RepositoryWriter::new(root).unwrap();
    let mut batch = writer.batch();
    for n in 0..300 {
        batch.put(&new_version(PATH, n, n + 10, n), &mut &b"bytes"[..]).unwrap();
    }
    batch.commit().unwrap();
    let source = open(root, Duration::from_millis(1));
    let all = versions(&source).await;
    std::thread::sleep(Duration::from_millis(100));
    for one in all.iter().step_by(10) {
        let place = properties_of(root, one);
        let text = fs::read_to_string(&place).unwrap();
        fs::write(&place, text.replace("OriginalFileName=file", "OriginalFileName=other")).unwrap();
    }
    common::until("the changes to be seen", || {
        source.forget(&all[0].path);
        let seen = tokio::task::block_in_place(|| {
            let now = tokio::runtime::Handle::current().block_on(versions(&source));
            let names = now.iter().map(|one| source.known_details(one).unwrap().file_name);
            names.collect::<Vec<_>>()
        });
        let expected = |n: usize| if n.is_multiple_of(10) { "other" } else { "file" };
        let is_right = |(n, name): (usize, &Option<String>)| name.as_deref() == Some(expected(n));
        seen.iter().enumerate().all(is_right).then_some(())
    });
    // Putting them back into the index does not change the answers.
    index(root, false, |_, _| {}).unwrap();
    let source = open(root, NEVER);
    for (n, one) in versions(&source).await.iter().enumerate() {
        let name = source.known_details(one).unwrap().file_name;
        assert_eq!(name.as_deref(), Some(if n % 10 == 0 { "other" } else { "file" }), "{n}");
    }
}

/// The priorities of the threads of a process, as of `nice`.
fn priorities(process: &str) -> Vec<i32> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let stats =
        threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("stat")).ok());
    let nice = |stat: String| stat.rsplit(')').next()?.split_whitespace().nth(16)?.parse().ok();
    stats.filter_map(nice).collect()
}

#[test]
fn import_and_copy_have_low_priority_unless_they_are_to_have_a_normal_one() {
    let own = priorities("self")[0];
    let folder = tempfile::tempdir().unwrap();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let source = format!("http://{}", silent.local_addr().unwrap());
    let destination = format!("file://{}", folder.path().display());
    // Both wait until they are killed: for the manifest, and for the source.
    let import = ["import", "--repository", folder.path().to_str().unwrap(), "-"];
    let copy = ["copy", &source, &destination];
    for command in [&import[..], &copy[..]] {
        for (options, expected) in [(&[][..], own.max(10)), (&["--priority", "normal"][..], own)] {
            let mut running = common::iovcache();
            running.args(command).args(options).stdin(Stdio::piped()).stderr(Stdio::null());
            let mut child = running.spawn().unwrap();
            let began = Instant::now();
            let found = loop {
                // Its worker threads have been started.
                let found = priorities(&child.id().to_string());
                if found.len() > 1 && found.iter().all(|nice| *nice == expected)
                    || began.elapsed() > Duration::from_secs(10)
                {
                    break found;
                }
                std::thread::sleep(Duration::from_millis(10));
            };
            child.kill().unwrap();
            child.wait().unwrap();
            assert!(
                found.len() > 1 && found.iter().all(|nice| *nice == expected),
                "{command:?} {options:?}: {found:?}, expected {expected}"
            );
        }
    }
}

/// The header of a manifest with ids.
const HEADER: &str = "path,valid_from_ms,valid_until_ms,created_ms,id,file,note\n";

/// Imports a manifest with `lines`, which may name the file `object`, into the folder `repository`
/// beside it.
fn import_lines(folder: &Path, lines: &str) -> Result<Imported, ManifestError> {
    let file = folder.join("lines.csv");
    fs::write(&file, lines).unwrap();
    fs::write(folder.join("object"), "bytes").unwrap();
    let writer = RepositoryWriter::new(folder.join("repository")).unwrap();
    let (done, outcome) = channel();
    // In a thread: an import that waits for a FIFO would never end.
    std::thread::spawn(move || done.send(import(&file, &writer, |_| {})));
    outcome.recv_timeout(Duration::from_secs(30)).expect("the import waits")
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder.join("repository")).unwrap().next().is_none()
}

#[test]
fn a_manifest_without_its_header_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (lines, reason) in [
        ("", "without path, valid_from_ms, valid_until_ms, created_ms, file"),
        ("garbage\n", "\"garbage\" is no column"),
        ("TPC/A,1,2,3,object\n", "\"TPC/A\" is no column"),
        ("path,valid_from_ms,valid_until_ms,file\n", "without created_ms"),
        ("path,path,valid_from_ms,valid_until_ms,created_ms,file\n", "path stands in it twice"),
        ("path,valid_from_ms,valid_until_ms,created_ms,file,md\n", "\"md\" is no column"),
    ] {
        let error = import_lines(folder.path(), lines).unwrap_err();
        let text = error.message();
        assert!(text.starts_with("[IOV-3031]") && text.contains(reason), "{lines:?}: {text}");
        assert!(is_empty(folder.path()), "{lines:?}");
    }
    // A header alone is a manifest without versions.
    assert_eq!(import_lines(folder.path(), HEADER).unwrap(), Imported::default());
}

#[test]
fn ids_of_a_manifest_are_checked_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let id = "0e2f3a0c-3f0d-4b52-8f43-5d8b6c8a7a10";
    let good: String = (0..1_100).map(|n| format!("A/B,{n},{},5,,object,\n", n + 1)).collect();
    for (lines, reason) in [
        (format!("A/B,1,2,3,{id},object,\nA/B,1,9,3,{id},object,\n"), "has the id 0e2f3a0c"),
        (format!("A/B,1,2,3,{id},object,\nA/B,7,9,3,{id},object,\n"), "has the id 0e2f3a0c"),
        (format!("A/B,1,2,3,{id},object,\nA/B,1,2,3,{id},lines.csv,\n"), "has the id 0e2f3a0c"),
        ("A/B,1,2,3,,object,one\nA/B,1,2,3,,object,two\n".to_owned(), "in an earlier line"),
    ] {
        let error = import_lines(folder.path(), &[HEADER, &good, &lines].concat()).unwrap_err();
        let text = error.message();
        assert!(text.starts_with("[IOV-3032] line 1103, id: ") && text.contains(reason), "{text}");
        assert!(is_empty(folder.path()), "{text}");
    }
    // Equal lines are one version, and paths have ids of their own.
    let line = format!("A/B,1,2,3,{id},object,\n");
    let other = format!("A/C,5,6,3,{id},object,\n");
    let imported = import_lines(folder.path(), &[HEADER, &line, &line, &other].concat()).unwrap();
    assert_eq!((imported.new, imported.unchanged), (2, 1));
    // A stored version has the id.
    for taken in [format!("A/B,1,9,3,{id},object,\n"), format!("A/B,8,9,3,{id},object,\n")] {
        let lines = [HEADER, "D/E,1,2,3,,object,\n", &taken].concat();
        let text = import_lines(folder.path(), &lines).unwrap_err().message();
        assert!(text.starts_with("[IOV-3021] line 3: "), "{text}");
        assert!(!folder.path().join("repository/D").exists(), "{text}");
    }
}

#[test]
fn a_manifest_that_names_a_fifo_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let lines = [HEADER, "A/B,1,2,3,,fifo,\n"].concat();
    let text = import_lines(folder.path(), &lines).unwrap_err().message();
    assert!(text.contains("line 2, file: ") && text.contains("no regular file"), "{text}");
}
