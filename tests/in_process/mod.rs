//! A service in this process, and sources in memory for it; for tests and benches.
#![allow(dead_code, unreachable_pub, reason = "each test binary and bench uses a part of it")]

pub mod gated;
pub mod steady;

use std::path::{Path, PathBuf};

use iovcache::Cache;
use iovcache::server::{ListenOptions, Listeners, ServeOptions};

/// Serves a cache on sockets in `folder` until the runtime ends. Returns the path of its Flight
/// socket; the attach socket is beside it.
pub async fn serve(cache: Cache, folder: &Path) -> PathBuf {
    let sockets = folder.join("s");
    let socket_folder = Some(sockets.clone());
    let options = ListenOptions { socket_folder, ..ListenOptions::default() };
    let listeners = Listeners::bind(&options).await.unwrap();
    let (forever, options) = (std::future::pending(), ServeOptions::default());
    tokio::spawn(iovcache::server::run(listeners, cache, options, forever, || ()));
    sockets.join("flight.sock")
}

/// Address of a service on a Flight socket.
pub fn url_of(socket: &Path) -> String {
    format!("grpc+unix://{}", socket.display())
}
