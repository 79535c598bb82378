//! Changes of a served folder that are hard to see: lost events, roots and folders that are moved,
//! removed and replaced, forged index files.

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use common::{Random, new_version};
use iovcache::source::repository::{
    Durability, RepositoryOptions, RepositorySource, RepositoryWriter, index,
};
use iovcache::source::{Source, SourceError};
use iovcache::{ObjectInfo, ObjectPath, Query, Timestamp};

const PATH: &str = "TPC/Calib/VDrift";
const NEVER: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_millis(100);

fn put(repository: &Path, from: i64, created: i64) -> ObjectInfo {
    let writer = RepositoryWriter::new(repository).unwrap();
    let version = new_version(PATH, from, from + 100, created);
    writer.put(&version, &mut format!("{from} {created}").as_bytes()).unwrap().info
}

fn open(repository: &Path, refresh: Duration) -> RepositorySource {
    RepositorySource::open_folder(repository, RepositoryOptions { refresh }).unwrap()
}

/// (from, until, created) of all versions, or the error of the source.
async fn tried(source: &RepositorySource) -> Result<Vec<(i64, i64, i64)>, SourceError> {
    let query = Query::all(ObjectPath::new(PATH).unwrap());
    let page = source.list_page(&query, None, usize::MAX).await?;
    let versions = page.versions.iter().map(|info| {
        let [from, until] = [info.validity.from(), info.validity.until()];
        (from.as_millis(), until.as_millis(), info.created.as_millis())
    });
    let mut all: Vec<_> = versions.collect();
    all.sort_unstable();
    Ok(all)
}

async fn listed(source: &RepositorySource) -> Vec<(i64, i64, i64)> {
    tried(source).await.unwrap()
}

