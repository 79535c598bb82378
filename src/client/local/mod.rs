//! Look-ups in shared memory without a request; objects that are not there are requested from the
//! service.
//!
//! ```text
//!  LocalPath::at(t) ─▶ shared memory ──found──▶ View (a slot of the pins page)
//!                          │ not there, not confirmed, …
//!                          └─▶ worker thread ─Flight─▶ service ─▶ View (a lease)
//!                                                        └ publishes the path for later look-ups
//! ```
//!
//! The worker has its own connection and session, so look-ups can be made in any thread, with or
//! without a runtime.

mod change;
mod path;
mod shared;
mod view;
mod worker;

pub use change::ChangeStep;
pub use path::{Local, LocalPath};
pub(super) use shared::LocalShared;
pub use view::View;
