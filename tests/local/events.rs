//! Descriptors for event loops: they are readable when a wait would end, and use no CPU time.

use std::os::fd::AsFd as _;
use std::time::Duration;

use iovcache::client::PlaneEvent;
use iovcache::object::ObjectPath;
use iovcache::table::ColumnRequest;
use rustix::event::{PollFd, PollFlags, poll};

use crate::gated::{GatedService, gated_path};
use crate::setup::{Consumer, at, service, until_local, version};

const PATH: &str = "TPC/Calib/VDrift";
const LONG: Duration = Duration::from_secs(30);

fn is_readable(event: &PlaneEvent, limit: Duration) -> bool {
    let mut polled = [PollFd::new(event, PollFlags::IN)];
    poll(&mut polled, Some(&limit.try_into().unwrap())).unwrap() == 1
}

/// Voluntary context switches of the thread that waits for events.
fn switches_of_events() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let named = tasks.filter(|task| {
        let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        name.trim() == "iovcache-events"
    });
    let switches = named.map(|task| {
        let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.map_or(0, |count| count.trim().parse::<u64>().unwrap())
    });
    switches.sum()
}

#[test]
fn an_event_for_a_timeframe_is_readable_once_it_is_loaded() {
    let service = GatedService::new(4);
    let consumer = Consumer::with_local_tables(&service.url(), "a");
    let event = |id| consumer.runtime.block_on(consumer.client.timeframe_event(id)).unwrap();
    // The first call opens the session, so that timeframes are published.
    assert!(event(1).is_none(), "it is unknown");
    let columns = [ColumnRequest::new("c", ObjectPath::new(&gated_path(0)).unwrap())];
    let names = ["a".to_owned()];
    let put = consumer.client.put_timeframe(1, vec![Some(5)], &columns, &names);
    consumer.runtime.block_on(put).unwrap();
    let events = [event(1).unwrap(), event(1).unwrap()];
    assert!(!is_readable(&events[0], Duration::from_millis(50)));
    let before = switches_of_events();
    assert!(!is_readable(&events[1], Duration::from_secs(2)));
    // Such a thread of another test can end meanwhile.
    let woken = switches_of_events().saturating_sub(before);
    // Another test of this process can have such a thread, too.
    assert!(woken < 10, "{woken} wake-ups in 2 s without a change");
    service.set_open(true);
    assert!(events.iter().all(|event| is_readable(event, LONG)));
    assert!(event(1).is_none(), "there is nothing to wait for");
    let table = consumer.runtime.block_on(consumer.client.timeframe(1, "a")).unwrap();
    assert_eq!(table.column("c").unwrap().get(0).unwrap(), Some(&b"object 0"[..]));
    // The descriptor stays open, and readable, until the event is dropped.
    assert!(is_readable(&events[0], Duration::ZERO));
    let copy = events[0].as_fd().try_clone_to_owned();
    assert!(copy.is_ok());
}

#[test]
fn an_event_for_a_path_is_readable_after_a_change_and_at_the_end_of_the_service() {
    let (service, repository) = service(&[(PATH, (0, 100), 1)], &[]);
    let consumer = Consumer::new(&service.unix(), "waits");
    let path = consumer.local().path(PATH).unwrap();
    until_local(&path, 50);
    let known = path.at(at(50)).unwrap().map(|view| view.id());
    assert!(path.change_event(at(50), None).unwrap().is_none(), "another one is valid now");
    let event = path.change_event(at(50), known).unwrap().unwrap();
    assert!(!is_readable(&event, Duration::from_millis(500)));
    version(repository.path(), PATH, (0, 100), 2);
    assert!(is_readable(&event, LONG));
    let newer = path.at(at(50)).unwrap().map(|view| view.id());
    assert_ne!(newer, known);
    until_local(&path, 50);
    let event = path.change_event(at(50), newer).unwrap().unwrap();
    let _folder = service.kill();
    assert!(is_readable(&event, LONG));
}
