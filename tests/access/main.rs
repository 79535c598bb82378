//! Who may: the real service asked by those who may and those who may not, other users of the node
//! among them.

#[path = "../common/mod.rs"]
mod common;

mod files;
mod roles;
mod secrets;
mod tls;
mod users;
