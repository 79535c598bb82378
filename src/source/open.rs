//! Opens the source that a URL names.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::ccdb::{CcdbOptions, CcdbSource};
use super::repository::{BUCKET_SCHEMES, Bucket, RepositoryOptions, RepositorySource};
use super::{MemorySource, Source, SourceError};

/// Options of sources, by kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceOptions {
    /// Longest time until a new version in the source is seen. Default: 1 s for a folder, 10 s for
    /// CCDB and object stores.
    pub refresh: Option<Duration>,
    /// Options for CCDB servers.
    pub ccdb: CcdbOptions,
}

/// Default interval between listings of a bucket: a listing is a request that is paid for.
const BUCKET_REFRESH: Duration = Duration::from_secs(10);

/// Opens the source that `url` names: `http(s)://host:port[/base]` (CCDB), `file:///dir`,
/// `s3://bucket/prefix` (also `gs`, `az`; credentials from the environment) or `memory:`.
///
/// # Errors
/// [`SourceError::Configuration`] if the scheme is unknown, or the source cannot be opened.
pub fn open(url: &str, options: &SourceOptions) -> Result<Arc<dyn Source>, SourceError> {
    check_url(url)?;
    let scheme = url.split_once(':').map_or(url, |(scheme, _)| scheme);
    match scheme {
        "memory" => Ok(Arc::new(MemorySource::new())),
        "file" => {
            let folder = url.strip_prefix("file://").unwrap_or(url);
            let defaults = RepositoryOptions::default();
            let options =
                RepositoryOptions { refresh: options.refresh.unwrap_or(defaults.refresh) };
            Ok(Arc::new(RepositorySource::open_folder(Path::new(folder), options)?))
        }
        "http" | "https" => {
            let mut ccdb = options.ccdb.clone();
            if let Some(refresh) = options.refresh {
                ccdb.refresh_millis = u64::try_from(refresh.as_millis()).unwrap_or(u64::MAX);
            }
            Ok(Arc::new(CcdbSource::new(url, ccdb)?))
        }
        scheme if BUCKET_SCHEMES.contains(&scheme) => {
            let options = RepositoryOptions { refresh: options.refresh.unwrap_or(BUCKET_REFRESH) };
            Ok(Arc::new(RepositorySource::new(Bucket::open(url)?, options)))
        }
        _ => Err(wrong(url, &format!("{}{UNKNOWN_SCHEME}", folder_hint(url)))),
    }
}

/// Checks whether [`open`] accepts `url`, without opening anything.
///
/// # Errors
/// [`SourceError::Configuration`] if it does not.
#[doc(hidden)]
pub fn check_url(url: &str) -> Result<(), SourceError> {
    match url.split_once(':') {
        Some(("file", rest)) if !rest.starts_with("///") => {
            Err(wrong(url, "expected file:///path/of/the/folder"))
        }
        Some(("memory" | "file", _)) => Ok(()),
        Some(("http" | "https", _)) => CcdbSource::check_url(url),
        Some((scheme, _)) if BUCKET_SCHEMES.contains(&scheme) => Bucket::check_url(url).map(drop),
        _ => Err(wrong(url, &format!("{}{UNKNOWN_SCHEME}", folder_hint(url)))),
    }
}

/// How a source is written whose text names an existing folder.
fn folder_hint(text: &str) -> String {
    match std::path::absolute(text) {
        Ok(folder) if folder.is_dir() => format!("write file://{}; ", folder.display()),
        _ => String::new(),
    }
}

const UNKNOWN_SCHEME: &str = "unknown scheme; there are http(s)://host:port, file:///dir, \
    s3://bucket/prefix, gs:, az: and memory:";

fn wrong(url: &str, reason: &str) -> SourceError {
    SourceError::Configuration { url: url.to_owned(), reason: reason.to_owned() }
}
