//! `config`: checks a configuration, and prints the effective one.

use std::path::{Path, PathBuf};

use clap::{ArgMatches, Args, Subcommand};
use iovcache::escape::escape;
use iovcache::server::{
    ConfigError, ConfigFault, Section, SectionForm, Settings, ValueOrigin, sections,
};
use serde_json::json;

use crate::common::{out, out_line};
use crate::failure::Failure;
use crate::serve::{self, LogArguments};
use crate::settings::{self, CommandLine};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Report all faults of a configuration, with file, line and key: those of its text, and those
    /// of the files, folders and ports that it names.
    Check {
        /// The file; - is stdin.
        file: PathBuf,
        /// Print the result as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print a template: every key with its description and default, as comments.
    New,
    /// Print the effective configuration of a service, and the origin of each value: the default,
    /// the file, the environment or the command line. The output is itself a configuration.
    Show {
        /// The file; by default that of --config.
        file: Option<PathBuf>,
        #[command(flatten)]
        serve: Box<serve::Arguments>,
    },
}

pub(crate) fn run(
    arguments: Arguments,
    log: &LogArguments,
    matches: &ArgMatches,
) -> Result<(), Failure> {
    match arguments.action {
        Action::Check { file, json } => check(file, json),
        Action::Show { file, serve } => {
            let matches = matches.subcommand().map_or(matches, |(_, matches)| matches);
            let given = CommandLine::new(&serve, log, matches)?;
            let given = match file {
                Some(file) => given.with_file(file),
                None => given,
            };
            out(written(Some(&given.settings()?))?.as_bytes())
        }
        Action::New => out(written(None)?.as_bytes()),
    }
}

fn check(file: PathBuf, as_json: bool) -> Result<(), Failure> {
    let (faults, notes) = check_file(&file)?;
    let file = PathBuf::from(crate::input::name(&file));
    if as_json {
        let faults: Vec<_> = faults
            .iter()
            .map(|fault| json!({"key": fault.key, "line": fault.line, "reason": fault.reason}))
            .collect();
        out_line(json!({"file": file.display().to_string(), "faults": faults, "notes": notes}))?;
    } else {
        for note in &notes {
            crate::stderr::say(&format!("note: {}", escape(note)));
        }
        if faults.is_empty() {
            crate::stderr::say(&format!("{} is valid", escape(&file.display().to_string())));
        }
    }
    if faults.is_empty() {
        return Ok(());
    }
    Err(settings::wrong(ConfigError { file: Some(file), faults }))
}

/// Every key with its description, as TOML. With `settings`: each key with its value and origin.
/// Without: each key with its default, all commented out.
fn written(settings: Option<&Settings>) -> Result<String, Failure> {
    let failed = |error| Failure::failed(format!("cannot print it: {error}"));
    let config = settings.map(|settings| settings.config.clone()).unwrap_or_default();
    let values = toml::Table::try_from(config).map_err(failed)?;
    let mut text = String::new();
    for Section { name, form, text: about, keys } in sections() {
        let value = values.get(*name);
        text += &comment(about);
        let table = match form {
            SectionForm::Top => Some(&values),
            SectionForm::Once => {
                let commented = if settings.is_some() { "" } else { "#" };
                text += &format!("{commented}[{name}]\n");
                value.and_then(toml::Value::as_table)
            }
            SectionForm::List | SectionForm::Named => {
                let origin = settings.map(|settings| settings.origin(name));
                if let (Some(value), Some(origin)) =
                    (value, origin.filter(|o| **o != ValueOrigin::Default))
                {
                    // Unchanged: its values come from this file alone.
                    let only = toml::Table::from_iter([((*name).to_owned(), value.clone())]);
                    text += &format!("# From: {origin}\n");
                    text += &toml::to_string(&only).map_err(failed)?;
                    text.push('\n');
                    continue;
                }
                text += &match form {
                    SectionForm::List => format!("#[[{name}]]\n"),
                    _ => format!("#[{name}.NAME]\n"),
                };
                None
            }
        };
        for key in keys {
            text += &comment(&key.text);
            let field = key.field();
            text += &match (settings, table.and_then(|table| table.get(field))) {
                (Some(settings), Some(value)) => {
                    format!("{field} = {value}  # {}\n", settings.origin(&key.name))
                }
                (None, Some(value)) => format!("#{field} = {value}\n"),
                (_, None) => format!("#{field} =\n"),
            };
        }
        text.push('\n');
    }
    Ok(text)
}

/// `text` as a comment of TOML, wrapped.
fn comment(text: &str) -> String {
    const WIDTH: usize = 98;
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.is_empty() || line.len() + 1 + word.len() <= WIDTH => {
                if !line.is_empty() {
                    line.push(' ');
                }
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.iter().filter(|line| !line.is_empty()).map(|line| format!("# {line}\n")).collect()
}

/// All faults of a file, and values that may be mistakes.
fn check_file(file: &Path) -> Result<(Vec<ConfigFault>, Vec<String>), Failure> {
    let mut checked = CommandLine::of_file(file).with_faults()?;
    let mut notes = Vec::new();
    if !checked.is_unreadable() {
        let found = serve::check(&checked.settings, &serve::Occasion::Check);
        notes = found.notes;
        let document = checked.document.as_ref();
        for (key, failure) in found.faults {
            let fault = checked.settings.fault(document, &key, failure.to_string());
            checked.faults.push(fault);
        }
    }
    Ok((checked.into_faults(), notes))
}
