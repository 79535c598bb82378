//! `import`: the objects of a manifest into a repository folder.

use std::path::PathBuf;

use clap::Args;
use iovcache::source::repository::{RepositoryWriter, import};
use serde_json::json;

use crate::common::{Failure, out_line, progress, show_bytes};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The folder; it is made if it is not there.
    #[arg(long, value_name = "FOLDER")]
    repository: PathBuf,
    /// CSV with the columns path, valid_from_ms, valid_until_ms, created_ms, id, file, size, md5,
    /// note; files are relative to it. All of it is checked before anything is written.
    manifest: PathBuf,
    /// Say what was done as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let writer = RepositoryWriter::new(&arguments.repository)?;
    let bar = progress("checking", 0);
    let imported = import(&arguments.manifest, &writer, |what, done, all| {
        bar.set_length(all);
        bar.set_message(what.to_owned());
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let imported = imported?;
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
