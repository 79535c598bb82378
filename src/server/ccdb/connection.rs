//! Connections: HTTP/1.1 with keep-alive, until the service stops.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::front::Front;
use super::guarded::ProgressGuard;
use super::request::{MAX_HEAD_BYTES, MAX_HEADERS};

/// Maximum concurrent connections, if the descriptors allow it. More wait to be accepted.
pub(in crate::server) const MAX_CONNECTIONS: usize = 4_096;
/// Longest time from one answer, or from the beginning, to the end of the next head.
const HEAD_LIMIT: Duration = Duration::from_secs(60);
/// A client that reads nothing for this long is cut, because it keeps an object pinned.
const STALL_LIMIT: Duration = Duration::from_secs(30);

/// Answers until `stop`; then idle connections end at once, the others with their answer.
pub(in crate::server) async fn serve(
    listener: TcpListener,
    front: Front,
    max_connections: usize,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(max_connections));
    let front = Arc::new(front);
    let mut connections = JoinSet::new();
    loop {
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            accepted = accepted => accepted,
            Some(_) = connections.join_next() => continue,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let (front, stop) = (Arc::clone(&front), stop.clone());
                connections.spawn(async move {
                    let _place = place;
                    // A client that disconnects is no error of the service.
                    if let Err(error) = attend(stream, &front, &stop).await {
                        tracing::debug!(%error, "a CCDB connection failed");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting on the CCDB port failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn attend(
    stream: TcpStream,
    front: &Arc<Front>,
    stop: &CancellationToken,
) -> hyper::Result<()> {
    let peer = stream.peer_addr().ok();
    // If this fails, answers are only slower.
    let _ = stream.set_nodelay(true);
    let answer = service_fn(|request| {
        let front = Arc::clone(front);
        async move { Ok::<_, Infallible>(front.answer(request, peer).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .preserve_header_case(true)
        .title_case_headers(true)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(ProgressGuard::new(stream, STALL_LIMIT)), answer);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = stop.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    connection.await
}
