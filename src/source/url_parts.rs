//! The parts of a URL that the command line takes apart: the folder, and the limit to paths.

use std::path::{Path, PathBuf};

const NO_FOLDER: &str = "names no folder, expected a path or file:///dir";

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

/// Splits `URL#PREFIX,PREFIX`, a source for some paths only, into the URL and the prefixes. If a
/// folder whose name contains `#` exists, the `#` belongs to the name.
#[doc(hidden)]
pub fn split_prefixes(text: &str) -> (&str, Vec<String>) {
    let is_folder =
        |url: &str| url.strip_prefix("file://").is_some_and(|folder| Path::new(folder).is_dir());
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
