//! The proxy tier of a site, above its nodes: the configurations of `deploy/`, with the real
//! proxies.
//!
//! ```text
//!  20 services ─▶ Varnish, nginx or Squid ─▶ a CCDB that counts
//! ```
//!
//! The services share the machine's loopback address; where network namespaces can be made, each is
//! a node with its own address. A proxy that is not installed is not tested, and its tests print
//! so.
#![cfg(feature = "cli")]

#[path = "../common/mod.rs"]
mod common;
#[path = "../fake_ccdb/mod.rs"]
mod fake_ccdb;
mod network;
mod nodes;
mod proxy;
#[path = "../ccdb_front/raw.rs"]
#[allow(dead_code, reason = "each test binary uses a part of it")]
mod raw;
mod rules;
