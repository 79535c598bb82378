//! `put`: one version into a repository folder.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use iovcache::source::repository::{NewVersion, RepositoryWriter};
use iovcache::{ObjectPath, Timestamp, ValidityInterval};
use serde_json::json;

use crate::common::{Durable, Failure, now};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The folder; it is made if it is not there.
    #[arg(long, value_name = "FOLDER")]
    repository: PathBuf,
    /// The path of the object, e.g. TPC/Calib/VDriftTgl.
    path: String,
    /// The file with its bytes; `-` reads stdin.
    file: PathBuf,
    /// When it begins to hold (ms).
    #[arg(long, value_name = "MS", allow_negative_numbers = true)]
    from: i64,
    /// When it no longer holds (ms); by default never.
    #[arg(long, value_name = "MS", allow_negative_numbers = true)]
    until: Option<i64>,
    /// When it was created (ms); by default now.
    #[arg(long, value_name = "MS", allow_negative_numbers = true)]
    created: Option<i64>,
    /// Its id; by default derived from all of this and the bytes.
    #[arg(long, value_name = "UUID")]
    id: Option<String>,
    /// Metadata (may be given several times).
    #[arg(long = "meta", value_name = "KEY=VALUE")]
    metadata: Vec<String>,
    /// When it is synced to the disk: every file by itself, or all of them together.
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = Durable::Each)]
    durable: Durable,
    /// Say what was put as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
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
        metadata.insert(key.to_owned(), value.to_owned());
    }
    let file_name = arguments.file.file_name().map(|name| name.to_string_lossy().into_owned());
    let version = NewVersion {
        path,
        validity,
        created,
        id: arguments.id,
        file_name: file_name.unwrap_or_default(),
        metadata,
    };
    let writer = RepositoryWriter::new(&arguments.repository)?;
    let writer = writer.with_durability(arguments.durable.into());
    let stored = match arguments.file.to_str() {
        Some("-") => writer.put(&version, &mut std::io::stdin().lock())?,
        _ => writer.put_file(&version, &arguments.file)?,
    };
    let info = stored.info;
    if arguments.json {
        println!(
            "{}",
            json!({
                "path": info.path,
                "id": info.id,
                "valid_from": info.validity.from(),
                "valid_until": info.validity.until(),
                "created": info.created,
                "size": info.size_bytes,
                "md5": info.md5.map(|md5| md5.to_string()),
                "metadata": info.metadata,
                "new": stored.new,
            })
        );
    } else {
        println!("{}", info.id);
        let word = if stored.new { "put" } else { "was there already:" };
        eprintln!("{word} {} {} {}", info.path, info.validity, info.id);
    }
    Ok(())
}
