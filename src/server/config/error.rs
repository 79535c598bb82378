//! What is wrong with a configuration, and where it stands.

use std::fmt;
use std::path::PathBuf;

use crate::error::{Code, Coded, ErrorKind};

/// Why a configuration is none: all that was found wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file, where it was one.
    pub file: Option<PathBuf>,
    /// At least one.
    pub faults: Vec<ConfigFault>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFault {
    /// The key, as `ccdb.retries` or `source[0].url`; empty where it is the file as a whole.
    pub key: String,
    /// Its line in the file, from 1; `None` for what does not stand there.
    pub line: Option<usize>,
    /// What was got, and what was expected.
    pub reason: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, ConfigFault { key, line, reason }) in self.faults.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            match (&self.file, line) {
                (Some(file), Some(line)) => write!(f, "{}:{line}: ", file.display())?,
                (Some(file), None) => write!(f, "{}: ", file.display())?,
                (None, Some(line)) => write!(f, "line {line}: ")?,
                (None, None) => {}
            }
            if !key.is_empty() {
                write!(f, "{key}: ")?;
            }
            f.write_str(reason)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

impl Coded for ConfigError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::InvalidArgument
    }
    fn code(&self) -> Code {
        Code(8020)
    }
}
