//! Lock files: the objects view of a table, with which the very same versions come again later.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserializer, Error, IgnoredAny, Visitor};
use serde::{Deserialize, Serialize};

use crate::interval::{EmptyInterval, Timestamp, ValidityInterval};
use crate::object::{ObjectId, ObjectPath, VersionClaim};

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
    #[serde(deserialize_with = "rounded")]
    pub valid_from: Timestamp,
    /// Where its own interval ends. The greatest i64 as a 64-bit floating-point number, which is how
    /// JavaScript writes it, is the greatest i64.
    #[serde(deserialize_with = "rounded")]
    pub valid_until: Timestamp,
    /// When it was created.
    pub created: Timestamp,
    /// Its size in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// The generation of its block then. It is not looked at.
    #[serde(default, skip_serializing)]
    pub generation: Ignored,
    /// How it came then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<String>,
    /// Its metadata.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// The value that the key of the column had in these rows. A look-up for one value of a key
    /// selects among the entries of that value, and those that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

impl LockEntry {
    /// What it says of the version that it names.
    ///
    /// # Errors
    /// [`EmptyInterval`].
    pub fn claim(&self) -> Result<VersionClaim, EmptyInterval> {
        Ok(VersionClaim {
            id: self.object_id,
            validity: ValidityInterval::new(self.valid_from, self.valid_until)?,
            created: self.created,
            size_bytes: self.size,
        })
    }
}

/// A value that may stand there and means nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ignored;

impl<'de> Deserialize<'de> for Ignored {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

/// Milliseconds, where the two ends of i64 may have gone through a 64-bit floating-point number.
fn rounded<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    /// 2^63: the least number above i64, and what its greatest value is rounded to.
    const END: f64 = 9_223_372_036_854_775_808.0;
    struct Millis;
    impl Visitor<'_> for Millis {
        type Value = Timestamp;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("milliseconds")
        }
        fn visit_i64<E: Error>(self, at: i64) -> Result<Timestamp, E> {
            Ok(Timestamp::from_millis(at))
        }
        fn visit_u64<E: Error>(self, at: u64) -> Result<Timestamp, E> {
            match i64::try_from(at) {
                Ok(at) => self.visit_i64(at),
                Err(_) => self.visit_f64(at as f64),
            }
        }
        fn visit_f64<E: Error>(self, at: f64) -> Result<Timestamp, E> {
            match at {
                END => Ok(Timestamp::MAX),
                at if at == -END => Ok(Timestamp::MIN),
                _ => Err(E::custom(format!("{at} is no count of milliseconds"))),
            }
        }
    }
    deserializer.deserialize_any(Millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(until: &str, generation: &str) -> Result<LockEntry, serde_json::Error> {
        let id = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
        serde_json::from_str(&format!(
            r#"{{"path": "A/B", "object_id": "{id}", "valid_from": 0, "valid_until": {until},
                "created": 1, "generation": {generation}}}"#
        ))
    }

    #[test]
    fn the_end_of_time_is_read_however_a_program_has_rounded_it() {
        let written = ["9223372036854775807", "9223372036854775808", "9223372036854776000"];
        for until in written.into_iter().chain(["9.223372036854776e18"]) {
            let entry = entry(until, "18446744073709552000").unwrap();
            assert_eq!(entry.valid_until, Timestamp::MAX, "{until}");
        }
        for wrong in ["9223372036854780000", "1.5", "null", "1e300"] {
            assert!(entry(wrong, "1").is_err(), "{wrong}");
        }
        assert_eq!(entry("5", "1").unwrap().valid_until, Timestamp::from_millis(5));
    }
}
