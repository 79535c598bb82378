//! Commands, options, variables and metrics that pages name exist in the program.
//!
//! ```text
//!  `iovcache table --at 5`      a command with its options, in a block or within a line
//!  `serve --quota-bytes`        a command alone, within a line
//!  `--refresh`                  an option of any command
//!  `IOVCACHE_SERVER`            a variable that some help names, or one of VARIABLES
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use crate::{common, docs, pages, root};

/// Options of other programs that pages name without their program.
const OTHERS: &[&str] = &[
    // Cargo
    "--features",
    "--no-default-features",
    "--release",
    "--test",
    "--no-verify",
    "--list",
    // FairMQ
    "--shm-no-cleanup",
    "--cleanup",
    "--reset-content",
    "--shmid",
    "--session",
    "--shm-segment-id",
    "--expected-region-callbacks",
    "--shm-monitor",
    // podman and docker
    "--shm-size",
];

/// Variables that no option has.
const VARIABLES: &[&str] =
    &["IOVCACHE_KEYS", "IOVCACHE_HEALTH_PORT", "IOVCACHE_BLESS", "IOVCACHE_FAULTS_SEED"];

/// The options of each command, by its name (`config show` for a command below another one).
struct Commands(BTreeMap<String, BTreeSet<String>>);

fn options(help: &str) -> BTreeSet<String> {
    let words = help.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    words.filter(|word| word.starts_with("--") && word.len() > 2).map(str::to_owned).collect()
}

impl Commands {
    fn read() -> (Self, String) {
        let mut all = BTreeMap::new();
        let mut helps = String::new();
        let names = [
            "serve",
            "put",
            "import",
            "index",
            "copy",
            "table",
            "cat",
            "get",
            "ls",
            "timeline",
            "status",
            "demo",
            "bench",
            "verify",
            "token",
            "config",
            "completions",
            "man",
            "config check",
            "config new",
            "config show",
        ];
        for name in names {
            let words: Vec<&str> = name.split(' ').chain(["--help"]).collect();
            let help = common::run_well(&words);
            all.insert(name.to_owned(), options(&help));
            helps += &help;
        }
        // All commands are above.
        let whole = common::run_well(&["--help"]);
        let (_, listed) = whole.split_once("Commands:\n").unwrap();
        let names_a_command = |line: &&str| line.starts_with("  ") && !line.starts_with("   ");
        for line in listed.lines().take_while(|line| !line.is_empty()).filter(names_a_command) {
            let name = line.split_whitespace().next().unwrap();
            assert!(name == "help" || names.contains(&name), "{name}");
        }
        (Self(all), helps)
    }

    /// The faults of a command line: `words` follow the program's name.
    fn check(&self, words: &[&str]) -> Vec<String> {
        let Some(first) = words.first() else { return Vec::new() };
        if first.starts_with('-') {
            let known = ["--version", "--help", "-V", "-h", "--log", "--log-format"];
            return Vec::from_iter((!known.contains(first)).then(|| (*first).to_owned()));
        }
        let Some(mut known) = self.0.get(*first) else { return vec![format!("command {first}")] };
        let below = words.get(1).and_then(|second| self.0.get(&format!("{first} {second}")));
        known = below.unwrap_or(known);
        let given = words.iter().filter(|word| word.starts_with("--") && word.len() > 2);
        let given = given.map(|word| word.split('=').next().unwrap_or_default());
        given.filter(|word| !known.contains(*word)).map(|word| format!("{first} {word}")).collect()
    }

    fn has(&self, option: &str) -> bool {
        self.0.values().any(|known| known.contains(option))
    }
}

/// The words of a command after `iovcache`, for each time that a line has it.
fn calls(line: &str) -> Vec<Vec<&str>> {
    let mut calls: Vec<Vec<&str>> = Vec::new();
    let mut open = false;
    for word in line.split_whitespace() {
        let bare = word.trim_matches(|c: char| "`\"'(),;".contains(c));
        let ends = ["|", "||", "&&", ";", "&", ">", ">>", "<", "#"].contains(&word);
        match () {
            () if ends || word.starts_with(['#', '<', '>']) => open = false,
            () if bare == "iovcache" || bare.ends_with("/iovcache") => {
                calls.push(Vec::new());
                open = true;
            }
            () if open => calls.last_mut().into_iter().for_each(|call| call.push(bare)),
            () => {}
        }
        open &= !word.ends_with([';', ')']);
    }
    calls
}

