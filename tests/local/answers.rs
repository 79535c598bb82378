//! A look-up gives the answer of the service.

use std::time::{Duration, Instant};

use iovcache::client::{ClientError, TableRequest};
use iovcache::shm::AskReason;

use crate::common::{Service, until};
use crate::setup::{Consumer, REFRESH, at, service, until_asked, until_local, version};

const PATH: &str = "TPC/Calib/VDrift";

#[test]
fn a_path_that_was_asked_for_is_found_without_a_call() {
    let (service, _repository) = service(&[(PATH, (0, 100), 1), (PATH, (100, 200), 2)], &[]);
    let consumer = Consumer::new(&service.unix(), "one");
    let local = consumer.local();
    let path = local.path(PATH).unwrap();
    let first = path.at(at(50)).unwrap().unwrap();
    assert!(!first.is_local(), "nothing is published yet");
    assert_eq!(&*first, b"TPC/Calib/VDrift 0 100 1");
    until_local(&path, 50);
    let found = path.at(at(50)).unwrap().unwrap();
    assert!(found.is_local());
    assert_eq!((&*found, found.id(), found.validity()), (&*first, first.id(), first.validity()));
    assert_eq!(found.validity().from(), at(0));
    assert_eq!(found.validity().until(), at(100));
    let counts = local.counts();
    assert!(counts.asks > 0, "{counts:?}");
    // Another consumer finds it at once: the directory is one for all.
    let other = Consumer::new(&service.unix(), "other");
    let path = other.local().path(PATH).unwrap();
    assert_eq!(&*path.try_at(at(50)).unwrap(), b"TPC/Calib/VDrift 0 100 1");
}

#[test]
fn at_every_border_the_answer_is_that_of_the_service() {
    // Overlapping versions, so that spans are cut; gaps; one that reaches to the end of time.
    let versions = [
        (PATH, (0, 100), 1),
        (PATH, (40, 60), 2),
        (PATH, (50, 55), 3),
        (PATH, (90, 95), 0),
        (PATH, (120, 140), 4),
        (PATH, (140, i64::MAX), 5),
    ];
    let (service, _repository) = service(&versions, &[]);
    let consumer = Consumer::new(&service.unix(), "one");
    let path = consumer.local().path(PATH).unwrap();
    let borders = [0, 40, 50, 55, 60, 90, 95, 100, 120, 140, i64::MAX - 1];
    let times: Vec<i64> = borders.iter().flat_map(|border| [border - 1, *border]).collect();
    let expected: Vec<_> = times.iter().map(|time| consumer.asked(PATH, *time)).collect();
    for (time, expected) in times.iter().zip(&expected) {
        let found = path.at(at(*time)).unwrap();
        assert_eq!(found.as_deref(), expected.as_deref(), "asked at {time}");
        if expected.is_some() {
            until_local(&path, *time);
        }
    }
    for (time, expected) in times.iter().zip(&expected) {
        match expected {
            Some(bytes) => {
                until_local(&path, *time);
                assert_eq!(path.at(at(*time)).unwrap().as_deref(), Some(&bytes[..]), "at {time}");
            }
            None => assert!(path.try_at(at(*time)).is_err(), "nothing is valid at {time}"),
        }
    }
    let end = path.at(at(i64::MAX)).unwrap();
    assert!(end.is_none(), "the last millisecond is in no interval");
}

#[test]
fn many_are_found_in_their_order_and_what_is_not_valid_is_none() {
    let other = "ITS/Calib/Map";
    let versions = [(PATH, (0, 10), 1), (PATH, (20, 30), 2), (other, (0, 30), 3)];
    let (service, _repository) = service(&versions, &[]);
    let consumer = Consumer::new(&service.unix(), "one");
    let local = consumer.local();
    let (drift, map) = (local.path(PATH).unwrap(), local.path(other).unwrap());
    let keys = [(&drift, at(5)), (&map, at(5)), (&drift, at(15)), (&drift, at(25)), (&map, at(30))];
    let expected = [
        Some("TPC/Calib/VDrift 0 10 1"),
        Some("ITS/Calib/Map 0 30 3"),
        None,
        Some("TPC/Calib/VDrift 20 30 2"),
        None,
    ];
    for round in 0..3 {
        let views = local.get_many(&keys).unwrap();
        for (view, expected) in views.iter().zip(expected) {
            assert_eq!(view.as_deref(), expected.map(str::as_bytes), "round {round}");
        }
        drop(views);
        until_local(&drift, 5);
        until_local(&drift, 25);
        until_local(&map, 5);
    }
    let views = local.get_many(&keys).unwrap();
    let found: Vec<_> =
        views.iter().map(|view| view.as_ref().map(|view| view.is_local())).collect();
    assert_eq!(found, [Some(true), Some(true), None, Some(true), None]);
}

