//! Leases and sessions under loom: a release, a hang-up and a new lease at once.

use std::sync::Arc;
use std::time::Duration;

use loom::thread;

use crate::budget::{Charge, ClientBudget};
use crate::cache::error::CacheError;
use crate::cache::holders::lease_terms::{HolderName, LeaseHolder, LeaseOwner, LeaseTerms};
use crate::cache::holders::leases::Leases;
use crate::cache::holders::limits::ConsumerLimits;
use crate::cache::holders::origin::{Account, Origin};
use crate::clock::Clock;

fn terms(session: &str) -> LeaseTerms {
    let name = HolderName { consumer: "x".to_owned(), account: Account::Embedded };
    LeaseTerms {
        owner: LeaseOwner::Session(session.to_owned()),
        timeframe: Some((1, "x".to_owned())),
        ticket: Some(((*b"ticket").into(), None)),
        holder: Some(LeaseHolder { name, timeframe: Some(1) }),
    }
}

fn free() -> Charge {
    ClientBudget::default().charge(0, "a lease").unwrap()
}

#[test]
fn a_lease_ends_once_whatever_ends_it_and_none_outlives_its_session() {
    loom::model(|| {
        let limits = ConsumerLimits::default();
        let second = Duration::from_secs(1);
        let leases = Arc::new(Leases::new(Clock::system(), second, limits, Arc::default()));
        let session = leases.open_session("x".to_owned(), 1, 1, Origin::Embedded).id;
        let first = leases.open(terms(&session), Vec::new(), free()).unwrap();
        let released = thread::spawn({
            let (leases, first) = (Arc::clone(&leases), first.clone());
            move || leases.end(&first)
        });
        // One more table for the session while its process dies.
        let opened = thread::spawn({
            let (leases, session) = (Arc::clone(&leases), session.clone());
            move || leases.open(terms(&session), Vec::new(), free())
        });
        leases.end_session(&session);
        let released = released.join().unwrap();
        assert!(!leases.end(&first), "it ended once, by its release ({released}) or its session");
        match opened.join().unwrap() {
            Ok(second) => assert!(!leases.is_open(&second), "a lease outlives its session"),
            Err(error) => assert!(matches!(error, CacheError::UnknownSession)),
        }
        assert_eq!(leases.counts(), (0, 0));
        assert_eq!(leases.faults(), Vec::<String>::new());
        assert!(leases.of_ticket(b"ticket").is_empty());
        leases.check_consumer("x", &Origin::process(1)).expect("the name is free");
    });
}
