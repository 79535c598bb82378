//! One version in an index, and its checksum.

use std::sync::Arc;

use arrow_array::StringArray;

use super::details::{DetailColumns, UploadFactsRef, facts_of};
use crate::object::{Md5Sum, ObjectId, VersionMetadata};
use crate::source::Details;

/// One version in an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::source::repository) struct IndexRow {
    pub(in crate::source::repository) path: Arc<str>,
    pub(in crate::source::repository) from: i64,
    pub(in crate::source::repository) until: i64,
    pub(in crate::source::repository) created: i64,
    pub(in crate::source::repository) id: ObjectId,
    pub(in crate::source::repository) size_bytes: u64,
    pub(in crate::source::repository) md5: Option<Md5Sum>,
    pub(in crate::source::repository) metadata: VersionMetadata,
    /// State of its files; 0 if unknown.
    pub(in crate::source::repository) stamp: u64,
    /// Change time (ns) of the path's folder when the row was written.
    pub(in crate::source::repository) listed: i64,
    /// Facts about the upload; `None` if unknown.
    pub(in crate::source::repository) details: Option<Details>,
}

impl IndexRow {
    pub(super) fn check(&self) -> u64 {
        let none = StringArray::new_null(0);
        let row = RowRef {
            from: self.from,
            until: self.until,
            created: self.created,
            id: self.id,
            size_bytes: self.size_bytes,
            md5: self.md5,
            stamp: self.stamp,
            listed: self.listed,
            metadata: (&none, &none, 0, 0),
            details: None,
        };
        let none = Details::default();
        let facts = facts_of(self.details.as_ref().unwrap_or(&none));
        RowCheck::new(&self.path).of_row(&row, self.metadata.iter(), Some(facts))
    }
}

/// A version in a file, without its path.
#[derive(Debug, Clone, Copy)]
pub(in crate::source::repository) struct RowRef<'a> {
    pub(in crate::source::repository) from: i64,
    pub(in crate::source::repository) until: i64,
    pub(in crate::source::repository) created: i64,
    pub(in crate::source::repository) id: ObjectId,
    pub(in crate::source::repository) size_bytes: u64,
    pub(in crate::source::repository) md5: Option<Md5Sum>,
    pub(in crate::source::repository) stamp: u64,
    pub(in crate::source::repository) listed: i64,
    pub(super) metadata: (&'a StringArray, &'a StringArray, usize, usize),
    /// Columns of the facts about uploads, and the number of the row; `None` in a file without them.
    pub(super) details: Option<(&'a DetailColumns, usize)>,
}

impl RowRef<'_> {
    pub(in crate::source::repository) fn metadata(
        &self,
    ) -> impl Iterator<Item = (&str, &str)> + Clone {
        let (keys, values, first, end) = self.metadata;
        (first..end).map(|at| (keys.value(at), values.value(at)))
    }

    /// Facts about the upload, if they are known.
    pub(in crate::source::repository) fn details(&self) -> Option<Details> {
        let (columns, at) = self.details?;
        Some(columns.row(at)).filter(|details| *details != Details::default())
    }

    pub(super) fn to_row(self, path: &Arc<str>) -> IndexRow {
        IndexRow {
            path: Arc::clone(path),
            from: self.from,
            until: self.until,
            created: self.created,
            id: self.id,
            size_bytes: self.size_bytes,
            md5: self.md5,
            metadata: self.metadata().collect(),
            stamp: self.stamp,
            listed: self.listed,
            details: self.details(),
        }
    }
}

/// Checksum of a row: FNV-1a over 64-bit words. It detects a row that was changed by a program which
/// also renewed the checksum of the file.
pub(super) struct RowCheck(u64);

impl RowCheck {
    pub(super) fn new(path: &str) -> Self {
        let mut check = Self(0xcbf2_9ce4_8422_2325);
        check.text(path);
        check
    }

    fn word(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x0000_0100_0000_01b3);
    }

    /// The length, and the bytes in little-endian words, the last one filled with zeros.
    fn text(&mut self, text: &str) {
        self.word(text.len() as u64);
        for piece in text.as_bytes().chunks(8) {
            let mut word = [0; 8];
            word[..piece.len()].copy_from_slice(piece);
            self.word(u64::from_le_bytes(word));
        }
    }

    fn sixteen(&mut self, bytes: &[u8; 16]) {
        let (words, _) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.word(u64::from_le_bytes(*word)));
    }

    fn optional_text(&mut self, text: Option<&str>) {
        self.word(u64::from(text.is_some()));
        self.text(text.unwrap_or_default());
    }

    fn facts(&mut self, (texts, times): UploadFactsRef<'_>) {
        for text in texts {
            self.optional_text(text);
        }
        for time in times {
            self.word(u64::from(time.is_some()));
            self.word(time.unwrap_or(0).cast_unsigned());
        }
    }

    /// The checksum of a row, all columns in their order. `facts` are `None` in a file without them.
    pub(super) fn of_row<'a>(
        &self,
        row: &RowRef<'_>,
        metadata: impl Iterator<Item = (&'a str, &'a str)>,
        facts: Option<UploadFactsRef<'_>>,
    ) -> u64 {
        let mut check = Self(self.0);
        for number in [row.from, row.until, row.created] {
            check.word(number.cast_unsigned());
        }
        check.sixteen(row.id.as_bytes());
        check.word(row.size_bytes);
        check.word(u64::from(row.md5.is_some()));
        check.sixteen(&row.md5.map_or([0; 16], |md5| md5.0));
        for (key, value) in metadata {
            check.text(key);
            check.text(value);
        }
        check.word(row.stamp);
        check.word(row.listed.cast_unsigned());
        if let Some(facts) = facts {
            check.facts(facts);
        }
        check.0
    }
}
