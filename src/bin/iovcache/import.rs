//! `import`: stores the objects of a manifest in a repository folder.

use std::path::PathBuf;

use clap::Args;
use iovcache::source::repository::{Manifest, RepositoryWriter, import_manifest};
use serde_json::json;

use crate::common::{Durable, folder, out_line, progress, show_bytes};
use crate::failure::Failure;
use crate::priority::Priority;
use crate::time;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The folder, also as file:///folder; made if it is missing.
    #[arg(long, value_name = "FOLDER", value_parser = folder())]
    repository: PathBuf,
    /// CSV with the columns path, valid_from_ms, valid_until_ms, created_ms, id, file, size, md5,
    /// note; files are relative to it. It is checked completely before anything is written. - is
    /// stdin: files are then relative to the current folder.
    manifest: PathBuf,
    /// When versions are synced to disk: each before the next, or several together. A repeated
    /// import stores the versions that were not acknowledged.
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = Durable::Batch)]
    durable: Durable,
    /// Share of the processors while other programs need them: what they leave over, or as much as
    /// they get.
    #[arg(long, value_enum, value_name = "SHARE", default_value_t = Priority::Low)]
    pub(crate) priority: Priority,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let writer = RepositoryWriter::new(&arguments.repository)?;
    let writer = writer.with_durability(arguments.durable.into());
    let bar = progress("checking", 0);
    let tell = bar.clone();
    // Reading and syncing files block.
    let imported = tokio::task::spawn_blocking(move || {
        let manifest = match arguments.manifest.as_os_str() == "-" {
            true => Manifest::read("stdin", &mut std::io::stdin().lock())?,
            false => Manifest::open(&arguments.manifest)?,
        };
        import_manifest(&manifest, &writer, |done| {
            let what = if done.storing { "storing" } else { "checking" };
            tell.set_length(done.all);
            tell.set_message(format!("{what} {}", show_bytes(done.bytes)));
            tell.set_position(done.versions);
        })
    });
    let imported = imported.await;
    bar.finish_and_clear();
    let imported = imported.map_err(Failure::failed)??;
    if let Some(from) = imported.first_from {
        time::check_unit(from.as_millis());
    }
    if arguments.json {
        let json = json!({
            "new": imported.new,
            "unchanged": imported.unchanged,
            "bytes": imported.bytes,
        });
        out_line(json)?;
    } else {
        let (new, unchanged) = (imported.new, imported.unchanged);
        let all = show_bytes(imported.bytes);
        out_line(format_args!("{new} versions put, {unchanged} unchanged, {all} in all"))?;
    }
    Ok(())
}
