//! Versions that began earlier and can still win: of a long past, those that nothing hides for good.

use crate::object::ObjectId;

/// A version, as far as it decides who wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Carried {
    pub(super) created: i64,
    pub(super) from: i64,
    pub(super) id: ObjectId,
    pub(super) until: i64,
}

impl Carried {
    /// The order of [`ObjectInfo::rank`](crate::ObjectInfo::rank).
    fn rank(&self) -> (i64, i64, ObjectId) {
        (self.created, self.from, self.id)
    }
}

/// Versions of which none hides another for all the time to come: with falling rank, each holds
/// longer than the one before.
#[derive(Debug, Clone, Default)]
pub(super) struct Carry(Vec<Carried>);

impl Carry {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Carried> {
        self.0.iter()
    }

    /// Adds a version; whether it can win anywhere.
    pub(super) fn insert(&mut self, new: Carried) -> bool {
        let place = self.0.partition_point(|old| old.rank() > new.rank());
        if place > 0 && self.0[place - 1].until >= new.until {
            return false;
        }
        // Those of lower rank that end no later are hidden for good.
        let end = place + self.0[place..].partition_point(|old| old.until <= new.until);
        self.0.splice(place..end, [new]);
        true
    }

    /// What is carried on to `start`: of these and of `rows` those that hold there or later.
    pub(super) fn rolled(&self, rows: impl Iterator<Item = Carried>, start: i64) -> Self {
        let ended = self.0.partition_point(|old| old.until <= start);
        let mut next = Self(self.0[ended..].to_vec());
        for row in rows.filter(|row| row.until > start) {
            next.insert(row);
        }
        next
    }
}
