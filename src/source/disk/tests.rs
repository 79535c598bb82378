use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use md5::{Digest as _, Md5};

use super::*;
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{Md5Sum, ObjectId, ObjectInfo, ObjectPath, Query};
use crate::source::switch::Switch;
use crate::source::verify::{RepairOutcome, VerifyReport};
use crate::source::{Source, SourceError, VecBody};

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn query() -> Query {
    Query::all(ObjectPath::new("A/B").unwrap())
}

fn version(id: u8, from: i64, until: i64, size: usize) -> ObjectInfo {
    ObjectInfo {
        path: ObjectPath::new("A/B").unwrap(),
        id: ObjectId::from_bytes([id; 16]),
        validity: ValidityInterval::new(at(from), at(until)).unwrap(),
        created: at(i64::from(id)),
        size_bytes: Some(size as u64),
        md5: None,
        metadata: [("k", format!("v{id}"))].into(),
    }
}

fn bytes(id: u8, size: usize) -> Vec<u8> {
    (0..size).map(|n| (n as u8).wrapping_mul(id)).collect()
}

fn switch() -> Arc<Switch> {
    let switch = Arc::new(Switch::default());
    for (id, from, until) in [(1, 0, 100), (2, 40, 60)] {
        switch.memory.put(version(id, from, until, 5000), bytes(id, 5000));
    }
    switch
}

fn open(folder: &Path, limit: u64, switch: &Arc<Switch>) -> DiskSource {
    DiskSource::open(folder, limit, Arc::clone(switch) as Arc<dyn Source>).unwrap()
}

async fn got(source: &DiskSource, version: &ObjectInfo) -> Result<Vec<u8>, SourceError> {
    let mut body = VecBody::default();
    source.fetch(version, &mut body).await.map(|()| body.into_bytes())
}

async fn winner(source: &DiskSource, millis: i64) -> Option<(u8, bool)> {
    let knowledge = source.look_up(&query(), at(millis), None).await.ok()?;
    assert!(knowledge.span.contains(at(millis)));
    let valid = knowledge.versions.iter().filter(|version| version.validity.contains(at(millis)));
    let winner = valid.max_by_key(|version| version.rank());
    Some((winner.map_or(0, |version| version.id.as_bytes()[0]), knowledge.stale))
}

