//! The distinct metadata of a path's versions, each kept once.

use std::collections::HashMap;

use crate::object::{Query, VersionMetadata};

/// Maximum bytes of metadata in memory: this many per row of the path, but at least
/// `METADATA_BYTES`. The rest is read from the files on demand.
const METADATA_ROW_BYTES: usize = 16;
const METADATA_BYTES: usize = 4 << 10;
/// Number that stands for metadata not in memory.
pub(super) const ON_DISK: u32 = u32::MAX;

/// Maximum number of distinct metadata that are searched linearly.
const FEW_METADATA: usize = 32;

/// Distinct metadata of the versions of a path.
#[derive(Debug, Default)]
pub(super) struct InternedMetadata {
    pub(super) all: Vec<VersionMetadata>,
    /// Numbers of all of them; empty as long as there are at most [`FEW_METADATA`].
    numbers: HashMap<VersionMetadata, u32>,
    pub(super) bytes: usize,
    /// The most recently returned number.
    last: u32,
    pub(super) is_full: bool,
}

impl InternedMetadata {
    pub(super) fn number(&mut self, metadata: VersionMetadata, rows: usize) -> u32 {
        if let Some(number) = self.known(&metadata) {
            return number;
        }
        let bytes = size_of::<VersionMetadata>() + metadata.heap_bytes();
        let limit = METADATA_BYTES.max(rows.saturating_mul(METADATA_ROW_BYTES));
        if self.bytes + bytes > limit {
            self.is_full = true;
            return ON_DISK;
        }
        self.bytes += bytes;
        let number = self.all.len() as u32;
        self.all.push(metadata.clone());
        match self.all.len() {
            ..=FEW_METADATA => {}
            // Earlier ones were found by linear search and are not in the map yet.
            count if count == FEW_METADATA + 1 => {
                self.numbers = self.all.iter().cloned().zip(0..).collect();
            }
            _ => drop(self.numbers.insert(metadata, number)),
        }
        number
    }

    /// The number of known metadata.
    fn known(&self, metadata: &VersionMetadata) -> Option<u32> {
        if self.all.len() > FEW_METADATA {
            return self.numbers.get(metadata).copied();
        }
        let place = self.all.iter().position(|known| known == metadata)?;
        u32::try_from(place).ok()
    }

    /// Like [`number`](Self::number), for entries that are not collected yet. Neighbouring versions
    /// mostly have equal metadata.
    pub(super) fn number_of<'a>(
        &mut self,
        entries: impl Iterator<Item = (&'a str, &'a str)> + Clone,
        rows: usize,
    ) -> u32 {
        let is_last = |last: &VersionMetadata| {
            let mut given = entries.clone();
            let is_next = |(key, value)| given.next().is_some_and(|(k, v)| k == key && v == value);
            last.iter().all(is_next) && given.next().is_none()
        };
        if self.all.get(self.last as usize).is_some_and(is_last) {
            return self.last;
        }
        if self.is_full {
            return ON_DISK;
        }
        self.last = self.number(entries.collect(), rows);
        self.last
    }
}

/// Whether `metadata` has all pairs of `query`.
pub(super) fn has_all(metadata: &VersionMetadata, query: &Query) -> bool {
    query.metadata.iter().all(|(key, value)| metadata.get(key) == Some(value.as_str()))
}
