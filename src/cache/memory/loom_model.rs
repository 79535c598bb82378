//! Pins, residency and eviction under loom: threads that pin, unpin, find and evict one object.

use std::sync::Arc;

use loom::thread::{Builder, JoinHandle};

use crate::cache::memory::residency::Residency;
use crate::cache::memory::samples::{CHARGED_BYTES, OBJECT_BYTES, home, id, object};

/// Runs all orders with at most two preemptions. Most bugs need no more, and all orders would take
/// hours.
fn few_switches(model: impl Fn() + Send + Sync + 'static) {
    let mut orders = loom::model::Builder::new();
    orders.preemption_bound = Some(2);
    let model = Arc::new(model);
    orders.check(move || {
        let model = Arc::clone(&model);
        spawn(move || model()).join().unwrap();
    });
}

/// A thread with a stack for a pool of shared memory: loom's are 32 KiB.
fn spawn(body: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    const STACK_WORDS: usize = 64 << 10;
    Builder::new().stack_size(STACK_WORDS).spawn(body).unwrap()
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
                spawn(move || drop(home.pin(id(1))))
            })
            .collect();
        drop(pin);
        others.into_iter().for_each(|other| other.join().unwrap());
        assert_eq!(home.pinned_bytes(), 0);
        assert_eq!(home.pins_of(id(1)), Some(0));
        assert_eq!(home.candidate_bytes(), CHARGED_BYTES, "it is in one eviction queue, once");
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
        let finds = spawn({
            let home = Arc::clone(&home);
            move || {
                if let Some(pin) = home.pin(id(1)) {
                    assert!(home.pins_of(id(1)).is_some_and(|pins| pins > 0));
                    assert!(pin.payload().iter().all(|byte| *byte == 1), "its block was freed");
                }
            }
        });
        let evicts = spawn({
            let home = Arc::clone(&home);
            // All of the memory: its block is free unless it is pinned.
            move || drop(home.reserve(OBJECT_BYTES))
        });
        drop(pin);
        finds.join().unwrap();
        evicts.join().unwrap();
        assert_eq!(home.pinned_bytes(), 0);
        // Listed or gone, never neither.
        let expected = home.pins_of(id(1)).map(|_| CHARGED_BYTES).unwrap_or_default();
        assert_eq!(home.pool().used_bytes(), expected);
        assert_eq!(home.candidate_bytes(), expected);
        assert_consistent(&home);
        home.clear_out();
        assert_eq!(home.objects(), 0);
        assert_eq!(home.pool().used_bytes(), 0);
    });
}
