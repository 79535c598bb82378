//! iovcache: a service in its own process with a source of synthetic objects, and a table of it.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use iovcache::client::{Client, ClientOptions, LocalPath, Table, TableRequest};
use iovcache::shm::{Pool, PoolOptions};
use iovcache::{ObjectId, Timestamp};
use tokio::runtime::Runtime;

use crate::work::{Left, SMALL_BYTES, Took, VERSIONS, Work, at_random, median, touch};

/// Room for all large and small objects, and for the stored ones of each round.
const MEMORY_BYTES: u64 = 3 << 30;

/// The service; dropping it ends the process.
struct Service {
    child: Child,
    url: String,
}

impl Service {
    fn start() -> Result<Self, Left> {
        let child = Command::new(env!("CARGO_BIN_EXE_iovcache"))
            .args(["bench", "--role", "service", "--memory", &MEMORY_BYTES.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut service = Self { child, url: String::new() };
        let stdout = service.child.stdout.take().ok_or("the service has no stdout")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let ready: serde_json::Value = serde_json::from_str(&line)?;
        let urls = ready["flight"].as_array().into_iter().flatten();
        let unix = urls.filter_map(|url| url.as_str()).find(|url| url.contains("unix://"));
        service.url = unix.ok_or("the service has no Unix socket")?.to_owned();
        Ok(service)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A request with one row for each of `count` objects of the path of that size.
fn request(place: usize, count: usize, bytes: usize) -> TableRequest {
    let path = format!("Bench/Curve/C{place}/V{count}/B{bytes}");
    TableRequest::new().column("c", path).range(0, count as i64, 1)
}

fn read(table: &Table) -> Result<u64, Left> {
    let column = table.column("c")?;
    column.runs().map(|run| Ok(run?.1.map_or(0, touch))).sum()
}

/// Measures with one request per round.
pub(crate) fn service(work: &Work) -> Result<Took, Left> {
    let (runtime, service) = (Runtime::new()?, Service::start()?);
    // Not from shared memory.
    let options = ClientOptions { always_request: true, ..ClientOptions::default() };
    let client = runtime.block_on(Client::connect_with(&service.url, options))?;
    let ask = |request: TableRequest| read(&runtime.block_on(client.table(request))?);
    let small = request(0, work.keys, SMALL_BYTES);
    let look_up = median(work.rounds, || ask(small.clone()))?;
    let large = request(1, work.large, work.large_bytes);
    let get = median(work.rounds, || ask(large.clone()))?;
    // Each round asks for another path, whose objects are not loaded yet.
    let mut place = 1;
    let store = median(work.rounds, || {
        place += 1;
        ask(request(place, work.stored, work.stored_bytes))
    })?;
    Ok(Took { look_up: Some(look_up), get: Some(get), store: Some(store), ..Took::default() })
}

/// Measures look-ups in shared memory, without a request.
pub(crate) fn local(work: &Work) -> Result<Took, Left> {
    let (runtime, service) = (Runtime::new()?, Service::start()?);
    let client = runtime.block_on(Client::connect(&service.url))?;
    let local = client.local()?;
    let path = |place: usize, count: usize, bytes: usize| {
        let path = format!("Bench/Curve/C{place}/V{count}/B{bytes}");
        local.path(&path)
    };
    // A first table of each path has it published, with its objects in memory.
    let loaded = |place: usize, count: usize, bytes: usize| {
        read(&runtime.block_on(client.table(request(place, count, bytes)))?)?;
        Ok::<_, Left>(path(place, count, bytes)?)
    };
    let one_at_a_time = |paths: &[LocalPath], versions: usize| {
        let is_local = std::cell::Cell::new(true);
        let took = median(work.rounds, || {
            is_local.set(true);
            let byte = |key: usize| {
                let at = Timestamp::from_millis((key % versions) as i64);
                let view = paths[key / versions].at(at)?.ok_or("an object is not there")?;
                is_local.set(is_local.get() && view.is_local());
                Ok(u64::from(view[0]))
            };
            at_random(paths.len() * versions).map(byte).sum()
        })?;
        match is_local.get() {
            true => Ok::<_, Left>(took),
            false => Err(Left::Failed("an object was requested in the last round".to_owned())),
        }
    };
    let few = one_at_a_time(&[loaded(10, work.few, SMALL_BYTES)?], work.few)?;
    let places = 11..11 + work.many / VERSIONS;
    let many = places.map(|place| loaded(place, VERSIONS, SMALL_BYTES));
    let many = one_at_a_time(&many.collect::<Result<Vec<_>, _>>()?, VERSIONS)?;
    let small = loaded(0, work.keys, SMALL_BYTES)?;
    let keys: Vec<_> =
        (0..work.keys as i64).map(|at| (&small, Timestamp::from_millis(at))).collect();
    let look_up = median(work.rounds, || {
        let views = local.get_many(&keys)?;
        Ok(views.iter().flatten().map(|view| touch(view)).sum())
    })?;
    let large = loaded(1, work.large, work.large_bytes)?;
    let get = median(work.rounds, || {
        let at = |at| Ok(large.at(Timestamp::from_millis(at))?.map_or(0, |view| touch(&view)));
        (0..work.large as i64).map(at).sum()
    })?;
    Ok(Took {
        few: Some(few),
        many: Some(many),
        look_up: Some(look_up),
        get: Some(get),
        store: None,
    })
}

/// Measures tables that are kept.
pub(crate) fn held(work: &Work) -> Result<Took, Left> {
    let (runtime, service) = (Runtime::new()?, Service::start()?);
    let client = runtime.block_on(Client::connect(&service.url))?;
    let table = |request: TableRequest| runtime.block_on(client.table(request));
    let small = table(request(0, work.keys, SMALL_BYTES))?;
    let look_up = median(work.rounds, || read(&small))?;
    let large = table(request(1, work.large, work.large_bytes))?;
    let get = median(work.rounds, || read(&large))?;
    let memory_bytes = (work.stored * (work.stored_bytes + 4096) + (1 << 20)) as u64;
    let options =
        PoolOptions { memory_bytes, segment_bytes: memory_bytes, ..PoolOptions::default() };
    let (pool, bytes) = (Pool::new(options)?, vec![9; work.stored_bytes]);
    let store = median(work.rounds, || {
        let mut blocks = Vec::new();
        for n in 0..work.stored {
            let mut place = pool.reserve(bytes.len() as u64)?;
            place.fill(&bytes);
            let mut id = [0; 16];
            id[8..].copy_from_slice(&(n as u64).to_be_bytes());
            blocks.push(place.publish(ObjectId::from_bytes(id)));
        }
        Ok(blocks.len() as u64)
    })?;
    Ok(Took { look_up: Some(look_up), get: Some(get), store: Some(store), ..Took::default() })
}
