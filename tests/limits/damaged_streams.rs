//! Randomly damaged Arrow data, sent to the real service. `IOVCACHE_SEED=N` repeats a run.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arrow_array::types::Int32Type;
use arrow_array::{ArrayRef, DictionaryArray, Int32Array, Int64Array, RecordBatch, RunArray};
use arrow_array::{TimestampNanosecondArray, UInt64Array};
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{Action, FlightData, FlightDescriptor};
use futures::stream;
use iovcache::table::MessageWriter;
use serde_json::json;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::common::{PATIENCE, Random};
use crate::setup::{DRIFT, Limited};

fn index_below(random: &mut Random, length: usize) -> usize {
    random.below(length as u64) as usize
}

fn columns() -> Vec<ArrayRef> {
    let times = Int64Array::from(vec![Some(1), Some(5), None, Some(8), Some(5)]);
    let keys = Int32Array::from(vec![Some(0), Some(1), None, Some(1), Some(0)]);
    let values: ArrayRef = Arc::new(Int64Array::from(vec![5, 8]));
    let ends = Int32Array::from(vec![2, 5]);
    vec![
        Arc::new(times),
        Arc::new(UInt64Array::from(vec![1, 2, 3, 4, 5])),
        Arc::new(TimestampNanosecondArray::from(vec![1_000_000, 5_000_000, 0, 0, 0])),
        Arc::new(DictionaryArray::<Int32Type>::try_new(keys, Arc::clone(&values)).unwrap()),
        Arc::new(RunArray::<Int32Type>::try_new(&ends, &*values).unwrap()),
    ]
}

/// The messages of a table of timestamps, the schema first.
pub(crate) fn messages(column: ArrayRef) -> Vec<FlightData> {
    let batch = RecordBatch::try_from_iter_with_nullable([("timestamp", column, true)]).unwrap();
    let (mut writer, schema) = MessageWriter::begin(&batch.schema());
    let written = [schema].into_iter().chain(writer.write(&batch).unwrap().into_messages());
    let whole = written.map(|message| FlightData {
        data_header: message.header,
        data_body: message.body,
        ..FlightData::default()
    });
    whole.collect()
}

fn damage(bytes: &mut bytes::Bytes, random: &mut Random) {
    let mut damaged = bytes.to_vec();
    for _ in 0..=random.below(4) {
        if damaged.is_empty() {
            damaged = vec![random.next() as u8; index_below(random, 64)];
            continue;
        }
        let at = index_below(random, damaged.len());
        match random.below(6) {
            0 => damaged[at] ^= 1 << random.below(8),
            1 => damaged[at] = random.next() as u8,
            2 => damaged.truncate(at),
            3 => {
                // Most likely a length or an offset.
                let extreme = [0, 1, -1, i64::MAX, i64::MIN, i64::from(i32::MAX), 1 << 40];
                let value = extreme[index_below(random, extreme.len())].to_le_bytes();
                let end = (at + 8).min(damaged.len());
                damaged[at..end].copy_from_slice(&value[..end - at]);
            }
            4 => {
                let piece = damaged[at..(at + 16).min(damaged.len())].to_vec();
                let to = index_below(random, damaged.len());
                damaged.splice(to..to, piece);
            }
            _ => damaged.extend_from_slice(&random.next().to_le_bytes()),
        }
    }
    *bytes = damaged.into();
}

/// Damages some of the messages, or their order.
fn mutate(messages: &mut Vec<FlightData>, random: &mut Random) {
    for _ in 0..=random.below(2) {
        let at = index_below(random, messages.len());
        match random.below(8) {
            0 => {
                let twice = messages[at].clone();
                messages.insert(at, twice);
            }
            1 if messages.len() > 1 => drop(messages.remove(at)),
            2 => {
                let other = index_below(random, messages.len());
                messages.swap(at, other);
            }
            3 | 4 => damage(&mut messages[at].data_body, random),
            _ => damage(&mut messages[at].data_header, random),
        }
    }
}

/// Checks that the status blames the client.
fn assert_blames_the_client(seed: u64, case: usize, status: &Status) {
    let right = matches!(
        status.code(),
        Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::ResourceExhausted
            | Code::OutOfRange
    );
    assert!(right, "seed {seed}, case {case}: {status:?}");
}

async fn put(
    client: &mut FlightServiceClient<Channel>,
    timeframe: usize,
    mut messages: Vec<FlightData>,
) -> Result<(), Status> {
    let path = vec!["timeframe".to_owned(), timeframe.to_string()];
    if let Some(first) = messages.first_mut() {
        first.flight_descriptor = Some(FlightDescriptor::new_path(path));
        first.app_metadata =
            json!({"columns": {"d": DRIFT}, "consumers": ["c"]}).to_string().into();
    }
    let mut answers = client.do_put(stream::iter(messages)).await?.into_inner();
    while answers.message().await?.is_some() {}
    let drop = Action::new("drop_timeframe", json!({"timeframe": timeframe}).to_string());
    client.do_action(drop).await.map(|_| ())
}

