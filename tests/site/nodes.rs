//! Many nodes at once: services that start cold and need the same objects at the same moment.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use iovcache::client::{Client, TableRequest};
use tokio::sync::Barrier;

use super::common::{Service, http_get, iovcache};
use super::fake_ccdb::{FakeCcdb, Kind as Server, Upload};
use super::network::Network;
use super::proxy::{Kind, Proxy};

const NODES: usize = 20;
const OBJECTS: usize = 50;
const LARGE_BYTES: usize = 64 << 20;

/// 50 objects, `large` of them of 64 MiB.
async fn server(kind: Server, large: usize) -> FakeCcdb {
    let server = FakeCcdb::start(kind).await;
    for n in 0..OBJECTS {
        let size = if n < large { LARGE_BYTES } else { 2_000 + n };
        server.upload(Upload::new(&format!("Site/O{n}"), 1000, 2000).bytes(vec![n as u8; size]));
    }
    server
}

/// Starts the nodes over `url`; each requests all objects at once. Returns the longest duration.
async fn start_cold(url: &str, nodes: usize, large: usize) -> Duration {
    start_cold_by(url, large, (0..nodes).map(|_| iovcache())).await
}

/// Like [`start_cold`], with one node per program.
async fn start_cold_by(
    url: &str,
    large: usize,
    programs: impl ExactSizeIterator<Item = Command>,
) -> Duration {
    let sizes = match large {
        0 => ("16MiB", "16MiB"),
        _ => ("256MiB", "72MiB"),
    };
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("node.toml");
    // As the README of `deploy/` recommends: services wait for a proxy that restarts.
    std::fs::write(&config, "[ccdb]\nretries = 60\nbreaker_failures = 1000000\n").unwrap();
    let config = config.to_str().unwrap().to_owned();
    let together = Arc::new(Barrier::new(programs.len()));
    let asking: Vec<_> = programs
        .map(|program| {
            let (url, config, together) = (url.to_owned(), config.clone(), Arc::clone(&together));
            tokio::spawn(async move {
                let started = tokio::task::spawn_blocking(move || {
                    let arguments = ["--source", url.as_str(), "--config", config.as_str()];
                    Service::start_by(program, sizes.0, sizes.1, &arguments)
                });
                let service = started.await.unwrap();
                let client = Client::connect(&service.unix()).await.unwrap();
                together.wait().await;
                let began = Instant::now();
                let columns = (0..OBJECTS).map(|n| (format!("c{n}"), format!("Site/O{n}")));
                let request = columns
                    .fold(TableRequest::new(), |request, (name, path)| request.column(name, path));
                let request = request.timestamps([1500]).wait(Duration::from_secs(240));
                let table = client.table(request).await.unwrap();
                for n in 0..OBJECTS {
                    let bytes = table.column(&format!("c{n}")).unwrap().get(0).unwrap().unwrap();
                    let size = if n < large { LARGE_BYTES } else { 2_000 + n };
                    assert_eq!((bytes.len(), bytes[0], bytes[size - 1]), (size, n as u8, n as u8));
                }
                began.elapsed()
            })
        })
        .collect();
    let mut longest = Duration::ZERO;
    for asked in asking {
        longest = longest.max(asked.await.unwrap());
    }
    longest
}

/// The machine has capacity for twenty services at a time.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn cold(kind: Kind, from: Server, large: usize) {
    let _turn = TURN.lock().await;
    let server = server(from, large).await;
    let Some(proxy) = Proxy::start(kind, &server.url()) else { return };
    let took = start_cold(&proxy.url(), NODES, large).await;
    let counts = server.counts();
    println!("{kind:?}, {from:?}, {large} large: {took:?}, {counts:?}");
    assert_eq!(counts.bodies_sent, OBJECTS, "{counts:?}");
}

