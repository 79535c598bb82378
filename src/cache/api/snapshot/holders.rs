//! Who pins what, as far as that can be told in one glance.

use std::collections::HashMap;
use std::sync::Arc;

use crate::cache::holders::lease::Leases;
use crate::cache::holders::timeframe::Timeframes;
use crate::cache::memory::object::PinSet;
use crate::object::ObjectId;

/// So many holders have a name each; all others are one.
const MAX_NAMES: usize = 32;
/// How many pins are looked at; beyond, an object is pinned without saying by whom.
const MAX_PINS: usize = 100_000;

/// A set of holders.
pub(super) type Mask = u64;

/// Who pins what.
#[derive(Debug, Default)]
pub(super) struct Holders {
    names: Vec<String>,
    of: HashMap<ObjectId, Mask>,
    pins: usize,
}

impl Holders {
    pub(super) fn new(leases: &Leases, timeframes: &Timeframes, in_hand: Vec<Arc<PinSet>>) -> Self {
        let mut holders = Self::default();
        for (name, sets) in leases.holders() {
            holders.add(name.as_deref().unwrap_or("a lease without a name"), &sets);
        }
        holders.add("timeframes in flight", &timeframes.pin_sets());
        holders.add("what is being sent", &in_hand);
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

    pub(super) fn of(&self, id: ObjectId) -> Mask {
        self.of.get(&id).copied().unwrap_or(0)
    }

    /// The places of the names in a set.
    pub(super) fn places(mask: Mask) -> Vec<u8> {
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
