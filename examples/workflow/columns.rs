//! The columns of the tables, and for each row the look-up that a column stands for.
//!
//! | column | look-up |
//! |---|---|
//! | one per object path | the path, at the row's timestamp |
//! | `by_run` | the path that the row's run chooses, at the timestamp; one run has no path |
//! | `configuration` | uniform: the version of the row's run, at the timestamp of the run's first row in the timeframe |

use serde_json::{Value, json};

use crate::plan::{FIRST_RUN, Plan};

/// The key column beside the timestamps.
pub(crate) const KEY: &str = "run";
/// Path of the objects that are for one run each.
pub(crate) const CONFIGURATION: &str = "Workflow/Run/Configuration";
/// Metadata of these objects that name their run.
pub(crate) const RUN_NUMBER: &str = "runNumber";

/// Timestamp and run of a row.
pub(crate) type Row = (i64, Option<i64>);

/// A version to be found: the path, the timestamp, and the run that the version must be for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LookUp<'a> {
    pub(crate) path: &'a str,
    pub(crate) at: i64,
    pub(crate) run: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) name: String,
    rule: Rule,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Rule {
    Path(String),
    /// First run, last run and path of each range.
    ByRun(Vec<(i64, i64, String)>),
    UniformOfRun(String),
}

impl Column {
    pub(crate) fn all(plan: &Plan) -> Vec<Self> {
        let named = |name: &str, rule| Self { name: name.to_owned(), rule };
        let plain = plan.columns.iter();
        let mut columns: Vec<_> =
            plain.map(|path| named(&path.replace('/', "_"), Rule::Path(path.clone()))).collect();
        // Two of three runs have a path: the ranges leave a gap.
        let ends = [plan.columns.first(), plan.columns.last()].into_iter().flatten().cloned();
        let ranges = ends.zip(FIRST_RUN..).map(|(path, run)| (run, run, path)).collect();
        columns.push(named("by_run", Rule::ByRun(ranges)));
        columns.push(named("configuration", Rule::UniformOfRun(CONFIGURATION.to_owned())));
        columns
    }

    /// The column as a request has it.
    pub(crate) fn request(&self) -> Value {
        match &self.rule {
            Rule::Path(path) => json!(path),
            Rule::ByRun(ranges) => {
                let ranges = ranges
                    .iter()
                    .map(|(from, until, path)| json!({"from": from, "until": until, "path": path}));
                json!({"path": ranges.collect::<Vec<_>>(), "key": KEY})
            }
            Rule::UniformOfRun(path) => {
                let look_up = format!("metadata:{RUN_NUMBER}");
                json!({"path": path, "key": KEY, "as": look_up, "uniform": true})
            }
        }
    }

    /// The look-up for each row; `None`: the cell is null, independent of the repository.
    pub(crate) fn look_ups(&self, rows: &[Row]) -> Vec<Option<LookUp<'_>>> {
        let of_row = |&(at, run): &Row| match &self.rule {
            Rule::Path(path) => Some(LookUp { path, at, run: None }),
            Rule::ByRun(ranges) => {
                let run = run?;
                let (.., path) = ranges.iter().find(|one| (one.0..=one.1).contains(&run))?;
                Some(LookUp { path, at, run: None })
            }
            Rule::UniformOfRun(path) => {
                run?;
                let (at, _) = *rows.iter().find(|first| first.1 == run)?;
                Some(LookUp { path, at, run })
            }
        };
        rows.iter().map(of_row).collect()
    }
}
