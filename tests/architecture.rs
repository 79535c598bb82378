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

#[path = "architecture/function_length.rs"]
mod function_length;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use syn::visit::{self, Visit};

/// A room, and the rooms that it may import from.
type Arrow = (&'static str, &'static [&'static str]);

/// Each room and the rooms that it may import from, the lowest first.
const ARROWS: &[Arrow] = &[
    ("error", &[]),
    ("escape", &[]),
    ("telemetry", &[]),
    ("secret", &[]),
    ("sync", &[]),
    ("budget", &["error", "sync"]),
    ("interval", &["error"]),
    ("object", &["error", "interval"]),
    ("time_text", &["error", "interval"]),
    ("clock", &["interval", "sync"]),
    ("index", &["clock", "interval", "object", "sync"]),
    ("shm", &["error", "object", "secret", "sync"]),
    ("source", &["clock", "error", "interval", "object", "sync", "telemetry"]),
    ("table", &["budget", "clock", "error", "index", "interval", "object", "shm", "sync"]),
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
            "sync",
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
            "sync",
            "table",
            "telemetry",
        ],
    ),
    ("client", &["error", "interval", "object", "secret", "shm", "index", "sync", "table"]),
    ("ffi", &["cache", "error", "index", "interval", "object", "shm", "source", "sync", "table"]),
];

/// Like [`ARROWS`], for the sub-rooms of a room: files and folders in it, the lowest first.
const SUB_ROOMS: &[(&str, &[Arrow])] = &[
    (
        "cache",
        &[
            ("error", &[]),
            ("single_flight", &[]),
            ("yielder", &[]),
            ("deadline", &["error"]),
            ("restart", &[]),
            ("memory", &["error", "restart", "single_flight"]),
            ("versions", &["deadline", "error", "memory", "restart", "single_flight", "yielder"]),
            (
                "tables",
                &["deadline", "error", "memory", "restart", "single_flight", "versions", "yielder"],
            ),
            (
                "holders",
                &["deadline", "error", "memory", "restart", "tables", "versions", "yielder"],
            ),
            (
                "api",
                &[
                    "deadline",
                    "error",
                    "holders",
                    "memory",
                    "restart",
                    "single_flight",
                    "tables",
                    "versions",
                    "yielder",
                ],
            ),
        ],
    ),
    (
        "source",
        &[
            ("blocking", &[]),
            ("change", &[]),
            ("crypto", &[]),
            ("details", &[]),
            ("error", &[]),
            ("verify", &[]),
            ("body", &["error"]),
            ("body_digest", &[]),
            ("scan", &["details", "error"]),
            ("contract", &["body", "change", "details", "error", "scan"]),
            (
                "ccdb",
                &[
                    "body",
                    "body_digest",
                    "change",
                    "contract",
                    "crypto",
                    "details",
                    "error",
                    "scan",
                ],
            ),
            ("chain", &["body", "change", "contract", "details", "error", "scan"]),
            ("claim", &["contract", "error"]),
            ("disk", &["blocking", "body", "contract", "error", "scan", "verify"]),
            ("flat_headers", &["blocking", "body", "contract", "details", "error"]),
            ("memory", &["body", "contract", "error"]),
            ("policy", &["body", "contract", "details", "error", "scan"]),
            (
                "repository",
                &[
                    "blocking",
                    "body",
                    "body_digest",
                    "change",
                    "contract",
                    "crypto",
                    "details",
                    "disk",
                    "error",
                    "scan",
                    "verify",
                ],
            ),
            ("copy", &["blocking", "body", "claim", "contract", "error", "repository"]),
            ("open", &["ccdb", "contract", "error", "memory", "repository"]),
        ],
    ),
    (
        "server",
        &[
            ("auth", &[]),
            ("local_user", &[]),
            ("log", &[]),
            ("page", &[]),
            ("process", &[]),
            ("ticket", &[]),
            ("tls", &[]),
            ("units", &[]),
            ("call_origin", &["auth"]),
            ("ccdb", &["auth"]),
            ("client", &["auth"]),
            ("limits", &["units"]),
            ("listen", &["auth"]),
            ("metrics", &["log"]),
            ("reset_limit", &["local_user"]),
            ("config", &["ccdb", "limits", "units"]),
            ("connection", &["auth", "client", "limits", "local_user", "reset_limit", "tls"]),
            ("http", &["log", "metrics", "page", "process"]),
            ("status", &["call_origin"]),
            ("descriptors", &["ccdb", "http", "limits"]),
            ("flight", &["auth", "connection", "limits", "status"]),
            ("meter", &["status"]),
            ("untrusted_ipc", &["status"]),
            ("outgoing", &["flight", "status"]),
            ("do_get", &["call_origin", "connection", "flight", "outgoing", "status", "ticket"]),
            (
                "exchange",
                &["connection", "flight", "outgoing", "status", "ticket", "untrusted_ipc"],
            ),
            (
                "guard",
                &[
                    "auth",
                    "call_origin",
                    "connection",
                    "meter",
                    "outgoing",
                    "reset_limit",
                    "status",
                ],
            ),
            ("action", &["auth", "connection", "do_get", "flight", "status", "ticket"]),
            ("put", &["connection", "do_get", "flight", "status", "ticket", "untrusted_ipc"]),
            (
                "run",
                &[
                    "auth",
                    "ccdb",
                    "connection",
                    "flight",
                    "guard",
                    "http",
                    "limits",
                    "listen",
                    "log",
                    "tls",
                ],
            ),
        ],
    ),
];

