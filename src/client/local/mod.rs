//! Look-ups in shared memory, without a call; what does not lie there the service is asked for.
//!
//! ```text
//!  LocalPath::at(t) ─▶ shared memory ──found──▶ View (a slot of the pins page)
//!                          │ not there, not confirmed, …
//!                          └─▶ worker thread ─Flight─▶ service ─▶ View (a lease)
//!                                                        └ publishes the path: next time it is found
//! ```
//!
//! The worker has a connection and a session of its own, so a look-up can be made in any thread,
//! with a runtime or without one.

mod path;
mod shared;
mod view;
mod worker;

pub use path::{Local, LocalPath};
pub(super) use shared::LocalShared;
pub use view::View;
