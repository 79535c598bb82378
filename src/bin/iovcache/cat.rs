//! `cat`: the bytes of an object.

use std::io::{self, Write as _};

use clap::Args;
use iovcache::client::{Client, ClientError, ClientOptions, TableRequest};

use crate::common::{Failure, Server};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    server: Server,
    /// The path of the object.
    path: String,
    /// For which time (ms).
    #[arg(long, value_name = "MS", allow_negative_numbers = true)]
    at: i64,
    /// Over the wire, even on the node of the service.
    #[arg(long)]
    remote: bool,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { server, path, at, remote } = arguments;
    let client = server.connect_with(ClientOptions { remote, ..ClientOptions::default() }).await?;
    let unwritten = |error| Failure::io("cannot write to stdout", error);
    // Locked for as long as it takes: nothing else writes there.
    let mut out = io::stdout().lock();
    if let Some(bytes) = local(&client, &path, at, remote).await? {
        let table = bytes;
        if let Some(bytes) = table.column("object")?.get(0)? {
            out.write_all(bytes).map_err(unwritten)?;
        }
    } else {
        client.chunks(&path, at, |piece| out.write_all(piece)).await?;
    }
    out.flush().map_err(unwritten)
}

/// The object in shared memory, if this is the node where it is.
async fn local(
    client: &Client,
    path: &str,
    at: i64,
    remote: bool,
) -> Result<Option<iovcache::client::Table>, ClientError> {
    if remote {
        return Ok(None);
    }
    // What is too large for a cell comes in chunks; here that would only be seen as an error.
    let request = TableRequest::new().column("object", path).timestamps([at]).cell("binary");
    let table = client.table(request).await?;
    let here = table.column("object")?.get(0).is_ok();
    Ok(here.then_some(table))
}
