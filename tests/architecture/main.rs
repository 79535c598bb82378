//! The structure of the crate: imports run one way, downwards, between rooms, between the sub-rooms
//! of `cache`, `server` and `source`, and between the files of a folder.
//!
//! ```text
//!  bin ─▶ server ─▶ cache ─▶ source      client ─▶ table, shm
//!             ffi ─▶  │  └──▶ table ─▶ index, shm
//!                     └────▶ telemetry
//!  all ─▶ object ─▶ interval ─▶ error
//!
//!  cache:  api ─▶ holders, tables ─▶ versions ─▶ memory ─▶ restart, error, single_flight, sync
//! ```
//!
//! The sources are parsed, tests left out. A name that a `mod.rs` hands on counts as the file that
//! defines it.

mod drawing;
mod file_size;
mod function_length;
mod graph;
mod items;
mod paths;
mod sources;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use drawing::{ARROWS, Arrow, SHARED_NAMES, SUB_ROOMS};
use graph::{Graph, circles};
use sources::{Source, program, python, source_files};

/// The imports that `allowed` does not list, among the parts at `depth` below `room`.
fn wrong_arrows(graph: &Graph, room: &[String], allowed: &BTreeMap<&str, &[&str]>) -> Vec<String> {
    let depth = room.len();
    let part = |file: usize| -> Option<&str> {
        let module = &graph.sources[file].module;
        (module.len() > depth && module[..depth] == *room).then(|| module[depth].as_str())
    };
    let mut wrong = Vec::new();
    for file in 0..graph.sources.len() {
        let Some(from) = part(file) else { continue };
        let Some(may) = allowed.get(from) else {
            wrong.push(format!("{}: {from:?} is not drawn", graph.name(file)));
            continue;
        };
        for &to in &graph.imports[file] {
            let Some(into) = part(to) else { continue };
            if into != from && !may.contains(&into) {
                wrong.push(format!("{}: may not use {}", graph.name(file), graph.name(to)));
            }
        }
    }
    wrong
}

#[test]
fn imports_between_rooms_run_one_way() {
    let graph = Graph::library();
    let wrong = wrong_arrows(graph, &[], &ARROWS.iter().copied().collect());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn imports_between_sub_rooms_run_one_way() {
    let graph = Graph::library();
    for (room, arrows) in SUB_ROOMS {
        let wrong = wrong_arrows(graph, &[(*room).to_owned()], &arrows.iter().copied().collect());
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

/// The arrows that lead to no earlier entry of their list.
fn upward_arrows(arrows: &[Arrow]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (place, (from, to)) in arrows.iter().enumerate() {
        let below: Vec<&str> = arrows[..place].iter().map(|(name, _)| *name).collect();
        let up = to.iter().filter(|to| !below.contains(*to));
        wrong.extend(up.map(|to| format!("{from} -> {to}")));
    }
    wrong
}

#[test]
fn the_drawn_arrows_lead_downwards() {
    let lists = SUB_ROOMS.iter().map(|(_, arrows)| *arrows).chain([ARROWS]);
    let wrong: Vec<String> = lists.flat_map(upward_arrows).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let circle: &[Arrow] = &[("low", &["high"]), ("high", &["low"])];
    assert_eq!(upward_arrows(circle), ["low -> high"]);
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let of = |sources| circles_of(&Graph::new(sources));
    let named = [circles_of(Graph::library()), of(program()), of(python())].concat();
    assert!(named.is_empty(), "{}", named.join("\n"));
}

/// Each circle of files, with the imports that close it.
fn circles_of(graph: &Graph) -> Vec<String> {
    let edges = &graph.imports;
    circles(edges)
        .iter()
        .map(|circle| {
            let files: Vec<String> = circle
                .iter()
                .map(|file| {
                    let into = edges[*file].iter().filter(|to| circle.contains(to));
                    let into: Vec<String> = into.map(|to| graph.name(*to)).collect();
                    format!("  {} -> {}", graph.name(*file), into.join(", "))
                })
                .collect();
            format!("{} files:\n{}", circle.len(), files.join("\n"))
        })
        .collect()
}

#[test]
fn a_type_name_stands_for_one_type() {
    let twice = [
        repeated_types(Graph::library()),
        repeated_types(&Graph::new(program())),
        repeated_types(&Graph::new(python())),
    ];
    let twice = twice.concat();
    assert!(twice.is_empty(), "{}", twice.join("\n"));
}

/// Each type name that several files define, with the files.
fn repeated_types(graph: &Graph) -> Vec<String> {
    let mut places: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (file, source) in graph.sources.iter().enumerate() {
        for name in &source.paths.types {
            places.entry(name).or_default().push(graph.name(file));
        }
    }
    places.retain(|name, files| {
        files.len() > 1 && !SHARED_NAMES.iter().any(|(shared, _)| shared == name)
    });
    places.iter().map(|(name, files)| format!("{name}: {}", files.join(", "))).collect()
}

#[test]
fn mod_files_hold_no_logic() {
    let graph = Graph::library();
    let mut wrong = Vec::new();
    for file in (0..graph.sources.len()).filter(|file| graph.is_mod(*file)) {
        if let Some(item) = &graph.sources[file].logic {
            wrong
                .push(format!("{}: {item}, where only docs, mod and use belong", graph.name(file)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn parsed(files: &[(&str, &str)]) -> Graph {
    let sources = files.iter().map(|(module, text)| {
        let file = PathBuf::from(format!("{}.rs", module.replace("::", "/")));
        Source::parse(file, module.split("::").map(str::to_owned).collect(), text)
    });
    Graph::new(sources.collect())
}

#[test]
fn the_walk_follows_names_that_are_handed_on_and_leaves_tests_out() {
    let graph = parsed(&[
        ("a", "mod one; mod two; pub use one::One;"),
        ("a::one", "use super::two::Two; #[cfg(test)] mod tests { use crate::b::B; } struct One;"),
        ("a::two", "struct Two; fn f() { vec![crate::a::One] }"),
        ("b", "use crate::a::{self, One as Uno}; struct B;"),
    ]);
    let imports = |file: usize| graph.imports[file].iter().copied().collect::<Vec<_>>();
    assert_eq!(imports(1), [2], "tests are left out");
    assert_eq!(imports(2), [1], "a path in a macro counts, as the file that defines it");
    assert_eq!(imports(3), [0, 1], "a name that is handed on counts as its file");
    assert_eq!(circles(&graph.imports), [[1, 2]]);
    let allowed: BTreeMap<&str, &[&str]> = [("a", &[][..]), ("b", &[][..])].into_iter().collect();
    assert_eq!(wrong_arrows(&graph, &[], &allowed).len(), 2, "b uses a twice, against the arrows");
    assert_eq!(graph.sources[3].logic.as_deref(), Some("struct B"));
    assert_eq!(graph.sources[0].logic, None);
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

#[test]
fn the_page_about_the_architecture_names_files_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/architecture.md")).unwrap();
    let (_, rest) = page.split_once("The files that a timestamp of a DoGet passes").unwrap();
    let way = rest.split("```").nth(1).unwrap().trim_start_matches("text");
    let named: Vec<&str> = way.split_whitespace().collect();
    let is_there = |name: &&&str| root.join(format!("src/{name}.rs")).is_file();
    let missing: Vec<_> = named.iter().filter(|name| !is_there(name)).collect();
    assert!(missing.is_empty(), "no such files: {missing:?}");
    assert!(named.len() <= 27, "a timestamp passes {} files, 27 before the rooms", named.len());
}
