//! The sources of a service's settings: options, environment variables, a file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};
use iovcache::Coded as _;
use iovcache::server::{
    ConfigError, ConfigFault, Document, Override, Settings, ValueOrigin, sections,
};

use crate::failure::Failure;
use crate::serve::arguments::{Arguments, LogArguments};

/// The settings given to a command beside its file. They are kept so that the file can be read
/// again while the service runs.
#[derive(Debug, Clone)]
pub(crate) struct CommandLine {
    file: Option<PathBuf>,
    said: Vec<Override>,
}

impl CommandLine {
    /// `matches` are those of the command that has the options.
    pub(crate) fn new(
        arguments: &Arguments,
        log: &LogArguments,
        matches: &ArgMatches,
    ) -> Result<Self, Failure> {
        let written = |error| Failure::failed(format!("cannot serialise the options: {error}"));
        let mut said = Vec::new();
        let options = options(matches);
        flatten("", toml::Table::try_from(arguments).map_err(written)?, &options, &mut said);
        flatten("", toml::Table::try_from(log).map_err(written)?, &options, &mut said);
        Ok(Self { file: arguments.config.clone(), said })
    }

    /// A file alone, without options and variables.
    pub(crate) fn of_file(file: &Path) -> Self {
        Self { file: Some(file.to_owned()), said: Vec::new() }
    }

    /// Replaces the file.
    pub(crate) fn with_file(self, file: PathBuf) -> Self {
        Self { file: Some(file), ..self }
    }

    /// The file, if there is one.
    pub(crate) fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Reads the file, and overrides it with the options and variables.
    ///
    /// # Errors
    /// [`Failure`] with all faults of the configuration.
    pub(crate) fn settings(&self) -> Result<Settings, Failure> {
        let document = self.file.as_deref().map(read).transpose()?;
        Settings::merge(document.as_ref(), self.said.clone()).map_err(wrong)
    }

    /// Like [`settings`](Self::settings), but the valid part of the configuration together with
    /// its faults.
    ///
    /// # Errors
    /// [`Failure`] if the file cannot be read, or if options cannot be merged with it.
    pub(crate) fn with_faults(&self) -> Result<CheckedSettings, Failure> {
        let text = self.file.as_deref().map(crate::input::text).transpose()?;
        let name = self.file.as_deref().map(|file| PathBuf::from(crate::input::name(file)));
        let parsed = text.map(|text| Document::parse_all(&text, name.as_deref()));
        let (document, mut faults) = match parsed {
            Some((document, faults)) => (Some(document), faults),
            None => (None, Vec::new()),
        };
        let merged = Settings::merge_all(document.as_ref(), self.said.clone());
        let (settings, unfit) = merged.map_err(wrong)?;
        faults.extend(unfit);
        Ok(CheckedSettings { settings, document, faults })
    }
}

/// The valid part of a configuration, and its faults.
#[derive(Debug)]
pub(crate) struct CheckedSettings {
    pub(crate) settings: Settings,
    /// The file, if there is one.
    pub(crate) document: Option<Document>,
    pub(crate) faults: Vec<ConfigFault>,
}

impl CheckedSettings {
    /// Whether there is a file without any valid value: checks of what it names would mislead.
    pub(crate) fn is_unreadable(&self) -> bool {
        let is_empty = self.document.as_ref().is_some_and(Document::is_empty);
        is_empty && !self.faults.is_empty()
    }

    /// All faults, sorted by their lines; those without a line last.
    pub(crate) fn into_faults(mut self) -> Vec<ConfigFault> {
        self.faults.sort_by_key(|fault| fault.line.unwrap_or(usize::MAX));
        self.faults
    }
}

/// The settings of a file.
///
/// # Errors
/// [`Failure`] if the file cannot be read, or with all of its faults.
pub(crate) fn of_file(file: &Path) -> Result<Settings, Failure> {
    Settings::merge(Some(&read(file)?), Vec::new()).map_err(wrong)
}

/// A failure with one line for each fault.
pub(crate) fn wrong(error: ConfigError) -> Failure {
    let mut lines = error.lines();
    let first = lines.next().unwrap_or_default();
    let failure = Failure::of_kind(error.kind(), format_args!("[{}] {first}", error.code()));
    failure.with_more(lines.collect())
}

fn read(file: &Path) -> Result<Document, Failure> {
    let text = crate::input::text(file)?;
    Document::parse(&text, Some(file)).map_err(wrong)
}

/// Adds to the help of each option that is a configuration key its default, and gives it its
/// environment variable.
pub(crate) fn document_options(command: Command) -> Command {
    let keys = sections().iter().flat_map(|section| &section.keys);
    let mut defaults: BTreeMap<&str, &Option<String>> =
        keys.map(|key| (key.name.as_str(), &key.default)).collect();
    defaults.insert("source", &None);
    command.mut_args(|mut option| {
        let Some(default) = defaults.get(option.get_id().as_str()) else { return option };
        if let Some(default) = default.as_ref().filter(|default| *default != "[]") {
            let default = default.trim_matches('"');
            let told = |help: &clap::builder::StyledStr| format!("{help} [default: {default}]");
            let (short, long) = (option.get_help().map(told), option.get_long_help().map(told));
            if let Some(short) = short {
                option = option.help(short);
            }
            if let Some(long) = long {
                option = option.long_help(long);
            }
        }
        in_environment(option)
    })
}

