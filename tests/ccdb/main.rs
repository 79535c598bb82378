//! The CCDB source against a server that answers like real ones, and fails on demand.
#![cfg(feature = "cli")]

mod bodies;
mod changes;
#[path = "../common/mod.rs"]
mod common;
#[path = "../fake_ccdb/mod.rs"]
mod fake_ccdb;
mod faults;
mod hosts;
mod look_ups;
mod metadata;
mod parallel;
mod property;
mod runs;
mod served;
mod throughput;

use std::sync::Arc;

use async_trait::async_trait;
use iovcache::source::ccdb::{CcdbOptions, CcdbSource};
use iovcache::source::{Body, BodyError, Knowledge, Source, SourceError};
use iovcache::{ObjectId, ObjectInfo, ObjectPath, Query, Timestamp, ValidityInterval};
use uuid::Uuid;

use fake_ccdb::{FakeCcdb, Kind};

const EVERY_KIND: [Kind; 4] = [Kind::Local, Kind::Sql, Kind::SqlLocalCopyFirst, Kind::Memory];

/// Options with time limits short enough for tests.
fn short() -> CcdbOptions {
    CcdbOptions {
        connect_millis: 500,
        first_byte_millis: 300,
        throughput_window_millis: 200,
        look_up_total_millis: 4_000,
        fetch_total_millis: 4_000,
        backoff_base_millis: 5,
        backoff_cap_millis: 20,
        breaker_open_millis: 100,
        ..CcdbOptions::default()
    }
}

/// Like [`short`], with every look-up for one time.
fn by_time() -> CcdbOptions {
    CcdbOptions { browse_limit: 0, ..short() }
}

fn source(server: &FakeCcdb, options: CcdbOptions) -> CcdbSource {
    CcdbSource::new(&server.url(), options).unwrap()
}

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn query(path: &str) -> Query {
    Query::all(ObjectPath::new(path).unwrap())
}

fn id(uuid: Uuid) -> ObjectId {
    ObjectId::from_uuid(uuid)
}

/// The winning version at a time, among the known ones.
fn winner(known: &Knowledge, millis: i64) -> Option<Arc<ObjectInfo>> {
    assert!(known.span.contains(at(millis)), "{} does not hold {millis}", known.span);
    let holding = known.versions.iter().filter(|version| version.validity.contains(at(millis)));
    holding.max_by_key(|version| version.rank()).cloned()
}

async fn look_up(source: &CcdbSource, path: &str, millis: i64) -> Result<Knowledge, SourceError> {
    source.look_up(&query(path), at(millis), None).await
}

async fn version_at(source: &CcdbSource, path: &str, millis: i64) -> Arc<ObjectInfo> {
    winner(&look_up(source, path, millis).await.unwrap(), millis).expect("a version")
}

async fn bytes_of(source: &CcdbSource, version: &ObjectInfo) -> Result<Vec<u8>, SourceError> {
    let mut body = Buffer::default();
    source.fetch(version, &mut body).await?;
    Ok(body.into_bytes())
}

/// A body on the heap that counts its reservations.
#[derive(Default)]
struct Buffer {
    room: Vec<u8>,
    written: usize,
    reservations: usize,
}

impl Buffer {
    fn into_bytes(mut self) -> Vec<u8> {
        self.room.truncate(self.written);
        self.room
    }
}

#[async_trait]
impl Body for Buffer {
    async fn reserve(&mut self, size_bytes: u64) -> Result<(), BodyError> {
        self.reservations += 1;
        let limit_bytes = 128 << 20;
        if size_bytes > limit_bytes {
            return Err(BodyError::TooLarge { size_bytes, limit_bytes });
        }
        self.room.resize(size_bytes as usize, 0);
        Ok(())
    }

    fn spare(&mut self) -> &mut [u8] {
        &mut self.room[self.written..]
    }

    fn advance(&mut self, count: usize) {
        assert!(count <= self.room.len() - self.written);
        self.written += count;
    }

    fn written_bytes(&self) -> u64 {
        self.written as u64
    }
}
