//! iceoryx2: a server process with a hash map answers at which offset of a shared-memory file each
//! key lies, all keys in one request; objects are stored by publishing them.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use iceoryx2::prelude::*;
use iovcache_peers::{Failure, SMALL_BYTES, Work, at_random, median, touch};
use memmap2::{Mmap, MmapMut};

const LIMIT: Duration = Duration::from_secs(30);

/// The key that ends the server.
const END: u64 = u64::MAX;

/// Offset and size of an object.
type Place = (u64, u64);

/// The objects in file order: key and size.
fn objects(work: &Work) -> impl Iterator<Item = (u64, u64)> {
    let small = (0..work.keys as u64).map(|key| (key, SMALL_BYTES as u64));
    let (keys, bytes) = (work.keys as u64, work.large_bytes as u64);
    small.chain((0..work.large as u64).map(move |n| (keys + n, bytes)))
}

fn file(work: &Work) -> std::path::PathBuf {
    work.folder.join("objects")
}

struct Server(Child);

impl Server {
    /// Waits until the process ends by itself: a killed one leaves its files behind.
    fn wait(&mut self) -> Result<(), Failure> {
        let begun = Instant::now();
        while begun.elapsed() < LIMIT {
            if self.0.try_wait()?.is_some() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err("the server does not end".into())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn main() -> Result<(), Failure> {
    set_log_level(LogLevel::Error);
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "serve") {
        let name = arguments.remove(1);
        arguments.remove(0);
        return serve(&Work::of_arguments(&arguments)?, &name);
    }
    let mut work = Work::of_arguments(&arguments)?;
    if std::path::Path::new("/dev/shm").is_dir() {
        work.folder = format!("/dev/shm/iovcache-peers-{}", std::process::id()).into();
        std::fs::create_dir_all(&work.folder)?;
        arguments[0] = work.folder.display().to_string();
    }
    let measured = measure(&work, &arguments);
    if work.folder.starts_with("/dev/shm") {
        let _ = std::fs::remove_dir_all(&work.folder);
    }
    println!("{}", measured?);
    Ok(())
}

/// Answers requests until the end key arrives or no client is left.
fn serve(work: &Work, name: &str) -> Result<(), Failure> {
    let mut places: HashMap<u64, Place> = HashMap::new();
    let mut at = 0;
    for (key, bytes) in objects(work) {
        places.insert(key, (at, bytes));
        at += bytes;
    }
    let node = NodeBuilder::new().create::<ipc::Service>()?;
    let service = node
        .service_builder(&name.try_into()?)
        .request_response::<[u64], [u64]>()
        .open_or_create()?;
    let server = service.server_builder().initial_max_slice_len(work.keys * 2).create()?;
    let mut asked = Instant::now();
    while asked.elapsed() < LIMIT {
        let Some(request) = server.receive()? else {
            std::hint::spin_loop();
            continue;
        };
        asked = Instant::now();
        let keys = request.payload();
        let response = request.loan_slice_uninit(keys.len() * 2)?;
        let mut place = (0, 0);
        let response = response.write_from_fn(|n| {
            if n % 2 == 0 {
                place = places.get(&keys[n / 2]).copied().unwrap_or_default();
                place.0
            } else {
                place.1
            }
        });
        let last = keys.first() == Some(&END);
        response.send()?;
        if last {
            break;
        }
    }
    Ok(())
}

fn measure(work: &Work, arguments: &[String]) -> Result<String, Failure> {
    let length: u64 = objects(work).map(|(_, bytes)| bytes).sum();
    let mut options = OpenOptions::new();
    let opened = options.read(true).write(true).create(true).truncate(true).open(file(work))?;
    opened.set_len(length)?;
    // SAFETY: the file is this run's own.
    let mut writer = unsafe { MmapMut::map_mut(&opened) }?;
    writer.fill(7);
    // SAFETY: no process writes to it any more.
    let reader = unsafe { Mmap::map(&File::open(file(work))?) }?;

    let name = format!("iovcache/peers/{}", std::process::id());
    let mut child = Command::new(std::env::current_exe()?);
    let mut server = Server(child.args(["serve", &name]).args(arguments).spawn()?);
    let node = NodeBuilder::new().create::<ipc::Service>()?;
    let name = name.as_str();
    let service = node
        .service_builder(&name.try_into()?)
        .request_response::<[u64], [u64]>()
        .open_or_create()?;
    let client = service.client_builder().initial_max_slice_len(work.keys).create()?;
    let begun = Instant::now();
    while service.dynamic_config().number_of_servers() == 0 {
        if begun.elapsed() > LIMIT {
            return Err("the server does not start".into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let ask = |first: u64, count: usize| {
        let request = client.loan_slice_uninit(count)?;
        let request = request.write_from_fn(|n| first + n as u64);
        let (pending, asked) = (request.send()?, Instant::now());
        let answer = loop {
            match pending.receive()? {
                Some(answer) => break answer,
                None if asked.elapsed() > LIMIT => return Err("no answer came".into()),
                None => std::hint::spin_loop(),
            }
        };
        let places = answer.payload().chunks_exact(2);
        let bytes = |place: &[u64]| {
            let (at, count) = (place[0] as usize, place[1] as usize);
            reader.get(at..at + count).map(touch).ok_or("an object lies outside")
        };
        Ok(places.map(bytes).sum::<Result<u64, _>>()?)
    };
    let look_up = median(work.rounds, || ask(0, work.keys))?;
    let get = median(work.rounds, || ask(work.keys as u64, work.large))?;
    ask(END, 1)?;
    server.wait()?;
    let few = blackboard(work, &node)?;
    Ok(format!("{few} - {look_up} {get} {}", store(work, &node)?))
}

/// Reads the values of a blackboard by held handles, which copy them.
fn blackboard(work: &Work, node: &Node<ipc::Service>) -> Result<u128, Failure> {
    let name = format!("iovcache/peers/{}/blackboard", std::process::id());
    let name = name.as_str().try_into()?;
    let mut creator = node.service_builder(&name).blackboard_creator::<u64>();
    for key in 0..work.few as u64 {
        creator = creator.add::<[u8; SMALL_BYTES]>(key, [7; SMALL_BYTES]);
    }
    let service = creator.create()?;
    let reader = service.reader_builder().create()?;
    let handle = |key: u64| reader.entry::<[u8; SMALL_BYTES]>(&key);
    let handles = (0..work.few as u64).map(handle).collect::<Result<Vec<_>, _>>()?;
    median(work.rounds, || {
        Ok(at_random(work.few).map(|key| u64::from(handles[key].get()[0])).sum())
    })
}

/// Publishes all objects; a subscriber keeps them all until the round is over.
fn store(work: &Work, node: &Node<ipc::Service>) -> Result<u128, Failure> {
    let name = format!("iovcache/peers/{}/stored", std::process::id());
    let service = node
        .service_builder(&name.as_str().try_into()?)
        .publish_subscribe::<[u8]>()
        .enable_safe_overflow(false)
        .subscriber_max_buffer_size(work.stored)
        .history_size(0)
        .create()?;
    let subscriber = service.subscriber_builder().create()?;
    let publisher = service
        .publisher_builder()
        .initial_max_slice_len(work.stored_bytes)
        .max_loaned_samples(1)
        .create()?;
    let bytes = vec![9; work.stored_bytes];
    let mut took = Vec::new();
    for _ in 0..=work.rounds {
        let began = Instant::now();
        for _ in 0..work.stored {
            let sample = publisher.loan_slice_uninit(bytes.len())?;
            sample.write_from_slice(&bytes).send()?;
        }
        took.push(began.elapsed().as_nanos());
        let mut received = 0;
        while let Some(sample) = subscriber.receive()? {
            received += usize::from(sample.len() == bytes.len());
        }
        if received != work.stored {
            return Err(format!("{received} of {} objects came", work.stored).into());
        }
    }
    let mut counted = took.split_off(1);
    counted.sort_unstable();
    Ok(counted[counted.len() / 2])
}
