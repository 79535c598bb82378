//! `bench`: puts a service under load, and gives the result as a table, as JSON, and as a page.
//!
//! ```text
//!  profile ─▶ content: a repository ─▶ service (a process) ◀─ gateway: a failing source
//!     │                                   ▲        ▲
//!     └─▶ load: when each timeframe is due┘        └── crew of consumers (processes)
//!           │                                               │ events
//!           ▼                                               ▼
//!         histograms ─▶ result ─▶ text, JSON, report (plots) ─▶ compare
//! ```

mod compare;
mod consumer;
mod consumers;
mod content;
mod curves;
mod gateway;
mod histogram;
mod load;
mod options;
mod plot;
mod plots;
mod process;
mod profile;
mod random;
mod report;
mod result;
mod run;
mod synthetic;
mod text;

pub(crate) use options::Arguments;
pub(crate) use run::run;
