//! Metadata of a version: pairs of key and value in one block of memory.
//!
//! ```text
//!  run=77, type=raw   ▶   [3][2]run77[4][3]typeraw
//!  [n]: a length, six bits per byte, the lowest first; bit 0x40: a further byte follows
//! ```
//!
//! A map of texts takes more than 600 bytes for a single pair. A cache holds the metadata of
//! millions of versions, so they are stored in the bytes that they have, and copies share them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Number of bits of a length in one byte.
const LENGTH_BITS: usize = 6;
/// Bit of a byte of a length: a further byte follows.
const FOLLOWED: u8 = 1 << LENGTH_BITS;

/// Metadata of a version: each key once, in ascending order. A copy shares the memory.
///
/// ```
/// use iovcache::VersionMetadata;
/// let metadata = VersionMetadata::from([("run", "77"), ("detector", "TPC")]);
/// assert_eq!(metadata.get("run"), Some("77"));
/// assert_eq!(metadata.iter().next(), Some(("detector", "TPC")));
/// ```
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct VersionMetadata {
    /// Pairs one after the other; `None`: there are none. Lengths are ASCII, so all of it is text.
    pairs: Option<Arc<str>>,
}

impl VersionMetadata {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        let mut pairs = self.iter().skip_while(|(known, _)| *known < key);
        pairs.next().filter(|(known, _)| *known == key).map(|(_, value)| value)
    }

    /// Whether a key has a value.
    pub fn contains_key(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// The number of pairs.
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// Whether there are no pairs.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_none()
    }

    /// The pairs, in ascending order of their keys.
    pub fn iter(&self) -> MetadataPairs<'_> {
        MetadataPairs { rest: self.pairs.as_deref().unwrap_or_default() }
    }

    /// The keys, in ascending order.
    pub fn keys(&self) -> impl Iterator<Item = &str> + Clone {
        self.iter().map(|(key, _)| key)
    }

    /// A copy with this value of `key`.
    #[must_use]
    pub fn with(&self, key: &str, value: &str) -> Self {
        self.iter().chain([(key, value)]).collect()
    }

    /// A copy without `key`.
    #[must_use]
    pub fn without(&self, key: &str) -> Self {
        self.iter().filter(|(known, _)| *known != key).collect()
    }

    /// A map of the pairs.
    pub fn to_map(&self) -> BTreeMap<String, String> {
        self.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    /// Bytes of memory of the pairs.
    pub(crate) fn heap_bytes(&self) -> usize {
        /// Reference counts, and the allocator's own word.
        const COUNTS_BYTES: usize = 24;
        self.pairs.as_ref().map_or(0, |pairs| COUNTS_BYTES + pairs.len())
    }

    /// Metadata of pairs with ascending keys.
    fn from_sorted<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> Self {
        let size = pairs.clone().map(|(key, value)| {
            length_bytes(key.len()) + length_bytes(value.len()) + key.len() + value.len()
        });
        let mut text = String::with_capacity(size.sum());
        for (key, value) in pairs {
            push_length(&mut text, key.len());
            push_length(&mut text, value.len());
            text.push_str(key);
            text.push_str(value);
        }
        Self { pairs: (!text.is_empty()).then(|| text.into()) }
    }
}

/// Number of bytes of a length.
fn length_bytes(length: usize) -> usize {
    let bits = usize::BITS - length.leading_zeros();
    (bits as usize).div_ceil(LENGTH_BITS).max(1)
}

fn push_length(text: &mut String, mut length: usize) {
    loop {
        let bits = (length as u8) & (FOLLOWED - 1);
        length >>= LENGTH_BITS;
        match length {
            0 => return text.push(char::from(bits)),
            _ => text.push(char::from(bits | FOLLOWED)),
        }
    }
}

/// A length at the beginning of `text`, and the text after it.
fn split_length(text: &str) -> Option<(usize, &str)> {
    let mut length = 0;
    for (place, byte) in text.bytes().enumerate() {
        length |= usize::from(byte & (FOLLOWED - 1)) << (LENGTH_BITS * place);
        if byte & FOLLOWED == 0 {
            return Some((length, &text[place + 1..]));
        }
    }
    None
}

/// Iterates over the pairs of [`VersionMetadata`].
#[derive(Debug, Clone)]
pub struct MetadataPairs<'a> {
    rest: &'a str,
}

