//! Random kills of consumers and of the service, among consumers that read all the time.

use std::time::{Duration, Instant};

use iovcache::ObjectPath;
use iovcache::client::Client;
use iovcache::table::ColumnRequest;
use serde_json::json;

use crate::common::{Service, iovcache};
use crate::consumer::Consumer;
use crate::consumers::{observer, service, session_ends};
use crate::data::{Chance, PATHS, VERSIONS, count_of, fill, path};

const WORKERS: usize = 4;

fn name(worker: usize) -> String {
    format!("worker{worker}")
}

fn worker(url: &str, number: usize, chance: &mut Chance) -> Consumer {
    let mut consumer = Consumer::start(url, &name(number));
    consumer.tell(&json!({"work": chance.next()}));
    consumer
}

/// Waits until each of them has received a table since the call.
fn progress(workers: &mut [Consumer]) {
    for worker in workers {
        worker.last_said();
        worker.said();
    }
}

/// Registers a timeframe for two of the workers.
async fn register(client: &Client, timeframe: u64, chance: &mut Chance) {
    let number = timeframe % PATHS;
    let path = ObjectPath::new(&path(number)).unwrap();
    let columns = [ColumnRequest::new(format!("c{number}"), path)];
    let at = (timeframe % (VERSIONS * 10)) as i64;
    let first = chance.below(WORKERS as u64) as usize;
    let names = [name(first), name((first + 1) % WORKERS)];
    client.put_timeframe(timeframe, vec![Some(at)], &columns, &names).await.unwrap();
}

async fn adds_up(client: &Client, contents: bool) {
    let found = client.check(contents).await.unwrap();
    assert_eq!(found.faults, [""; 0], "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn consumers_killed_and_stopped_at_any_moment_harm_no_other() {
    let mut chance = Chance::of_the_test("consumers");
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path());
    let service = service(folder.path(), &[]);
    let url = service.unix();
    let client = observer(&service).await;
    let mut workers: Vec<Consumer> =
        (0..WORKERS).map(|number| worker(&url, number, &mut chance)).collect();
    progress(&mut workers);
    let (mut longest, mut timeframes) = (Duration::ZERO, 0);
    let kills = count_of("IOVCACHE_CONSUMER_KILLS", 30);
    for kill in 0..kills {
        let status = client.status().await.unwrap();
        if status.timeframes.len() < 8 {
            register(&client, timeframes, &mut chance).await;
            timeframes += 1;
        }
        std::thread::sleep(Duration::from_micros(chance.below(60_000)));
        let victim = chance.below(WORKERS as u64) as usize;
        let consumer = &mut workers[victim];
        consumer.check_alive();
        if chance.one_in(3) {
            consumer.signal("STOP");
            std::thread::sleep(Duration::from_millis(chance.below(100)));
            if chance.one_in(2) {
                consumer.signal("CONT");
            }
        }
        let pid = consumer.pid();
        std::mem::replace(consumer, worker(&url, victim, &mut chance)).kill();
        longest = longest.max(session_ends(&client, pid).await);
        if kill % 10 == 9 {
            adds_up(&client, kill % 50 == 49).await;
            progress(&mut workers);
        }
    }
    progress(&mut workers);
    adds_up(&client, true).await;
    eprintln!("{kills} killed; the last of what one held was gone after {longest:?}");
    workers.into_iter().for_each(Consumer::kill);
    for timeframe in client.status().await.unwrap().timeframes {
        let _ = client
            .act::<serde_json::Value>("drop_timeframe", &json!({"timeframe": timeframe.timeframe}))
            .await;
    }
    let deadline = Instant::now() + crate::common::PATIENCE;
    loop {
        let found = service.adds_up();
        if found["sessions"] == 0 && found["pinned_bytes"] == 0 {
            assert_eq!((&found["leases"], &found["timeframes"]), (&json!(0), &json!(0)));
            break;
        }
        assert!(Instant::now() < deadline, "{found}");
    }
    let sockets = service.attach().parent().unwrap().to_owned();
    let (status, log) = service.stop();
    assert_eq!(status, Some(0), "{log}");
    let left = sockets.read_dir().map(|entries| entries.map(|entry| entry.unwrap().file_name()));
    let left: Vec<_> = left.into_iter().flatten().filter(|name| name != "lock").collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_killed_at_any_moment_takes_no_consumer_along() {
    let mut chance = Chance::of_the_test("services");
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path());
    let sockets = tempfile::tempdir().unwrap();
    let arguments = ["--socket", sockets.path().to_str().unwrap()];
    let mut running: Service = service(folder.path(), &arguments);
    let url = running.unix();
    let mut workers: Vec<Consumer> =
        (0..WORKERS).map(|number| worker(&url, number, &mut chance)).collect();
    progress(&mut workers);
    let kills = count_of("IOVCACHE_SERVICE_KILLS", 8);
    for kill in 0..kills {
        let client = observer(&running).await;
        register(&client, kill, &mut chance).await;
        std::thread::sleep(Duration::from_micros(chance.below(100_000)));
        drop(running.kill());
        workers.iter_mut().for_each(Consumer::check_alive);
        if chance.one_in(3) {
            // A service that is killed before it is ready.
            let source = format!("file://{}", folder.path().display());
            let mut young = iovcache()
                .args(["serve", "--listen", "127.0.0.1:0", "--source", &source])
                .args(arguments)
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(Duration::from_micros(chance.below(60_000)));
            young.kill().unwrap();
            young.wait().unwrap();
        }
        std::thread::sleep(Duration::from_millis(chance.below(100)));
        running = service(folder.path(), &arguments);
        // They recover by themselves, and all that they read is right, before and after.
        progress(&mut workers);
        adds_up(&observer(&running).await, kill % 10 == 0).await;
    }
    workers.iter_mut().for_each(Consumer::check_alive);
    eprintln!("{kills} services were killed among {WORKERS} consumers");
    workers.into_iter().for_each(Consumer::kill);
    let (status, log) = running.stop();
    assert_eq!(status, Some(0), "{log}");
}
