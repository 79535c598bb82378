//! Every error with a stable code, read from the source: the tables `coded! { … }`, and the docs of
//! the variants.
#![allow(unreachable_pub, reason = "each test binary is a crate of its own")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// One error.
pub struct Known {
    pub code: u16,
    /// `CacheError::Missing`.
    pub name: String,
    /// The action that a caller can take, if the error itself states it.
    pub kind: String,
    /// Its documentation.
    pub text: String,
}

/// Each source file, and its text without tests.
fn sources() -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    let without_tests = |file: PathBuf| {
        let whole = fs::read_to_string(&file).unwrap();
        let code = whole.split("#[cfg(test)]\nmod ").next().unwrap_or_default().to_owned();
        (file, code)
    };
    files.into_iter().map(without_tests).collect()
}

/// The codes that stand in texts outside of the tables, each with what follows it.
pub fn in_texts() -> BTreeSet<(u16, String)> {
    let mut found = BTreeSet::new();
    for (_, code) in sources() {
        let texts = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        for text in texts.flat_map(|line| line.split("[IOV-").skip(1)) {
            let Some((number, text)) = text.split_once("] ") else { continue };
            let words = text.split(' ').take(3).collect::<Vec<_>>().join(" ");
            found.extend(number.parse().ok().map(|number: u16| (number, words)));
        }
    }
    assert!(found.len() > 15, "{found:?}");
    found
}

pub fn all() -> Vec<Known> {
    let mut all = Vec::new();
    for (file, code) in sources() {
        let code = code.as_str();
        assert!(!code.contains("\nimpl Coded for "), "{file:?}: the table `coded!` is the form");
        for rest in code.split("\ncoded! { ").skip(1) {
            let (owner, table) = rest.split_once(' ').unwrap_or_default();
            match table.strip_prefix("{\n") {
                Some(table) => variants_of(owner, table, code, &mut all),
                None => all.extend(whole_error(owner, table, code)),
            }
        }
    }
    assert!(all.len() > 100, "tables are found: {}", all.len());
    all.sort_by_key(|error| error.code);
    all
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// An error with one kind and code: `=> InvalidArgument 2001 }`.
fn whole_error(owner: &str, table: &str, file: &str) -> Option<Known> {
    let line = table.split(" }").next()?;
    let (kind, code) = kind_and_code(line)?;
    let starts = [format!("struct {owner}"), format!("pub enum {owner}")];
    let text = text_before(file, &starts.each_ref().map(String::as_str));
    Some(Known { code, name: owner.to_owned(), kind, text })
}

/// The lines of a table. A line without a code has that of its cause, and is listed there.
fn variants_of(owner: &str, table: &str, file: &str, all: &mut Vec<Known>) {
    let table = table.split("\n} }").next().unwrap_or_default();
    let enumeration = file.split(&format!("enum {owner} {{")).nth(1).unwrap_or_default();
    // A line is indented once, what belongs to an expression in it deeper or closed by a bracket.
    let mut lines: Vec<String> = Vec::new();
    for line in table.lines().filter(|line| !line.trim().starts_with("//")) {
        match line.strip_prefix("    ").filter(|line| line.starts_with(char::is_uppercase)) {
            Some(line) => lines.push(line.to_owned()),
            None => lines.last_mut().expect("a line begins").push_str(line.trim()),
        }
    }
    for line in lines {
        let variant = line.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
        let Some((kind, code)) = kind_and_code(line.trim_end_matches(',')) else { continue };
        let starts = ["\n    {v} {", "\n    {v}(", "\n    {v},"].map(|s| s.replace("{v}", variant));
        let text = text_before(enumeration, &starts.each_ref().map(String::as_str));
        assert!(!text.is_empty(), "{owner}::{variant} has no docs");
        all.push(Known { code, name: format!("{owner}::{variant}"), kind, text });
    }
}

/// The text behind the first `=>`. The kind is empty where it depends on the content.
fn kind_and_code(line: &str) -> Option<(String, u16)> {
    let (_, value) = line.split_once("=> ")?;
    let (kind, code) = value.rsplit_once(' ')?;
    let kind = if kind.starts_with('(') { "" } else { kind };
    Some((kind.to_owned(), code.parse().ok()?))
}

/// The documentation above the first of `starts` that occurs.
fn text_before(text: &str, starts: &[&str]) -> String {
    let Some(at) = starts.iter().find_map(|start| text.find(start)) else { return String::new() };
    // Skips the attributes between them.
    let above = text[..at].lines().rev().map(str::trim);
    let above = above.take(40).skip_while(|line| !line.starts_with("///"));
    let mut lines: Vec<&str> =
        above.map_while(|line| line.strip_prefix("///")).map(str::trim).collect();
    lines.reverse();
    let text = lines.join(" ");
    text.split(" ```").next().unwrap_or_default().to_owned()
}

pub fn page(all: &[Known]) -> String {
    let mut text = String::from(
        "<!-- Made by tests/book: IOVCACHE_BLESS=1 cargo test --test book -->\n# Errors\n\n\
         Messages that leave a process begin with a stable code: `[IOV-2010] …`. The kind says what a \
         caller can do about it, and becomes the gRPC status, the C code, the Python exception and the \
         exit status of the program; where none stands here, it is that of the cause. UNAVAILABLE and \
         DEADLINE_EXCEEDED are worth another try.\n\n\
         The thousands tell the room: 1 requests and tables, 2 validity, 3 sources, 4 shared memory, 5 \
         sessions, leases and timeframes, 6 access, 7 the client, 8 the command line, 9 our own bugs.\n\n\
         | code | kind | meaning |\n|---|---|---|\n",
    );
    for Known { code, name, kind, text: meaning } in all {
        let meaning = meaning.replace('|', "\\|").replace(['[', ']'], "");
        text += &format!("| `IOV-{code:04}` | {kind} | {meaning} (`{name}`) |\n");
    }
    text
}
