//! Pins, residency and eviction under loom: threads that pin, unpin, find and evict one object.

use std::sync::Arc;

use loom::thread;

use crate::cache::memory::residency::Residency;
use crate::cache::memory::samples::{CHARGED_BYTES, home, id, object};

/// Every order in which threads are interrupted twice at most: a defect between few threads shows
/// with two, as a rule, and all orders would take hours.
fn few_switches(model: impl Fn() + Send + Sync + 'static) {
    let mut orders = loom::model::Builder::new();
    orders.preemption_bound = Some(2);
    orders.check(model);
}

fn assert_consistent(home: &Residency) {
    let residents = home.residents();
    assert_eq!(home.faults_of_sums(&residents), []);
}

#[test]
fn bytes_count_once_however_many_pin_and_unpin_at_once() {
    few_switches(|| {
        let home = home(1);
        let pin = object(&home, 1);
        let others: Vec<_> = (0..2)
            .map(|_| {
                let home = Arc::clone(&home);
                thread::spawn(move || drop(home.pin(id(1))))
            })
            .collect();
        drop(pin);
        others.into_iter().for_each(|other| other.join().unwrap());
        assert_eq!(home.pinned_bytes(), 0);
        assert_eq!(home.pins_of(id(1)), Some(0), "it is a candidate");
        assert_consistent(&home);
        home.clear_out();
        assert_eq!(home.objects(), 0);
    });
}

#[test]
fn an_object_that_is_pinned_while_it_is_unpinned_and_evicted_stays() {
    few_switches(|| {
        let home = home(1);
        let pin = object(&home, 1);
        let finds = thread::spawn({
            let home = Arc::clone(&home);
            move || {
                if let Some(pin) = home.pin(id(1)) {
                    assert_eq!(home.pins_of(id(1)).unwrap_or_default().min(1), 1);
                    assert!(pin.payload().iter().all(|byte| *byte == 1), "its block was freed");
                }
            }
        });
        let evicts = thread::spawn({
            let home = Arc::clone(&home);
            // As much as is there: its block is free if nothing pins it.
            move || drop(home.reserve(CHARGED_BYTES - 64))
        });
        drop(pin);
        finds.join().unwrap();
        evicts.join().unwrap();
        assert_eq!(home.pinned_bytes(), 0);
        // A candidate, or gone; never neither.
        let expected = home.pins_of(id(1)).map(|_| CHARGED_BYTES).unwrap_or_default();
        assert_eq!(home.pool().used_bytes(), expected);
        assert_consistent(&home);
        home.clear_out();
        assert_eq!(home.objects(), 0);
        assert_eq!(home.pool().used_bytes(), 0);
    });
}
