//! Comments, documentation and messages are plain technical English: each sentence names its subject
//! and says one fact. This test searches for turns of phrase that hide the subject.
//!
//! ```text
//!  Rust, C, C++    comments; string literals of more than one word
//!  Python          comments and docstrings        shell, TOML    comments
//!  Markdown        everything but code
//! ```

use std::fs;
use std::path::{Path, PathBuf};

/// Words and phrases in lower case, and their replacements.
const WORDS: &[(&str, &str)] = &[
    ("whoever", "name the subject"),
    ("whom", "name the subject"),
    ("nobody", "'no client', 'no process'"),
    ("somebody", "'a client', 'a process'"),
    ("anybody", "'any client', 'any process'"),
    ("everybody", "'every client', 'every process'"),
    ("nobody's", "'of no client'"),
    ("somebody's", "'of a client'"),
    ("let go", "'release', 'released'"),
    ("lets go", "'releases'"),
    ("letting go", "'releasing'"),
    ("look after", "'watch', 'manage'"),
    ("looks after", "'watches', 'manages'"),
    ("looked after", "'watched', 'managed'"),
    ("on its way", "'in transit', 'queued'"),
    ("on their way", "'in transit', 'queued'"),
    ("thing", "name it"),
    ("things", "name them"),
    ("that which", "name it"),
    ("those who", "'clients that …'"),
];

/// A pronoun that needs a noun before it, and its replacement: `the user who asks` names a subject,
/// `who asks` does not.
const PRONOUNS: &[(&str, &str)] =
    &[("who", "name the subject: 'a client that …'"), ("whose", "name the subject")];

/// Words before a pronoun that are no nouns, so that the pronoun has no subject.
const NO_NOUNS: &[&str] = &[
    "about", "all", "and", "as", "asks", "be", "before", "but", "by", "decides", "for", "from",
    "if", "in", "is", "known", "knows", "learns", "many", "names", "of", "on", "one", "or", "says",
    "sees", "so", "tells", "than", "that", "those", "to", "told", "until", "when", "where",
    "which", "while", "with",
];

/// Beginnings of sentences in documentation and comments, and their replacements.
const BEGINNINGS: &[(&str, &str)] = &[
    ("So many", "'Maximum number of …', 'Number of …'"),
    ("So much", "'Maximum bytes of …'"),
    ("So often", "'Interval between …'"),
    ("So long", "'How long …', 'Time limit of …'"),
    ("The same", "'Like [`…`], …'"),
    ("What", "name the subject"),
    ("Whatever", "'any …', 'every …'"),
    ("Who", "name the subject"),
    ("Whose", "name the subject"),
];

/// Files that hold such words, each with the reason.
const ALLOWED_FILES: &[(&str, &str)] = &[
    ("tests/prose.rs", "it lists them"),
    ("CHANGELOG.md", "entries of released versions stay as released"),
];

/// Rooms with comments that are not rewritten yet, and how many places each may have: the numbers
/// only go down.
const REMAINING: &[(&str, usize)] = &[];

/// Texts that hold such words, each with the reason.
const ALLOWED_TEXTS: &[(&str, &str)] = &[];

/// Paths below which every file is generated.
const GENERATED: &[&str] = &["docs/reference", "schemas/iovcache.h"];

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Language {
    /// Rust, C and C++.
    Slashes,
    Python,
    /// Shell and TOML: comments begin with `#`.
    Hashes,
    Markdown,
}

impl Language {
    fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("rs" | "c" | "h" | "cpp" | "hpp") => Some(Self::Slashes),
            Some("py" | "pyi") => Some(Self::Python),
            Some("toml" | "sh") => Some(Self::Hashes),
            Some("md") => Some(Self::Markdown),
            None if matches!(name, "test" | "run" | "build") => Some(Self::Hashes),
            _ => None,
        }
    }

    fn prose(self, text: &str) -> Vec<Prose> {
        match self {
            Self::Slashes => prose_of_slashes(text),
            Self::Python => prose_of_python(text),
            Self::Hashes => text.lines().enumerate().filter_map(hash_comment).collect(),
            Self::Markdown => prose_of_markdown(text),
        }
    }
}

