//! Access control: requests of permitted and of refused clients to the real service, other users of
//! the node among them.

#[path = "../common/mod.rs"]
mod common;

mod files;
mod reload;
mod roles;
mod secrets;
mod tls;
mod users;
