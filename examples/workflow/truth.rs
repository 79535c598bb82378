//! The reference, by brute force: for every timestamp it scans every version that the repository's
//! properties name. On purpose it shares no code with the cache's index.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use iovcache::source::repository::Properties;

use crate::Outcome;
use crate::columns::{LookUp, RUN_NUMBER};

/// One version, as described by its properties file.
#[derive(Debug, Clone)]
pub(crate) struct Version {
    from: i64,
    until: i64,
    created: i64,
    id: String,
    md5: String,
    run: Option<i64>,
}

/// The versions by path.
#[derive(Debug, Default)]
pub(crate) struct Truth(BTreeMap<String, Vec<Version>>);

impl Truth {
    pub(crate) fn read(repository: &Path, paths: &[String]) -> Outcome<Self> {
        let mut truth = Self::default();
        for path in paths {
            let versions = truth.0.entry(path.clone()).or_default();
            for begin in fs::read_dir(repository.join(path))? {
                let begin = begin?;
                // A folder whose name is not a number belongs to a longer path.
                let Some(from) = begin.file_name().to_str().and_then(|name| name.parse().ok())
                else {
                    continue;
                };
                for file in fs::read_dir(begin.path())? {
                    let file = file?.path();
                    if file.extension().is_some_and(|extension| extension == "properties") {
                        versions.push(version(from, &file)?);
                    }
                }
            }
        }
        Ok(truth)
    }

    /// The MD5 of the right version: of the valid versions the one created last; of those the one
    /// that begins last; of those the greatest id.
    pub(crate) fn md5(&self, look_up: &LookUp<'_>) -> Option<&str> {
        let versions = self.0.get(look_up.path)?.iter();
        let valid = versions.filter(|version| {
            (version.from..version.until).contains(&look_up.at)
                && look_up.run.is_none_or(|run| version.run == Some(run))
        });
        let last = valid.max_by_key(|version| (version.created, version.from, &version.id))?;
        Some(&last.md5)
    }

    /// The borders of all validity intervals, in order.
    pub(crate) fn borders(&self) -> Vec<i64> {
        let all = self.0.values().flatten();
        let mut borders: Vec<i64> = all.flat_map(|one| [one.from, one.until]).collect();
        borders.sort_unstable();
        borders
    }
}

fn version(from: i64, file: &Path) -> Outcome<Version> {
    let properties = Properties::parse(&fs::read(file)?)?;
    let lacks = |key: &str| format!("{}: no {key}", file.display());
    let text = |key: &str| properties.get(key).ok_or_else(|| lacks(key));
    let number = |key: &str| text(key)?.parse::<i64>().map_err(|_| lacks(key));
    let id = file.file_stem().map(|stem| stem.to_string_lossy().to_lowercase());
    Ok(Version {
        from,
        until: number("ValidUntil")?,
        created: number("CreateTime")?,
        id: id.unwrap_or_default(),
        md5: text("Content-MD5")?.to_lowercase(),
        run: properties.get(RUN_NUMBER).map(str::parse).transpose()?,
    })
}
