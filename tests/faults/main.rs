//! Faults, each one the real thing: processes that are killed and stopped, a file system that is
//! full, a server that is slow.
//!
//! ```text
//!  this process ──starts, kills, stops──▶ services, consumers (this very program), a CCDB
//!       │                                      │
//!       └── after each: pins, places and bytes add up, no file is left, every byte that a
//!           survivor reads is right
//! ```
//!
//! Random tests print their seed and are repeated by it: `IOVCACHE_FAULTS_SEED`. How often they
//! kill is said by `IOVCACHE_CONSUMER_KILLS` and `IOVCACHE_SERVICE_KILLS`.
#![cfg(feature = "cli")]

#[path = "../common/mod.rs"]
mod common;
mod consumer;
mod consumers;
mod data;
#[path = "../fake_ccdb/mod.rs"]
mod fake_ccdb;
mod loading;
mod memory;
mod random;
mod restart;
mod stopping;

/// Not a test of its own: the process of a consumer.
#[test]
fn the_process_of_a_consumer() {
    consumer::child::run();
}