/// Type names that may occur more than once, each with the reason.
const SHARED_NAMES: &[(&str, &str)] = &[
    ("Arguments", "of each command"),
    ("Column", "`client::Column` and `table::Column`: the module qualifies it"),
    (
        "View",
        "`client::View` is an object in use, `table::View` a shape of tables: the module qualifies it",
    ),
];

/// A path in the crate, e.g. `["cache", "api", "answer"]`.
type Module = Vec<String>;

/// Facts about one source file that the tests need.
struct Source {
    file: PathBuf,
    module: Module,
    paths: Paths,
    /// The first item that is neither docs nor `mod` nor `use`.
    logic: Option<String>,
    /// Modules that it declares only for tests.
    test_only: Vec<Module>,
}

impl Source {
    fn parse(file: PathBuf, module: Module, text: &str) -> Self {
        let syntax = syn::parse_file(text).unwrap_or_else(|error| panic!("{file:?}: {error}"));
        let paths = Paths::of(&module, &syntax);
        let logic = syntax.items.iter().find(|item| is_logic(item)).map(kind_of);
        let test_only = test_only_modules(&module, &syntax);
        Self { file, module, paths, logic, test_only }
    }
}

/// Whether an item is more than a module declaration, an import, or a test.
fn is_logic(item: &syn::Item) -> bool {
    match item {
        syn::Item::Use(_) => false,
        syn::Item::Mod(module) => module.content.is_some() && !is_test(&module.attrs),
        other => !is_test(attributes(other)),
    }
}

fn kind_of(item: &syn::Item) -> String {
    match item {
        syn::Item::Const(item) => format!("const {}", item.ident),
        syn::Item::Enum(item) => format!("enum {}", item.ident),
        syn::Item::Fn(item) => format!("fn {}", item.sig.ident),
        syn::Item::Struct(item) => format!("struct {}", item.ident),
        syn::Item::Trait(item) => format!("trait {}", item.ident),
        syn::Item::Type(item) => format!("type {}", item.ident),
        _ => "an item".to_owned(),
    }
}

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

/// The library's sources, without files that are compiled only for tests.
fn library() -> Vec<Source> {
    sources_below(Path::new("src"), |inside| inside.starts_with("bin"))
}

/// The program's sources, without `main.rs`, which imports all of them.
fn program() -> Vec<Source> {
    sources_below(Path::new("src/bin/iovcache"), |inside| inside == Path::new("main.rs"))
}

/// The sources of the Python package's native part, without `lib.rs`, which imports all of them.
fn python() -> Vec<Source> {
    sources_below(Path::new("python/src"), |inside| inside == Path::new("lib.rs"))
}

/// The sources in a folder, except those that `left_out` selects.
fn sources_below(folder: &Path, left_out: impl Fn(&Path) -> bool) -> Vec<Source> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut files = Vec::new();
    source_files(&src, &mut files);
    files.sort();
    let mut sources = Vec::new();
    for file in files {
        let inside = file.strip_prefix(&src).unwrap().to_owned();
        if left_out(&inside) {
            continue;
        }
        let mut module: Module = inside
            .with_extension("")
            .components()
            .map(|part| part.as_os_str().to_str().unwrap().to_owned())
            .collect();
        if module.last().is_some_and(|last| last == "mod" || last == "lib") {
            module.pop();
        }
        let text = fs::read_to_string(&file).unwrap();
        sources.push(Source::parse(inside, module, &text));
    }
    let test_only: BTreeSet<Module> =
        sources.iter().flat_map(|source| source.test_only.iter().cloned()).collect();
    sources.retain(|source| !test_only.contains(&source.module));
    sources
}

