//! `iovcache verify`: every kind of damage is made on a real disk, found, and repaired if possible.
#![cfg(feature = "cli")]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use common::{Service, Version, put, run, run_well};
use iovcache::client::{Client, TableRequest};
use serde_json::Value;

const PATH: &str = "TPC/Calib/VDrift";

fn version(from: i64, bytes: &[u8]) -> Version<'_> {
    Version { path: PATH, from, until: from + 10, created: 1, bytes }
}

/// Damage by file name, reason and action, the whole result, and the exit status of the program.
fn verify(what: &str, folder: &Path, more: &[&str]) -> (Vec<(String, String, String)>, Value, i32) {
    let arguments = ["verify", what, folder.to_str().unwrap(), "--json"];
    let told = run(&[&arguments[..], more].concat());
    let text = String::from_utf8_lossy(&told.stderr).into_owned();
    let found: Value = serde_json::from_slice(&told.stdout).expect(&text);
    let wrong = found["wrong"].as_array().unwrap().iter().map(|one| {
        let of = |key: &str| one[key].as_str().unwrap().to_owned();
        let file = Path::new(&of("file")).file_name().unwrap().to_str().unwrap().to_owned();
        (file, of("reason"), of("done"))
    });
    (wrong.collect(), found.clone(), told.status.code().unwrap())
}

/// Sets the file's time to an hour ago.
fn old(file: &Path) {
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    fs::File::options().append(true).open(file).unwrap().set_modified(hour_ago).unwrap();
}

fn fifo(file: &Path) {
    assert!(Command::new("mkfifo").arg(file).status().unwrap().success());
}

