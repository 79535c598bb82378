//! Requests on the wire: HTTP/2 by hand, so that a client can stop anywhere.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::client::{Builder, SendRequest};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use crate::common::Service;
use crate::grammar::{Reading, Sent};

/// Time after which a client that reads everything ends.
const PATIENCE: Duration = Duration::from_secs(2);

/// Sends one request over its own connection, behaves as the request specifies, and hangs up.
pub(crate) async fn send(service: &Service, sent: &Sent) {
    let address = service.tcp().trim_start_matches("grpc://").to_owned();
    let stream = TcpStream::connect(&address).await.unwrap();
    let window = if sent.reading == Reading::Nothing { 0 } else { 1 << 20 };
    let built = Builder::new().initial_window_size(window).handshake::<_, Bytes>(stream).await;
    let (calls, connection) = built.unwrap();
    let connection = tokio::spawn(async move { drop(connection.await) });
    let until = Instant::now() + PATIENCE;
    // The answer is ignored: whatever it is, the service must keep running.
    let done = timeout_at(until, call(calls, sent)).await;
    drop(done);
    connection.abort();
    let _ = connection.await;
}

async fn call(calls: SendRequest<Bytes>, sent: &Sent) -> Result<(), h2::Error> {
    let mut calls = calls.ready().await?;
    let request = http::Request::post(format!("http://localhost{}", sent.call))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let (answer, mut body) = calls.send_request(request, false)?;
    let last = sent.messages.len().saturating_sub(1);
    for (number, message) in sent.messages.iter().enumerate() {
        let cut = sent.cut.filter(|_| number == last);
        let mut bytes = BytesMut::with_capacity(message.len() + 5);
        bytes.put_u8(0);
        bytes.put_u32(message.len() as u32);
        bytes.extend_from_slice(message);
        bytes.truncate(cut.map_or(usize::MAX, |cut| cut.min(bytes.len())));
        write(&mut body, bytes.freeze()).await?;
    }
    if sent.cut.is_some() || sent.stays {
        // The rest is never sent.
        tokio::time::sleep(Duration::from_millis(200)).await;
        return Ok(());
    }
    body.send_data(Bytes::new(), true)?;
    let mut answer = match sent.reading {
        Reading::Nothing => {
            let _ = timeout(Duration::from_millis(200), answer).await;
            return Ok(());
        }
        Reading::First | Reading::All => answer.await?.into_body(),
    };
    while let Some(data) = answer.data().await {
        answer.flow_control().release_capacity(data?.len())?;
        if sent.reading == Reading::First {
            tokio::time::sleep(Duration::from_millis(100)).await;
            return Ok(());
        }
    }
    Ok(())
}

/// Writes as much as the service accepts; the service may refuse the rest.
async fn write(body: &mut h2::SendStream<Bytes>, mut bytes: Bytes) -> Result<(), h2::Error> {
    while !bytes.is_empty() {
        body.reserve_capacity(bytes.len().min(64 << 10));
        let room = std::future::poll_fn(|context| body.poll_capacity(context)).await;
        let Some(room) = room.transpose()? else { return Ok(()) };
        body.send_data(bytes.split_to(room.min(bytes.len())), false)?;
    }
    Ok(())
}