/// The parts of a page in code: logical lines of blocks of shell or text, and spans within lines.
fn code(text: &str) -> (Vec<String>, Vec<String>) {
    let (mut lines, mut spans) = (Vec::new(), Vec::new());
    let mut prose = String::new();
    let mut block: Option<(bool, String)> = None;
    for line in text.lines() {
        let trimmed = line.trim_start();
        if let Some(kind) = trimmed.strip_prefix("```") {
            block = match block {
                Some((is_shell, text)) => {
                    let text = text.replace("\\\n", " ");
                    lines.extend(text.lines().filter(|_| is_shell).map(str::to_owned));
                    None
                }
                None => Some((matches!(kind, "sh" | "text" | "toml"), String::new())),
            };
            continue;
        }
        let to = block.as_mut().map_or(&mut prose, |(_, text)| text);
        to.push_str(line);
        to.push('\n');
    }
    spans.extend(prose.split('`').skip(1).step_by(2).map(|span| span.replace('\n', " ")));
    (lines, spans)
}

#[test]
fn commands_and_options_that_pages_name_exist() {
    let (commands, helps) = Commands::read();
    let mut all: Vec<_> = ["README.md", "SECURITY.md", "deploy/README.md"]
        .iter()
        .map(|name| root().join(name))
        .collect();
    pages(&docs(), &mut all);
    let (mut faults, mut count) = (Vec::new(), 0);
    for page in all.iter().filter(|page| !page.ends_with("reference/commands.md")) {
        let text = fs::read_to_string(page).unwrap();
        let (lines, spans) = code(&text);
        let mut found = Vec::new();
        let is_drawing = |line: &str| line.contains(['─', '│', '▶']);
        for line in lines.iter().filter(|line| !is_drawing(line)) {
            for call in calls(line) {
                count += 1;
                found.extend(commands.check(&call));
            }
        }
        for span in &spans {
            let words: Vec<&str> = span.split_whitespace().collect();
            let Some(first) = words.first() else { continue };
            if *first == "iovcache" {
                count += 1;
                found.extend(commands.check(&words[1..]));
            } else if commands.0.contains_key(*first) && words.iter().any(|w| w.starts_with("--")) {
                count += 1;
                found.extend(commands.check(&words));
            } else if let Some(option) = first.strip_prefix("--").filter(|name| !name.is_empty()) {
                let option = format!("--{}", option.split('=').next().unwrap_or_default());
                count += 1;
                let is_known = commands.has(&option) || OTHERS.contains(&option.as_str());
                found.extend((!is_known).then_some(option));
            }
        }
        let variables = text.split(|c: char| !c.is_ascii_uppercase() && c != '_');
        for variable in variables.filter(|word| word.starts_with("IOVCACHE_") && word.len() > 9) {
            let is_known = helps.contains(&format!("[env: {variable}"));
            let is_known = is_known || VARIABLES.contains(&variable);
            found.extend((!is_known).then(|| variable.to_owned()));
        }
        faults.extend(found.into_iter().map(|fault| format!("{}: {fault}", page.display())));
    }
    assert!(count > 100, "{count}");
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn a_command_in_a_line_is_found_with_its_options() {
    let line = "iovcache config check /f && systemctl start iovcache # --no";
    assert_eq!(calls(line), [vec!["config", "check", "/f"], vec![]]);
    assert_eq!(calls("x=$( iovcache ls --json) --other"), [vec!["ls", "--json"]]);
    let (commands, _) = Commands::read();
    assert_eq!(commands.check(&["cat", "A", "--at", "5", "--nothing"]), ["cat --nothing"]);
    assert_eq!(commands.check(&["nothing"]), ["command nothing"]);
    assert!(commands.check(&["config", "show", "--memory", "1GiB"]).is_empty());
}
