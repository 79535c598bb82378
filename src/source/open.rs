//! Opens the source that a URL names.

use std::path::{Path, PathBuf};
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

/// The folder that `text` names: a path, or `file:///dir`.
///
/// # Errors
/// The reason, if it is the URL of something else, or has a limit to paths (`#PREFIX`).
#[doc(hidden)]
pub fn folder_of(text: &str) -> Result<PathBuf, String> {
    let is_scheme = |scheme: &str| {
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
        scheme.len() > 1 && scheme.bytes().all(is_part)
    };
    match text.split_once(':') {
        _ if text.is_empty() => Err("it is empty, expected a folder".to_owned()),
        Some(("file", rest)) if rest.starts_with("///") => {
            check_unlimited(text)?;
            Ok(PathBuf::from(&rest["//".len()..]))
        }
        Some(("file", _) | ("memory", "")) => Err(format!("{text:?} {NO_FOLDER}")),
        Some((scheme, rest)) if is_scheme(scheme) && rest.starts_with("//") => {
            Err(format!("{text:?} {NO_FOLDER}"))
        }
        _ => Ok(PathBuf::from(text)),
    }
}

/// Checks that a URL has no limit to paths, which only sources can have.
///
/// # Errors
/// The reason, if it has one.
#[doc(hidden)]
pub fn check_unlimited(url: &str) -> Result<(), String> {
    let (plain, _) = split_prefixes(url);
    match url.strip_prefix(plain).filter(|limit| !limit.is_empty()) {
        None => Ok(()),
        Some(limit) => Err(format!("{limit:?} limits a source to paths, and is not possible here")),
    }
}

const NO_FOLDER: &str = "names no folder, expected a path or file:///dir";

fn wrong(url: &str, reason: &str) -> SourceError {
    SourceError::Configuration { url: url.to_owned(), reason: reason.to_owned() }
}

/// Splits `URL#PREFIX,PREFIX`, a source for some paths only, into the URL and the prefixes. If a
/// folder whose name contains `#` exists, the `#` belongs to the name.
#[doc(hidden)]
pub fn split_prefixes(text: &str) -> (&str, Vec<String>) {
    let is_folder = |url: &str| {
        url.strip_prefix("file://").is_some_and(|folder| std::path::Path::new(folder).is_dir())
    };
    let (url, prefixes) = match text.rsplit_once('#') {
        Some((url, prefixes)) if !is_folder(text) && is_folder(url) => (url, prefixes),
        Some(_) if !is_folder(text) => text.split_once('#').unwrap_or((text, "")),
        _ => (text, ""),
    };
    let prefixes = prefixes.split(',').filter(|prefix| !prefix.is_empty());
    (url, prefixes.map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_a_path_or_a_file_url_and_other_urls_are_refused() {
        for (text, folder) in [
            ("data", "data"),
            ("/data/x:y", "/data/x:y"),
            ("./s3://x", "./s3://x"),
            ("a:b", "a:b"),
            ("file:///data/repo", "/data/repo"),
        ] {
            assert_eq!(folder_of(text), Ok(PathBuf::from(folder)), "{text}");
        }
        for text in [
            "",
            "file://data",
            "file:data",
            "file:///data#TPC",
            "s3://bucket/x",
            "http://host",
            "sqlite+x://host",
            "memory:",
        ] {
            assert!(folder_of(text).is_err(), "{text}");
        }
        let folder = tempfile::tempdir().unwrap();
        let named = folder.path().join("a#b");
        std::fs::create_dir(&named).unwrap();
        assert_eq!(folder_of(&format!("file://{}", named.display())), Ok(named));
    }
}
