//! The holders of pins: which lease, timeframe or session pins which object.

use std::collections::HashMap;
use std::sync::Arc;

use crate::cache::holders::leases::Leases;
use crate::cache::holders::timeframes::Timeframes;
use crate::cache::memory::object::PinSet;
use crate::object::ObjectId;

/// Maximum number of holders with a name of their own; all others share one.
const MAX_NAMES: usize = 32;
/// Maximum number of pins examined; objects of further pins have no named holder.
const MAX_PINS: usize = 100_000;

/// A set of holders, as a bit mask.
pub(super) type HolderSet = u64;

/// The holders of each pinned object.
#[derive(Debug, Default)]
pub(super) struct Holders {
    names: Vec<String>,
    of: HashMap<ObjectId, HolderSet>,
    pins: usize,
}

impl Holders {
    pub(super) fn new(leases: &Leases, timeframes: &Timeframes, in_hand: Vec<Arc<PinSet>>) -> Self {
        let mut holders = Self::default();
        for (name, sets) in leases.holders() {
            holders.add(name.as_deref().unwrap_or("leases without a name"), &sets);
        }
        // Tables from shared memory have no lease.
        for (name, sets) in timeframes.delivered_pins() {
            holders.add(&name, &sets);
        }
        holders.add("timeframes in flight", &timeframes.pin_sets());
        holders.add("tables and objects in use", &in_hand);
        holders
    }

    fn add(&mut self, name: &str, sets: &[Arc<PinSet>]) {
        if sets.is_empty() {
            return;
        }
        let name = if self.names.len() < MAX_NAMES { name } else { "others" };
        let place = self.names.iter().position(|known| known == name).unwrap_or_else(|| {
            self.names.push(name.to_owned());
            self.names.len() - 1
        });
        for pin in sets.iter().flat_map(|set| set.pins()) {
            if self.pins >= MAX_PINS {
                return;
            }
            self.pins += 1;
            *self.of.entry(pin.id()).or_default() |= 1 << place;
        }
    }

    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    pub(super) fn of(&self, id: ObjectId) -> HolderSet {
        self.of.get(&id).copied().unwrap_or(0)
    }

    /// The positions of the names in a set.
    pub(super) fn places(mask: HolderSet) -> Vec<u8> {
        (0..64_u8).filter(|place| mask & (1 << place) != 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_holders_names_its_places() {
        assert_eq!(Holders::places(0b1000_0101), [0, 2, 7]);
        const { assert!(MAX_NAMES < 63, "the names and the others fit into a mask") }
    }
}