/// Treats environment variables that are empty as not set.
pub(crate) fn without_empty_variables(command: Command) -> Command {
    let command = command.mut_args(|option| {
        let is_empty =
            option.get_env().and_then(std::env::var_os).is_some_and(|text| text.is_empty());
        if is_empty { option.env(clap::builder::Resettable::Reset) } else { option }
    });
    command.mut_subcommands(without_empty_variables)
}

/// Variables that no option has.
const OTHER_VARIABLES: [&str; 1] = ["IOVCACHE_KEYS"];

/// The variables of the environment that are probably misspelled, each with the variable that was
/// meant.
pub(crate) fn misspelled_variables(command: &Command) -> Vec<(String, String)> {
    let mut known: BTreeSet<String> = OTHER_VARIABLES.map(str::to_owned).into();
    let mut commands = vec![command];
    while let Some(command) = commands.pop() {
        commands.extend(command.get_subcommands());
        let variables = command.get_arguments().filter_map(Arg::get_env);
        known.extend(variables.map(|name| name.to_string_lossy().into_owned()));
    }
    let set = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    set.filter_map(|name| Some((meant(&name, &known)?, name)))
        .map(|(meant, name)| (name, meant))
        .collect()
}

/// The one of the `known` variables that `name` probably stands for; `None` if it is known, or like
/// none of them.
fn meant(name: &str, known: &BTreeSet<String>) -> Option<String> {
    let word = name.strip_prefix("IOVCACHE_").filter(|_| !known.contains(name))?;
    let most = if word.len() < 6 { 1 } else { 2 };
    let distance = |other: &str| {
        let other = other.strip_prefix("IOVCACHE_").unwrap_or(other);
        strsim::damerau_levenshtein(word, other)
    };
    let nearest = known.iter().map(|other| (distance(other), other)).min()?;
    (nearest.0 <= most).then(|| nearest.1.clone())
}

/// The environment variable whose value clap refuses; `None` if the value was given on the command
/// line.
pub(crate) fn variable_at_fault(command: &Command, error: &clap::Error) -> Option<String> {
    let text = |kind| match error.get(kind)? {
        ContextValue::String(text) => Some(text.clone()),
        _ => None,
    };
    let (option, value) = (text(ContextKind::InvalidArg)?, text(ContextKind::InvalidValue)?);
    let long = option.split([' ', '=']).next()?.trim_start_matches("--").to_owned();
    let was_given = std::env::args().any(|argument| {
        let argument = argument.strip_prefix("--");
        argument.is_some_and(|name| name.split('=').next() == Some(long.as_str()))
    });
    let mut commands = vec![command];
    while let Some(command) = commands.pop() {
        commands.extend(command.get_subcommands());
        let named = command.get_arguments().find(|one| one.get_long() == Some(long.as_str()));
        let variable = named.and_then(|option| option.get_env());
        if let Some(variable) = variable
            && !was_given
            && std::env::var_os(variable).is_some_and(|set| set.to_string_lossy().contains(&value))
        {
            return Some(variable.to_string_lossy().into_owned());
        }
    }
    None
}

/// Gives an option that is a configuration key its environment variable.
pub(crate) fn in_environment(option: Arg) -> Arg {
    let variable = variable(option.get_id().as_str());
    option.env(variable).hide_env_values(true)
}

/// The environment variable of a key.
fn variable(key: &str) -> String {
    format!("IOVCACHE_{}", key.replace('.', "_").to_uppercase())
}

/// The keys that were given, with their source: option or environment.
fn options(matches: &ArgMatches) -> BTreeMap<&str, ValueSource> {
    let ids = matches.ids().map(clap::Id::as_str);
    ids.filter_map(|id| Some((id, matches.value_source(id)?))).collect()
}

fn flatten(
    above: &str,
    table: toml::Table,
    options: &BTreeMap<&str, ValueSource>,
    said: &mut Vec<Override>,
) {
    for (name, value) in table {
        let key = if above.is_empty() { name } else { format!("{above}.{name}") };
        match value {
            toml::Value::Table(inner) => flatten(&key, inner, options, said),
            value => {
                let origin = match options.get(key.as_str()) {
                    Some(ValueSource::EnvVariable) => ValueOrigin::Environment(variable(&key)),
                    _ => ValueOrigin::CommandLine(option_of(&key)),
                };
                said.push(Override { key, value, origin });
            }
        }
    }
}

/// The option of a key.
fn option_of(key: &str) -> String {
    let serve = crate::program();
    let serve = serve.find_subcommand("serve");
    let option = serve.and_then(|serve| {
        serve.get_arguments().find(|option| option.get_id().as_str() == key)?.get_long()
    });
    format!("--{}", option.unwrap_or(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelled_variable_is_recognised_and_others_are_left_alone() {
        let known = ["IOVCACHE_MEMORY", "IOVCACHE_SERVER", "IOVCACHE_CA"].map(str::to_owned).into();
        let meant = |name: &str| meant(name, &known);
        assert_eq!(meant("IOVCACHE_MEMROY").as_deref(), Some("IOVCACHE_MEMORY"));
        assert_eq!(meant("IOVCACHE_SERVR").as_deref(), Some("IOVCACHE_SERVER"));
        // Kubernetes sets the first two of them for a service of this name.
        for other in ["IOVCACHE_PORT", "IOVCACHE_SERVICE_HOST", "IOVCACHE_MEMORY", "MEMROY"] {
            assert_eq!(meant(other), None, "{other}");
        }
    }
}
