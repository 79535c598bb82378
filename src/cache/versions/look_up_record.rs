//! The versions that a session looked up by itself, for the audit log.
//!
//! ```text
//!  samples of its pins page ─▶ span of a publication ─▶ LookUpRecord ─session ends─▶ one line
//! ```
//!
//! A consumer samples each version that it uses, once per snapshot of its path. A record holds a
//! bounded number of versions, and counts the others.

use std::collections::HashMap;

use serde::Serialize;

use crate::interval::ValidityInterval;
use crate::object::{ObjectId, ObjectPath};

/// Versions that a record names; the others are counted.
const MAX_VERSIONS: usize = 256;

/// The versions that a session looked up by itself.
#[derive(Debug, Default)]
pub(crate) struct LookUpRecord {
    versions: HashMap<ObjectId, LookedUpVersion>,
    /// Samples of versions that are not named here.
    unnamed: u64,
}

/// A version, and a span of time in which it was looked up.
#[derive(Debug, Serialize)]
pub(crate) struct LookedUpVersion {
    path: String,
    object_id: String,
    from: i64,
    until: i64,
}

impl LookUpRecord {
    /// Counts a sample that names nothing that is known.
    pub(crate) fn add_unknown(&mut self) {
        self.unnamed += 1;
    }

    /// Adds a version.
    pub(crate) fn add(&mut self, path: &ObjectPath, id: ObjectId, span: ValidityInterval) {
        if self.versions.contains_key(&id) {
            return;
        }
        if self.versions.len() >= MAX_VERSIONS {
            self.unnamed += 1;
            return;
        }
        let (from, until) = (span.from().as_millis(), span.until().as_millis());
        let (path, object_id) = (path.as_str().to_owned(), id.to_string());
        self.versions.insert(id, LookedUpVersion { path, object_id, from, until });
    }

    /// The versions, by path and time.
    pub(crate) fn versions(&self) -> Vec<&LookedUpVersion> {
        let mut versions: Vec<&LookedUpVersion> = self.versions.values().collect();
        versions.sort_by_key(|version| (&version.path, version.from));
        versions
    }

    /// Samples of versions that are not named.
    pub(crate) fn unnamed(&self) -> u64 {
        self.unnamed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_names_each_version_once_and_a_bounded_number() {
        let path = ObjectPath::new("A/B").unwrap();
        let span = ValidityInterval::ALL;
        let mut record = LookUpRecord::default();
        for n in 0..300_u16 {
            let mut id = [0; 16];
            id[..2].copy_from_slice(&n.to_le_bytes());
            record.add(&path, ObjectId::from_bytes(id), span);
            record.add(&path, ObjectId::from_bytes(id), span);
        }
        record.add_unknown();
        assert_eq!(record.versions.len(), MAX_VERSIONS);
        // Each of the others twice, and one that is unknown.
        assert_eq!(record.unnamed, 2 * (300 - MAX_VERSIONS as u64) + 1);
    }
}
