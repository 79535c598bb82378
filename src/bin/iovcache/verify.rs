//! `verify`: checks the files of a disk tier or a repository, and reports the repairs.

use std::path::PathBuf;

use clap::Args;
use iovcache::escape::Escaped;
use iovcache::source::{RepairOutcome, VerifyReport, disk, repository};
use serde_json::json;

use crate::common::{folder, out, show_bytes};
use crate::failure::Failure;

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true))]
pub(crate) struct Arguments {
    /// A repository folder: checks names, properties, sizes, MD5, links, FIFOs and incomplete puts.
    #[arg(long, value_name = "FOLDER", group = "what", value_parser = folder())]
    repository: Option<PathBuf>,
    /// The folder of `serve --disk`, while no service uses it: checks names, checksums and
    /// incomplete files.
    #[arg(long, value_name = "FOLDER", group = "what", value_parser = folder())]
    disk: Option<PathBuf>,
    /// Remove incomplete files; remove damaged files of a disk tier (they are fetched again when
    /// needed), and rename those of a repository to .NAME.damaged. By default nothing is changed.
    #[arg(long)]
    repair: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let (folder, verified) = match (&arguments.repository, &arguments.disk) {
        (Some(folder), _) => (folder, repository::verify(folder, arguments.repair)),
        (None, Some(folder)) => (folder, disk::verify(folder, arguments.repair)),
        (None, None) => return Err(Failure::usage("give --repository or --disk")),
    };
    let verified = verified.map_err(|error| Failure::io(folder.display(), error))?;
    let VerifyReport { files, bytes, damaged } = &verified;
    if arguments.json {
        let damaged: Vec<_> = damaged
            .iter()
            .map(|one| json!({"file": one.file, "reason": one.reason, "done": one.done.name()}))
            .collect();
        out(format!("{}\n", json!({"right": files, "bytes": bytes, "wrong": damaged})).as_bytes())?;
    } else {
        let mut text = format!("{files} files are intact, {} in total\n", show_bytes(*bytes));
        for one in damaged {
            let (file, reason, done) = (one.file.display(), &one.reason, one.done.name());
            text += &format!("{}\n", Escaped(format_args!("{file}: {reason} ({done})")));
        }
        out(text.as_bytes())?;
    }
    match damaged.iter().filter(|one| one.done == RepairOutcome::LeftAlone).count() {
        0 => Ok(()),
        count => Err(Failure::failed(format!("{count} files are damaged or incomplete"))),
    }
}