#[test]
fn every_kind_of_damage_in_a_repository_is_named_and_what_can_be_mended_is() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let right = put(root, &version(0, b"right"));
    let (wrong, found, status) = verify("--repository", root, &[]);
    assert_eq!((wrong.len(), status), (0, 0));
    assert_eq!((&found["right"], &found["bytes"]), (&1.into(), &5.into()));

    let place = |from: i64| root.join(PATH).join(from.to_string());
    let bits = put(root, &version(10, b"flipped"));
    fs::write(place(10).join(&bits), b"flopped").unwrap();
    let short = put(root, &version(20, b"too long"));
    fs::write(place(20).join(&short), b"short").unwrap();
    let nonsense = put(root, &version(30, b"noon"));
    let properties = |from: i64, id: &str| place(from).join(format!("{id}.properties"));
    fs::write(properties(30, &nonsense), "ValidUntil=noon\nCreateTime=1\n").unwrap();
    let no_properties = put(root, &version(40, b"alone"));
    fs::remove_file(properties(40, &no_properties)).unwrap();
    old(&place(40).join(&no_properties));
    let no_bytes = put(root, &version(50, b"gone"));
    fs::remove_file(place(50).join(&no_bytes)).unwrap();
    old(&properties(50, &no_bytes));
    fs::write(place(0).join(".half.part"), b"half").unwrap();
    old(&place(0).join(".half.part"));
    // A file that is just being written is not damage.
    fs::write(place(0).join(".young.part"), b"half").unwrap();
    symlink("/etc/hostname", place(0).join("link")).unwrap();
    symlink("/etc", root.join("etc")).unwrap();
    fifo(&place(0).join("fifo"));
    fs::write(root.join("README"), b"what is this").unwrap();
    // A link in place of the bytes, a FIFO in place of the properties: neither is opened.
    let linked = put(root, &version(60, b"linked"));
    fs::remove_file(place(60).join(&linked)).unwrap();
    symlink(place(0).join(&right), place(60).join(&linked)).unwrap();
    old(&properties(60, &linked));

    let expected = [
        (bits.clone(), "MD5", "set aside"),
        (short.clone(), "File-Size is 8", "set aside"),
        (nonsense.clone(), "ValidUntil", "set aside"),
        (no_properties, ".properties is not there", "left alone"),
        (format!("{no_bytes}.properties"), "half of a put", "removed"),
        (".half.part".to_owned(), "half-written", "removed"),
        ("link".to_owned(), "a link", "left alone"),
        ("etc".to_owned(), "a link", "left alone"),
        ("fifo".to_owned(), "neither a file", "left alone"),
        ("README".to_owned(), "does not belong to a repository", "left alone"),
        (linked.clone(), "a link", "left alone"),
        (format!("{linked}.properties"), "half of a put", "removed"),
    ];
    let looked_at = |repair: bool| {
        let more: &[&str] = if repair { &["--repair"] } else { &[] };
        let (wrong, found, status) = verify("--repository", root, more);
        assert_eq!((&found["right"], status), (&1.into(), 1), "{wrong:?}");
        for (file, reason, done) in &expected {
            let done = if repair { done } else { "left alone" };
            let named =
                wrong.iter().any(|one| one.0 == *file && one.1.contains(reason) && one.2 == done);
            assert!(named, "{file} {reason} ({done}) in {wrong:#?}");
        }
        assert_eq!(wrong.len(), expected.len(), "{wrong:#?}");
    };
    // Twice without any change.
    looked_at(false);
    looked_at(false);
    looked_at(true);
    let (wrong, _, _) = verify("--repository", root, &["--repair"]);
    assert!(wrong.iter().all(|(.., done)| done == "left alone"), "{wrong:?}");
    assert_eq!(wrong.len(), 6, "{wrong:?}");
    assert!(place(10).join(format!(".{bits}.damaged")).exists());
    assert!(!place(10).join(&bits).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_damage_in_a_disk_tier_is_named_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let (repository, disk) = (folder.path().join("r"), folder.path().join("d"));
    for from in [0, 10, 20] {
        put(&repository, &version(from, b"some bytes"));
    }
    let named = disk.to_str().unwrap();
    let service = Service::over(&repository, &["--disk", named, "--disk-size", "1MiB"]);
    let client = Client::connect(&service.unix()).await.unwrap();
    let request = || TableRequest::new().column("c", PATH).timestamps([5, 15, 25]);
    client.table(request()).await.unwrap();
    // A folder in use is left to the service that uses it.
    let busy = run(&["verify", "--disk", named]);
    assert_eq!(busy.status.code(), Some(1));
    assert_eq!(service.stop().0, Some(0));
    let (wrong, found, status) = verify("--disk", &disk, &[]);
    assert_eq!((wrong.len(), status), (0, 0), "{wrong:?}");
    assert_eq!(found["right"], 4, "three bodies and what was said of them");

    let bodies: Vec<_> = fs::read_dir(disk.join("bodies"))
        .unwrap()
        .flat_map(|below| fs::read_dir(below.unwrap().path()).unwrap())
        .map(|file| file.unwrap().path())
        .collect();
    assert_eq!(bodies.len(), 3);
    let mut bytes = fs::read(&bodies[0]).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&bodies[0], bytes).unwrap();
    fs::remove_file(&bodies[1]).unwrap();
    fifo(&bodies[1]);
    fs::remove_file(&bodies[2]).unwrap();
    symlink("/etc/hostname", &bodies[2]).unwrap();
    fs::write(bodies[0].with_file_name("x.part"), b"half").unwrap();
    fs::write(disk.join("bodies/stranger"), b"?").unwrap();
    let (wrong, _, status) = verify("--disk", &disk, &[]);
    assert_eq!((wrong.len(), status), (5, 1), "{wrong:?}");
    let (wrong, _, _) = verify("--disk", &disk, &["--repair"]);
    let removed = wrong.iter().filter(|(.., done)| done == "removed").count();
    assert_eq!((wrong.len(), removed), (5, 4), "{wrong:?}");
    let (wrong, _, _) = verify("--disk", &disk, &[]);
    assert_eq!(wrong.len(), 1, "{wrong:?}");
    // A service keeps running on it, although a FIFO replaces a file of bytes.
    fifo(&bodies[1]);
    let service = Service::over(&repository, &["--disk", named, "--disk-size", "1MiB"]);
    let client = Client::connect(&service.unix()).await.unwrap();
    let table = client.table(request()).await.unwrap();
    assert_eq!(table.column("c").unwrap().get(1).unwrap(), Some(&b"some bytes"[..]));
}

#[test]
fn one_folder_is_asked_for_and_one_that_is_not_there_is_said_so() {
    assert_eq!(run(&["verify"]).status.code(), Some(2));
    assert_eq!(run(&["verify", "--disk", "/x", "--repository", "/y"]).status.code(), Some(2));
    assert_eq!(run(&["verify", "--repository", "/nowhere/at/all"]).status.code(), Some(3));
    let empty = tempfile::tempdir().unwrap();
    let text = run_well(&["verify", "--repository", empty.path().to_str().unwrap()]);
    assert!(text.starts_with("0 files are intact"), "{text}");
}
