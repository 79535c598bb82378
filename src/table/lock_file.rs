//! Lock files: the objects view of a table, which later requests use to get exactly the same
//! versions.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserializer, Error, IgnoredAny, Visitor};
use serde::{Deserialize, Serialize};

use crate::interval::{EmptyInterval, Timestamp, ValidityInterval};
use crate::object::{ObjectId, ObjectPath, VersionClaim};

/// One row of an objects view. Fields that are not needed to find the version again are optional.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockEntry {
    /// The column that the version served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<String>,
    /// Object path.
    pub path: ObjectPath,
    /// The first row that the version served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row_start: Option<i64>,
    /// The row after the last one that it served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row_end: Option<i64>,
    /// Id of the version.
    pub object_id: ObjectId,
    /// Start of its validity interval, inclusive, in milliseconds since 1970.
    #[serde(deserialize_with = "rounded")]
    pub valid_from: Timestamp,
    /// End of its validity interval, exclusive, in milliseconds since 1970. The greatest i64 may be
    /// given as a 64-bit floating-point number, which is how JavaScript writes it.
    #[serde(deserialize_with = "rounded")]
    pub valid_until: Timestamp,
    /// Time of its creation, in milliseconds since 1970.
    pub created: Timestamp,
    /// Size in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Generation of its block at that time. It is ignored.
    #[serde(default, skip_serializing)]
    pub generation: Ignored,
    /// Its cache state at that time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<String>,
    /// Metadata of the version.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// Value of the column's key in these rows. A look-up for one value of a key uses the entries
    /// with that value, and those without any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

impl LockEntry {
    /// The version that the entry names, with its recorded properties.
    ///
    /// # Errors
    /// [`EmptyInterval`] if `valid_from` is not before `valid_until`.
    pub fn claim(&self) -> Result<VersionClaim, EmptyInterval> {
        Ok(VersionClaim {
            id: self.object_id,
            validity: ValidityInterval::new(self.valid_from, self.valid_until)?,
            created: self.created,
            size_bytes: self.size,
        })
    }
}

/// A value that is accepted and ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ignored;

impl<'de> Deserialize<'de> for Ignored {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

/// Milliseconds since 1970. The two ends of i64 may have been rounded to 64-bit floating-point
/// numbers.
fn rounded<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    /// 2^63: the lowest number above i64, to which its greatest value is rounded.
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
