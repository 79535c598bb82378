//! The imports between the files of the library, and the circles in them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use crate::sources::{Module, Source, library};

/// The files of the library, and the imports of each.
pub(crate) struct Graph {
    pub(crate) sources: Vec<Source>,
    /// For each file the files that it imports from.
    pub(crate) imports: Vec<BTreeSet<usize>>,
}

impl Graph {
    pub(crate) fn new(sources: Vec<Source>) -> Self {
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
    pub(crate) fn library() -> &'static Self {
        static LIBRARY: LazyLock<Graph> = LazyLock::new(|| Graph::new(library()));
        &LIBRARY
    }

    pub(crate) fn name(&self, file: usize) -> String {
        self.sources[file].file.display().to_string()
    }

    pub(crate) fn is_mod(&self, file: usize) -> bool {
        let name = self.sources[file].file.file_name().unwrap();
        name == "mod.rs" || name == "lib.rs"
    }
}

/// The file that a path resolves to through re-exports, in at most `patience` steps.
pub(crate) fn file_of(
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
pub(crate) fn circles(edges: &[BTreeSet<usize>]) -> Vec<Vec<usize>> {
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
