//! Validity of versions over time, and its join with timestamps. Pure: no I/O and no clock.
//!
//! ```text
//!  versions (overlapping)  ──learn──▶ Timeline: a step function over all of time
//!    v1 ├──────────────┤                 ┌v1┬──v2──┬─v1─┐
//!    v2    ├──────┤  created later    ───┴──┴──────┴────┴── absent / unknown
//!
//!  Timeline × Timestamps ──join──▶ Runs: rows 0..7 v1, 7..9 v2, 9..20 v1
//! ```
//!
//! The cost of later work grows with the number of runs, not of rows.

mod choices;
mod join;
mod key_column;
mod open_times;
mod row_codes;
mod search;
mod slot_segments;
mod timeline;
mod timestamps;
mod version_list;

pub(crate) use choices::{ChoicePieces, ChoiceSource, RowChoices, RowRanges, ValueChoices};
pub(crate) use join::JoinPieces;
pub(crate) use join::join_steps;
pub use join::{Run, Runs, Slot, join};
pub use key_column::{KeyBuilder, KeyColumn, KeyType, KeyValue};
pub(crate) use open_times::open_times_within;
#[doc(hidden)]
pub use open_times::{closed_between_bounds, open_times};
pub(crate) use row_codes::RowCodes;
pub(crate) use slot_segments::SlotSegments;
pub use timeline::{Span, State, Step, Timeline};
pub use timestamps::Timestamps;
