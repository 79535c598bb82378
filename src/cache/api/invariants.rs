//! Checks the invariants of the cache, at rest and while the service runs.
//!
//! ```text
//!  places    no place is both free and in use; each published one is the block of one object, or of the
//!            snapshot of a timeline, or of the table of a timeframe
//!  bytes     used == bytes of taken places; pinned == bytes of objects with pins
//!  pins      of each object == pins in the sets of leases, timeframes, reservations, in_use
//!  books     each lease is listed in its indexes; each pins page belongs to a session
//!  contents  (on demand) every header and CRC-32C is as published
//! ```
//!
//! A check locks nothing for its whole duration, so objects that move between two of its steps seem
//! to be faults. While the service runs, the check is therefore repeated, and only a fault found
//! each time is reported. Pins of a load in progress are in no set yet, so they do not count while
//! objects are being loaded. Reserved room without an object does not count while room is reserved.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::handle::Cache;
use crate::cache::memory::object::{PinSet, Resident};
use crate::object::ObjectId;
use crate::shm::BlockLocation;
use crate::table::CheckAnswer;

/// Longest time over which the check of a running service is repeated.
const CHECK_LIMIT: Duration = Duration::from_secs(2);
/// Pause between two checks.
const PAUSE: Duration = Duration::from_millis(20);

/// Faults: a name that identifies each one across checks, and a sentence.
type Faults = BTreeMap<String, String>;

impl Cache {
    /// Checks all invariants and reads every object. The result is valid only while no request is
    /// running; else use [`check_running`](Self::check_running).
    ///
    /// # Errors
    /// All faults, one sentence each.
    pub fn check(&self) -> Result<(), Vec<String>> {
        let (mut faults, _) = self.look(true);
        faults.extend(self.damage().0);
        if faults.is_empty() { Ok(()) } else { Err(faults.into_values().collect()) }
    }

    /// Checks the invariants while the service runs; with `contents` it reads every object, too.
    ///
    /// Returns at once if nothing is wrong. A fault is checked repeatedly for 2 s before it is
    /// reported.
    pub async fn check_running(&self, contents: bool) -> CheckAnswer {
        let (damage, read_bytes) = match contents {
            false => Default::default(),
            true => {
                let cache = self.clone();
                let read = tokio::task::spawn_blocking(move || cache.damage()).await;
                read.unwrap_or_else(|error| {
                    (vec![("read".to_owned(), format!("objects are not read: {error}"))], 0)
                })
            }
        };
        let began = Instant::now();
        let (mut wrong, mut answer) = self.look(false);
        while !wrong.is_empty() && began.elapsed() < CHECK_LIMIT {
            tokio::time::sleep(PAUSE).await;
            let (again, seen) = self.look(false);
            // With the sentence of the latest check.
            wrong = again.into_iter().filter(|(name, _)| wrong.contains_key(name)).collect();
            answer = CheckAnswer { looks: answer.looks + 1, ..seen };
        }
        wrong.extend(damage);
        for fault in wrong.values() {
            tracing::error!("check: {fault}");
        }
        CheckAnswer { faults: wrong.into_values().collect(), read_bytes, ..answer }
    }

