//! Every error with a stable code, parsed from the source: `impl Coded for …`, and the docs of the
//! variants.
#![allow(unreachable_pub, reason = "each test binary is a crate of its own")]

use std::collections::BTreeMap;
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

pub fn all() -> Vec<Known> {
    let mut files = Vec::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    let mut all = Vec::new();
    for file in files {
        let whole = fs::read_to_string(&file).unwrap();
        let code = whole.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
        for rest in code.split("\nimpl Coded for ").skip(1) {
            let body = rest.split("\n}\n").next().unwrap_or_default();
            let owner = body.split([' ', '<']).next().unwrap_or_default();
            errors_of(owner, body, code, &mut all);
        }
    }
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

/// The body of a function within an `impl`.
fn function<'a>(body: &'a str, name: &str) -> &'a str {
    let (_, rest) = body.split_once(&format!("fn {name}(")).unwrap_or_default();
    rest.split("\n    }\n").next().unwrap_or_default()
}

fn errors_of(owner: &str, body: &str, file: &str, all: &mut Vec<Known>) {
    let (codes, kinds) = (function(body, "code"), function(body, "kind"));
    let kinds = kinds_of(kinds);
    let every = kinds.get("").cloned().unwrap_or_default();
    if !codes.contains("match") {
        let Some(code) = numbers(codes).next() else { return };
        let text = text_before(
            file,
            &[
                &format!("pub struct {owner}"),
                &format!("struct {owner}"),
                &format!("pub enum {owner}"),
            ],
        );
        all.push(Known { code, name: owner.to_owned(), kind: every, text });
        return;
    }
    for (arm, value) in arms(codes) {
        let Some(code) = numbers(value).next() else { continue };
        for variant in variants(arm) {
            let kind = kinds.get(variant).unwrap_or(&every).clone();
            let enumeration = file.split(&format!("enum {owner} {{")).nth(1).unwrap_or_default();
            let starts =
                ["\n    {v} {", "\n    {v}(", "\n    {v},"].map(|s| s.replace("{v}", variant));
            let text = text_before(enumeration, &starts.each_ref().map(String::as_str));
            all.push(Known { code, name: format!("{owner}::{variant}"), kind, text });
        }
    }
}

/// The kind of each variant; a kind that all share is under `""`.
fn kinds_of(body: &str) -> BTreeMap<String, String> {
    let kind = |text: &str| {
        let name = text.split("ErrorKind::").nth(1)?;
        Some(name.split(|c: char| !c.is_alphanumeric()).next()?.to_owned())
    };
    let mut kinds = BTreeMap::new();
    if !body.contains("match") {
        kinds.extend(kind(body).map(|kind| (String::new(), kind)));
        return kinds;
    }
    for (arm, value) in arms(body) {
        let first = value.split_whitespace().next().unwrap_or_default();
        let block =
            first == "{" && value.trim_start_matches(['{', ' ', '\n']).starts_with("ErrorKind::");
        let direct = first.starts_with("ErrorKind::") || block;
        for variant in variants(arm) {
            let known = if direct { kind(value).unwrap_or_default() } else { String::new() };
            kinds.entry(variant.to_owned()).or_insert(known);
        }
    }
    kinds
}

/// Pattern and value of each match arm.
fn arms(body: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut pieces = body.split("=>").peekable();
    let mut before = pieces.next().unwrap_or_default();
    std::iter::from_fn(move || {
        let value = pieces.next()?;
        let arm = before;
        before = value;
        // The pattern follows the value of the arm before it.
        Some((arm, value))
    })
}

/// The variants that a pattern names, after the value of the arm before.
fn variants(arm: &str) -> Vec<&str> {
    let start = arm
        .rmatch_indices(['\n'])
        .map(|(at, _)| at)
        .find(|at| {
            let line = arm[*at..].trim_start();
            let alone = line.starts_with("Self::");
            let before = arm[..*at].trim_end();
            alone && (before.ends_with([',', '{', '}']) || before.is_empty())
        })
        .unwrap_or(0);
    let pattern = &arm[start..];
    let names = pattern.split("Self::").skip(1);
    names.map(|name| name.split(|c: char| !c.is_alphanumeric()).next().unwrap_or("")).collect()
}

fn numbers(text: &str) -> impl Iterator<Item = u16> {
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
    words.filter(|word| word.len() == 4).filter_map(|word| word.parse().ok())
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
