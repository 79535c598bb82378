//! The source of the times of runs: metadata of objects whose validity is in run numbers.

use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{ObjectInfo, ObjectPath};

/// The objects and metadata keys with the times of runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunInformation {
    /// The path of the objects, whose validity is in run numbers.
    pub path: ObjectPath,
    /// The metadata keys for the begin and the end of a run (ms); of several pairs the first that
    /// is present counts.
    pub bounds: Vec<(String, String)>,
}

impl Default for RunInformation {
    /// The defaults of ALICE: `RCT/Info/RunInformation`, and STF/ETF, SOX/EOX, SOR/EOR.
    fn default() -> Self {
        let bounds = [("STF", "ETF"), ("SOX", "EOX"), ("SOR", "EOR")];
        Self {
            path: ObjectPath::run_information(),
            bounds: bounds.map(|(from, until)| (from.to_owned(), until.to_owned())).into(),
        }
    }
}

impl RunInformation {
    /// The metadata keys, each pair as `BEGIN:END`.
    pub fn pairs(&self) -> Vec<String> {
        self.bounds.iter().map(|(from, until)| format!("{from}:{until}")).collect()
    }

    /// The interval from the begin to the end of a run, from the metadata of `version`.
    ///
    /// # Errors
    /// The reason, if the metadata have no such interval.
    pub(crate) fn interval(&self, version: &ObjectInfo) -> Result<ValidityInterval, String> {
        let there = self.bounds.iter().find_map(|(from, until)| {
            let from = (from, version.metadata.get(from)?);
            Some([from, (until, version.metadata.get(until)?)])
        });
        let Some(bounds) = there else {
            let names: Vec<String> =
                self.bounds.iter().map(|(from, until)| format!("{from} and {until}")).collect();
            return Err(format!("version {} has none of {}", version.id, names.join(", ")));
        };
        let millis = |(name, value): (&String, &str)| {
            let millis = value.trim().parse::<i64>().map(Timestamp::from_millis);
            millis.map_err(|_| format!("{name} of version {} is {value:?}, no time", version.id))
        };
        let [from, until] = bounds;
        let interval = ValidityInterval::new(millis(from)?, millis(until)?);
        interval.map_err(|error| format!("version {}: {error}", version.id))
    }
}