/// The files of bodies.
fn files(folder: &Path) -> Vec<PathBuf> {
    let below = std::fs::read_dir(folder.join("bodies")).unwrap();
    let below = below.flat_map(|entry| std::fs::read_dir(entry.unwrap().path()).unwrap());
    below.map(|entry| entry.unwrap().path()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_read_before_a_restart_are_there_when_the_source_is_down() {
    let folder = tempfile::tempdir().unwrap();
    let switch = switch();
    let disk = open(folder.path(), 1 << 20, &switch);
    assert_eq!(winner(&disk, 50).await, Some((2, false)));
    assert_eq!(got(&disk, &version(2, 40, 60, 5000)).await.unwrap(), bytes(2, 5000));
    assert_eq!(got(&disk, &version(2, 40, 60, 5000)).await.unwrap(), bytes(2, 5000));
    assert_eq!(switch.fetched.load(Ordering::SeqCst), 1, "the second came from the disk");
    // A second process cannot use the folder meanwhile.
    let again = DiskSource::open(folder.path(), 1 << 20, Arc::clone(&switch) as Arc<dyn Source>);
    assert!(matches!(again, Err(SourceError::Configuration { .. })));
    drop(disk);
    switch.off.store(true, Ordering::SeqCst);
    let disk = open(folder.path(), 1 << 20, &switch);
    for (millis, id) in [(-1, 0), (0, 1), (39, 1), (40, 2), (59, 2), (60, 1), (99, 1), (100, 0)] {
        assert_eq!(winner(&disk, millis).await, Some((id, true)), "at {millis}");
    }
    let kept = disk.look_up(&query(), at(50), None).await.unwrap();
    let two = kept.versions.iter().find(|version| version.id.as_bytes()[0] == 2).unwrap();
    assert_eq!(**two, version(2, 40, 60, 5000), "interval and metadata are as they were");
    assert_eq!(got(&disk, two).await.unwrap(), bytes(2, 5000));
    assert!(got(&disk, &version(1, 0, 100, 5000)).await.is_err(), "that one was never read");
    assert_eq!(disk.paths("A").await.unwrap()[0].versions, 2);
    // A query with other limits was never answered.
    let mut other = query();
    other.limits.not_after = Some(at(1));
    assert!(disk.look_up(&other, at(50), None).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_answers_decides_whatever_the_disk_says() {
    let folder = tempfile::tempdir().unwrap();
    let switch = switch();
    let disk = open(folder.path(), 1 << 20, &switch);
    assert_eq!(winner(&disk, 50).await, Some((2, false)));
    switch.memory.put(version(3, 45, 55, 10), bytes(3, 10));
    assert_eq!(winner(&disk, 50).await, Some((3, false)));
    switch.off.store(true, Ordering::SeqCst);
    assert_eq!(winner(&disk, 50).await, Some((3, true)), "the last that it said");
    drop(disk);
    let disk = open(folder.path(), 1 << 20, &switch);
    assert_eq!(winner(&disk, 50).await, Some((3, true)));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_single_times_nothing_is_said_of_the_times_between() {
    let folder = tempfile::tempdir().unwrap();
    let switch = switch();
    switch.by_time.store(true, Ordering::SeqCst);
    let disk = open(folder.path(), 1 << 20, &switch);
    for millis in [10, 50, 70] {
        winner(&disk, millis).await.unwrap();
    }
    drop(disk);
    switch.off.store(true, Ordering::SeqCst);
    let disk = open(folder.path(), 1 << 20, &switch);
    assert_eq!(winner(&disk, 10).await, Some((1, true)));
    assert_eq!(winner(&disk, 50).await, Some((2, true)));
    for unknown in [9, 11, 49, 51, 60, 71] {
        assert_eq!(winner(&disk, unknown).await, None, "at {unknown} nothing was ever said");
    }
}

#[tokio::test]
async fn a_silent_source_is_not_waited_for_where_the_disk_knows() {
    let folder = tempfile::tempdir().unwrap();
    let switch = switch();
    let disk = open(folder.path(), 1 << 20, &switch);
    assert_eq!(winner(&disk, 50).await, Some((2, false)));
    switch.silent.store(true, Ordering::SeqCst);
    // The source never answers: waiting for it would not end.
    let answer = tokio::time::timeout(Duration::from_secs(60), winner(&disk, 50));
    assert_eq!(answer.await.unwrap(), Some((2, true)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_body_is_thrown_out_and_fetched_again() {
    let folder = tempfile::tempdir().unwrap();
    let switch = switch();
    let disk = open(folder.path(), 1 << 20, &switch);
    let one = version(1, 0, 100, 5000);
    got(&disk, &one).await.unwrap();
    let file = files(folder.path()).pop().unwrap();
    let right = std::fs::read(&file).unwrap();
    // Damage is detected in header, JSON, body and length.
    for place in (0..right.len()).step_by(97).chain([right.len() - 1]) {
        let mut wrong = right.clone();
        wrong[place] ^= 0x10;
        std::fs::write(&file, &wrong).unwrap();
        assert_eq!(got(&disk, &one).await.unwrap(), bytes(1, 5000), "byte {place} is wrong");
    }
    for length in [0, 10, 31, 32, 200, right.len() - 1, right.len() + 1] {
        let mut wrong = right.clone();
        wrong.resize(length, 0);
        std::fs::write(&file, &wrong).unwrap();
        assert_eq!(got(&disk, &one).await.unwrap(), bytes(1, 5000), "{length} bytes");
    }
    let fetched = switch.fetched.load(Ordering::SeqCst);
    assert_eq!(fetched as usize, 1 + right.len().div_ceil(97) + 1 + 7);
    // With the source down, no correct bytes are available.
    std::fs::write(&file, &right[..100]).unwrap();
    switch.off.store(true, Ordering::SeqCst);
    assert!(got(&disk, &one).await.is_err());
    drop(disk);
    // The verification finds the damage as well.
    let name = file.parent().unwrap();
    std::fs::create_dir_all(name).unwrap();
    std::fs::write(&file, &right[..100]).unwrap();
    std::fs::write(name.join("abc.part"), b"half").unwrap();
    let found = verify(folder.path(), false).unwrap();
    assert_eq!(found.damaged.len(), 2, "{found:?}");
    let all = |found: &VerifyReport, done| found.damaged.iter().all(|damage| damage.done == done);
    assert!(all(&found, RepairOutcome::LeftAlone));
    assert!(all(&verify(folder.path(), true).unwrap(), RepairOutcome::Removed));
    assert!(verify(folder.path(), false).unwrap().damaged.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_id_with_another_content_is_not_taken_from_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let switch = switch();
    let disk = open(folder.path(), 1 << 20, &switch);
    let md5 = Some(Md5Sum(Md5::digest(bytes(1, 5000)).into()));
    let one = ObjectInfo { md5, ..version(1, 0, 100, 5000) };
    got(&disk, &one).await.unwrap();
    let other = ObjectInfo { md5: Some(Md5Sum([2; 16])), ..one.clone() };
    switch.off.store(true, Ordering::SeqCst);
    assert!(got(&disk, &one).await.is_ok());
    assert!(got(&disk, &other).await.is_err());
    assert!(got(&disk, &version(1, 0, 100, 4999)).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_were_written_down_without_a_digest_are_not_taken_for_those_of_one() {
    let folder = tempfile::tempdir().unwrap();
    let switch = switch();
    let disk = open(folder.path(), 1 << 20, &switch);
    // The source gives no digest, and the bytes are stored.
    let bare = version(1, 0, 100, 5000);
    got(&disk, &bare).await.unwrap();
    let described = ObjectInfo { md5: Some(Md5Sum([7; 16])), ..bare.clone() };
    let elsewhere = version(1, 1, 100, 5000);
    switch.off.store(true, Ordering::SeqCst);
    assert!(got(&disk, &bare).await.is_ok());
    assert!(got(&disk, &described).await.is_err(), "its bytes are others");
    assert!(got(&disk, &elsewhere).await.is_err(), "another interval, and nothing to check by");
    let right = Some(Md5Sum(Md5::digest(bytes(1, 5000)).into()));
    assert!(got(&disk, &ObjectInfo { md5: right, ..bare }).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_folder_stays_within_its_size_and_keeps_the_files_used_last() {
    let folder = tempfile::tempdir().unwrap();
    let switch = Arc::new(Switch::default());
    let versions: Vec<ObjectInfo> = (1..=40).map(|id| version(id, 0, 100, 20_000)).collect();
    for version in &versions {
        let id = version.id.as_bytes()[0];
        switch.memory.put(version.clone(), bytes(id, 20_000));
    }
    let limit = 500_000;
    let disk = open(folder.path(), limit, &switch);
    for version in &versions {
        got(&disk, version).await.unwrap();
        got(&disk, &versions[0]).await.unwrap();
        let on_disk: u64 =
            files(folder.path()).iter().map(|file| file.metadata().unwrap().len()).sum();
        assert!(on_disk <= limit, "{on_disk}");
    }
    assert_eq!(switch.fetched.load(Ordering::SeqCst), 40, "the first one was always there");
    let (count, used) = disk.usage();
    assert!(used <= limit && (15..25).contains(&count), "{count} bodies, {used} bytes");
    drop(disk);
    // A smaller limit takes effect at once.
    let disk = open(folder.path(), 100_000, &switch);
    assert!(disk.usage().1 <= 100_000);
    assert!(files(folder.path()).len() <= 4);
    // A body above the limit is not stored, but delivered.
    switch.memory.put(version(99, 0, 1, 200_000), bytes(99, 200_000));
    assert_eq!(got(&disk, &version(99, 0, 1, 200_000)).await.unwrap(), bytes(99, 200_000));
    // An empty body is stored as well.
    switch.memory.put(version(100, 0, 1, 0), Vec::new());
    assert_eq!(got(&disk, &version(100, 0, 1, 0)).await.unwrap(), b"");
    switch.off.store(true, Ordering::SeqCst);
    assert_eq!(got(&disk, &version(100, 0, 1, 0)).await.unwrap(), b"");
}