impl<'a> Iterator for MetadataPairs<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        let (key_bytes, rest) = split_length(self.rest)?;
        let (value_bytes, rest) = split_length(rest)?;
        let (key, rest) = rest.split_at_checked(key_bytes)?;
        let (value, rest) = rest.split_at_checked(value_bytes)?;
        self.rest = rest;
        Some((key, value))
    }
}

impl<'a> IntoIterator for &'a VersionMetadata {
    type Item = (&'a str, &'a str);
    type IntoIter = MetadataPairs<'a>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Of several values of a key, the last one counts.
impl<K: AsRef<str>, V: AsRef<str>> FromIterator<(K, V)> for VersionMetadata {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let mut pairs: Vec<(K, V)> = pairs.into_iter().collect();
        let is_ascending = |a: &(K, V), b: &(K, V)| a.0.as_ref() < b.0.as_ref();
        if !pairs.is_sorted_by(is_ascending) {
            pairs.sort_by(|a, b| a.0.as_ref().cmp(b.0.as_ref()));
            pairs.dedup_by(|next, kept| {
                let is_same = next.0.as_ref() == kept.0.as_ref();
                if is_same {
                    std::mem::swap(next, kept);
                }
                is_same
            });
        }
        Self::from_sorted(pairs.iter().map(|(key, value)| (key.as_ref(), value.as_ref())))
    }
}

impl<K: AsRef<str>, V: AsRef<str>, const N: usize> From<[(K, V); N]> for VersionMetadata {
    fn from(pairs: [(K, V); N]) -> Self {
        pairs.into_iter().collect()
    }
}

impl From<&BTreeMap<String, String>> for VersionMetadata {
    fn from(map: &BTreeMap<String, String>) -> Self {
        Self::from_sorted(map.iter().map(|(key, value)| (key.as_str(), value.as_str())))
    }
}

impl From<BTreeMap<String, String>> for VersionMetadata {
    fn from(map: BTreeMap<String, String>) -> Self {
        Self::from(&map)
    }
}

impl fmt::Debug for VersionMetadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self).finish()
    }
}

impl Serialize for VersionMetadata {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self)
    }
}

impl<'de> Deserialize<'de> for VersionMetadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        BTreeMap::<String, String>::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_pair_takes_its_bytes_and_two_lengths() {
        let metadata = VersionMetadata::from([("run", "77")]);
        assert_eq!(metadata.pairs.as_deref(), Some("\u{3}\u{2}run77"));
        assert_eq!(size_of::<VersionMetadata>(), 16);
        assert!(VersionMetadata::default().is_empty());
        assert_eq!(VersionMetadata::from(BTreeMap::new()), VersionMetadata::default());
    }

    #[test]
    fn of_several_values_of_a_key_the_last_one_counts() {
        let metadata = VersionMetadata::from([("b", "1"), ("a", "2"), ("b", "3"), ("b", "4")]);
        assert_eq!(metadata.iter().collect::<Vec<_>>(), [("a", "2"), ("b", "4")]);
        assert_eq!(metadata, metadata.with("c", "5").without("c"));
        assert_eq!(metadata.with("a", "6").get("a"), Some("6"));
    }

    proptest! {
        #[test]
        fn it_holds_what_a_map_holds(
            map in proptest::collection::btree_map("\\PC{0,9}", "(\\PC|\n){0,70}", 0..8),
            other in "\\PC{0,2}",
            long in 0_usize..300_000,
        ) {
            let mut map: BTreeMap<String, String> = map;
            map.insert("long".to_owned(), "ä".repeat(long));
            let metadata = VersionMetadata::from(&map);
            prop_assert_eq!(metadata.to_map(), map.clone());
            prop_assert_eq!(metadata.len(), map.len());
            for key in map.keys().chain([&other]) {
                prop_assert_eq!(metadata.get(key), map.get(key).map(String::as_str));
            }
            let backwards: VersionMetadata = map.iter().rev().collect();
            prop_assert_eq!(&backwards, &metadata);
            let json = serde_json::to_string(&metadata).unwrap();
            prop_assert_eq!(serde_json::from_str::<VersionMetadata>(&json).unwrap(), metadata);
        }
    }
}