/// A line of prose.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Prose {
    /// From 1.
    line: usize,
    text: String,
    /// Whether the text is the beginning of a sentence, as far as its line shows.
    begins: bool,
}

impl Prose {
    /// A line of a comment, without its marks.
    fn comment(line: usize, text: &str) -> Self {
        let text = text.trim_start_matches(['/', '!', '*', '#']).trim();
        Self { line, text: without_code(text, &mut false), begins: true }
    }

    /// A piece of a string literal; a single word is data. Placeholders are left out.
    fn literal(line: usize, text: &str) -> Option<Self> {
        let mut kept = String::new();
        let mut depth = 0_usize;
        for letter in text.chars() {
            match letter {
                '{' => depth += 1,
                '}' => depth = depth.saturating_sub(1),
                _ if depth == 0 => kept.push(letter),
                _ => {}
            }
        }
        let text = kept.trim();
        text.contains(' ').then(|| Self { line, text: text.to_owned(), begins: false })
    }
}

/// Where the scan of a source file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inside {
    Code,
    /// A string literal; `Some`: a raw one that a quote with this many hashes ends.
    Literal(Option<usize>),
    Block,
}

fn prose_of_slashes(text: &str) -> Vec<Prose> {
    let mut found = Vec::new();
    let mut inside = Inside::Code;
    for (number, line) in text.lines().enumerate().map(|(n, line)| (n + 1, line)) {
        let mut rest = line;
        let mut before = ' ';
        while !rest.is_empty() {
            let end = match inside {
                Inside::Block => rest.find("*/").map(|at| (at, 2)),
                Inside::Literal(Some(hashes)) => {
                    let quote = format!("\"{}", "#".repeat(hashes));
                    rest.find(&quote).map(|at| (at, quote.len()))
                }
                Inside::Literal(None) => end_of_literal(rest).map(|at| (at, 1)),
                Inside::Code => None,
            };
            if inside == Inside::Code {
                let Some(at) = rest.find(['"', '/', '\'']) else { break };
                before = rest[..at].chars().next_back().unwrap_or(before);
                let from = &rest[at..];
                if from.starts_with("//") {
                    found.push(Prose::comment(number, from));
                    break;
                }
                let skipped = if from.starts_with("/*") {
                    inside = Inside::Block;
                    2
                } else if from.starts_with('"') {
                    let opening = rest[..at].trim_end_matches('#');
                    let hashes = at - opening.len();
                    let is_raw = opening.ends_with('r') || opening.ends_with("br");
                    inside = Inside::Literal(is_raw.then_some(hashes));
                    1
                } else if from.starts_with('\'') && !before.is_alphanumeric() {
                    character(from)
                } else {
                    1
                };
                rest = &from[skipped..];
                continue;
            }
            let part = end.map_or(rest, |(at, _)| &rest[..at]);
            if inside == Inside::Block {
                found.push(Prose::comment(number, part.trim_start()));
            } else {
                found.extend(Prose::literal(number, part));
            }
            let Some((at, length)) = end else { break };
            rest = &rest[at + length..];
            inside = Inside::Code;
        }
    }
    found
}

/// Length of a character literal at the beginning of `text`; of a lifetime its quote alone.
fn character(text: &str) -> usize {
    let mut letters = text.char_indices().skip(1);
    match (letters.next(), letters.next()) {
        (Some((_, '\\')), Some((at, letter))) => {
            let from = at + letter.len_utf8();
            text[from..].find('\'').map_or(1, |end| from + end + 1)
        }
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 1,
    }
}

/// Place of the quote that ends a string literal; an escaped one does not.
fn end_of_literal(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().find_map(|(at, letter)| {
        let ends = letter == '"' && !escaped;
        escaped = letter == '\\' && !escaped;
        ends.then_some(at)
    })
}