/// Waits until the versions have these `from`.
async fn becomes(source: &RepositorySource, froms: &[i64], what: &str) {
    let began = Instant::now();
    loop {
        let found = tried(source).await;
        if let Ok(found) = &found
            && found.iter().map(|(from, ..)| from).eq(froms)
        {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "{what}: {found:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_overflow_of_the_kernels_queue_nothing_is_missed() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    put(root, 0, 1);
    // Nothing but an event makes this source look again.
    let source = open(root, NEVER);
    let (entered, has_entered) = channel();
    let (release, released) = channel::<()>();
    let released = std::sync::Mutex::new(released);
    source.subscribe(Arc::new(move |_| {
        let _ = entered.send(());
        // Keeps the thread from reading further events.
        let _ = released.lock().unwrap().recv();
    }));
    assert_eq!(listed(&source).await.len(), 1);
    put(root, 100, 1);
    has_entered.recv_timeout(Duration::from_secs(10)).unwrap();
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let limit: usize = limit.trim().parse().unwrap();
    let noise = root.join(PATH).join("100").join("noise");
    let began = Instant::now();
    // Equal events that follow each other are merged by the kernel: these differ.
    for _ in 0..limit {
        fs::write(&noise, "").unwrap();
        fs::remove_file(&noise).unwrap();
    }
    eprintln!("{limit} events took {:?}", began.elapsed());
    // The event of this folder is lost.
    put(root, 200, 1);
    drop(release);
    becomes(&source, &[0, 100, 200], "a version whose event was lost").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_is_moved_away_is_down_and_not_empty_and_its_successor_is_served() {
    let place = tempfile::tempdir().unwrap();
    let (root, aside) = (place.path().join("root"), place.path().join("aside"));
    put(&root, 0, 1);
    put(&root, 100, 1);
    for refresh in [Duration::ZERO, SOON] {
        let source = open(&root, refresh);
        assert_eq!(listed(&source).await.len(), 2);
        fs::rename(&root, &aside).unwrap();
        let began = Instant::now();
        loop {
            match tried(&source).await {
                Err(SourceError::Down { .. }) => break,
                Ok(found) => assert_eq!(found.len(), 2, "a missing root must not look empty"),
                Err(error) => panic!("{error}"),
            }
            assert!(began.elapsed() < Duration::from_secs(10), "it is not noticed");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let subfolders = source.subfolders("").await;
        assert!(matches!(subfolders, Err(SourceError::Down { .. })), "{subfolders:?}");
        // Another repository takes its place.
        put(&root, 500, 1);
        becomes(&source, &[500], "the successor").await;
        fs::remove_dir_all(&root).unwrap();
        fs::rename(&aside, &root).unwrap();
        becomes(&source, &[0, 100], "the first one, back again").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_successor_of_a_folder_of_versions_that_was_moved_away_is_seen() {
    // Out of the path, out of sight within it, and to a time that is not its own.
    for place in ["../aside", ".aside", "700"] {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        put(root, 0, 1);
        put(root, 100, 1);
        // Nothing but an event makes this source look again.
        let source = open(root, NEVER);
        assert_eq!(listed(&source).await.len(), 2);
        let path = root.join(PATH);
        fs::rename(path.join("100"), path.join(place)).unwrap();
        becomes(&source, &[0], "a folder that was moved").await;
        let second = put(root, 100, 2);
        becomes(&source, &[0, 100], "its successor").await;
        put(root, 100, 3);
        becomes(&source, &[0, 100, 100], "a further version").await;
        let kept = path.join("100").join(second.id.to_string());
        fs::remove_file(kept.with_extension("properties")).unwrap();
        becomes(&source, &[0, 100], "a version that was removed").await;
        assert!(
            listed(&source).await.iter().any(|(from, _, created)| (*from, *created) == (100, 3))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_is_swapped_with_another_folder_is_read_anew() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let root = folder.path();
    index(root, false, |_, _| {}).unwrap();
    put(root, 0, 1);
    put(other.path(), 700, 1);
    let staged = root.join("TPC/Calib/Staged");
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .args([&other.path().join(PATH), &staged])
        .status()
        .unwrap();
    assert!(copied.success());
    let source = open(root, SOON);
    assert_eq!(listed(&source).await, [(0, 100, 1)]);
    // As rsync and deployments do: the new folder takes the name of the old one.
    fs::rename(root.join(PATH), root.join("TPC/Calib/Old")).unwrap();
    fs::rename(&staged, root.join(PATH)).unwrap();
    becomes(&source, &[700], "the swapped folder").await;
    assert_eq!(listed(&open(root, NEVER)).await, [(700, 800, 1)], "the index has the old one");
    // The parent is moved: no event of the path's own folder tells it.
    fs::rename(root.join("TPC"), root.join("Moved")).unwrap();
    becomes(&source, &[], "a path whose parent was moved").await;
}

/// The CRC-32C of bytes, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 * (crc & 1)))
    };
    !bytes.iter().fold(!0, step)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_forged_index_changes_an_answer() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for n in 0..12 {
        put(root, n / 2 * 100, n);
    }
    index(root, false, |_, _| {}).unwrap();
    let right = listed(&open(root, NEVER)).await;
    assert_eq!(right.len(), 12);
    let hidden = root.join(".iovcache~");
    let files: Vec<_> = fs::read_dir(&hidden).unwrap().map(|entry| entry.unwrap().path()).collect();
    let file = files.iter().find(|file| file.extension().is_some_and(|end| end == "arrow"));
    let file = file.unwrap();
    let (bytes, name) = (fs::read(file).unwrap(), file.file_name().unwrap().to_str().unwrap());
    let front = &name[..name.len() - "00000000.arrow".len()];
    let seed = std::env::var("IOVCACHE_FORGE_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or(0x9e37_79b9_7f4a_7c15);
    eprintln!("seed {seed}");
    let mut random = Random::new(seed);
    fs::remove_file(file).unwrap();
    for n in 0..600 {
        let mut forged = bytes.clone();
        let at = random.next() as usize % forged.len();
        match n % 4 {
            0 => forged.truncate(at),
            1 => forged[at] ^= 1 << (random.next() % 8),
            2 => forged[at] = random.next() as u8,
            _ => {
                let end = (at + 8).min(forged.len());
                forged[at..end].copy_from_slice(&random.next().to_le_bytes()[..end - at]);
            }
        }
        // Its checksum is right, so that only its content can give it away.
        let forged_file = hidden.join(format!("{front}{:08x}.arrow", crc32c(&forged)));
        fs::write(&forged_file, &forged).unwrap();
        let found = listed(&open(root, NEVER)).await;
        assert_eq!(found, right, "forgery {n} at {at}");
        fs::remove_file(&forged_file).unwrap();
    }
    fs::write(file, &bytes).unwrap();
    assert!(index(root, true, |_, _| {}).unwrap().is_current());
}

/// A path with this many versions, and an index.
fn long_path(root: &Path, count: i64) -> Vec<ObjectInfo> {
    let writer = RepositoryWriter::new(root).unwrap().with_durability(Durability::Batch);
    let mut batch = writer.batch();
    let put = |n: i64| {
        let version = new_version(PATH, n * 100, n * 100 + 100, n);
        batch.put(&version, &mut &n.to_le_bytes()[..]).unwrap().info
    };
    let versions = (0..count).map(put).collect();
    batch.commit().unwrap();
    // Later changes have other times.
    std::thread::sleep(SOON);
    versions
}

/// (from, until, created) of the version that is in effect at a time.
async fn effective(source: &RepositorySource, at: i64) -> Option<(i64, i64, i64)> {
    let query = Query::all(ObjectPath::new(PATH).unwrap());
    let at = Timestamp::from_millis(at);
    let found = source.look_up(&query, at, None).await.unwrap().versions;
    let valid = found.iter().filter(|version| version.validity.contains(at));
    valid.max_by_key(|version| version.rank()).map(|version| {
        let [from, until] = [version.validity.from(), version.validity.until()];
        (from.as_millis(), until.as_millis(), version.created.as_millis())
    })
}

/// A folder for thousands of files: syncing them on a disk takes longer than the test.
fn folder_in_memory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    match memory.is_dir() {
        true => tempfile::tempdir_in(memory).unwrap(),
        false => tempfile::tempdir().unwrap(),
    }
}

/// Changes the properties of a version, as another program does.
fn edit(root: &Path, version: &ObjectInfo, change: impl Fn(String) -> String) {
    let from = version.validity.from().to_string();
    let place = root.join(PATH).join(from).join(format!("{}.properties", version.id));
    fs::write(&place, change(fs::read_to_string(&place).unwrap())).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn any_change_in_a_path_of_thousands_is_in_the_first_answer() {
    let folder = folder_in_memory();
    let root = folder.path();
    let versions = long_path(root, 2_500);
    // While no service runs, an early version gets an interval that covers all later ones, and
    // becomes the latest of them.
    edit(root, &versions[10], |text| {
        text.replace("ValidUntil=1100", "ValidUntil=250000")
            .replace("CreateTime=10", "CreateTime=999999")
    });
    for at in [999, 1_000, 5_000, 249_999] {
        let source = open(root, NEVER);
        let n = at / 100;
        let expected = match at {
            999 => (n * 100, n * 100 + 100, n),
            _ => (1_000, 250_000, 999_999),
        };
        assert_eq!(effective(&source, at).await, Some(expected), "{at}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_long_path_the_versions_of_the_first_answer_are_those_of_the_folders() {
    let folder = folder_in_memory();
    let root = folder.path();
    // More than are compared before the first answer.
    let versions = long_path(root, 20_500);
    let place = |n: usize| root.join(PATH).join((n * 100).to_string());
    // By another program, while no service runs: a changed version, a removed one, a new one.
    edit(root, &versions[700], |text| text.replace("ValidUntil=70100", "ValidUntil=70050"));
    fs::remove_file(place(1_500).join(versions[1_500].id.to_string())).unwrap();
    let other = place(2_300).join("00000000-0000-4000-8000-000000000001");
    let given = place(2_300).join(versions[2_300].id.to_string());
    fs::copy(&given, &other).unwrap();
    let text = fs::read_to_string(given.with_extension("properties")).unwrap();
    let text = text.replace("CreateTime=2300", "CreateTime=999999");
    fs::write(other.with_extension("properties"), text).unwrap();
    for (at, expected) in [
        (70_020, Some((70_000, 70_050, 700))),
        (70_070, None),
        (150_020, None),
        (230_020, Some((230_000, 230_100, 999_999))),
        (20, Some((0, 100, 0))),
    ] {
        let source = open(root, NEVER);
        assert_eq!(effective(&source, at).await, expected, "{at}");
    }
    // All others are compared in the background.
    let source = open(root, NEVER);
    let began = Instant::now();
    loop {
        let all = listed(&source).await;
        let is_there = |row: (i64, i64, i64)| all.contains(&row);
        let found = is_there((70_000, 70_050, 700)) && is_there((230_000, 230_100, 999_999));
        if found && all.len() == 20_500 {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{} versions", all.len());
        std::thread::sleep(SOON);
    }
}
