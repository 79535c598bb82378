//! The distinct metadata of a path's versions, each kept once.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::object::Query;

/// Maximum bytes of metadata in memory: this many per row of the path, but at least
/// `METADATA_BYTES`. The rest is read from the files on demand.
const METADATA_ROW_BYTES: usize = 16;
const METADATA_BYTES: usize = 4 << 10;
/// Number that stands for metadata not in memory.
pub(super) const ON_DISK: u32 = u32::MAX;

/// Keys and values of a version.
pub(crate) type Metadata = BTreeMap<String, String>;

/// Distinct metadata of the versions of a path.
#[derive(Debug, Default)]
pub(super) struct InternedMetadata {
    pub(super) all: Vec<Arc<Metadata>>,
    numbers: HashMap<Arc<Metadata>, u32>,
    pub(super) bytes: usize,
    /// The most recently returned number.
    last: u32,
    pub(super) is_full: bool,
}

impl InternedMetadata {
    pub(super) fn number(&mut self, metadata: Metadata, rows: usize) -> u32 {
        if let Some(number) = self.numbers.get(&metadata) {
            return *number;
        }
        let bytes: usize = metadata.iter().map(|(key, value)| key.len() + value.len() + 96).sum();
        let limit = METADATA_BYTES.max(rows.saturating_mul(METADATA_ROW_BYTES));
        if self.bytes + bytes > limit {
            self.is_full = true;
            return ON_DISK;
        }
        self.bytes += bytes;
        let number = self.all.len() as u32;
        let metadata = Arc::new(metadata);
        self.all.push(Arc::clone(&metadata));
        self.numbers.insert(metadata, number);
        number
    }

    /// Like [`number`](Self::number), for entries that are not collected yet. Neighbouring versions
    /// mostly have equal metadata.
    pub(super) fn number_of<'a>(
        &mut self,
        entries: impl Iterator<Item = (&'a str, &'a str)> + Clone,
        rows: usize,
    ) -> u32 {
        let is_last = |last: &Arc<Metadata>| {
            let mut entries = entries.clone();
            last.iter().all(|(key, value)| entries.next() == Some((key, value)))
                && entries.next().is_none()
        };
        if self.all.get(self.last as usize).is_some_and(is_last) {
            return self.last;
        }
        if self.is_full {
            return ON_DISK;
        }
        let owned = entries.map(|(key, value)| (key.to_owned(), value.to_owned()));
        self.last = self.number(owned.collect(), rows);
        self.last
    }
}

/// Whether `metadata` has all pairs of `query`.
pub(super) fn has_all(metadata: &Metadata, query: &Query) -> bool {
    query.metadata.iter().all(|(key, value)| metadata.get(key) == Some(value))
}