/// A client that cancels its call has not completed its timestamps.
#[tokio::test(flavor = "multi_thread")]
async fn a_registration_that_is_cancelled_half_way_registers_nothing() {
    let limited = Limited::start("");
    let mut client = limited.bare().await;
    // The object is resident, so a complete registration ends at once.
    put(&mut client, 1_000, messages(Arc::new(Int64Array::from(vec![1, 5])))).await.unwrap();
    let tcp = tokio::net::TcpStream::connect(limited.address()).await.unwrap();
    let (mut calls, connection) = h2::client::handshake(tcp).await.unwrap();
    let connection = tokio::spawn(connection);
    for timeframe in 0..100 {
        let mut sent = messages(Arc::new(Int64Array::from(vec![1, 5])));
        let path = vec!["timeframe".to_owned(), timeframe.to_string()];
        sent[0].flight_descriptor = Some(FlightDescriptor::new_path(path));
        sent[0].app_metadata = json!({"columns": {"d": DRIFT}, "consumers": []}).to_string().into();
        let request =
            http::Request::post("http://localhost/arrow.flight.protocol.FlightService/DoPut")
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(())
                .unwrap();
        calls = calls.ready().await.unwrap();
        let (answer, mut body) = calls.send_request(request, false).unwrap();
        for message in sent {
            let message = prost::Message::encode_to_vec(&message);
            let mut bytes = vec![0];
            bytes.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
            bytes.extend_from_slice(&message);
            body.send_data(bytes.into(), false).unwrap();
        }
        // The service reads what was sent, and then the client cancels.
        tokio::time::sleep(Duration::from_millis(5)).await;
        body.send_reset(h2::Reason::CANCEL);
        drop(answer);
    }
    let last = Action::new("status", "");
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut told = client.do_action(last).await.unwrap().into_inner();
    let status = told.message().await.unwrap().unwrap().body;
    let status: serde_json::Value = serde_json::from_slice(&status).unwrap();
    assert_eq!(status["timeframes"], json!([]));
    connection.abort();
}

async fn exchange(
    client: &mut FlightServiceClient<Channel>,
    mut messages: Vec<FlightData>,
) -> Result<(), Status> {
    let command = json!({"columns": {"d": DRIFT}, "missing": "null"}).to_string();
    for (timeframe, message) in messages.iter_mut().enumerate() {
        message.app_metadata = json!({"timeframe": timeframe}).to_string().into();
    }
    if let Some(first) = messages.first_mut() {
        first.flight_descriptor = Some(FlightDescriptor::new_cmd(command));
    }
    let mut answers = client.do_exchange(stream::iter(messages)).await?.into_inner();
    while answers.message().await?.is_some() {}
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_streams_are_the_clients_fault_and_never_the_services() {
    let nightly = std::env::var_os("IOVCACHE_NIGHTLY").is_some();
    let cases = if nightly { 20_000 } else { 600 };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = std::env::var("IOVCACHE_SEED").map_or(now, |seed| seed.parse().unwrap());
    println!("seed {seed}");
    let mut random = Random::new(seed);
    let limited = Limited::start("");
    let mut client = limited.bare().await;
    for (case, column) in columns().into_iter().enumerate() {
        // Undamaged they are accepted.
        put(&mut client, case, messages(Arc::clone(&column))).await.unwrap();
        exchange(&mut client, messages(column)).await.unwrap();
    }
    let before = limited.peak_memory_bytes();
    let (mut taken, mut refused) = (0, 0);
    for case in 0..cases {
        let all = columns();
        let mut damaged = messages(Arc::clone(&all[index_below(&mut random, all.len())]));
        mutate(&mut damaged, &mut random);
        let done = async {
            match case % 2 {
                0 => put(&mut client, 1_000_000 + case, damaged).await,
                _ => exchange(&mut client, damaged).await,
            }
        };
        let done = tokio::time::timeout(PATIENCE, done).await;
        let done = done.unwrap_or_else(|_| panic!("seed {seed}, case {case}: no answer"));
        match done {
            Ok(()) => taken += 1,
            Err(status) => {
                assert_blames_the_client(seed, case, &status);
                refused += 1;
            }
        }
    }
    println!("{taken} were taken, {refused} refused");
    assert!(refused > cases / 4 && taken > 0, "{taken} taken, {refused} refused");
    let grown = limited.peak_memory_bytes().saturating_sub(before);
    assert!(grown < 256 << 20, "seed {seed}: {grown} bytes were taken");
    limited.assert_serves().await;
    // Objects held by the last calls are released when the service sees the calls end.
    let client = limited.client(&limited.service.unix()).await;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = client.status().await.unwrap();
        let held = (status.memory.pinned_bytes, status.timeframes.len());
        if held == (0, 0) {
            break;
        }
        assert!(Instant::now() < deadline, "seed {seed}: {held:?} are held for ever");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
