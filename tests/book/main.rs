//! The book: its reference matches the code, its links resolve, and its first walk runs.
//!
//! `IOVCACHE_BLESS=1` rewrites the reference.
#![cfg(feature = "cli")]

#[path = "../common/mod.rs"]
mod common;

mod errors;
mod flags;
mod reference;
mod shell;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn docs() -> PathBuf {
    root().join("docs")
}

/// Checks that a page of the book equals `text` from the code; with `IOVCACHE_BLESS` writes it.
fn check_page(name: &str, text: &str) {
    let file = docs().join("reference").join(name);
    if std::env::var_os("IOVCACHE_BLESS").is_some() {
        fs::write(&file, text).unwrap();
    }
    let written = fs::read_to_string(&file).unwrap_or_default();
    if written == text {
        return;
    }
    let differs = written.lines().zip(text.lines()).find(|(a, b)| a != b);
    panic!(
        "docs/reference/{name} is not what the code says (IOVCACHE_BLESS=1 writes it): {differs:?}"
    );
}

#[test]
fn the_reference_of_the_commands_is_their_help() {
    check_page("commands.md", &reference::commands());
}

#[test]
fn the_reference_of_the_configuration_is_the_text_of_its_keys() {
    check_page("configuration.md", &reference::configuration());
}

#[test]
fn the_reference_of_the_metrics_is_what_a_service_tells() {
    check_page("metrics.md", &reference::metrics());
}

#[test]
fn the_reference_of_the_errors_is_every_code_in_the_source() {
    check_page("errors.md", &errors::page(&errors::all()));
}

#[test]
fn no_two_errors_share_a_code() {
    let all = errors::all();
    assert!(all.len() > 60, "{} errors", all.len());
    let mut by_code: BTreeMap<u16, Vec<String>> = BTreeMap::new();
    for error in &all {
        by_code.entry(error.code).or_default().push(error.name.clone());
    }
    for (code, text) in errors::in_texts() {
        by_code.entry(code).or_default().push(text);
    }
    by_code.retain(|_, names| names.len() > 1);
    assert!(by_code.is_empty(), "{by_code:?}");
    // The code of a message that the program prints is in this table.
    let output = common::run(&["serve", "--source", "gopher://x"]);
    let text = String::from_utf8(output.stderr).unwrap();
    let code = text.split("[IOV-").nth(1).and_then(|rest| rest.get(..4)).unwrap();
    assert!(all.iter().any(|error| error.code.to_string() == code), "{text}");
}

/// The links of a page, without those in code.
fn links(text: &str) -> Vec<String> {
    let mut links = Vec::new();
    let mut in_code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        for (index, _) in line.match_indices("](") {
            let before = &line[..index];
            let link = line[index + 2..].split(')').next().unwrap_or_default();
            if before.matches('`').count().is_multiple_of(2) {
                links.push(link.to_owned());
            }
        }
    }
    links
}

/// The anchors of a page's headings, as mdBook makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter_map(|line| line.strip_prefix('#'));
    headings
        .map(|heading| {
            let heading = heading.trim_start_matches('#').trim().to_lowercase();
            let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

fn pages(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            pages(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
}

/// Follows the links of a page, which must lead to files `within`; returns their number.
fn follow(page: &Path, within: &Path) -> usize {
    let text = fs::read_to_string(page).unwrap();
    let mut count = 0;
    for link in links(&text) {
        if link.contains("://") {
            continue;
        }
        count += 1;
        let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
        let target = match file {
            "" => page.to_owned(),
            file => page.parent().unwrap().join(file),
        };
        let Ok(target) = target.canonicalize() else { panic!("{page:?}: {link} leads nowhere") };
        assert!(target.starts_with(within), "{page:?}: {link} leads out of {within:?}");
        if !anchor.is_empty() {
            let text = fs::read_to_string(&target).unwrap();
            assert!(anchors(&text).contains(anchor), "{page:?}: {link}");
        }
    }
    count
}

#[test]
fn every_link_of_the_book_leads_somewhere_and_every_page_is_in_the_summary() {
    let mut all = Vec::new();
    pages(&docs(), &mut all);
    let summary = fs::read_to_string(docs().join("SUMMARY.md")).unwrap();
    let listed: BTreeSet<PathBuf> = links(&summary).iter().map(|link| docs().join(link)).collect();
    let mut count = 0;
    for page in &all {
        assert!(listed.contains(page) || page.ends_with("SUMMARY.md"), "{page:?} is not listed");
        // The rendered book contains only its own folder.
        count += follow(page, &docs().canonicalize().unwrap());
    }
    assert!(count > 20 && all.len() >= 10, "{count} links, {} pages", all.len());
}

#[test]
fn every_link_of_the_other_pages_leads_somewhere() {
    let mut all: Vec<PathBuf> =
        ["README.md", "CHANGELOG.md", "SECURITY.md"].iter().map(|name| root().join(name)).collect();
    for folder in ["benches", "deploy", "examples", "fuzz", "python", "schemas"] {
        pages(&root().join(folder), &mut all);
    }
    let root = root().canonicalize().unwrap();
    let count: usize = all.iter().map(|page| follow(page, &root)).sum();
    assert!(count > 5 && all.len() >= 8, "{count} links, {} pages", all.len());
}
