//! Several sources in order, each for some paths, and paths that stand for other paths.
//!
//! ```text
//!  look_up(path, at) ─▶ first ──valid there──▶ its version, within its validity
//!                         │ nothing valid, or down
//!                         ▼
//!                       second ─▶ … ─▶ nothing in all: absent; one was down: unknown
//!  fetch(id) ─▶ the source that named it, then the others
//! ```
//!
//! If two sources have a valid version at a time, the first source decides, regardless of creation
//! times. So a folder in front of a server replaces the objects it has, and no others.

mod chain_source;
mod links;
mod remap;
#[cfg(test)]
mod tests;

pub use chain_source::ChainSource;
pub use links::Link;
pub use remap::Remap;