#[test]
fn a_newer_version_is_seen_within_the_refresh_time_and_the_older_one_never_after_it() {
    let (service, repository) = service(&[(PATH, (0, 1_000), 1)], &[]);
    let consumer = Consumer::new(&service.unix(), "one");
    let path = consumer.local().path(PATH).unwrap();
    until_local(&path, 500);
    for created in 2..6 {
        version(repository.path(), PATH, (0, 1_000), created);
        let put = Instant::now();
        let newest = format!("{PATH} 0 1000 {created}");
        let seen = loop {
            // As a consumer does that asks in a loop.
            let began = Instant::now();
            let found = path.at(at(500)).unwrap().unwrap();
            if *found == *newest.as_bytes() {
                break began;
            }
            assert!(put.elapsed() < 20 * REFRESH, "{created} is not seen");
        };
        // Nothing that was asked for a refresh time later may be older.
        let late = seen.saturating_duration_since(put);
        assert!(late < REFRESH + Duration::from_secs(2), "{created} was seen after {late:?}");
        for _ in 0..2_000 {
            assert_eq!(&*path.at(at(500)).unwrap().unwrap(), newest.as_bytes());
        }
    }
}

#[test]
fn an_object_that_the_service_does_not_see_is_not_found_locally_either() {
    let versions = [(PATH, (0, 100), 1), (PATH, (0, 100), 5), (PATH, (0, 100), 9)];
    let (service, _repository) = service(&versions, &["--not-after", "5"]);
    let consumer = Consumer::new(&service.unix(), "one");
    let path = consumer.local().path(PATH).unwrap();
    until_local(&path, 50);
    assert_eq!(&*path.at(at(50)).unwrap().unwrap(), b"TPC/Calib/VDrift 0 100 5");
}

#[test]
fn a_path_that_is_invalidated_is_asked_for_again() {
    let (service, _repository) = service(&[(PATH, (0, 100), 1)], &[]);
    let consumer = Consumer::new(&service.unix(), "one");
    let path = consumer.local().path(PATH).unwrap();
    until_local(&path, 50);
    let about = serde_json::json!({"path": PATH});
    let invalidate = consumer.client.act("invalidate", &about);
    let _: serde_json::Value = consumer.runtime.block_on(invalidate).unwrap();
    assert_eq!(path.try_at(at(50)).unwrap_err(), AskReason::Unpublished);
    until_local(&path, 50);
}

#[test]
fn a_service_that_is_stopped_stops_confirming() {
    let (service, _repository) = service(&[(PATH, (0, 100), 1)], &[]);
    let consumer = Consumer::new(&service.unix(), "one");
    let path = consumer.local().path(PATH).unwrap();
    until_local(&path, 50);
    service.signal("STOP");
    let stopped = Instant::now();
    let reason = until_asked(&path, 50);
    let late = stopped.elapsed();
    assert_eq!(reason, AskReason::Unconfirmed);
    assert!(late < REFRESH + Duration::from_secs(2), "{late:?}");
    service.signal("CONT");
    until_local(&path, 50);
    assert_eq!(&*path.at(at(50)).unwrap().unwrap(), b"TPC/Calib/VDrift 0 100 1");
}

#[test]
fn views_outlive_the_service_and_handles_go_on_with_its_successor() {
    let repository = tempfile::tempdir().unwrap();
    version(repository.path(), PATH, (0, 100), 1);
    let first = Service::over(repository.path(), &[]);
    let (url, sockets) = (first.unix(), first.folder.path().join("s"));
    let consumer = Consumer::new(&url, "one");
    let path = consumer.local().path(PATH).unwrap();
    until_local(&path, 50);
    let view = path.at(at(50)).unwrap().unwrap();
    let folder = first.kill();
    until("the end is noticed", || path.try_at(at(50)).is_err().then_some(()));
    assert_eq!(&*view, b"TPC/Calib/VDrift 0 100 1");
    // The successor answers at the same sockets.
    let sockets = sockets.to_str().unwrap().to_owned();
    let second = Service::over(repository.path(), &["--socket", &sockets]);
    assert_eq!(second.unix(), url);
    until_local(&path, 50);
    let found = path.at(at(50)).unwrap().unwrap();
    assert!(found.is_local());
    assert_eq!(
        (&*found, &*view),
        (&b"TPC/Calib/VDrift 0 100 1"[..], &b"TPC/Calib/VDrift 0 100 1"[..])
    );
    drop((found, view));
    drop(folder);
}

