//! `ls`: lists the paths that a service knows.

use clap::Args;
use iovcache::escape::escape;
use serde_json::json;

use crate::common::{Server, out};
use crate::failure::Failure;
use crate::hints;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    server: Server,
    /// Only this path and the paths below it.
    #[arg(default_value = "")]
    prefix: String,
    /// Print one JSON object per line.
    #[arg(long)]
    json: bool,
}

/// Bytes that are collected before they are written.
const WRITTEN_BYTES: usize = 64 << 10;

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let client = arguments.server.connect().await?;
    let mut paths = client.path_stream(&arguments.prefix).await?;
    let (mut text, mut is_empty) = (String::new(), true);
    while let Some(entry) = paths.next().await? {
        is_empty = false;
        let line = match arguments.json {
            true => json!({"path": entry.path, "objects": entry.objects}).to_string(),
            false => format!("{:>8}  {}", entry.objects, escape(&entry.path)),
        };
        text.push_str(&line);
        text.push('\n');
        if text.len() >= WRITTEN_BYTES {
            out(text.as_bytes())?;
            text.clear();
        }
    }
    out(text.as_bytes())?;
    if is_empty && !arguments.prefix.is_empty() {
        let failure = Failure::not_found(format!("no path is {0} or below {0}", arguments.prefix));
        return Err(failure.with_more(hints::hints(&client, &[&arguments.prefix], &[]).await));
    }
    Ok(())
}
