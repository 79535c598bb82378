//! Faults of a configuration, with their positions.

use std::fmt;
use std::path::PathBuf;

use crate::error::coded;

/// A configuration is invalid: all of its faults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file, if the configuration came from one.
    pub file: Option<PathBuf>,
    /// The faults, at least one.
    pub faults: Vec<ConfigFault>,
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFault {
    /// The key, as `ccdb.retries` or `source[0].url`; empty for the file as a whole.
    pub key: String,
    /// Its line in the file, from 1; `None` if it is not in the file.
    pub line: Option<usize>,
    /// The value found, and the value expected.
    pub reason: String,
}

impl ConfigError {
    /// One line per fault: file, line, key and reason.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.faults.iter().map(|ConfigFault { key, line, reason }| {
            let place = match (&self.file, line) {
                (Some(file), Some(line)) => format!("{}:{line}: ", file.display()),
                (Some(file), None) => format!("{}: ", file.display()),
                (None, Some(line)) => format!("line {line}: "),
                (None, None) => String::new(),
            };
            let key = if key.is_empty() { String::new() } else { format!("{key}: ") };
            format!("{place}{key}{reason}")
        })
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, line) in self.lines().enumerate() {
            let separator = if index > 0 { "\n" } else { "" };
            write!(f, "{separator}{line}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

coded! { ConfigError => InvalidArgument 8020 }
