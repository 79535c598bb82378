//! Functions fit on a screen.

use std::fs;
use std::path::Path;

use crate::sources::source_files;

/// Maximum number of lines of a function, its signature and its braces included.
const MAX_LINES: usize = 50;

/// Longer functions, by file and name, each with the reason.
const LONGER: &[(&str, &str, &str)] = &[(
    "src/server/ccdb/json.rs",
    "entry",
    "one line per key, in the order in which servers send them",
)];

/// Words that may stand before `fn`.
const QUALIFIERS: &[&str] =
    &["pub ", "pub(crate) ", "pub(super) ", "const ", "async ", "unsafe ", "extern \"C\" "];

/// Indentation and name of the function that begins in a line.
fn function_of(line: &str) -> Option<(usize, &str)> {
    let mut rest = line.trim_start();
    let indent = line.len() - rest.len();
    while let Some(shorter) = QUALIFIERS.iter().find_map(|word| rest.strip_prefix(word)) {
        rest = shorter;
    }
    let rest = rest.strip_prefix("fn ")?;
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_')?;
    Some((indent, &rest[..end]))
}

/// Name and number of lines of each function of a file that rustfmt has formatted: it ends with a
/// brace at the indentation of its signature.
fn functions(text: &str) -> Vec<(&str, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let begins = lines.iter().enumerate().filter_map(|(at, line)| Some((at, function_of(line)?)));
    let lengths = begins.filter_map(|(at, (indent, name))| {
        if lines[at].ends_with(['}', ';']) {
            return Some((name, 1));
        }
        let is_end = |line: &&&str| {
            let rest = line.trim_start();
            line.len() - rest.len() == indent && (rest == "}" || rest.ends_with(';'))
        };
        let length = lines[at + 1..].iter().position(|line| is_end(&line))?;
        Some((name, length + 2))
    });
    lengths.collect()
}

#[test]
fn no_function_is_longer_than_a_screen() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut files, mut long) = (Vec::new(), Vec::new());
    for folder in ["src", "python/src"] {
        source_files(&root.join(folder), &mut files);
    }
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let inside = file.strip_prefix(root).unwrap().to_str().unwrap();
        for (name, lines) in functions(&text).into_iter().filter(|(_, lines)| *lines > MAX_LINES) {
            long.push((inside.to_owned(), name.to_owned(), lines));
        }
    }
    let is_listed =
        |file: &str, name: &str| LONGER.iter().any(|one| (one.0, one.1) == (file, name));
    let wrong: Vec<String> = long
        .iter()
        .filter(|(file, name, _)| !is_listed(file, name))
        .map(|(file, name, lines)| format!("{file}: {name} has {lines} lines, limit {MAX_LINES}"))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for (file, name, reason) in LONGER {
        let is_long = long.iter().any(|one| (&*one.0, &*one.1) == (*file, *name));
        assert!(is_long, "{file}: {name} is listed ({reason}) and is not long");
    }
}

#[test]
fn the_length_of_a_function_is_that_of_its_lines() {
    let text = "pub(crate) async fn one(\n    a: u8,\n) -> u8 {\n    let b = [\n        1,\n    ];\n    \
                a\n}\n\nimpl A {\n    fn two(&self) {\n        fn inner() {}\n    }\n\n    fn three();\n}\n\
                \ntrait B {\n    fn four(\n        &self,\n    ) -> u8;\n}\n";
    let expected = [("one", 8), ("two", 3), ("inner", 1), ("three", 1), ("four", 3)];
    assert_eq!(functions(text), expected);
}
