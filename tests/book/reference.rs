//! Pages generated from the commands' help, the docs of the keys, and a service's metrics.
#![allow(unreachable_pub, reason = "each test binary is a crate of its own")]

use std::collections::BTreeMap;
use std::process::Stdio;

use iovcache::server::{SectionForm, sections};

use crate::common::{Service, http_get, iovcache};

const MADE: &str = "<!-- Made by tests/book: IOVCACHE_BLESS=1 cargo test --test book -->\n";

fn help(command: &[&str]) -> String {
    let output = iovcache()
        .args(command)
        .arg("--help")
        .env_remove("COLUMNS")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n")
}

/// The names of a command's subcommands.
fn below(help: &str) -> Vec<String> {
    let Some((_, rest)) = help.split_once("\nCommands:\n") else { return Vec::new() };
    let names = rest.lines().take_while(|line| !line.is_empty());
    let names = names.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names = names.filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

pub fn commands() -> String {
    let whole = help(&[]);
    let mut text = format!(
        "{MADE}# Commands\n\nData goes to stdout, everything else to stderr. Exit status: 0 done, 1 \
         failed, 2 usage, 3 not found, 4 unavailable, 5 not allowed.\n\n```text\n{whole}\n```\n"
    );
    for command in below(&whole) {
        let one = help(&[&command]);
        text += &format!("\n## {command}\n\n```text\n{one}\n```\n");
        for inner in below(&one) {
            let two = help(&[&command, &inner]);
            // `config show` takes the options of `serve`.
            let two = match (command.as_str(), inner.as_str()) {
                ("config", "show") => {
                    let end = two.find("\nOptions:").unwrap_or(two.len());
                    format!("{}\n\nOptions: those of serve", two[..end].trim_end())
                }
                _ => two,
            };
            text += &format!("\n### {command} {inner}\n\n```text\n{two}\n```\n");
        }
    }
    text
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;")
}

pub fn configuration() -> String {
    let mut text = format!(
        "{MADE}# Configuration\n\nOne TOML file for everything: `iovcache serve --config FILE`. What \
         stands further right counts: the default, the file, the environment (`IOVCACHE_MEMORY` for \
         `memory`, `IOVCACHE_CCDB_SERVER_LISTEN` for `ccdb_server.listen`), the command line. \
         `iovcache config new` prints a file to begin with, `config check FILE` names file, line and \
         key of what is wrong, `config show` what holds and where each value came from.\n"
    );
    for section in sections() {
        let heading = match section.form {
            SectionForm::Top => "The file as a whole".to_owned(),
            SectionForm::Once => format!("[{}]", section.name),
            SectionForm::List => format!("[[{}]]", section.name),
            SectionForm::Named => format!("[{}.NAME]", section.name),
        };
        text += &match section.form {
            SectionForm::Top => format!("\n## {heading}\n\n"),
            _ => format!("\n## `{heading}`\n\n{}\n\n", cell(&section.text)),
        };
        if section.keys.is_empty() {
            continue;
        }
        text += "| key | default | |\n|---|---|---|\n";
        for key in &section.keys {
            let default = key.default.as_ref().map(|default| format!("`{default}`"));
            let default = default.unwrap_or_default();
            text += &format!("| `{}` | {default} | {} |\n", key.field(), cell(&key.text));
        }
    }
    text
}

pub fn metrics() -> String {
    let repository = tempfile::tempdir().unwrap();
    let service = Service::over(repository.path(), &[]);
    let told = http_get(&service.http(), "/metrics").1;
    let mut all: BTreeMap<&str, (&str, &str)> = BTreeMap::new();
    for line in told.lines() {
        let mut words = line.splitn(4, ' ').skip(1);
        let (Some(what), Some(name), Some(rest)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        let entry = all.entry(name).or_default();
        match what {
            "HELP" => entry.0 = rest,
            "TYPE" => entry.1 = rest,
            _ => {}
        }
    }
    all.retain(|name, _| name.starts_with("iovcache_"));
    let mut text = format!(
        "{MADE}# Metrics\n\n`/metrics` at the http address, in OpenMetrics' text format or Prometheus' older \
         one, as `Accept` asks; names here are OpenMetrics'. A counter's sample has `_total` behind its name, a histogram's `_bucket`, `_sum` and `_count`. Those of \
         sources have the label `source`, its URL without credentials. `build_info` has `version`, `local_asks` has `reason`, `config_reloads` has `outcome`; no other has a label.\n\n\
         | name | kind | |\n|---|---|---|\n"
    );
    for (name, (help, kind)) in all {
        let help = help.replace("\\\"", "\"").replace("..", ".");
        text += &format!("| `{name}` | {kind} | {} |\n", cell(&help));
    }
    text
}
