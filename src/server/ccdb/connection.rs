//! Connections: HTTP/1.1 with keep-alive, until the service stops.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::answer::Front;
use super::page;
use super::request::{Head, Method, Request, parse};

/// How many connections are served at a time, where the descriptors allow it; more wait to be
/// accepted.
pub(in crate::server) const MAX_CONNECTIONS: usize = 4_096;
/// How long a connection may be idle between two requests.
const IDLE_LIMIT: Duration = Duration::from_secs(60);
/// How long a client may take from the first byte of a head to the last.
const HEAD_LIMIT: Duration = Duration::from_secs(10);

/// Answers until `stop`; then idle connections end at once, the others with their answer.
pub(in crate::server) async fn serve(
    listener: TcpListener,
    front: Front,
    max_connections: usize,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(max_connections));
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
                let (front, stop) = (front.clone(), stop.clone());
                connections.spawn(async move {
                    let _place = place;
                    // A client that breaks off is its own affair.
                    if let Err(error) = attend(stream, &front, &stop).await {
                        tracing::debug!(%error, "a CCDB connection broke off");
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

async fn attend(mut stream: TcpStream, front: &Front, stop: &CancellationToken) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(4 << 10);
    loop {
        if buffer.is_empty() {
            let came = tokio::select! {
                came = timeout(IDLE_LIMIT, stream.read_buf(&mut buffer)) => came,
                () = stop.cancelled() => return Ok(()),
            };
            match came {
                Ok(Ok(1..)) => {}
                Ok(Err(error)) => return Err(error),
                Ok(Ok(0)) | Err(_) => return Ok(()),
            }
        }
        let head = timeout(HEAD_LIMIT, read_head(&mut stream, &mut buffer)).await;
        let Some(request) = head.map_err(|_| io::ErrorKind::TimedOut)?? else {
            return page::status(400, "this is no HTTP/1.1").write(&mut stream, false).await;
        };
        let mut reply = front.answer(&request).await;
        reply.last |= !request.keep_alive || stop.is_cancelled();
        let last = reply.last;
        reply.write(&mut stream, request.method == Method::Head).await?;
        if last {
            return finish(stream).await;
        }
    }
}

/// The next request; nothing where what comes is none.
async fn read_head(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<Request>> {
    loop {
        match parse(buffer) {
            Head::Whole(request, length) => {
                buffer.drain(..length);
                return Ok(Some(*request));
            }
            Head::Malformed => return Ok(None),
            Head::Partial => {}
        }
        if stream.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Ends a connection so that the answer arrives: what the client still sends (the body of an
/// upload) is read and dropped for a while, or the kernel would cut the connection at once.
async fn finish(mut stream: TcpStream) -> io::Result<()> {
    stream.shutdown().await?;
    let mut rest = vec![0; 16 << 10];
    let drained = async {
        while stream.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    timeout(Duration::from_secs(2), drained).await.unwrap_or(Ok(()))
}
