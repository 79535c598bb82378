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
    pub(super) md5: [u8; 16],
    pub(super) metadata: u32,
    pub(super) has_md5: bool,
}

impl Row {
    pub(super) fn key(&self) -> (i64, ObjectId) {
        (self.from, self.id)
    }

    pub(super) fn carried(&self) -> Carried {
        Carried { created: self.created, from: self.from, id: self.id, until: self.until }
    }

    pub(crate) fn md5(&self) -> Option<Md5Sum> {
        self.has_md5.then_some(Md5Sum(self.md5))
    }

    /// The validity interval, if `from` is less than `until`.
    pub(super) fn validity(&self) -> Option<ValidityInterval> {
        let [from, until] = [self.from, self.until].map(Timestamp::from_millis);
        ValidityInterval::new(from, until).ok()
    }
}
