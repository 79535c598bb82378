//! A file holds one concern, and is split by its concerns before it is long.

use std::fs;
use std::path::{Path, PathBuf};

use crate::sources::source_files;

/// Number of lines that a source file stays below.
const MAX_LINES: usize = 800;

/// Folders of source files: library and program, Python package, tests, benches.
const FOLDERS: &[&str] = &["src", "python/src", "tests", "benches"];

/// The files in the folders that have too many lines, each with their number.
fn too_long(root: &Path, folders: &[&str]) -> Vec<String> {
    let mut files: Vec<PathBuf> = Vec::new();
    folders.iter().for_each(|folder| source_files(&root.join(folder), &mut files));
    assert!(!files.is_empty(), "no source files below {}", root.display());
    files.sort();
    let lines = |file: &PathBuf| fs::read_to_string(file).unwrap().lines().count();
    let long =
        files.iter().map(|file| (file, lines(file))).filter(|(_, lines)| *lines >= MAX_LINES);
    let told = long.map(|(file, lines)| {
        let inside = file.strip_prefix(root).unwrap().display();
        format!("{inside}: {lines} lines, limit {MAX_LINES}; split it by its concerns")
    });
    told.collect()
}

#[test]
fn no_file_reaches_800_lines() {
    let long = too_long(Path::new(env!("CARGO_MANIFEST_DIR")), FOLDERS);
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn a_file_of_800_lines_is_named_and_one_of_799_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("src/room");
    fs::create_dir_all(&inside).unwrap();
    fs::write(inside.join("short.rs"), "// A line.\n".repeat(799)).unwrap();
    fs::write(inside.join("long.rs"), "// A line.\n".repeat(800)).unwrap();
    let long = too_long(folder.path(), &["src"]);
    assert_eq!(long.len(), 1, "{long:?}");
    assert!(long[0].starts_with("src/room/long.rs: 800 lines"), "{long:?}");
}
