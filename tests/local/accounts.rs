//! Accounts of look-ups that the service does not see: slots, uses, and versions for the audit log.

use std::time::Duration;

use serde_json::Value;

use crate::common::{Service, until};
use crate::setup::{Consumer, at, service, until_local, version};

const PATH: &str = "TPC/Calib/VDrift";

/// The sessions of a service, by their status.
fn sessions(consumer: &Consumer) -> Vec<iovcache::table::SessionStatus> {
    consumer.runtime.block_on(consumer.client.status()).unwrap().sessions
}

#[test]
fn status_tells_the_slots_in_use_by_session_and_check_knows_them() {
    let (service, _repository) = service(&[(PATH, (0, 100), 1)], &[]);
    let consumer = Consumer::new(&service.unix(), "slots");
    let path = consumer.local().path(PATH).unwrap();
    until_local(&path, 50);
    let slots = || sessions(&consumer).iter().map(|session| session.slots).sum::<u64>();
    assert_eq!(slots(), 0);
    let held: Vec<_> = (0..5).map(|_| path.try_at(at(50)).unwrap()).collect();
    assert_eq!(slots(), 5);
    assert!(sessions(&consumer).iter().all(|session| session.consumer == "slots"));
    service.adds_up();
    drop(held);
    assert_eq!(slots(), 0);
}

/// The look-ups that the log of a service names, once its sessions are over.
fn looked_up(service: Service) -> Vec<(u64, Vec<Value>, u64)> {
    let (_, log) = service.stop();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let of_look_ups = lines.filter(|line| line["message"] == "look-ups");
    let found = of_look_ups.map(|line| {
        let versions = serde_json::from_str(line["versions"].as_str().unwrap()).unwrap();
        (line["look_ups"].as_u64().unwrap(), versions, line["unnamed"].as_u64().unwrap())
    });
    found.collect()
}

#[test]
fn the_audit_log_names_each_version_that_a_session_looked_up_by_itself() {
    let versions: Vec<_> = (0..20).map(|n| (PATH, (n * 10, n * 10 + 10), 1)).collect();
    let arguments = ["--log", "warn,iovcache::table=info", "--log-format", "json"];
    let (service, repository) = service(&versions, &arguments);
    let consumer = Consumer::new(&service.unix(), "audited");
    let path = consumer.local().path(PATH).unwrap();
    let times: Vec<i64> = (0..10).map(|n| n * 10 + 5).collect();
    for time in &times {
        until_local(&path, *time);
    }
    // In less time than there is between two samples of one path.
    let mut ids: Vec<String> =
        times.iter().map(|time| path.try_at(at(*time)).unwrap().id().to_string()).collect();
    // A version that is replaced is named, too.
    version(repository.path(), PATH, (0, 10), 2);
    let replaced = ids[0].clone();
    until("the newer version", || {
        until_local(&path, 5);
        let found = path.try_at(at(5)).ok()?;
        (found.id().to_string() != replaced).then(|| ids.push(found.id().to_string()))
    });
    drop(path);
    drop(consumer);
    std::thread::sleep(Duration::from_millis(300));
    let told = looked_up(service);
    let [(look_ups, versions, unnamed)] = &told[..] else { panic!("{told:?}") };
    assert!(*look_ups >= 11, "{look_ups}");
    assert_eq!(*unnamed, 0);
    let mut named: Vec<&str> =
        versions.iter().map(|version| version["object_id"].as_str().unwrap()).collect();
    named.sort_unstable();
    ids.sort_unstable();
    assert_eq!(named, ids);
    assert!(versions.iter().all(|version| version["path"] == PATH));
    assert!(versions.iter().any(|version| version["from"] == 90 && version["until"] == 100));
}

#[test]
fn an_object_that_is_only_looked_up_is_kept_and_one_that_is_not_goes() {
    // Room for a few objects of 256 KiB: what is looked up all the time stays.
    let repository = tempfile::tempdir().unwrap();
    let bytes = vec![7; 256 << 10];
    for n in 0..24 {
        let path = format!("P/N{n}");
        let one =
            crate::common::Version { path: &path, from: 0, until: 100, created: 1, bytes: &bytes };
        crate::common::put(repository.path(), &one);
    }
    let source = format!("file://{}", repository.path().display());
    let arguments = ["--source", source.as_str(), "--refresh", "10s"];
    let service = Service::start_sized("3MiB", "1MiB", &arguments);
    let consumer = Consumer::new(&service.unix(), "looks up");
    let path = consumer.local().path("P/N0").unwrap();
    until_local(&path, 50);
    let other = Consumer::new(&service.unix(), "asks");
    let mut lost = 0;
    for round in 0..3 {
        for n in 1..24 {
            let _ = other.asked(&format!("P/N{n}"), 50);
            // Longer than samples are taken, and never held.
            std::thread::sleep(Duration::from_millis(30));
            if path.try_at(at(50)).is_err() {
                lost += 1;
                until_local(&path, 50);
            }
        }
        assert!(lost <= 3, "lost {lost} times by round {round}");
    }
    service.adds_up();
}
