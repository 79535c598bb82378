//! Clients on TCP and clients on the Unix socket are served by different runtimes.

use std::sync::mpsc;
use std::time::Duration;

use iovcache::Cache;
use iovcache::client::{Client, ClientOptions};
use iovcache::server::{ListenOptions, Listeners, ServeOptions, run};
use iovcache::shm::PoolOptions;
use iovcache::source::{SourceOptions, open};

use crate::common::{Version, put};
use crate::setup::{DRIFT, drift};

#[tokio::test(flavor = "multi_thread")]
async fn clients_on_tcp_that_take_all_time_do_not_delay_those_on_the_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    let repository = folder.path().join("repository");
    put(&repository, &Version { path: DRIFT, from: 0, until: 9, created: 1, bytes: b"drift" });
    let source = open(&format!("file://{}", repository.display()), &SourceOptions::default());
    let memory = PoolOptions { memory_bytes: 16 << 20, ..PoolOptions::default() };
    let cache = Cache::builder().source(source.unwrap()).memory(memory).build().unwrap();
    let sockets = ListenOptions {
        flight: Some("127.0.0.1:0".parse().unwrap()),
        socket_folder: Some(folder.path().join("s")),
        ..ListenOptions::default()
    };
    let listeners = Listeners::bind(&sockets).await.unwrap();
    let urls = listeners.flight_urls();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let network = builder.worker_threads(1).enable_all().build().unwrap();
    let options =
        ServeOptions { network: Some(network.handle().clone()), ..ServeOptions::default() };
    tokio::spawn(run(listeners, cache, options, std::future::pending(), || ()));
    let client = async |url: &str| {
        let options = ClientOptions { always_request: true, remote: true, ..Default::default() };
        Client::connect_with(url, options).await.unwrap()
    };
    let (tcp, unix) = (client(&urls[0]).await, client(&urls[1]).await);
    tcp.batches(&drift()).await.unwrap();

    let (release, held) = mpsc::channel::<()>();
    let (begun, begins) = tokio::sync::oneshot::channel();
    network.spawn(async move {
        begun.send(()).unwrap();
        let _ = held.recv();
    });
    begins.await.unwrap();
    for _ in 0..10 {
        unix.batches(&drift()).await.unwrap();
    }
    let waiting = tokio::spawn(async move { tcp.batches(&drift()).await.map(drop) });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!waiting.is_finished(), "TCP is served by the runtime of the Unix socket");
    drop(release);
    waiting.await.unwrap().unwrap();
    network.shutdown_background();
}
