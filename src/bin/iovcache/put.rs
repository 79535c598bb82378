//! `put`: stores one version in a repository folder.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use iovcache::source::repository::{NewVersion, RepositoryWriter};
use iovcache::{ObjectId, ObjectPath, Timestamp, ValidityInterval};
use serde_json::json;

use crate::common::{Durable, folder, now, out_line};
use crate::failure::Failure;
use crate::time;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The folder, also as file:///folder; made if it is missing.
    #[arg(long, value_name = "FOLDER", value_parser = folder())]
    repository: PathBuf,
    /// The path of the object, e.g. TPC/Calib/VDriftTgl.
    path: String,
    /// The file with the bytes; - is stdin.
    file: PathBuf,
    /// Begin of the validity (ms, ISO 8601, now-1h).
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = time::parse)]
    from: i64,
    /// End of the validity, exclusive; by default never.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = time::parse)]
    until: Option<i64>,
    /// Time of creation; by default now.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = time::parse)]
    created: Option<i64>,
    /// Id of the version; by default derived from its properties and bytes.
    #[arg(long, value_name = "UUID", value_parser = uuid)]
    id: Option<ObjectId>,
    /// Metadata (may be given several times).
    #[arg(long = "meta", value_name = "KEY=VALUE")]
    metadata: Vec<String>,
    /// When the version is synced to disk: every file by itself, or all of them together.
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = Durable::Each)]
    durable: Durable,
    /// Print the stored version as JSON.
    #[arg(long)]
    json: bool,
}

fn uuid(text: &str) -> Result<ObjectId, String> {
    ObjectId::parse(text).ok_or_else(|| format!("{text:?} is no UUID"))
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let version = new_version(&arguments)?;
    let writer = RepositoryWriter::new(&arguments.repository)?;
    let writer = writer.with_durability(arguments.durable.into());
    let stored = match arguments.file.as_os_str() == "-" {
        true => writer.put(&version, &mut std::io::stdin().lock())?,
        false => writer.put_file(&version, &arguments.file)?,
    };
    let info = stored.info;
    if arguments.json {
        out_line(json!({
            "path": info.path,
            "id": info.id,
            "valid_from": info.validity.from(),
            "valid_until": info.validity.until(),
            "created": info.created,
            "size": info.size_bytes,
            "md5": info.md5.map(|md5| md5.to_string()),
            "metadata": info.metadata,
            "new": stored.new,
        }))?;
    } else {
        let word = if stored.new { "put" } else { "already stored:" };
        let (from, until) = (info.validity.from(), info.validity.until());
        let (from, until) = (time::show(from.as_millis()), time::show(until.as_millis()));
        crate::stderr::say(&format!("{word} {} [{from}, {until}) {}", info.path, info.id));
        out_line(info.id)?;
    }
    Ok(())
}

/// The version that the options describe.
fn new_version(arguments: &Arguments) -> Result<NewVersion, Failure> {
    let path = ObjectPath::new(&arguments.path)?;
    let from = Timestamp::from_millis(arguments.from);
    let until = arguments.until.map_or(Timestamp::MAX, Timestamp::from_millis);
    let validity = ValidityInterval::new(from, until)?;
    let created = arguments.created.map_or_else(now, Timestamp::from_millis);
    let mut metadata = BTreeMap::new();
    for entry in &arguments.metadata {
        let (key, value) = entry
            .split_once('=')
            .ok_or_else(|| Failure::usage(format!("--meta {entry:?}: expected KEY=VALUE")))?;
        if metadata.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(Failure::usage(format!("--meta {entry:?}: {key:?} is given twice")));
        }
    }
    let named = Some(&arguments.file).filter(|file| file.as_os_str() != "-");
    let file_name =
        named.and_then(|file| file.file_name()).map(|name| name.to_string_lossy().into_owned());
    Ok(NewVersion {
        path,
        validity,
        created,
        id: arguments.id.map(|id| id.to_string()),
        file_name: file_name.unwrap_or_default(),
        metadata,
    })
}
