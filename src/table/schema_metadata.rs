//! Metadata of the schema that a request asks for.
//!
//! A consumer that looks for keys of its own in a table's schema asks for them with the request, and
//! finds them beside those of the service. AliceO2's tables of condition objects carry `outputRoute`,
//! `outputBinding`, `sourceTable` and `sourceMatcher`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::sync::Arc;

use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::limits::{RequestLimits, metadata_bytes, too_many};

/// Prefixes of keys that the service and Arrow use themselves.
const RESERVED: [&str; 2] = ["iovcache.", "ARROW:"];

/// Keys and values for the schema of the answer. Clones share them.
///
/// A key has 1 to 256 bytes, all keys and values together at most 64 KiB, and no key begins with
/// `iovcache.` or `ARROW:`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct SchemaMetadata(Option<Arc<BTreeMap<String, String>>>);

impl SchemaMetadata {
    /// Checks the entries.
    ///
    /// # Errors
    /// A sentence about the first entry that is not possible.
    pub(super) fn new(entries: BTreeMap<String, String>) -> Result<Self, String> {
        entries.keys().try_for_each(|key| Self::check_key(key))?;
        Self::check_bytes(metadata_bytes(&entries))?;
        Ok(Self((!entries.is_empty()).then(|| Arc::new(entries))))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Keys and values, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let entries = self.0.iter().flat_map(|entries| entries.iter());
        entries.map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// The bytes of all keys and values.
    pub(super) fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |entries| metadata_bytes(entries))
    }

    fn check_key(key: &str) -> Result<(), String> {
        let most = RequestLimits::MOST.name_bytes;
        let begin: String = key.chars().take(40).collect();
        if !(1..=most).contains(&key.len()) {
            let got = key.len();
            return Err(format!(
                "schema_metadata: key {begin:?} has {got} bytes, expected 1 to {most}"
            ));
        }
        match RESERVED.iter().find(|prefix| key.starts_with(**prefix)) {
            Some(prefix) => Err(format!(
                "schema_metadata: key {begin:?} begins with {prefix}, which is reserved: choose \
                 another key"
            )),
            None => Ok(()),
        }
    }

    fn check_bytes(bytes: usize) -> Result<(), String> {
        let most = RequestLimits::MOST.metadata_bytes;
        if bytes <= most { Ok(()) } else { Err(too_many(bytes, most, "bytes of schema_metadata")) }
    }
}

impl Serialize for SchemaMetadata {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de> Deserialize<'de> for SchemaMetadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = SchemaMetadata;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("keys and values of the schema's metadata, all strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<SchemaMetadata, A::Error> {
                let (mut entries, mut bytes) = (BTreeMap::new(), 0);
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    SchemaMetadata::check_key(&key).map_err(A::Error::custom)?;
                    bytes += key.len() + value.len();
                    SchemaMetadata::check_bytes(bytes).map_err(A::Error::custom)?;
                    match entries.entry(key) {
                        Entry::Vacant(place) => place.insert(value),
                        Entry::Occupied(known) => {
                            let key = known.key();
                            let reason =
                                format_args!("schema_metadata: key {key:?} is given twice");
                            return Err(A::Error::custom(reason));
                        }
                    };
                }
                Ok(SchemaMetadata((!entries.is_empty()).then(|| Arc::new(entries))))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(json: &str) -> String {
        serde_json::from_str::<SchemaMetadata>(json).unwrap_err().to_string()
    }

    #[test]
    fn the_keys_of_aliceo2s_tables_are_kept_as_they_are() {
        let json = r#"{"outputBinding":"b","outputRoute":"ATIM/GLOGRP/0","sourceMatcher":"AOD/TIMESTAMP/0","sourceTable":"Timestamps"}"#;
        let metadata: SchemaMetadata = serde_json::from_str(json).unwrap();
        assert_eq!(metadata.iter().count(), 4);
        assert!(metadata.iter().any(|one| one == ("outputRoute", "ATIM/GLOGRP/0")));
        assert_eq!(serde_json::to_string(&metadata).unwrap(), json);
        assert_eq!(metadata.bytes(), json.len() - 4 * 6 - 1, "without quotes, colons and commas");
        let none: SchemaMetadata = serde_json::from_str("{}").unwrap();
        assert_eq!(none, SchemaMetadata::default());
    }

    #[test]
    fn reserved_long_empty_and_repeated_keys_are_refused_by_name() {
        for key in ["iovcache.lease", "iovcache.x", "ARROW:schema"] {
            assert!(error(&format!(r#"{{"{key}": "x"}}"#)).contains("reserved"), "{key}");
        }
        assert!(error(r#"{"": "x"}"#).contains("expected 1 to 256"));
        assert!(error(&format!(r#"{{"{}": "x"}}"#, "k".repeat(257))).contains("257"));
        assert!(error(r#"{"k": "x", "k": "y"}"#).contains("twice"));
        assert!(error(r#"{"k": 1}"#).contains("string"));
        let long = "v".repeat(RequestLimits::MOST.metadata_bytes);
        assert!(error(&format!(r#"{{"k": "{long}"}}"#)).contains("bytes of schema_metadata"));
        let fits = &long[1..];
        assert!(serde_json::from_str::<SchemaMetadata>(&format!(r#"{{"k": "{fits}"}}"#)).is_ok());
    }
}
