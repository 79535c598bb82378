//! `cat`: writes the bytes of an object to stdout.

use std::io::{self, Write as _};

use clap::Args;
use iovcache::client::{Client, ClientError, ClientOptions, TableRequest};
use iovcache::table::CellKind;

use crate::common::Server;
use crate::failure::Failure;
use crate::{hints, time};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    server: Server,
    /// The path of the object.
    path: String,
    /// Timestamp of the request: ms, ISO 8601 with a zone, a date, now, now-1h.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = time::parse)]
    at: i64,
    /// Read over the network, even on the node of the service.
    #[arg(long)]
    remote: bool,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { server, path, at, remote } = arguments;
    let client = server.connect_with(ClientOptions { remote, ..ClientOptions::default() }).await?;
    let mut out = io::stdout();
    let written = match local(&client, &path, at, remote).await {
        Ok(Some(table)) => match table.column("object")?.get(0)? {
            Some(bytes) => out.write_all(bytes),
            None => Ok(()),
        },
        Ok(None) => match client.chunks(&path, at, |piece| out.write_all(piece)).await {
            Err(ClientError::Io { error, .. }) => Err(error),
            Err(error) => return Err(hints::explain(&client, error, &[&path], &[at]).await),
            Ok(_) => Ok(()),
        },
        Err(error) => return Err(hints::explain(&client, error, &[&path], &[at]).await),
    };
    written.and_then(|()| out.flush()).map_err(Failure::stdout)
}

/// The object in shared memory; `None` on another node than the service's, if the object does not
/// fit into a cell, or if a null stands for it: reading it in chunks then says why.
async fn local(
    client: &Client,
    path: &str,
    at: i64,
    remote: bool,
) -> Result<Option<iovcache::client::Table>, ClientError> {
    if remote {
        return Ok(None);
    }
    // An object that is too large for a cell is read in chunks. Here it would only be an error.
    let request =
        TableRequest::new().column("object", path).timestamps([at]).cell(CellKind::Binary);
    let table = client.table(request).await?;
    let here = table.column("object")?.get(0).is_ok_and(|bytes| bytes.is_some());
    Ok(here.then_some(table))
}
