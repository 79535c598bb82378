//! Limits of one request: numbers of parts, and lengths of names.
//!
//! The hard limits are checked while a request is parsed, so that nothing larger is built. A
//! service can be configured with lower limits; those are checked on the parsed request.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

/// Limits of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestLimits {
    /// Maximum number of columns.
    pub columns: usize,
    /// Maximum number of consumers of a timeframe.
    pub consumers: usize,
    /// Maximum number of ranges of a key in the path of a column.
    pub path_ranges: usize,
    /// Maximum number of distinct values of a key; a column may need one look-up for each.
    pub key_values: usize,
    /// Queries of a table for its columns and keys, of all columns together.
    pub queries: usize,
    /// Maximum number of entries in a lock.
    pub lock_entries: usize,
    /// Maximum length of the name of a column, table, consumer or session, in bytes.
    pub name_bytes: usize,
    /// Maximum metadata of a column in bytes, the sum of all keys and values.
    pub metadata_bytes: usize,
}

impl RequestLimits {
    /// The hard limits, and the default.
    pub const MOST: Self = Self {
        columns: 10_000,
        consumers: 1_000,
        path_ranges: 1_000,
        key_values: 10_000,
        queries: 200_000,
        lock_entries: 100_000,
        name_bytes: 256,
        metadata_bytes: 64 << 10,
    };
}

pub(super) fn too_many(got: usize, most: usize, what: &str) -> String {
    format!("it has {got} {what}, at most {most} are possible")
}

/// Total length of all keys and values, in bytes.
pub(super) fn metadata_bytes(metadata: &BTreeMap<String, String>) -> usize {
    metadata.iter().map(|(key, value)| key.len() + value.len()).sum()
}

/// # Errors
/// An error of `E` if a name is empty or too long.
pub(super) fn check_name<E: Error>(what: &str, name: &str) -> Result<(), E> {
    let most = RequestLimits::MOST.name_bytes;
    match name.len() {
        0 => Err(E::custom(format_args!("{what} needs a name"))),
        got if got > most => {
            let begin: String = name.chars().take(40).collect();
            let reason = too_many(got, most, "bytes in its name");
            Err(E::custom(format_args!("{what} {begin:?}…: {reason}")))
        }
        _ => Ok(()),
    }
}

/// # Errors
/// An error of `E` if a column has too much metadata.
pub(super) fn check_metadata<E: Error>(metadata: &BTreeMap<String, String>) -> Result<(), E> {
    let (got, most) = (metadata_bytes(metadata), RequestLimits::MOST.metadata_bytes);
    if got <= most { Ok(()) } else { Err(E::custom(too_many(got, most, "bytes of metadata"))) }
}

/// A list of at most `MOST` items. Parsing ends at the first item beyond.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct AtMost<T, const MOST: usize>(pub(crate) Vec<T>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for AtMost<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List<T, const MOST: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for List<T, MOST> {
            type Value = AtMost<T, MOST>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MOST} items")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = list.next_element()? {
                    if items.len() == MOST {
                        return Err(A::Error::custom(format_args!(
                            "a list has more than {MOST} items"
                        )));
                    }
                    items.push(item);
                }
                Ok(AtMost(items))
            }
        }
        deserializer.deserialize_seq(List(PhantomData))
    }
}