/// The comment of a line of Python, shell or TOML, as far as it is no part of a string.
fn hash_comment((number, line): (usize, &str)) -> Option<Prose> {
    let mut quote = None;
    let mut before = ' ';
    for (at, letter) in line.char_indices() {
        match (quote, letter) {
            (None, '#') if before.is_whitespace() => {
                let is_script = number == 0 && line.starts_with("#!");
                return (!is_script).then(|| Prose::comment(number + 1, &line[at..]));
            }
            (None, '"' | '\'') => quote = Some(letter),
            (Some(open), _) if open == letter && before != '\\' => quote = None,
            _ => {}
        }
        before = letter;
    }
    None
}

/// Comments and docstrings: strings in triple quotes that stand alone, not those that are values.
fn prose_of_python(text: &str) -> Vec<Prose> {
    let mut found = Vec::new();
    let (mut in_docstring, mut in_value) = (false, false);
    for (number, line) in text.lines().enumerate() {
        let marks = line.matches("\"\"\"").count();
        let trimmed = line.trim();
        let begins = trimmed.starts_with("\"\"\"") && !in_docstring && !in_value;
        if in_docstring || begins {
            let text = trimmed.replace("\"\"\"", "");
            found.push(Prose::comment(number + 1, &text));
            in_docstring ^= marks % 2 == 1;
        } else if in_value || marks > 0 {
            in_value ^= marks % 2 == 1;
        } else {
            found.extend(hash_comment((number, line)));
        }
    }
    found
}

/// Everything but fenced code and code spans.
fn prose_of_markdown(text: &str) -> Vec<Prose> {
    let mut found = Vec::new();
    let (mut in_code, mut in_span) = (false, false);
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
            continue;
        }
        if in_code {
            continue;
        }
        in_span &= !line.trim().is_empty();
        let prose = without_code(line, &mut in_span);
        for cell in prose.trim().trim_matches('|').split('|') {
            let text = cell.trim().trim_start_matches(['#', '-', '>', '*', ' ']).to_owned();
            found.push(Prose { line: number + 1, text, begins: true });
        }
    }
    found
}

/// A line with a backtick in the place of each code span; `in_span`: whether it is in the middle of
/// one, first at its beginning and then at its end.
fn without_code(line: &str, in_span: &mut bool) -> String {
    let mut prose = String::new();
    for (n, part) in line.split('`').enumerate() {
        if n > 0 {
            prose.push_str(if *in_span { "" } else { "`" });
            *in_span = !*in_span;
        }
        prose.push_str(if *in_span { "" } else { part });
    }
    prose
}

/// The fault of a text, if it has one.
fn fault(prose: &Prose, follows: Option<&Prose>) -> Option<String> {
    let text = &prose.text;
    if ALLOWED_TEXTS.iter().any(|(allowed, _)| text.contains(allowed)) {
        return None;
    }
    let ends = |text: &str| text.is_empty() || text.ends_with(['.', ':', '`', ')', '?', '!', '│']);
    let continues =
        follows.is_some_and(|before| before.line + 1 == prose.line && !ends(&before.text));
    if prose.begins && !continues {
        for (beginning, instead) in BEGINNINGS {
            let rest = text.strip_prefix(beginning);
            let is_question = text.contains('?');
            if rest.is_some_and(|rest| rest.starts_with([' ', '\''])) && !is_question {
                return Some(format!("begins with {beginning:?}: {instead}"));
            }
        }
    }
    let lower = text.to_lowercase();
    for (word, instead) in WORDS {
        if places(&lower, word).next().is_some() {
            return Some(format!("{word:?}: {instead}"));
        }
    }
    for (word, instead) in PRONOUNS {
        for at in places(&lower, word) {
            let before = match (lower[..at].trim_end(), follows) {
                ("", Some(line)) if continues => line.text.to_lowercase(),
                (before, _) => before.to_owned(),
            };
            let noun = before.rsplit([' ', '[', '(']).next().unwrap_or_default();
            let is_noun = (noun.len() > 1 || noun == "`")
                && noun
                    .ends_with(|end: char| end.is_alphanumeric() || matches!(end, ',' | '`' | ']'))
                && !NO_NOUNS.contains(&noun.trim_end_matches(','))
                && !(*word == "who" && noun.ends_with(','));
            if !is_noun {
                return Some(format!("{word:?} without a noun: {instead}"));
            }
        }
    }
    None
}