/// Modules that a file declares under `#[cfg(test)]`.
fn test_only_modules(module: &Module, syntax: &syn::File) -> Vec<Module> {
    let declared = syntax.items.iter().filter_map(|item| match item {
        syn::Item::Mod(item) if item.content.is_none() && is_test(&item.attrs) => Some(item),
        _ => None,
    });
    let with = |item: &syn::ItemMod| {
        let mut inner = module.clone();
        inner.push(item.ident.to_string());
        inner
    };
    declared.map(with).collect()
}

/// Whether an item is compiled only for tests.
fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let tokens = match &attribute.meta {
            syn::Meta::List(list) => list.tokens.to_string(),
            _ => String::new(),
        };
        let path = attribute.path();
        path.is_ident("test")
            || (path.is_ident("cfg") && (tokens.starts_with("test") || tokens.contains("(test")))
            || (path.is_ident("cfg") && tokens.starts_with("all (doctest"))
    })
}

fn attributes(item: &syn::Item) -> &[syn::Attribute] {
    match item {
        syn::Item::Const(item) => &item.attrs,
        syn::Item::Enum(item) => &item.attrs,
        syn::Item::Fn(item) => &item.attrs,
        syn::Item::Impl(item) => &item.attrs,
        syn::Item::Macro(item) => &item.attrs,
        syn::Item::Mod(item) => &item.attrs,
        syn::Item::Static(item) => &item.attrs,
        syn::Item::Struct(item) => &item.attrs,
        syn::Item::Trait(item) => &item.attrs,
        syn::Item::Type(item) => &item.attrs,
        syn::Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// Collects the paths named in a file, made absolute.
struct Paths {
    /// The module that the walk is in.
    module: Module,
    found: BTreeSet<Module>,
    /// `use` items: the local name and the path that it stands for.
    uses: Vec<(String, Module)>,
    /// Types defined here.
    types: Vec<String>,
    /// Number of nested inline modules around the walk's position.
    depth: usize,
    /// Number of nested function bodies around it: types there are private to one function.
    bodies: usize,
}

impl Paths {
    fn of(module: &Module, syntax: &syn::File) -> Self {
        let (found, uses, types) = (BTreeSet::new(), Vec::new(), Vec::new());
        let mut paths = Self { module: module.clone(), found, uses, types, depth: 0, bodies: 0 };
        paths.visit_file(syntax);
        paths
    }

    /// A path from the crate's root, if it begins with `crate`, `self` or `super`.
    fn absolute(&self, segments: &[String]) -> Option<Module> {
        let mut path = match segments.first()?.as_str() {
            "crate" => Vec::new(),
            "self" | "super" => self.module.clone(),
            _ => return None,
        };
        let mut rest = segments;
        while let Some(first) = rest.first() {
            match first.as_str() {
                "crate" | "self" => {}
                "super" => {
                    path.pop()?;
                }
                _ => break,
            }
            rest = &rest[1..];
        }
        path.extend(rest.iter().cloned());
        Some(path)
    }

    fn add(&mut self, segments: &[String]) {
        let path = self.absolute(segments);
        self.found.extend(path);
    }

    fn add_use(&mut self, tree: &syn::UseTree, prefix: &mut Vec<String>) {
        match tree {
            syn::UseTree::Path(path) => {
                prefix.push(path.ident.to_string());
                self.add_use(&path.tree, prefix);
                prefix.pop();
            }
            syn::UseTree::Name(name) => self.add_name(&name.ident, &name.ident, prefix),
            syn::UseTree::Rename(name) => self.add_name(&name.ident, &name.rename, prefix),
            syn::UseTree::Glob(_) => self.add(prefix),
            syn::UseTree::Group(group) => {
                for tree in &group.items {
                    self.add_use(tree, prefix);
                }
            }
        }
    }

    fn add_name(&mut self, name: &syn::Ident, known_as: &syn::Ident, prefix: &[String]) {
        let mut segments = prefix.to_vec();
        if name != "self" {
            segments.push(name.to_string());
        }
        // `use answer::Answer` next to `mod answer`.
        let local = self.absolute(&segments).or_else(|| {
            let mut path = self.module.clone();
            path.extend(segments.iter().cloned());
            Some(path)
        });
        if self.depth == 0 {
            self.uses.extend(local.map(|path| (known_as.to_string(), path)));
        }
        self.add(&segments);
    }
}

impl<'a> Visit<'a> for Paths {
    fn visit_item(&mut self, item: &'a syn::Item) {
        if is_test(attributes(item)) {
            return;
        }
        let name = match item {
            syn::Item::Struct(item) => Some(&item.ident),
            syn::Item::Enum(item) => Some(&item.ident),
            syn::Item::Union(item) => Some(&item.ident),
            syn::Item::Trait(item) => Some(&item.ident),
            syn::Item::Type(item) => Some(&item.ident),
            _ => None,
        };
        if self.bodies == 0 {
            self.types.extend(name.map(ToString::to_string));
        }
        visit::visit_item(self, item);
    }

    fn visit_block(&mut self, block: &'a syn::Block) {
        self.bodies += 1;
        visit::visit_block(self, block);
        self.bodies -= 1;
    }

    fn visit_item_mod(&mut self, item: &'a syn::ItemMod) {
        self.module.push(item.ident.to_string());
        self.depth += 1;
        visit::visit_item_mod(self, item);
        self.depth -= 1;
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &'a syn::ItemUse) {
        self.add_use(&item.tree, &mut Vec::new());
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        let segments: Vec<String> =
            path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.add(&segments);
        visit::visit_path(self, path);
    }

    fn visit_visibility(&mut self, _: &'a syn::Visibility) {}

    fn visit_attribute(&mut self, _: &'a syn::Attribute) {}

    fn visit_macro(&mut self, item: &'a syn::Macro) {
        let text = item.tokens.to_string();
        for start in ["crate ::", "super ::"] {
            for (at, _) in text.match_indices(start) {
                let segments: Vec<String> = text[at..]
                    .split("::")
                    .map(|part| part.trim())
                    .map_while(|part| {
                        let end = part.find(|c: char| !c.is_alphanumeric() && c != '_');
                        let name = &part[..end.unwrap_or(part.len())];
                        (!name.is_empty()).then(|| name.to_owned())
                    })
                    .collect();
                self.add(&segments);
            }
        }
        visit::visit_macro(self, item);
    }
}

/// The files of the library, and the imports of each.
struct Graph {
    sources: Vec<Source>,
    /// For each file the files that it imports from.
    imports: Vec<BTreeSet<usize>>,
}

impl Graph {
    fn new(sources: Vec<Source>) -> Self {
        let files: BTreeMap<Module, usize> =
            sources.iter().enumerate().map(|(n, one)| (one.module.clone(), n)).collect();
        let imports = (0..sources.len())
            .map(|file| {
                let named = sources[file].paths.found.iter();
                let files = named.filter_map(|path| file_of(&sources, &files, path, 8));
                files.filter(|other| *other != file).collect()
            })
            .collect();
        Self { sources, imports }
    }

    /// The library's graph, built once.
    fn library() -> &'static Self {
        static LIBRARY: LazyLock<Graph> = LazyLock::new(|| Graph::new(library()));
        &LIBRARY
    }

    fn name(&self, file: usize) -> String {
        self.sources[file].file.display().to_string()
    }

    fn is_mod(&self, file: usize) -> bool {
        let name = self.sources[file].file.file_name().unwrap();
        name == "mod.rs" || name == "lib.rs"
    }
}

/// The file that a path resolves to through re-exports, in at most `patience` steps.
fn file_of(
    sources: &[Source],
    files: &BTreeMap<Module, usize>,
    path: &[String],
    patience: usize,
) -> Option<usize> {
    let longest =
        (0..=path.len()).rev().find_map(|length| Some((*files.get(&path[..length])?, length)));
    let (file, length) = longest?;
    let Some(name) = path.get(length) else { return Some(file) };
    match sources[file].paths.uses.iter().find(|(known_as, _)| known_as == name) {
        Some((_, further)) if patience > 0 => {
            let further = [further, &path[length + 1..]].concat();
            file_of(sources, files, &further, patience - 1)
        }
        _ => Some(file),
    }
}

/// The sets of two or more nodes in which every node can be reached from every other.
fn circles(edges: &[BTreeSet<usize>]) -> Vec<Vec<usize>> {
    let reach: Vec<BTreeSet<usize>> = (0..edges.len())
        .map(|start| {
            let (mut seen, mut open) = (BTreeSet::new(), vec![start]);
            while let Some(node) = open.pop() {
                open.extend(edges[node].iter().copied().filter(|next| seen.insert(*next)));
            }
            seen
        })
        .collect();
    let mut found: BTreeSet<Vec<usize>> = BTreeSet::new();
    for node in 0..edges.len() {
        let circle: Vec<usize> =
            reach[node].iter().copied().filter(|other| reach[*other].contains(&node)).collect();
        if circle.len() > 1 {
            found.insert(circle);
        }
    }
    found.into_iter().collect()
}

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