    /// Checks everything once, except the contents.
    fn look(&self, at_rest: bool) -> (Faults, CheckAnswer) {
        let inner = &*self.0;
        let keeps_room = || inner.loader.is_under_way() || inner.loader.keeps_room();
        let mut busy = !at_rest && inner.loader.is_under_way();
        let mut keeping = !at_rest && keeps_room();
        // Objects first: these references keep them alive during the rest of the check.
        let residents = inner.residency.residents();
        let survey = inner.pool.survey();
        let mut held = inner.leases.pin_sets();
        held.extend(inner.timeframes.pin_sets());
        held.extend(inner.in_use.pin_sets());
        held.extend(inner.loader.pin_sets());
        let pins = faults_of_pins(&residents, &held);
        busy |= !at_rest && inner.loader.is_under_way();
        keeping |= !at_rest && keeps_room();

        let mut faults = Faults::new();
        for fault in survey.faults {
            // Numbers change from check to check while the fault is the same.
            let name: String = fault.chars().filter(|c| !c.is_ascii_digit()).collect();
            faults.insert(name, fault);
        }
        let snapshots = inner.publisher.as_ref().map(|publisher| publisher.locations());
        let mut snapshots = snapshots.unwrap_or_default();
        snapshots.extend(inner.timeframes.table_locations());
        faults.extend(faults_of_places(&residents, &snapshots, &survey.taken, keeping));
        let sums = inner.residency.faults_of_sums(&residents);
        faults.extend(sums.into_iter().map(|(name, fault)| (name.to_owned(), fault)));
        let missing = |missing: &bool| !(busy && *missing);
        let pins = pins.into_iter().filter(|(_, unowned, _)| missing(unowned));
        faults.extend(pins.map(|(id, _, fault)| (format!("pins of {id}"), fault)));
        faults.extend(self.faults_of_publications());
        faults.extend(inner.leases.faults().into_iter().map(|fault| (fault.clone(), fault)));

        let (sessions, leases) = inner.leases.counts();
        let answer = CheckAnswer {
            faults: Vec::new(),
            looks: 1,
            segments: survey.report.segments as u64,
            objects: residents.len() as u64,
            used_bytes: survey.report.used_bytes,
            pinned_bytes: inner.residency.pinned_bytes(),
            sessions: sessions as u64,
            leases: leases as u64,
            timeframes: inner.timeframes.len() as u64,
            read_bytes: 0,
        };
        (faults, answer)
    }

    /// Faults of the published timelines and of the pages with the pins of consumers.
    fn faults_of_publications(&self) -> Faults {
        let Some(publisher) = &self.0.publisher else { return Faults::new() };
        let faults = publisher.faults(|session| self.0.leases.has_session(session)).into_iter();
        faults.map(|(name, fault)| (name.to_owned(), fault)).collect()
    }

    /// Objects that differ from their published state, and the number of bytes read.
    fn damage(&self) -> (Vec<(String, String)>, u64) {
        let mut read_bytes = 0;
        let mut damage = Vec::new();
        for resident in self.0.residency.residents() {
            read_bytes += resident.block().size_bytes();
            if !resident.block().is_intact() {
                let fault = format!("{resident:?} differs from its published state");
                damage.push((format!("contents of {}", resident.id()), fault));
            }
        }
        (damage, read_bytes)
    }
}

/// Compares the taken places with those of the objects.
fn faults_of_places(
    residents: &[Arc<Resident>],
    snapshots: &[BlockLocation],
    taken: &[(BlockLocation, u64)],
    busy: bool,
) -> Faults {
    let mut faults = Faults::new();
    let taken: HashMap<BlockLocation, u64> = taken.iter().copied().collect();
    let mut used: HashMap<BlockLocation, &Arc<Resident>> = HashMap::with_capacity(residents.len());
    for resident in residents {
        let (block, location) = (resident.block(), resident.block().location());
        let fault = match taken.get(&location) {
            None => Some(format!("{resident:?} is at {location}, which is free")),
            Some(_) if !block.has_its_header() => {
                Some(format!("{resident:?} at {location} does not have its own header"))
            }
            Some(_) => None,
        };
        let other = used.insert(location, resident);
        let fault = fault
            .or_else(|| other.map(|other| format!("{resident:?} and {other:?} share {location}")));
        faults.extend(fault.map(|fault| (format!("place of {}", resident.id()), fault)));
    }
    let snapshots: HashSet<&BlockLocation> = snapshots.iter().collect();
    for (location, generation) in taken {
        if snapshots.contains(&location) {
            continue;
        }
        let fault = match (generation, used.contains_key(&location)) {
            (_, true) => continue,
            (0, false) if busy => continue,
            (0, false) => format!("the place at {location} is taken for nothing"),
            (_, false) => format!("the block at {location} is of no object"),
        };
        faults.insert(format!("{location} {generation}"), fault);
    }
    faults
}

