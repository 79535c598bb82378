//! `copy`: copies versions from a source into a repository, and resumes an interrupted copy.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use iovcache::error::Coded as _;
use iovcache::escape::escape;
use iovcache::interval::EmptyInterval;
use iovcache::server::Config;
use iovcache::source::{CopyError, Destination, Selection, Source, SourceOptions, copy, open};
use iovcache::table::LockEntry;
use iovcache::{CreationLimits, ObjectInfo, Timestamp, ValidityInterval};
use serde_json::json;

use crate::common::{Durable, out_line, progress, show_bytes};
use crate::failure::Failure;
use crate::priority::Priority;
use crate::{hints, time};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// URL to copy from: http(s)://host:port (CCDB), file:///folder, s3://bucket/prefix.
    source: String,
    /// URL to copy to: file:///folder (made if it is missing) or s3://bucket/prefix.
    destination: String,
    /// Only this path and those below it (may be given several times).
    #[arg(long = "path", value_name = "PATH")]
    paths: Vec<String>,
    /// Only versions whose interval overlaps this range (ms or ISO 8601).
    #[arg(long, value_name = "FROM:UNTIL", allow_hyphen_values = true)]
    range: Option<String>,
    /// Step between requests (ms), for a source that answers for single times only.
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(i64).range(1..))]
    step: Option<i64>,
    /// Exactly the versions of this lock file (an objects view as JSON).
    #[arg(long, value_name = "FILE", conflicts_with_all = ["paths", "range", "step", "not_after", "not_before"])]
    lock: Option<PathBuf>,
    /// Only versions created at or before this time.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = time::parse)]
    not_after: Option<i64>,
    /// Only versions created at or after this time.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = time::parse)]
    not_before: Option<i64>,
    /// Number of versions copied at a time.
    #[arg(long, value_name = "N", default_value_t = 4)]
    parallel: usize,
    /// When versions are synced to a folder: each before the next, or several together.
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = Durable::Batch)]
    durable: Durable,
    /// Share of the processors while other programs need them: what they leave over, or as much as
    /// they get.
    #[arg(long, value_enum, value_name = "SHARE", default_value_t = Priority::Low)]
    pub(crate) priority: Priority,
    /// A configuration in TOML, for the limits of CCDB servers.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Largest number of versions of a path that a copy lists at once.
const BROWSE_LIMIT: usize = 100_000;

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let mut ccdb = match &arguments.config {
        Some(file) => crate::settings::of_file(file)?.config.ccdb,
        None => Config::default().ccdb,
    };
    if arguments.config.is_none() {
        ccdb.browse_limit = BROWSE_LIMIT;
    }
    let selection = selection(&arguments)?;
    let source = open(&arguments.source, &SourceOptions { refresh: None, ccdb })?;
    let destination = Destination::open(&arguments.destination)?;
    let destination = destination.with_durability(arguments.durable.into());
    let bar = progress("listing", 0);
    let tell = |done, all, bytes| {
        bar.set_length(all);
        bar.set_message(format!("copying {}", show_bytes(bytes)));
        bar.set_position(done);
    };
    let copied = copy(&*source, &destination, &selection, arguments.parallel, tell).await;
    bar.finish_and_clear();
    let copied = match copied {
        Err(CopyError::UnknownPath { prefix }) => return Err(unknown_path(&*source, prefix).await),
        copied => copied?,
    };
    if arguments.json {
        let failed = |(version, error): &(Arc<ObjectInfo>, CopyError)| json!({"path": version.path, "id": version.id, "error": error.message()});
        let json = json!({
            "new": copied.new,
            "unchanged": copied.unchanged,
            "bytes": copied.bytes,
            "failed": copied.failed.iter().map(failed).collect::<Vec<_>>(),
        });
        out_line(json)?;
    } else {
        let (new, unchanged) = (copied.new, copied.unchanged);
        let bytes = show_bytes(copied.bytes);
        out_line(format_args!("{new} versions copied ({bytes}), {unchanged} unchanged"))?;
        for (version, error) in &copied.failed {
            let text = format!("not copied: {} {}: {}", version.path, version.id, error.message());
            crate::stderr::say(&escape(&text));
        }
    }
    let failed = copied.failed.len();
    match copied.failed.into_iter().next() {
        None => Ok(()),
        Some((_, error)) => Err(Failure::of_many(failed, "versions were not copied", &error)),
    }
}

/// The failure that the source has no such path, with the nearest that it has.
async fn unknown_path(source: &dyn Source, prefix: String) -> Failure {
    let known = source.paths("").await.unwrap_or_default();
    let known: Vec<&str> = known.iter().map(|found| found.path.as_str()).collect();
    let nearest = hints::nearest_paths(&prefix, &known);
    let failure = Failure::from(CopyError::UnknownPath { prefix });
    failure.with_more(nearest.into_iter().collect())
}

fn selection(arguments: &Arguments) -> Result<Selection, Failure> {
    if let Some(file) = &arguments.lock {
        let text = crate::input::text(file)?;
        let wrong =
            |error: String| Failure::usage(format!("{}: {error}", crate::input::name(file)));
        let rows: Vec<LockEntry> =
            serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        let claim = |row: &LockEntry| Ok::<_, EmptyInterval>((row.path.clone(), row.claim()?));
        let claims = rows.iter().map(claim).collect::<Result<_, _>>();
        return Ok(Selection::Locked(claims.map_err(|error| wrong(error.to_string()))?));
    }
    let range = match &arguments.range {
        None => ValidityInterval::ALL,
        Some(text) => {
            let wrong = |reason| Failure::usage(format!("--range: {reason}"));
            let (from, until, step) = time::parse_range(text).map_err(wrong)?;
            if step.is_some() {
                return Err(Failure::usage("--range: give the step with --step"));
            }
            ValidityInterval::new(Timestamp::from_millis(from), Timestamp::from_millis(until))?
        }
    };
    let limits = CreationLimits {
        not_before: arguments.not_before.map(Timestamp::from_millis),
        not_after: arguments.not_after.map(Timestamp::from_millis),
    };
    let prefixes = arguments.paths.clone();
    Ok(Selection::Range { prefixes, range, limits, step: arguments.step })
}
