//! Versions that began earlier and can still be in effect later, without those that are hidden for
//! the rest of their interval.

use crate::object::ObjectId;

/// The fields of a version that decide which version is in effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Carried {
    pub(super) created: i64,
    pub(super) from: i64,
    pub(super) id: ObjectId,
    pub(super) until: i64,
}

impl Carried {
    /// Same order as [`ObjectInfo::rank`](crate::ObjectInfo::rank).
    fn rank(&self) -> (i64, i64, ObjectId) {
        (self.created, self.from, self.id)
    }
}

/// Versions none of which hides another for all later times: in order of falling rank, each one is
/// valid longer than the one before.
#[derive(Debug, Clone, Default)]
pub(super) struct Carry(Vec<Carried>);

impl Carry {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Carried> {
        self.0.iter()
    }

    /// Adds a version. Returns whether it can be in effect anywhere.
    pub(super) fn insert(&mut self, new: Carried) -> bool {
        let place = self.0.partition_point(|old| old.rank() > new.rank());
        if place > 0 && self.0[place - 1].until >= new.until {
            return false;
        }
        // Versions of lower rank that end no later are hidden for good.
        let end = place + self.0[place..].partition_point(|old| old.until <= new.until);
        self.0.splice(place..end, [new]);
        true
    }

    /// The versions of `self` and `rows` that are still valid at `start` or later.
    pub(super) fn rolled(&self, rows: impl Iterator<Item = Carried>, start: i64) -> Self {
        let ended = self.0.partition_point(|old| old.until <= start);
        let mut next = Self(self.0[ended..].to_vec());
        for row in rows.filter(|row| row.until > start) {
            next.insert(row);
        }
        next
    }
}
