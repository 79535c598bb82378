//! The configuration of a service: one TOML file. Every unknown key is refused by name. Every key
//! is also an option of the command line and a variable of the environment.
//!
//! ```text
//!  defaults ◀─ file ◀─ environment ◀─ command line     the rightmost value wins
//!      └────────────┬────────────────────┘
//!               Settings: a Config with the origin of each value
//! ```

mod document;
mod entries;
mod error;
mod faults;
mod keys;
mod service;
mod settings;

pub use document::Document;
pub use entries::{MissingConfig, PathConfig, RemapConfig, SourceConfig};
pub use error::{ConfigError, ConfigFault};
pub use keys::{ConfigKey, Section, SectionForm, sections};
pub use service::{Config, LogFormat, SegmentBacking, TlsConfig};
pub use settings::{Override, Settings, ValueOrigin};
