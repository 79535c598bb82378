//! Connections, streams, resets, silence.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use iovcache::error::{Coded as _, ErrorKind};

use crate::common::{PATIENCE, until};
use crate::frames::{
    Connection, ENHANCE_YOUR_CALM, GOAWAY, HEADERS, PREFACE, REFUSED_STREAM, RST_STREAM,
};
use crate::setup::{Limited, drift};

/// Waits until the other end hangs up; returns how long that took.
fn hung_up(stream: &mut impl std::io::Read) -> Duration {
    let start = Instant::now();
    let mut rest = Vec::new();
    // An end or a reset; bytes before it (SETTINGS, GOAWAY) do not count.
    if let Err(error) = stream.read_to_end(&mut rest) {
        assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "it does not hang up");
    }
    start.elapsed()
}

/// The code of the last GOAWAY, read until the connection ends. It can be lost with the connection,
/// which is cut while the client still sends.
fn last_words(connection: &mut Connection) -> Option<u32> {
    let frames = std::iter::from_fn(|| connection.next());
    frames.filter(|frame| frame.kind == GOAWAY).map(|frame| frame.error()).last()
}

fn silent(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_limit_are_closed_at_once_and_the_others_go_on() {
    let limited = Limited::start("connections = 20\nconnections_per_peer = 16");
    let early = limited.client(&limited.service.tcp()).await;
    early.table(drift()).await.unwrap();
    let mut open: Vec<TcpStream> = (0..15).map(|_| silent(&limited.address())).collect();
    let mut refused: Vec<TcpStream> = (0..10).map(|_| silent(&limited.address())).collect();
    for stream in &mut refused {
        hung_up(stream);
    }
    assert_eq!(limited.counted("connections_refused"), 10);
    early.table(drift()).await.unwrap();
    // The Unix socket has its own places.
    limited.client(&limited.service.unix()).await.table(drift()).await.unwrap();
    for stream in &mut open {
        stream.set_nonblocking(true).unwrap();
        let still = stream.read_to_end(&mut Vec::new());
        assert_eq!(still.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }
    drop(open);
    until("a place", || {
        let mut stream = Connection::open(&limited.address()).ok()?;
        stream.next()
    });
    limited.assert_serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_sends_nothing_or_too_little_is_disconnected() {
    let limited = Limited::start("handshake = \"500ms\"");
    let half = Duration::from_millis(250);
    for first in [&b""[..], b"P", &PREFACE[..20], PREFACE, b"\x16\x03\x01"] {
        let mut stream = silent(&limited.address());
        stream.write_all(first).unwrap();
        let took = hung_up(&mut stream);
        // A beginning that cannot become HTTP/2 is closed at once.
        assert!(took > half || first.starts_with(b"\x16"), "{first:?} {took:?}");
        let mut stream =
            UnixStream::connect(limited.service.attach().with_file_name("flight.sock"));
        let stream = stream.as_mut().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(first).unwrap();
        hung_up(stream);
    }
    limited.assert_serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_answers_no_ping_is_disconnected_and_one_that_does_may_stay_idle() {
    let limited = Limited::start("keepalive = \"300ms\"");
    let quiet = limited.client(&limited.service.tcp()).await;
    quiet.table(drift()).await.unwrap();
    let mut dead = Connection::open(&limited.address()).unwrap();
    dead.begin(1, "DoExchange").unwrap();
    let took = hung_up(&mut dead.stream);
    assert!(took > Duration::from_millis(250), "{took:?}");
    tokio::time::sleep(Duration::from_secs(2)).await;
    quiet.table(drift()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_one_connection_so_many_calls_are_under_way_and_no_more() {
    let limited = Limited::start("streams = 8");
    let mut greedy = Connection::open(&limited.address()).unwrap();
    for call in 0..20 {
        greedy.begin(call * 2 + 1, "DoExchange").unwrap();
    }
    // Eight calls begin, and wait for their first message. The client learns the limit only from
    // the settings, so the others are refused.
    let mut refused = 0;
    while refused < 12 {
        let frame = greedy.next().expect("the connection goes on");
        if frame.kind == RST_STREAM {
            assert_eq!(frame.error(), REFUSED_STREAM, "{frame:?}");
            refused += 1;
        }
    }
    greedy.wait_at_most(Duration::from_millis(300));
    let more = greedy.next();
    assert!(more.is_none_or(|frame| frame.kind != RST_STREAM));
    limited.assert_serves().await;

    // A client that observes the limit waits until one of its calls ends.
    let tcp = tokio::net::TcpStream::connect(limited.address()).await.unwrap();
    let (mut send, connection) = h2::client::handshake(tcp).await.unwrap();
    tokio::spawn(connection);
    let call = || {
        http::Request::post("http://localhost/arrow.flight.protocol.FlightService/DoExchange")
            .header("content-type", "application/grpc")
            .body(())
            .unwrap()
    };
    let mut calls = Vec::new();
    while send.current_max_send_streams() != 8 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for _ in 0..8 {
        send = send.ready().await.unwrap();
        calls.push(send.send_request(call(), false).unwrap());
    }
    // This call has its end, and would be answered. It is sent only after the one before it has
    // begun, since one call at a time can wait in the client.
    send = send.ready().await.unwrap();
    let (mut answer, _) = send.send_request(call(), true).unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut answer).await.is_err());
    calls.pop().unwrap().1.send_reset(h2::Reason::CANCEL);
    let answer = tokio::time::timeout(PATIENCE, answer).await.unwrap().unwrap();
    assert!(answer.headers().contains_key("grpc-status"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn over_all_connections_so_many_calls_are_under_way_and_no_more() {
    let limited = Limited::start("calls = 4");
    let client = limited.client(&limited.service.tcp()).await;
    client.status().await.unwrap();
    let mut greedy: Vec<Connection> =
        (0..2).map(|_| Connection::open(&limited.address()).unwrap()).collect();
    let mut begun = 0;
    let deadline = Instant::now() + PATIENCE;
    let error = loop {
        // Repeated, in case our own call took the last place just when one of these arrived.
        for connection in &mut greedy {
            for _ in 0..2 {
                begun += 1;
                connection.begin(begun * 2 + 1, "DoExchange").unwrap();
            }
        }
        match client.status().await {
            Err(error) => break error,
            Ok(_) => assert!(Instant::now() < deadline, "the calls are not counted"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!((error.kind(), error.code().0), (ErrorKind::Unavailable, 6010));
    assert!(limited.counted("calls_refused") > 0);
    drop(greedy);
    while client.status().await.is_err() {
        assert!(Instant::now() < deadline, "the places are not given back");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_calls_that_come_with_their_cancellation_are_taken_and_more_are_a_flood() {
    let limited = Limited::start("");
    let mut hasty = Connection::open(&limited.address()).unwrap();
    for first in [1, 101, 201] {
        hasty.begin_and_reset(first, 20, "DoGet").unwrap();
        // The service begins calls in their order: once this one is answered, none of them waits.
        let last = first + 80;
        hasty.send_empty(last, "DoGet").unwrap();
        loop {
            let frame = hasty.next().expect("the connection goes on");
            assert_ne!(frame.kind, GOAWAY, "{frame:?}");
            if frame.kind == HEADERS && frame.stream == last {
                break;
            }
        }
    }
    hasty.begin_and_reset(1_001, 30, "DoGet").unwrap();
    let told = last_words(&mut hasty);
    assert!(told.is_none_or(|told| told == ENHANCE_YOUR_CALM), "{told:?}");
    hung_up(&mut hasty.stream);
    limited.assert_serves().await;
}

#[test]
fn a_client_whose_connections_are_cut_does_not_fill_the_log() {
    let limited = Limited::start("");
    let start = Instant::now();
    for _ in 0..100 {
        let mut flooding = Connection::open(&limited.address()).unwrap();
        // The service may hang up before all is sent.
        let _ = flooding.begin_and_reset(1, 100, "DoGet");
        hung_up(&mut flooding.stream);
    }
    let seconds = start.elapsed().as_secs() as usize;
    let (_, log) = limited.service.stop();
    let lines = log.lines().filter(|line| line.contains("h2::")).count();
    // A line each time, one second after the one before at the earliest.
    assert!((1..=seconds + 1).contains(&lines), "{lines} lines in {seconds} s: {log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_cancels_call_after_call_is_disconnected() {
    let limited = Limited::start("resets = 64");
    let mut flooding = Connection::open(&limited.address()).unwrap();
    let mut begun: u32 = 0;
    while begun < 20_000 {
        let stream = begun * 2 + 1;
        let sent = flooding.begin(stream, "DoAction").and_then(|()| flooding.reset(stream));
        if sent.is_err() {
            break;
        }
        begun += 1;
    }
    let told = last_words(&mut flooding);
    assert!(begun < 20_000 || told == Some(ENHANCE_YOUR_CALM), "{begun} calls, {told:?}");
    assert!(told.is_none_or(|told| told == ENHANCE_YOUR_CALM), "{told:?}");
    // The service still answers other clients of this node, over the same address too.
    limited.assert_serves().await;
}
