//! The process of a consumer: gets the table of each timeframe it receives, reads it, holds it, and
//! reports the timeframe as consumed.
//!
//! ```text
//!  stdin:   setup ─▶ timeframe ─▶ timeframe ─▶ … ─▶ end
//!                        │ at once, however many are under way
//!                        ▼
//!                     do_get ─▶ resolve, read ─▶ hold ─▶ consumed
//!                                    │                      │
//!  stdout:  ready                  table                  done
//! ```

use std::collections::HashMap;
use std::hint::black_box;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use iovcache::client::{Client, ClientError, ClientOptions, Table, TableRequest};
use iovcache::error::{Coded as _, ErrorKind};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::content::checksum;
use super::process::lines_of_stdin;
use super::profile::Profile;
use crate::common::Access;
use crate::failure::Failure;

/// Time limit of the service for one table.
const WAIT: Duration = Duration::from_secs(30);

/// The first message to a consumer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Setup {
    pub(super) flight: String,
    pub(super) name: String,
    pub(super) profile: Profile,
}

/// A message to a consumer: a timeframe is registered.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct RegisteredTimeframe {
    pub(super) timeframe: u64,
    /// Number of the timeframe in the profile.
    pub(super) number: u64,
    /// Due time, in microseconds since the Unix epoch.
    pub(super) due_us: u64,
    /// How long the consumer holds the table, in microseconds from the due time.
    pub(super) hold_us: u64,
}

/// The messages of a consumer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Event {
    /// The consumer is connected.
    Ready,
    /// A table came and was read.
    Table { timeframe: u64, read: Read },
    /// The request for the table failed.
    Failed { timeframe: u64, kind: String, message: String },
    /// The timeframe was reported as consumed; the call took `took_us`.
    Done { timeframe: u64, took_us: u64 },
}

/// Counts and durations of one table that was read.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Read {
    /// Microseconds from the due time of the timeframe until the last cell was resolved.
    pub(super) latency_us: u64,
    /// Microseconds from the request for the table until the last cell was resolved.
    pub(super) table_us: u64,
    pub(super) rows: u64,
    pub(super) cells: u64,
    pub(super) objects: u64,
    pub(super) bytes: u64,
    /// Rows whose bytes were compared with the expected ones of their timestamps.
    pub(super) checked: u64,
    /// Compared rows whose bytes differ.
    pub(super) wrong: u64,
}

/// Microseconds since the Unix epoch: a clock that all processes share.
pub(super) fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    micros(now)
}

pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Runs a consumer until stdin ends and every timeframe is done.
pub(super) async fn run(access: &Access) -> Result<(), Failure> {
    let mut lines = lines_of_stdin();
    let setup = lines.recv().await.ok_or_else(|| Failure::usage("a consumer needs its setup"))?;
    let setup: Setup = serde_json::from_str(&setup).map_err(Failure::usage)?;
    let options = ClientOptions { consumer: Some(setup.name.clone()), ..ClientOptions::default() };
    let client = access.connect(&setup.flight, options).await?;
    let consumer = Arc::new(Consumer { client, setup, clock: SharedClock::new() });
    // The first call opens the connection.
    consumer.client.status().await?;
    tell(&Event::Ready)?;
    let mut under_way = JoinSet::new();
    loop {
        tokio::select! {
            line = lines.recv() => {
                let Some(line) = line else { break };
                let told: RegisteredTimeframe = serde_json::from_str(&line).map_err(Failure::usage)?;
                under_way.spawn(Arc::clone(&consumer).serve(told));
            }
            Some(served) = under_way.join_next() => served.map_err(Failure::failed)??,
        }
    }
    while let Some(served) = under_way.join_next().await {
        served.map_err(Failure::failed)??;
    }
    Ok(())
}

fn tell(event: &Event) -> Result<(), Failure> {
    let line = format!("{}\n", serde_json::json!(event));
    std::io::stdout()
        .lock()
        .write_all(line.as_bytes())
        .map_err(|error| Failure::io("the output of a consumer is not read", error))
}

