//! The service as a CCDB for its neighbours: raw sockets, recorded exchanges, and one service in
//! front of another.
#![cfg(feature = "cli")]

mod ccdb_api;
mod chain;
#[path = "../common/mod.rs"]
mod common;
#[path = "../fake_ccdb/mod.rs"]
mod fake_ccdb;
mod long_listings;
mod memory;
mod other_keys;
mod quiet;
mod raw;
mod recorded;
mod requests;
#[path = "../s3_server/mod.rs"]
mod s3_server;
mod writes;

use common::Service;
use fake_ccdb::FakeCcdb;

/// A service in front of `server` that is a CCDB itself.
fn before(server: &FakeCcdb, arguments: &[&str]) -> Service {
    let url = server.url();
    let mut all = vec!["--source", url.as_str(), "--refresh", "200ms", "--ccdb", "127.0.0.1:0"];
    all.extend_from_slice(arguments);
    Service::start(&all)
}

/// The address of its CCDB side: `host:port`.
fn address(service: &Service) -> String {
    service.ready["ccdb"].as_str().unwrap().trim_start_matches("http://").to_owned()
}