/// The proxy is restarted in the middle: every node still gets every object.
async fn restarted(kind: Kind) {
    let _turn = TURN.lock().await;
    let server = server(Server::Local, 0).await;
    // Slow enough for the restart to fall into the middle.
    server.habits().latency = Duration::from_millis(20);
    let Some(mut proxy) = Proxy::start(kind, &server.url()) else { return };
    let url = proxy.url();
    let all = tokio::spawn(async move { start_cold(&url, NODES, 0).await });
    let deadline = Instant::now() + Duration::from_secs(60);
    while server.counts().bodies_sent < 10 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let before = server.counts().bodies_sent;
    let proxy = tokio::task::spawn_blocking(move || {
        proxy.restart();
        proxy
    });
    let proxy = proxy.await.unwrap();
    let took = all.await.unwrap();
    let counts = server.counts();
    println!("{kind:?}, started anew after {before} bodies: {took:?}, {counts:?}");
    // Interrupted fetches are repeated; so are those of objects that were kept in memory alone.
    let again = if kind.stores_on_disk() { 40 } else { OBJECTS };
    assert!((OBJECTS..=OBJECTS + again).contains(&counts.bodies_sent), "{counts:?}");
    drop(proxy);
}

/// Each service on its own node: a network namespace with a wire to the site's bridge. The proxy is
/// on the bridge, and is the only route to the CCDB.
async fn on_nodes(kind: Kind) {
    let _turn = TURN.lock().await;
    let server = server(Server::Local, 0).await;
    let network = match Network::of(NODES) {
        Ok(network) => network,
        Err(why) => return println!("no network namespaces: not tested ({why})"),
    };
    let Some(proxy) = Proxy::start_at(network.address(), kind, &server.url()) else { return };
    let programs = (0..NODES).map(|node| network.on(node, &iovcache()));
    let took = start_cold_by(&proxy.url(), 0, programs).await;
    let counts = server.counts();
    println!("{kind:?}, {NODES} nodes with addresses of their own: {took:?}, {counts:?}");
    assert_eq!(counts.bodies_sent, OBJECTS, "{counts:?}");
    let bodies: u64 = (0..OBJECTS as u64).map(|n| 2_000 + n).sum();
    for node in 0..NODES {
        let carried = network.carried_to(node);
        assert!(carried >= bodies, "node {node} got {carried} bytes by its wire, not {bodies}");
    }
    drop(proxy);
    network.remove();
}

/// One of our services in place of the CCDB.
async fn over_a_service(kind: Kind) {
    let _turn = TURN.lock().await;
    let server = server(Server::Sql, 0).await;
    let first = Service::start(&["--source", &server.url(), "--ccdb", "127.0.0.1:0"]);
    let Some(proxy) = Proxy::start(kind, first.ready["ccdb"].as_str().unwrap()) else { return };
    start_cold(&proxy.url(), 5, 0).await;
    assert_eq!(server.counts().bodies_sent, OBJECTS);
    let sent: u64 = (0..OBJECTS as u64).map(|n| 2_000 + n).sum();
    let metrics = http_get(&first.http(), "/metrics").1;
    let line = format!("iovcache_ccdb_sent_bytes_total {sent}\n");
    assert!(metrics.contains(&line), "each body once: {line}{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_cold_services_behind_varnish_fetch_each_object_once() {
    cold(Kind::Varnish, Server::Local, 0).await;
    cold(Kind::Varnish, Server::Sql, 0).await;
    over_a_service(Kind::Varnish).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_cold_services_behind_nginx_fetch_each_object_once() {
    cold(Kind::Nginx, Server::Local, 0).await;
    cold(Kind::Nginx, Server::Sql, 0).await;
    over_a_service(Kind::Nginx).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_cold_services_behind_squid_fetch_each_object_once() {
    cold(Kind::Squid, Server::Local, 0).await;
    cold(Kind::Squid, Server::Sql, 0).await;
    over_a_service(Kind::Squid).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_cold_nodes_with_addresses_of_their_own_fetch_each_object_once() {
    on_nodes(Kind::Varnish).await;
    on_nodes(Kind::Nginx).await;
    on_nodes(Kind::Squid).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_cold_services_behind_varnish_fetch_large_objects_once() {
    cold(Kind::Varnish, Server::Local, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_cold_services_behind_nginx_fetch_large_objects_once() {
    cold(Kind::Nginx, Server::Local, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_cold_services_behind_squid_fetch_large_objects_once() {
    // One node alone: Squid forwards large bodies in pieces of 4 KiB, which is slow.
    cold(Kind::Squid, Server::Local, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn varnish_can_be_started_anew_while_twenty_services_load() {
    restarted(Kind::Varnish).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_can_be_started_anew_while_twenty_services_load() {
    restarted(Kind::Nginx).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn squid_can_be_started_anew_while_twenty_services_load() {
    restarted(Kind::Squid).await;
}