/// The wall clock at the start, advanced by the monotonic clock.
#[derive(Debug, Clone, Copy)]
struct SharedClock {
    wall_us: u64,
    at: Instant,
}

impl SharedClock {
    fn new() -> Self {
        Self { wall_us: now_us(), at: Instant::now() }
    }

    fn now_us(self) -> u64 {
        self.wall_us + micros(self.at.elapsed())
    }
}

struct Consumer {
    client: Client,
    setup: Setup,
    clock: SharedClock,
}

impl Consumer {
    async fn serve(self: Arc<Self>, told: RegisteredTimeframe) -> Result<(), Failure> {
        let RegisteredTimeframe { timeframe, number, due_us, hold_us } = told;
        let name = &self.setup.name;
        let request =
            TableRequest::new().timeframe(timeframe).consumer(name).missing_as_null().wait(WAIT);
        let asked = Instant::now();
        let got = self.client.table(request).await;
        let read = got.and_then(|table| {
            let mut read = read(&table)?;
            read.table_us = micros(asked.elapsed());
            read.latency_us = self.clock.now_us().saturating_sub(due_us);
            if self.setup.profile.hostile {
                (read.checked, read.wrong) = self.check(&table, number)?;
            }
            Ok((table, read))
        });
        // The table stays where it is until the timeframe is reported.
        let held = match read {
            Ok((table, read)) => {
                tell(&Event::Table { timeframe, read })?;
                Some(table)
            }
            Err(error) => {
                tell(&failed(timeframe, &error))?;
                None
            }
        };
        let until = due_us.saturating_add(hold_us);
        let left = Duration::from_micros(until.saturating_sub(self.clock.now_us()));
        tokio::time::sleep(left).await;
        let asked = Instant::now();
        if let Err(error) = self.client.consumed(timeframe, name).await {
            // The timeframe does not exist if its registration failed for another consumer.
            if error.kind() != ErrorKind::NotFound {
                return Err(error.into());
            }
        }
        tell(&Event::Done { timeframe, took_us: micros(asked.elapsed()) })?;
        drop(held);
        Ok(())
    }

    /// Compares every byte of every cell. Gives the number of rows and of wrong rows.
    fn check(&self, table: &Table, number: u64) -> Result<(u64, u64), ClientError> {
        let profile = &self.setup.profile;
        let times = profile.timestamps(number);
        let (mut checked, mut wrong) = (0, 0);
        // One object serves many runs. While it is held, the address of its bytes identifies it.
        let mut sums: HashMap<*const u8, u32> = HashMap::new();
        for path in &profile.paths {
            let mut rows_seen = 0;
            for run in table.column(&path.column)?.runs() {
                let (rows, bytes) = run?;
                let got = bytes.map(|bytes| {
                    let sum = *sums.entry(bytes.as_ptr()).or_insert_with(|| checksum(bytes));
                    (bytes.len() as u64, sum)
                });
                rows_seen += rows.len();
                for row in rows {
                    let at = times.get(row).copied().flatten();
                    let right = at.and_then(|at| path.right(at));
                    let right = right.map(|version| (version.bytes, version.checksum));
                    checked += 1;
                    wrong += u64::from(got != right);
                }
            }
            wrong += times.len().abs_diff(rows_seen) as u64;
        }
        Ok((checked, wrong))
    }
}

/// Resolves every cell and reads the first byte of each object.
fn read(table: &Table) -> Result<Read, ClientError> {
    let mut read = Read { rows: table.rows() as u64, ..Read::default() };
    for name in table.columns() {
        for run in table.column(name)?.runs() {
            let (rows, bytes) = run?;
            read.cells += rows.len() as u64;
            let Some(bytes) = bytes else { continue };
            read.objects += 1;
            read.bytes += bytes.len() as u64;
            black_box(bytes.first());
        }
    }
    Ok(read)
}

fn failed(timeframe: u64, error: &ClientError) -> Event {
    let kind = format!("{:?}", error.kind());
    Event::Failed { timeframe, kind, message: error.message() }
}
