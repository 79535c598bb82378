//! The effective settings, with their origins.

use std::collections::BTreeMap;
use std::fmt;

use super::document::Document;
use super::error::{ConfigError, ConfigFault};
use super::service::Config;

/// The origin of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ValueOrigin {
    /// The built-in default.
    Default,
    /// The configuration file, at this line.
    File(usize),
    /// A variable of the environment.
    Environment(String),
    /// An option of the command line.
    CommandLine(String),
}

impl fmt::Display for ValueOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(line) => write!(f, "file, line {line}"),
            Self::Environment(variable) => write!(f, "environment, {variable}"),
            Self::CommandLine(option) => write!(f, "command line, {option}"),
        }
    }
}

/// A value given for one key outside of a file.
#[derive(Debug, Clone)]
pub struct Override {
    /// The key, as `memory` or `ccdb_server.listen`.
    pub key: String,
    /// Its value, in the notation of a file.
    pub value: toml::Value,
    /// Its origin.
    pub origin: ValueOrigin,
}

/// The effective configuration, with the origin of each value.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The effective configuration.
    pub config: Config,
    origins: BTreeMap<String, ValueOrigin>,
}

impl Settings {
    /// Applies `said` over the values of a file. If a key is given twice, the later value wins.
    ///
    /// # Errors
    /// [`ConfigError`] names conflicting settings, with the line of each that is in the file.
    pub fn merge(file: Option<&Document>, said: Vec<Override>) -> Result<Self, ConfigError> {
        let (settings, faults) = Self::merge_all(file, said)?;
        match (faults.is_empty(), file) {
            (true, _) => Ok(settings),
            (false, Some(file)) => Err(file.error(faults)),
            (false, None) => Err(ConfigError { file: None, faults }),
        }
    }

    /// Like [`merge`](Self::merge), but returns conflicting settings together with their faults.
    ///
    /// # Errors
    /// [`ConfigError`] where a value cannot be read.
    pub fn merge_all(
        file: Option<&Document>,
        said: Vec<Override>,
    ) -> Result<(Self, Vec<ConfigFault>), ConfigError> {
        let mut values = file.map(|file| file.values.clone()).unwrap_or_default();
        let mut origins = BTreeMap::new();
        for (key, line) in file.into_iter().flat_map(Document::keys) {
            origins.insert(key.to_owned(), ValueOrigin::File(line));
        }
        for Override { key, value, origin } in said {
            let (table, name) = match key.split_once('.') {
                None => (&mut values, key.as_str()),
                Some((section, name)) => {
                    let section = values
                        .entry(section)
                        .or_insert_with(|| toml::Value::Table(toml::Table::new()));
                    match section {
                        toml::Value::Table(table) => (table, name),
                        _ => continue,
                    }
                }
            };
            table.insert(name.to_owned(), value);
            origins.insert(key, origin);
        }
        let error = |faults| match file {
            Some(file) => file.error(faults),
            None => ConfigError { file: None, faults },
        };
        let config: Config = values.try_into().map_err(|wrong: toml::de::Error| {
            let reason = wrong.message().to_owned();
            error(vec![ConfigFault { key: String::new(), line: None, reason }])
        })?;
        let settings = Self { config, origins };
        let faults = settings.config.faults().into_iter();
        let faults = faults.map(|(key, reason)| settings.fault(file, &key, reason)).collect();
        Ok((settings, faults))
    }

    /// A fault of the value of `key`, with its line in the file, or with the option or variable
    /// that it comes from.
    pub fn fault(&self, file: Option<&Document>, key: &str, reason: String) -> ConfigFault {
        let (line, reason) = match self.origins.get(key) {
            Some(origin @ (ValueOrigin::Environment(_) | ValueOrigin::CommandLine(_))) => {
                (None, format!("{reason} ({origin})"))
            }
            _ => (file.and_then(|file| file.line_of(key)), reason),
        };
        ConfigFault { key: key.to_owned(), line, reason }
    }

    /// The origin of the value of `key`.
    pub fn origin(&self, key: &str) -> &ValueOrigin {
        self.origins.get(key).unwrap_or(&ValueOrigin::Default)
    }
}

impl Config {
    /// Parses a configuration in TOML.
    ///
    /// # Errors
    /// [`ConfigError`] names the line and the key.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let document = Document::parse(text, None)?;
        Ok(Settings::merge(Some(&document), Vec::new())?.config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::ByteSize;

    #[test]
    fn the_setting_with_the_highest_precedence_counts_and_names_its_origin() {
        let file = "memory = \"1GiB\"\nsegment = \"8MiB\"\n[ccdb_server]\nanswer = \"body\"\n";
        let file = Document::parse(file, None).unwrap();
        let said = |key: &str, value: &str, origin: ValueOrigin| Override {
            key: key.to_owned(),
            value: value.into(),
            origin,
        };
        let environment = ValueOrigin::Environment("IOVCACHE_MEMORY".to_owned());
        let option = ValueOrigin::CommandLine("--memory".to_owned());
        let settings = Settings::merge(
            Some(&file),
            vec![
                said("memory", "2GiB", environment),
                said("memory", "3GiB", option.clone()),
                said(
                    "ccdb_server.listen",
                    "127.0.0.1:8084",
                    ValueOrigin::CommandLine("--ccdb".into()),
                ),
            ],
        )
        .unwrap();
        assert_eq!(settings.config.memory, ByteSize::new(3 << 30));
        assert_eq!(settings.origin("memory"), &option);
        assert_eq!(settings.origin("segment"), &ValueOrigin::File(2));
        assert_eq!(settings.origin("disk_size"), &ValueOrigin::Default);
        assert_eq!(settings.origin("ccdb_server.answer"), &ValueOrigin::File(4));
        assert!(settings.config.ccdb_server.listen.is_some());
    }

    #[test]
    fn a_fault_of_the_command_line_is_told_as_one() {
        let said = Override {
            key: "fairmq_segment".to_owned(),
            value: 7.into(),
            origin: ValueOrigin::CommandLine("--fairmq-segment".to_owned()),
        };
        let error = Settings::merge(None, vec![said]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "fairmq_segment: fairmq_session or fairmq_shmid is needed with it (command line, \
             --fairmq-segment)"
        );
    }
}
