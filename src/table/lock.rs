//! Lock files: the objects view of a table, with which the very same versions come again later.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::interval::{EmptyInterval, Timestamp, ValidityInterval};
use crate::object::{ObjectId, ObjectInfo, ObjectPath};

/// One row of an objects view. What is not needed to find the version again may be left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockEntry {
    /// The column that it served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<String>,
    /// The path.
    pub path: ObjectPath,
    /// The first row that it served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row_start: Option<i64>,
    /// The row behind the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row_end: Option<i64>,
    /// The version.
    pub object_id: ObjectId,
    /// Where its own interval begins.
    pub valid_from: Timestamp,
    /// Where its own interval ends.
    pub valid_until: Timestamp,
    /// When it was created.
    pub created: Timestamp,
    /// Its size in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// The generation of its block then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// How it came then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<String>,
    /// Its metadata.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
}

impl LockEntry {
    /// The version that it names.
    ///
    /// # Errors
    /// [`EmptyInterval`].
    pub fn version(&self) -> Result<Arc<ObjectInfo>, EmptyInterval> {
        Ok(Arc::new(ObjectInfo {
            path: self.path.clone(),
            id: self.object_id,
            validity: ValidityInterval::new(self.valid_from, self.valid_until)?,
            created: self.created,
            size_bytes: self.size,
            md5: None,
            metadata: self.metadata.clone(),
        }))
    }

    /// Whether it is for this column: of its path, and of its name if it says one.
    pub fn is_for(&self, column: &str, path: &ObjectPath) -> bool {
        self.path == *path && self.column.as_ref().is_none_or(|name| name == column)
    }
}
