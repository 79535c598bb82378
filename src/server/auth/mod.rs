//! Access control: every client is identified, on every transport, and each call needs a role.
//!
//! ```text
//!  flight.sock ─ SO_PEERCRED ─▶ listed? ─┐
//!  TCP ──────────────────────────────────┼─▶ a token?       Keys::bearer    ─▶ name, role ─┐
//!  TLS ─ certificate of the client ──────┘   a certificate? Keys::certified ─▶ name, role ─┤
//!                                            neither: only where there are no keys         │
//!  attach.sock ─ SO_PEERCRED, token in the hello ─▶ as for flight.sock                     ▼
//!                                                   call's role ≤ client's role? ─▶ served
//! ```
//!
//! Without keys, every client that reaches a socket has all permissions: only the sockets' folder,
//! SO_PEERCRED and the loopback interface protect the service. With keys, each transport needs one,
//! the Unix sockets included. [`Access::check_exposed`] refuses a plain TCP port that other nodes
//! can reach.

mod access;
mod error;
mod keys;
mod role;

pub use access::{Access, Identity, UnprotectedListener};
pub(super) use access::{Peer, PeerKey};
pub use error::Denied;
pub use keys::{Keys, KeysError};
pub use role::Role;
pub(super) use role::{needed_for_action, needed_for_call};
