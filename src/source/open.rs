//! From a URL to a source.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::repository::{RepositoryOptions, RepositorySource};
use super::{MemorySource, Source, SourceError};

/// What holds for any source.
#[derive(Debug, Clone, Copy, Default)]
pub struct SourceOptions {
    /// What is put into a repository is seen within this. Default: 1 s.
    pub refresh: Option<Duration>,
}

/// Opens the source that `url` names: `file:///dir` or `memory:`.
///
/// # Errors
/// [`SourceError::Configuration`] if it names none, or nothing is there.
pub fn open(url: &str, options: SourceOptions) -> Result<Arc<dyn Source>, SourceError> {
    let wrong = |reason: &str| SourceError::Configuration {
        url: url.to_owned(),
        reason: reason.to_owned(),
    };
    let scheme = url.split_once(':').map_or(url, |(scheme, _)| scheme);
    match scheme {
        "memory" => Ok(Arc::new(MemorySource::new())),
        "file" => {
            let folder = url.strip_prefix("file://").filter(|folder| folder.starts_with('/'));
            let folder = folder.ok_or_else(|| wrong("expected file:///path/of/the/folder"))?;
            let defaults = RepositoryOptions::default();
            let options =
                RepositoryOptions { refresh: options.refresh.unwrap_or(defaults.refresh) };
            Ok(Arc::new(RepositorySource::open_folder(Path::new(folder), options)?))
        }
        _ => Err(wrong("unknown scheme; there are file:///dir and memory:")),
    }
}