#[test]
fn where_it_is_turned_off_the_service_is_asked() {
    let (service, _repository) = service(&[(PATH, (0, 100), 1)], &["--no-local"]);
    let consumer = Consumer::new(&service.unix(), "one");
    let path = consumer.local().path(PATH).unwrap();
    for _ in 0..20 {
        let found = path.at(at(50)).unwrap().unwrap();
        assert_eq!(&*found, b"TPC/Calib/VDrift 0 100 1");
        assert!(!found.is_local());
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(path.try_at(at(50)).unwrap_err(), AskReason::Ended);
}

#[test]
fn over_tcp_and_from_afar_the_answers_are_the_same() {
    let (service, _repository) = service(&[(PATH, (0, 100), 1)], &[]);
    let near = Consumer::new(&service.tcp(), "near");
    let path = near.local().path(PATH).unwrap();
    until_local(&path, 50);
    assert_eq!(&*path.at(at(50)).unwrap().unwrap(), b"TPC/Calib/VDrift 0 100 1");
    let options = iovcache::client::ClientOptions { remote: true, ..Default::default() };
    let url = service.tcp();
    let connecting = iovcache::client::Client::connect_with(&url, options);
    let far = near.runtime.block_on(connecting).unwrap();
    let path = far.local().unwrap().path(PATH).unwrap();
    let found = path.at(at(50)).unwrap().unwrap();
    assert_eq!((&*found, found.is_local()), (&b"TPC/Calib/VDrift 0 100 1"[..], false));
    assert!(path.at(at(100)).unwrap().is_none());
}

#[test]
fn a_text_that_is_no_path_is_refused_as_one() {
    let (service, _repository) = service(&[], &[]);
    let consumer = Consumer::new(&service.unix(), "one");
    let wrong = consumer.local().path("A//B").unwrap_err();
    assert!(matches!(wrong, ClientError::Argument { .. }), "{wrong}");
}

#[test]
fn held_objects_stay_when_the_service_is_stopped_and_when_it_is_killed() {
    for backing in ["memfd", "shm"] {
        for is_killed in [false, true] {
            let (service, _repository) = service(&[(PATH, (0, 100), 1)], &["--backing", backing]);
            let consumer = Consumer::with_local_tables(&service.unix(), "one");
            let local = consumer.local();
            let path = local.path(PATH).unwrap();
            let requested = path.at(at(50)).unwrap().unwrap();
            until_local(&path, 50);
            let found = path.at(at(50)).unwrap().unwrap();
            let request = TableRequest::new().column("c", PATH).timestamps([50]);
            let table = consumer.runtime.block_on(consumer.client.table(request)).unwrap();
            match is_killed {
                true => drop(service.kill()),
                false => assert_eq!(service.stop().0, Some(0)),
            }
            for view in [&requested, &found] {
                assert!(view.is_live(), "{backing}, killed: {is_killed}, {}", view.is_local());
                assert_eq!(&**view, b"TPC/Calib/VDrift 0 100 1");
            }
            let column = table.column("c").unwrap();
            assert_eq!(column.get(0).unwrap(), Some(&b"TPC/Calib/VDrift 0 100 1"[..]));
            assert!(table.is_live(&column.header(0).unwrap()), "{backing}, killed: {is_killed}");
        }
    }
}

#[test]
fn the_first_table_and_the_first_look_up_wait_for_a_service_that_is_started_again() {
    let sockets = tempfile::tempdir().unwrap();
    let arguments = ["--socket", sockets.path().to_str().unwrap()];
    for is_table in [false, true] {
        let (service, repository) = service(&[(PATH, (0, 100), 1)], &arguments);
        let consumer = Consumer::new(&service.unix(), "one");
        consumer.runtime.block_on(consumer.client.status()).unwrap();
        drop(service.kill());
        std::thread::scope(|scope| {
            let successor = scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(500));
                Service::over(repository.path(), &arguments)
            });
            let bytes = match is_table {
                true => consumer.asked(PATH, 50),
                false => {
                    let local = consumer.local();
                    let path = local.path(PATH).unwrap();
                    path.at(at(50)).unwrap().map(|view| view.to_vec())
                }
            };
            assert_eq!(bytes.as_deref(), Some(&b"TPC/Calib/VDrift 0 100 1"[..]));
            drop(successor.join().unwrap());
        });
    }
}
