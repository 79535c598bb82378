//! Limits of the transport and of messages: the real service against misbehaving clients.

#[path = "../common/mod.rs"]
mod common;

mod connections;
mod crowd;
mod damaged_streams;
mod exchange;
mod frames;
mod messages;
mod network;
mod setup;
