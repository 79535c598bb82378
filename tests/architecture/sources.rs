//! Source files and the facts of each that the tests need.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::items::{is_logic, is_test, kind_of};
use crate::paths::Paths;

/// A path in the crate, e.g. `["cache", "api", "answer"]`.
pub(crate) type Module = Vec<String>;

/// Facts about one source file that the tests need.
pub(crate) struct Source {
    pub(crate) file: PathBuf,
    pub(crate) module: Module,
    pub(crate) paths: Paths,
    /// The first item that is neither docs nor `mod` nor `use`.
    pub(crate) logic: Option<String>,
    /// Modules that it declares only for tests.
    pub(crate) test_only: Vec<Module>,
}

impl Source {
    pub(crate) fn parse(file: PathBuf, module: Module, text: &str) -> Self {
        let syntax = syn::parse_file(text).unwrap_or_else(|error| panic!("{file:?}: {error}"));
        let paths = Paths::of(&module, &syntax);
        let logic = syntax.items.iter().find(|item| is_logic(item)).map(kind_of);
        let test_only = test_only_modules(&module, &syntax);
        Self { file, module, paths, logic, test_only }
    }
}

pub(crate) fn source_files(folder: &Path, found: &mut Vec<PathBuf>) {
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
pub(crate) fn library() -> Vec<Source> {
    sources_below(Path::new("src"), |inside| inside.starts_with("bin"))
}

/// The program's sources, without `main.rs`, which imports all of them.
pub(crate) fn program() -> Vec<Source> {
    sources_below(Path::new("src/bin/iovcache"), |inside| inside == Path::new("main.rs"))
}

/// The sources of the Python package's native part, without `lib.rs`, which imports all of them.
pub(crate) fn python() -> Vec<Source> {
    sources_below(Path::new("python/src"), |inside| inside == Path::new("lib.rs"))
}

/// The sources in a folder, except those that `left_out` selects.
pub(crate) fn sources_below(folder: &Path, left_out: impl Fn(&Path) -> bool) -> Vec<Source> {
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
    let is_tested = |source: &Source| {
        (1..=source.module.len()).any(|n| test_only.contains(&source.module[..n]))
    };
    sources.retain(|source| !is_tested(source));
    sources
}

/// Modules that a file declares under `#[cfg(test)]`.
pub(crate) fn test_only_modules(module: &Module, syntax: &syn::File) -> Vec<Module> {
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
