//! Clients that send on an exchange while they read nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::Int64Array;
use arrow_flight::{FlightData, FlightDescriptor};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::common::PATIENCE;
use crate::damaged_streams::messages;
use crate::setup::{DRIFT, Limited};

const ROWS: usize = 20_000;
/// Much more than the client's windows and the service's queue of answers hold together.
const TIMEFRAMES: std::ops::Range<u64> = 2..102;

/// A message with the given metadata.
fn with(metadata: &Value, message: FlightData) -> FlightData {
    FlightData { app_metadata: metadata.to_string().into(), ..message }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_a_client_releases_are_released_while_it_reads_none() {
    let limited = Limited::start("");
    let watching = limited.client(&limited.service.unix()).await;
    let pinned = async || watching.status().await.unwrap().memory.pinned_bytes;
    let (say, said) = mpsc::unbounded_channel();
    let few = messages(Arc::new(Int64Array::from(vec![1])));
    // At this time no version is valid, so no object is held; the table has 800 kB.
    let many = messages(Arc::new(Int64Array::from(vec![100; ROWS])));
    let command = json!({"columns": {"d": DRIFT}, "encoding": "plain", "missing": "null"});
    let command = command.to_string();
    let descriptor = Some(FlightDescriptor::new_cmd(command));
    say.send(FlightData { flight_descriptor: descriptor, ..few[0].clone() }).unwrap();
    let mut client = limited.bare().await;
    let opened = client.do_exchange(UnboundedReceiverStream::new(said)).await;
    let mut tables = opened.unwrap().into_inner();
    // Reads the timeframe and the number of rows of the next batch.
    let mut next = async || loop {
        let next = tokio::time::timeout(PATIENCE, tables.message()).await;
        let message = next.expect("a message or the end in time").unwrap()?;
        if !message.app_metadata.is_empty() {
            let about: Value = serde_json::from_slice(&message.app_metadata).unwrap();
            return Some((about["timeframe"].as_u64().unwrap(), about["rows"].as_u64().unwrap()));
        }
    };
    say.send(with(&json!({"timeframe": 1}), few[1].clone())).unwrap();
    assert_eq!(next().await, Some((1, 1)));
    for timeframe in TIMEFRAMES {
        say.send(with(&json!({"timeframe": timeframe}), many[1].clone())).unwrap();
    }
    // Now the client reads nothing. The service sends as much as fits, and no more.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(pinned().await > 0);
    say.send(with(&json!({"consumed": [1]}), FlightData::default())).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while pinned().await > 0 {
        assert!(Instant::now() < deadline, "what is consumed is held");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The client reads again, and no table is missing.
    let mut taken = Vec::new();
    drop(say);
    while let Some((of, rows)) = next().await {
        assert_eq!(rows, ROWS as u64);
        taken.push(of);
    }
    assert!(taken.into_iter().eq(TIMEFRAMES));
}
