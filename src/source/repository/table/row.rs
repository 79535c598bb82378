//! One version as a row.

use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{Md5Sum, ObjectId};
use crate::source::repository::carry::Carried;

/// One version. Its metadata is stored as a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) from: i64,
    pub(crate) until: i64,
    pub(crate) created: i64,
    pub(crate) size_bytes: u64,
    /// State of its files; 0: they must be read again.
    pub(crate) stamp: u64,
    pub(crate) id: ObjectId,
    md5: [u8; 16],
    /// Number of its metadata, and in the highest bit whether it has an MD5.
    metadata_and_md5: u32,
}

/// The bit of [`Row::metadata_and_md5`] that says that the row has an MD5.
const HAS_MD5: u32 = 1 << 31;

// A row is most of the memory that a version takes.
const _: () = assert!(size_of::<Row>() == 80);

/// The fields of a version that a row stores as they are.
pub(super) struct RowFields {
    pub(super) from: i64,
    pub(super) until: i64,
    pub(super) created: i64,
    pub(super) size_bytes: u64,
    pub(super) id: ObjectId,
    pub(super) md5: Option<Md5Sum>,
}

impl Row {
    /// The row of a version with the state of its files (see [`Row::stamp`]) and the number of its
    /// metadata, which is less than 2^31.
    pub(super) fn new(version: RowFields, stamp: u64, metadata: u32) -> Self {
        let RowFields { from, until, created, size_bytes, id, md5 } = version;
        let has_md5 = if md5.is_some() { HAS_MD5 } else { 0 };
        let metadata_and_md5 = metadata & !HAS_MD5 | has_md5;
        let md5 = md5.map_or([0; 16], |md5| md5.0);
        Self { from, until, created, size_bytes, stamp, id, md5, metadata_and_md5 }
    }

    pub(super) fn key(&self) -> (i64, ObjectId) {
        (self.from, self.id)
    }

    /// The row with an unknown state of its files.
    pub(super) fn without_stamp(self) -> Self {
        Self { stamp: 0, ..self }
    }

    pub(super) fn carried(&self) -> Carried {
        Carried { created: self.created, from: self.from, id: self.id, until: self.until }
    }

    pub(crate) fn md5(&self) -> Option<Md5Sum> {
        (self.metadata_and_md5 & HAS_MD5 != 0).then_some(Md5Sum(self.md5))
    }

    /// Number of its metadata.
    pub(super) fn metadata(&self) -> u32 {
        self.metadata_and_md5 & !HAS_MD5
    }

    /// The validity interval, if `from` is less than `until`.
    pub(super) fn validity(&self) -> Option<ValidityInterval> {
        let [from, until] = [self.from, self.until].map(Timestamp::from_millis);
        ValidityInterval::new(from, until).ok()
    }
}