/// Objects whose pin counts differ from those of `held`, each set counted once. The flag is true
/// if the object has more pins than `held`.
fn faults_of_pins(
    residents: &[Arc<Resident>],
    held: &[Arc<PinSet>],
) -> Vec<(ObjectId, bool, String)> {
    let mut sets: HashSet<*const PinSet> = HashSet::new();
    // By address: an object in a lost segment can have a successor with its id.
    let mut pins: HashMap<*const Resident, u32> = HashMap::new();
    for set in held {
        if sets.insert(Arc::as_ptr(set)) {
            let residents = set.pins().iter().map(|pin| Arc::as_ptr(pin.resident()));
            residents.for_each(|resident| *pins.entry(resident).or_default() += 1);
        }
    }
    let wrong = |resident: &Arc<Resident>| {
        let (held, has) = (pins.get(&Arc::as_ptr(resident)).copied().unwrap_or(0), resident.pins());
        let fault = format!("{resident:?}: {held} are held");
        (held != has).then_some((resident.id(), has > held, fault))
    };
    residents.iter().filter_map(wrong).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Caller;
    use crate::interval::{Timestamp, ValidityInterval};
    use crate::object::{ObjectInfo, ObjectPath};
    use crate::shm::PoolOptions;
    use crate::source::MemorySource;
    use crate::table::Request;

    /// A cache whose only object is resident and pinned by a lease.
    async fn with_an_object() -> (Cache, ObjectId) {
        let (source, id) = (MemorySource::new(), ObjectId::from_bytes([7; 16]));
        let info = ObjectInfo {
            path: ObjectPath::new("A/B").unwrap(),
            id,
            validity: ValidityInterval::ALL,
            created: Timestamp::from_millis(1),
            size_bytes: None,
            md5: None,
            metadata: Default::default(),
        };
        source.put(info, vec![7; 1000]);
        let memory = PoolOptions { memory_bytes: 1 << 20, ..PoolOptions::default() };
        let cache = Cache::builder().source(Arc::new(source)).memory(memory).build().unwrap();
        let request = Request::parse(br#"{"columns": {"b": "A/B"}, "timestamps": [5]}"#).unwrap();
        let answer = cache.answer(&request, &Caller::default()).await.unwrap();
        assert_eq!(answer.pins().pins()[0].id(), id);
        (cache, id)
    }

    /// Breaks each invariant once; both checks must find it.
    #[tokio::test]
    async fn every_planted_fault_is_found() {
        type Break = fn(&Cache, ObjectId);
        let break_it: [(&str, Break); 4] = [
            ("1 are held", |cache, id| std::mem::forget(cache.0.residency.pin(id))),
            ("pinned, ", |cache, _| cache.0.residency.count_pinned(64)),
            ("for nothing", |cache, _| std::mem::forget(cache.0.pool.reserve(100).unwrap())),
            ("of no object", |cache, id| {
                std::mem::forget(cache.0.pool.reserve(100).unwrap().publish(id));
            }),
        ];
        let broken = break_it.map(async |(expected, break_it)| {
            let (cache, id) = with_an_object().await;
            assert_eq!(cache.check(), Ok(()));
            assert_eq!(cache.check_running(true).await.faults, [""; 0]);
            break_it(&cache, id);
            let faults = cache.check().unwrap_err();
            assert!(faults.iter().any(|fault| fault.contains(expected)), "{expected}: {faults:?}");
            let answer = cache.check_running(false).await;
            let found = answer.faults.iter().any(|fault| fault.contains(expected));
            assert!(found && answer.looks > 2, "{expected}: {answer:?}");
        });
        futures::future::join_all(broken).await;
    }
}
