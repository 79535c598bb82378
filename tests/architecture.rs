//! Imports run one way, downwards. This walks the `use` lines of every room and holds the arrows.
//!
//! ```text
//!  bin ─▶ server ─▶ cache ─▶ source      client ─▶ table, shm
//!             ffi ─▶  │  └──▶ table ─▶ index, shm
//!                     └────▶ telemetry
//!  all ─▶ object ─▶ interval ─▶ error
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Each room and the rooms that it may import from.
const ARROWS: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("escape", &[]),
    ("telemetry", &[]),
    ("secret", &[]),
    ("budget", &["error"]),
    ("interval", &["error"]),
    ("object", &["error", "interval"]),
    ("clock", &["interval"]),
    ("index", &["clock", "interval", "object"]),
    ("shm", &["error", "object", "secret"]),
    ("source", &["clock", "error", "interval", "object", "telemetry"]),
    ("table", &["clock", "error", "index", "interval", "object", "shm"]),
    (
        "cache",
        &[
            "budget",
            "clock",
            "error",
            "index",
            "interval",
            "object",
            "secret",
            "shm",
            "source",
            "table",
            "telemetry",
        ],
    ),
    (
        "server",
        &[
            "budget",
            "cache",
            "clock",
            "error",
            "escape",
            "index",
            "interval",
            "object",
            "secret",
            "shm",
            "source",
            "table",
            "telemetry",
        ],
    ),
    ("client", &["error", "interval", "object", "secret", "shm", "index", "table"]),
    ("ffi", &["cache", "error", "index", "shm", "source", "table"]),
];

fn source_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            source_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The rooms that a text names after `crate::`, comments and tests aside.
fn rooms_named(text: &str) -> BTreeSet<String> {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let code: String = code
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| [line, "\n"])
        .collect();
    let mut rooms = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        let names: Vec<&str> = match rest.strip_prefix('{') {
            Some(group) => group.split('}').next().unwrap_or_default().split(',').collect(),
            None => vec![rest],
        };
        for name in names {
            let name = name.trim();
            let end = name.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(name.len());
            rooms.insert(name[..end].to_owned());
        }
    }
    rooms
}

#[test]
fn imports_run_one_way() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let arrows: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let mut files = Vec::new();
    source_files(&src, &mut files);
    let mut wrong = Vec::new();
    for file in files {
        let inside = file.strip_prefix(&src).unwrap();
        let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
        let room = first.trim_end_matches(".rs");
        if matches!(room, "lib" | "bin") {
            continue;
        }
        let Some(allowed) = arrows.get(room) else {
            wrong.push(format!("{}: the room {room:?} is not drawn here", inside.display()));
            continue;
        };
        for named in rooms_named(&fs::read_to_string(&file).unwrap()) {
            // A name at the root that is no room is one that lib.rs hands on.
            let known = arrows.contains_key(named.as_str());
            if known && named != room && !allowed.contains(&named.as_str()) {
                wrong.push(format!("{}: {room} may not use {named}", inside.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_walk_sees_what_it_is_for() {
    let text = "use crate::cache::Cache;\nuse crate::{error::Coded, shm};\n// crate::server\n\
                fn f() { crate::table::g() }\n#[cfg(test)]\nmod tests { use crate::server::X; }";
    let rooms: Vec<String> = rooms_named(text).into_iter().collect();
    assert_eq!(rooms, ["cache", "error", "shm", "table"]);
}

#[test]
fn unsafe_stands_in_two_rooms_only() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    source_files(&src, &mut files);
    for file in files {
        let inside = file.strip_prefix(&src).unwrap();
        if inside.starts_with("shm") || inside.starts_with("ffi") {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        assert!(!text.contains("allow(unsafe_code)"), "{}", inside.display());
    }
}
