//! Paths that stand for other paths.

use std::sync::Arc;

use crate::object::{ObjectInfo, ObjectPath, Query};
use crate::source::Source;

/// A path that stands for another, possibly of another source (AliceO2's `condition-remap`).
#[derive(Debug, Clone)]
pub struct Remap {
    /// Requested path.
    pub path: ObjectPath,
    /// Served path.
    pub to: ObjectPath,
    /// Source of the served path; `None`: the chain.
    pub source: Option<Arc<dyn Source>>,
}

impl Remap {
    /// The query for the served path.
    pub(super) fn query(&self, query: &Query) -> Query {
        Query { path: self.to.clone(), ..query.clone() }
    }
}

/// A copy of `version` under another path.
pub(super) fn renamed(version: &ObjectInfo, path: &ObjectPath) -> ObjectInfo {
    ObjectInfo { path: path.clone(), ..version.clone() }
}

/// Puts the versions of a served path under the requested one.
pub(super) fn rename_all(versions: &mut [Arc<ObjectInfo>], path: &ObjectPath) {
    for version in versions {
        *version = Arc::new(renamed(version, path));
    }
}
