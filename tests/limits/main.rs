//! What a client can take of the transport, and what it can send: the real service before clients
//! that do not behave.

#[path = "../common/mod.rs"]
mod common;

mod connections;
mod crowd;
mod exchange;
mod foreign;
mod frames;
mod messages;
mod setup;
