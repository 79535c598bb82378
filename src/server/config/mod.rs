//! What a service is configured with: one TOML file for everything, every unknown key refused by
//! name, and every key an option of the command line and a variable of the environment too.
//!
//! ```text
//!  defaults ◀─ file ◀─ environment ◀─ command line     what stands further right counts
//!      └────────────┬────────────────────┘
//!               Settings: a Config, and where each of its values came from
//! ```

mod document;
mod entries;
mod error;
mod keys;
mod service;
mod settings;
mod units;

pub use document::Document;
pub use entries::{MissingConfig, PathConfig, RemapConfig, SourceConfig};
pub use error::{ConfigError, ConfigFault};
pub use keys::{Key, Section, SectionForm, sections};
pub use service::{Config, LogFormat, SegmentBacking, TlsConfig};
pub use settings::{Origin, Said, Settings};
pub use units::{ByteSize, RegionFile, SocketMode, TimeSpan};
