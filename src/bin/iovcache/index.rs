//! `index`: rebuilds the index of a repository, or compares it with the folders or the store.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use iovcache::source::check_unlimited;
use iovcache::source::repository::{Bucket, IndexReport, index, index_bucket};
use serde_json::json;

use crate::common::{folder_in, out, progress};
use crate::failure::Failure;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The repository: a folder, or s3://bucket/prefix (also gs, az).
    #[arg(value_name = "REPOSITORY", value_parser = repository())]
    repository: Repository,
    /// Change nothing: compare the index with the repository, and fail if they differ.
    #[arg(long)]
    check: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Where a repository is.
#[derive(Debug, Clone)]
enum Repository {
    Folder(PathBuf),
    Store(String),
}

fn repository() -> impl TypedValueParser<Value = Repository> {
    OsStringValueParser::new().try_map(|text: OsString| match text.to_str() {
        Some(url) if Bucket::is_url(url) => {
            check_unlimited(url).map(|()| Repository::Store(url.to_owned()))
        }
        _ => folder_in(text).map(Repository::Folder),
    })
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { repository, check, json } = arguments;
    let bar = progress("reading", 0);
    let bar_of_work = bar.clone();
    let tell = move |paths, versions| {
        bar_of_work.set_message(format!("{paths} paths"));
        bar_of_work.set_position(versions);
    };
    let report = match repository {
        Repository::Store(url) => Ok(index_bucket(&Bucket::open(&url)?, check, tell).await),
        Repository::Folder(folder) => {
            let name = folder.display().to_string();
            let work = move || index(&folder, check, tell);
            let indexed = tokio::task::spawn_blocking(work).await.map_err(Failure::failed)?;
            indexed.map(Ok).map_err(|error| Failure::io(name, error))
        }
    };
    bar.finish_and_clear();
    let report = report??;
    let IndexReport { paths, versions, missing, surplus, unusable, problems, .. } = &report;
    if json {
        let problems: Vec<_> = problems
            .iter()
            .map(|problem| json!({"entry": problem.entry, "reason": problem.reason}))
            .collect();
        let json = json!({
            "paths": paths, "versions": versions, "missing": missing, "surplus": surplus,
            "unusable": unusable, "problems": problems, "current": report.is_current(),
        });
        out(format!("{json}\n").as_bytes())?;
    } else {
        let mut text = format!(
            "{versions} versions of {paths} paths; in the index {missing} were missing, {surplus} \
             surplus\n"
        );
        for file in unusable {
            text += &format!("{file}: could not be used\n");
        }
        for problem in problems {
            text += &format!("{}: {}\n", problem.entry, problem.reason);
        }
        out(text.as_bytes())?;
    }
    match check && !report.is_current() {
        true => Err(Failure::failed(
            "the index differs from the repository; iovcache index rebuilds it",
        )),
        false => Ok(()),
    }
}