/// Where a word stands in a text, not as a part of another word.
fn places<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let letter = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
    text.match_indices(word).map(|(at, _)| at).filter(move |at| {
        let before = text[..*at].chars().next_back().is_some_and(letter);
        let after = text[at + word.len()..].chars().next().is_some_and(letter);
        !before && !after
    })
}

fn faults_of(language: Language, text: &str) -> Vec<(usize, String)> {
    let prose = language.prose(text);
    let before = std::iter::once(None).chain(prose.iter().map(Some));
    let all = prose.iter().zip(before);
    all.filter_map(|(one, before)| Some((one.line, fault(one, before)?))).collect()
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let inside = path.strip_prefix(ROOT).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        let is_kept = !name.starts_with('.') || name == ".ci";
        let is_generated = GENERATED.iter().any(|generated| inside.starts_with(generated));
        if !is_kept || is_generated || path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            let is_built = ["target", "corpus", "node_modules", "venv", "build", "dist"];
            if !is_built.contains(&name) && !path.join("pyvenv.cfg").exists() {
                files(&path, found);
            }
        } else if Language::of(&path).is_some() {
            found.push(path);
        }
    }
}

#[test]
fn prose_names_its_subjects() {
    let mut found = Vec::new();
    files(Path::new(ROOT), &mut found);
    found.sort();
    assert!(found.len() > 300, "only {} files", found.len());
    let mut faults = Vec::new();
    for file in found {
        let inside = file.strip_prefix(ROOT).unwrap().to_str().unwrap();
        if ALLOWED_FILES.iter().any(|(allowed, _)| *allowed == inside) {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        let language = Language::of(&file).unwrap();
        let all = faults_of(language, &text).into_iter();
        faults.extend(all.map(|(line, fault)| format!("{inside}:{line}: {fault}")));
    }
    for (room, most) in REMAINING {
        let (there, others): (Vec<String>, Vec<String>) =
            faults.into_iter().partition(|fault| fault.starts_with(room));
        let count = there.len();
        assert!(count <= *most, "{room}: {count} places, at most {most}:\n{}", there.join("\n"));
        assert!(count == *most, "{room}: only {count} places are left, write that here");
        faults = others;
    }
    let count = faults.len();
    assert!(faults.is_empty(), "{count} places:\n{}", faults.join("\n"));
}

#[test]
fn allowed_places_still_need_to_be_allowed() {
    for (allowed, _) in ALLOWED_FILES {
        let path = Path::new(ROOT).join(allowed);
        let text = fs::read_to_string(&path).unwrap();
        let is_needed = !faults_of(Language::of(&path).unwrap(), &text).is_empty();
        assert!(is_needed, "{allowed} needs no exception");
    }
}

fn texts(language: Language, text: &str) -> Vec<String> {
    language.prose(text).into_iter().map(|prose| prose.text).collect()
}

#[test]
fn rust_comments_and_messages_are_read_and_code_is_not() {
    let read = |text| texts(Language::Slashes, text);
    assert_eq!(read("    /// A client asks."), ["A client asks."]);
    assert_eq!(read("let nobody = 1; // a client"), ["a client"]);
    assert_eq!(read(r#"error("a client waits", 1)"#), ["a client waits"]);
    assert_eq!(read(r#"error("{who} waits for {it:?} now")"#), ["waits for  now"]);
    assert_eq!(read(r#"let who = call("nobody", '"', "it");"#), [""; 0]);
    assert_eq!(read("say(\"a \\\"b\\\" \\\n     c d\"); // e"), ["a \\\"b\\\" \\", "c d", "e"]);
    assert_eq!(read(r##"let a = r#"b "c" d"#; // e"##), ["b \"c\" d", "e"]);
    assert_eq!(read("fn of<'a>(url: &'a str) {} // \"e"), ["\"e"]);
    assert_eq!(read("/* A block\n * of two */ call();"), ["A block", "of two"]);
    assert_eq!(read("let a = b / c; let url = \"http://x y\";"), ["http://x y"]);
}

#[test]
fn python_comments_and_docstrings_are_read_and_code_is_not() {
    let read = |text| texts(Language::Python, text);
    assert_eq!(read("who = '# no'  # a client"), ["a client"]);
    assert_eq!(read("\"\"\"A client\nasks.\"\"\"\nwho = 1"), ["A client", "asks."]);
    assert_eq!(read("text = f\"\"\"\nnobody\n\"\"\"\n# yes"), ["yes"]);
    assert_eq!(texts(Language::Hashes, "#!/bin/sh\necho who # a run"), ["a run"]);
}

#[test]
fn markdown_is_read_without_its_code() {
    let read = |text| texts(Language::Markdown, text).join("|");
    assert_eq!(read("# A `who` b\n```sh\nnobody\n```\n| c | d |"), "A ` b|c|d");
    assert_eq!(read("a `who\nwho` b"), "a `|b");
}

#[test]
fn a_hidden_subject_is_a_fault_and_a_named_one_is_not() {
    let faults = |text: &str| faults_of(Language::Slashes, text).len();
    for bad in [
        "/// Who asks.",
        "/// So many connections at a time.",
        "/// The same for a region.",
        "/// What a client holds.",
        "/// All that it held is let go.",
        "// It waits for somebody's answer.",
        "// The one who asks, of whom there are two.",
        "// It tells\n// who asks.",
        "// By whose order is it sent.",
        "error(\"nobody waits for it\")",
    ] {
        assert_eq!(faults(bad), 1, "{bad}");
    }
    for good in [
        "/// A client that asks, wholly something else.",
        "/// A user who asks, a consumer whose lease ended.",
        "/// A table for consumers\n/// whose session ended.",
        "/// A timeframe is in flight for\n/// The same span.",
        "let who = nobody(\"who\");",
        "/// A `TcpStream` whose end hung up.",
    ] {
        assert_eq!(faults(good), 0, "{good}");
    }
}

/// Words that hide the subject in the name of a function.
const NAMELESS: &[&str] = &[
    "anybody",
    "everybody",
    "nobody",
    "somebody",
    "thing",
    "things",
    "who",
    "whoever",
    "whom",
    "whose",
];

/// The fault of a function's name in a line, if it has one: its subject is hidden.
fn fault_of_name(line: &str) -> Option<String> {
    let begin = line.find("fn ").map(|at| at + 3).or_else(|| line.find("def ").map(|at| at + 4))?;
    let is_of_a_name = |letter: &char| letter.is_alphanumeric() || *letter == '_';
    let name: String = line[begin..].chars().take_while(is_of_a_name).collect();
    let words: Vec<&str> = name.trim_start_matches("test_").split('_').collect();
    let named = |at: usize| at > 0 && words[at] == "whose";
    let hidden = words.iter().enumerate().find(|(at, word)| NAMELESS.contains(word) && !named(*at));
    let begins = words.len() > 1 && words[0] == "what";
    let word = hidden.map(|(_, word)| *word).or_else(|| begins.then_some("what"))?;
    Some(format!("{name}: {word:?} hides the subject"))
}

#[test]
fn names_of_functions_name_their_subjects() {
    let mut found = Vec::new();
    files(Path::new(ROOT), &mut found);
    let is_read = |path: &&PathBuf| {
        let inside = path.strip_prefix(ROOT).unwrap().to_str().unwrap();
        let language = Language::of(path);
        inside != "tests/prose.rs"
            && (language == Some(Language::Python) || inside.ends_with(".rs"))
    };
    let mut faults = Vec::new();
    for path in found.iter().filter(is_read) {
        let text = fs::read_to_string(path).unwrap();
        let places = text.lines().zip(1..).filter_map(|(line, n)| Some((n, fault_of_name(line)?)));
        faults.extend(places.map(|(n, fault)| format!("{}:{n}: {fault}", path.display())));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_name_without_a_subject_is_a_fault_and_one_with_a_subject_is_not() {
    let bad = ["fn nobody_waits()", "async fn what_is_sent_comes()", "def test_who_asks_waits(a):"];
    assert!(bad.iter().all(|line| fault_of_name(line).is_some()));
    let good = ["fn what()", "fn a_load_whose_consumer_dies_goes_on()", "let nobody = 1;"];
    assert!(good.iter().all(|line| fault_of_name(line).is_none()));
}
