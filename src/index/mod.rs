//! Who is valid when, and which rows that makes. Pure: no I/O, no clock of its own.
//!
//! ```text
//!  versions (overlapping)  ──learn──▶ Timeline: a step function over all of time
//!    v1 ├──────────────┤                 ┌v1┬──v2──┬─v1─┐
//!    v2    ├──────┤  created later    ───┴──┴──────┴────┴── absent / unknown
//!
//!  Timeline × Timestamps ──join──▶ Runs: rows 0..7 v1, 7..9 v2, 9..20 v1
//! ```
//!
//! The cost of all that follows goes with the number of runs, not of rows.

mod choices;
mod join;
mod key_column;
mod search;
mod timeline;
mod timestamps;
mod version_list;

pub use choices::{
    ChoicePieces, ChoiceRun, ChoiceSource, RowChoices, RowRanges, open_times_within,
};
pub use join::{JoinPieces, Run, Runs, Slot, closed_between_bounds, join, join_steps, open_times};
pub use key_column::{KeyBuilder, KeyColumn, KeyIds, KeyType, KeyValue};
pub use timeline::{Span, State, Step, Timeline};
pub use timestamps::Timestamps;
