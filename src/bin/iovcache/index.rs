//! `index`: rebuilds the index of a repository folder, or compares it with the folders.

use std::path::PathBuf;

use clap::Args;
use iovcache::source::repository::{IndexReport, index};
use serde_json::json;

use crate::common::{out, progress};
use crate::failure::Failure;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The repository folder.
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
    /// Change nothing: compare the index with the folders, and fail if they differ.
    #[arg(long)]
    check: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { folder, check, json } = arguments;
    let bar = progress("reading", 0);
    let (tell, name) = (bar.clone(), folder.display().to_string());
    let work = tokio::task::spawn_blocking(move || {
        index(&folder, check, |paths, versions| {
            tell.set_message(format!("{paths} paths"));
            tell.set_position(versions);
        })
    });
    let report = work.await;
    bar.finish_and_clear();
    let report = report.map_err(Failure::failed)?.map_err(|error| Failure::io(name, error))?;
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
        true => {
            Err(Failure::failed("the index differs from the folders; iovcache index rebuilds it"))
        }
        false => Ok(()),
    }
}
