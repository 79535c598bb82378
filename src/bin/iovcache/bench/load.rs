//! Open-loop load: timeframes come when they are due, whether or not the service keeps up.
//!
//! ```text
//!  pacer ──due──▶ register ─▶ tell each consumer ─▶ its table ─▶ held ─▶ consumed
//!    │              │                                  │
//!    └ never waits  └────────── latency ───────────────┘ counted from when it was due
//! ```
//!
//! A load that waits for an answer before it sends the next request omits the time in which the
//! service was slow (coordinated omission). Here each latency begins when its timeframe was due,
//! also if the request is sent late.

use std::time::{Duration, Instant};

use iovcache::client::{Client, ClientError};
use iovcache::error::Coded as _;
use iovcache::table::{ColumnRequest, PutAnswer, Status};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::consumer::{Event, Read, RegisteredTimeframe, micros, now_us};
use super::consumers::{ConsumerMessage, Consumers};
use super::histogram::{Durations, Latency};
use super::process::Usage;
use super::profile::Profile;
use super::random::Random;
use super::result::{Phase, ServiceUse, StatusSample, Tables, Throughput, Window};
use crate::failure::Failure;

/// Time limit for outstanding tables after the last timeframe, in addition to the holding time.
const DRAIN_LIMIT: Duration = Duration::from_secs(60);
/// Interval between reads of the service's status.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Interval between kills of consumers, in profiles that kill them.
const DEATH_EVERY: Duration = Duration::from_secs(1);
/// Number of windows of a phase in the plots over time.
const WINDOWS: usize = 40;
/// Lead time before the first timeframe is due.
const LEAD: Duration = Duration::from_millis(50);

/// A service under load, and the clients that load it.
pub(super) struct LoadRun<'a> {
    pub(super) client: Client,
    pub(super) columns: Vec<ColumnRequest>,
    pub(super) consumers: Consumers,
    pub(super) profile: &'a Profile,
    /// Process id of the service, if it runs on this node.
    pub(super) pid: Option<u32>,
    /// The id of the next timeframe.
    pub(super) next: u64,
    pub(super) random: Random,
}

/// The timeframes of a phase, and their rate.
pub(super) struct PhasePlan<'a> {
    pub(super) name: &'a str,
    /// Timeframes per second.
    pub(super) rate: f64,
    /// Numbers of the timeframes in the profile, in order.
    pub(super) numbers: Vec<u64>,
}

/// When the timeframes of a phase are due.
struct Schedule {
    /// When the first one is due, by two clocks.
    began: Instant,
    began_us: u64,
    /// From the first one to the end of the last one.
    length: Duration,
    /// How long a consumer holds a table, so that the intended number of timeframes is in flight.
    hold: Duration,
}

impl Schedule {
    fn new(plan: &PhasePlan<'_>, in_flight: u64) -> Self {
        Self {
            began: Instant::now() + LEAD,
            began_us: now_us() + micros(LEAD),
            length: Duration::from_secs_f64(plan.numbers.len() as f64 / plan.rate),
            hold: Duration::from_secs_f64(in_flight as f64 / plan.rate),
        }
    }
}

/// The result of a registration.
struct Put {
    told: RegisteredTimeframe,
    took: Duration,
    answer: Result<PutAnswer, ClientError>,
}

/// Counters of a running phase.
struct Counts {
    tables: Tables,
    read: Read,
    latency: Durations,
    late: Durations,
    register: Durations,
    table: Durations,
    consumed: Durations,
    last_table: Instant,
    windows: Vec<(Durations, Window)>,
    window: Duration,
    looks: Vec<StatusSample>,
    used_bytes: u64,
    pinned_bytes: u64,
}

impl LoadRun<'_> {
    /// Runs one phase until every table came and every timeframe is done.
    pub(super) async fn run(&mut self, plan: PhasePlan<'_>) -> Result<Phase, Failure> {
        let before = self.client.status().await?;
        let usage = self.usage();
        let schedule = Schedule::new(&plan, self.profile.in_flight);
        let mut counts = Counts::new(schedule.length, schedule.began);
        let (status, looks) = mpsc::unbounded_channel();
        let looking = tokio::spawn(look(self.client.clone(), status));
        self.drive(&plan, &schedule, looks, &mut counts).await?;
        looking.abort();
        let quiet = schedule.began.elapsed().as_secs_f64();
        let after = self.client.status().await?;
        let seconds = counts.last_table.saturating_duration_since(schedule.began).as_secs_f64();
        // A phase is not shorter than its intended load.
        let seconds = seconds.max(schedule.length.as_secs_f64());
        let service = self.service_use(usage, &counts, seconds, after.evictions - before.evictions);
        let loads = after.loads - before.loads;
        Ok(counts.into_phase(plan, [seconds, quiet], loads, service))
    }

    /// Registers each timeframe when it is due, and counts the reports of the consumers, until every
    /// table came or the time limit is over.
    async fn drive(
        &mut self,
        plan: &PhasePlan<'_>,
        schedule: &Schedule,
        mut looks: mpsc::UnboundedReceiver<Status>,
        counts: &mut Counts,
    ) -> Result<(), Failure> {
        let Schedule { began, began_us, length, hold } = *schedule;
        let mut due = pace(began, plan.rate, plan.numbers.len());
        let mut deaths = tokio::time::interval(DEATH_EVERY);
        deaths.reset();
        let mut puts: JoinSet<Put> = JoinSet::new();
        let mut numbers = plan.numbers.iter();
        let until = tokio::time::Instant::from_std(began + length + hold + DRAIN_LIMIT);
        // Pacing ends when the pacer hangs up.
        let mut pacing = true;
        loop {
            let (to_come, open) = self.consumers.open();
            if !pacing && puts.is_empty() && open == 0 {
                return Ok(());
            }
            tokio::select! {
                turn = due.recv(), if pacing => match turn {
                    Some(turn) => {
                        counts.late.record(turn.late);
                        let Some(&number) = numbers.next() else { continue };
                        let (due_us, hold_us) = (began_us + micros(turn.due), micros(hold));
                        puts.spawn(self.put(RegisteredTimeframe { timeframe: self.next, number, due_us, hold_us }));
                        self.next += 1;
                    }
                    None => pacing = false,
                },
                Some(put) = puts.join_next() => {
                    self.was_put(put.map_err(Failure::failed)?, counts);
                }
                heard = self.consumers.hear() => self.heard(heard, began_us, counts)?,
                Some(status) = looks.recv() => counts.look(&status, began.elapsed()),
                _ = deaths.tick(), if self.profile.hostile && pacing => {
                    self.kill_one(counts).await?;
                }
                () = tokio::time::sleep_until(until) => {
                    counts.tables.lost += to_come as u64;
                    return Ok(());
                }
            }
        }
    }

    fn usage(&self) -> Option<Usage> {
        self.pid.and_then(Usage::of)
    }

    fn put(&self, told: RegisteredTimeframe) -> impl Future<Output = Put> + 'static {
        let (client, columns) = (self.client.clone(), self.columns.clone());
        let (timestamps, names) = (self.profile.timestamps(told.number), self.consumers.names());
        async move {
            let asked = Instant::now();
            let answer = client.put_timeframe(told.timeframe, timestamps, &columns, &names).await;
            Put { told, took: asked.elapsed(), answer }
        }
    }

    fn was_put(&mut self, put: Put, counts: &mut Counts) {
        let consumers = self.profile.consumers as u64;
        counts.tables.expected += consumers;
        match put.answer {
            Ok(_) => {
                counts.register.record(put.took);
                self.consumers.tell(put.told);
            }
            Err(error) => {
                let kind = format!("{:?}", error.kind());
                counts.tables.fail(&kind, &error.message(), consumers);
            }
        }
    }

    fn heard(
        &mut self,
        heard: ConsumerMessage,
        began_us: u64,
        counts: &mut Counts,
    ) -> Result<(), Failure> {
        // Messages of a consumer that was killed since are already counted as lost.
        if !self.consumers.lives(&heard) {
            return Ok(());
        }
        match heard.event {
            Some(Event::Table { read, .. }) => counts.table(&read, began_us),
            Some(Event::Failed { kind, message, .. }) => counts.tables.fail(&kind, &message, 1),
            Some(Event::Done { took_us, .. }) => counts.consumed.record_us(took_us),
            Some(Event::Ready) => {}
            None => return Err(Failure::failed("a consumer ended unexpectedly")),
        }
        Ok(())
    }

    /// Kills one of the consumers (SIGKILL) at any point of its work, and starts a replacement.
    async fn kill_one(&mut self, counts: &mut Counts) -> Result<(), Failure> {
        let place = self.random.below(self.profile.consumers);
        let left = self.consumers.replace(place)?;
        counts.tables.deaths += 1;
        counts.tables.lost += left.iter().filter(|(_, came)| !came).count() as u64;
        // The replacement has the same name but does not read these timeframes: report them here.
        for (timeframe, _) in left {
            match self.client.consumed(timeframe, &Consumers::name(place)).await {
                Ok(_) => {}
                // Already reported.
                Err(error) if error.kind() == iovcache::error::ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn service_use(
        &self,
        before: Option<Usage>,
        counts: &Counts,
        seconds: f64,
        evictions: u64,
    ) -> Option<ServiceUse> {
        let memory = self.usage()?;
        let cpu_seconds = memory.cpu_seconds - before?.cpu_seconds;
        Some(ServiceUse {
            cpu_seconds,
            cpu_us_per_table: cpu_seconds * 1e6 / counts.tables.done.max(1) as f64,
            cores: cpu_seconds / seconds,
            memory,
            used_bytes: counts.used_bytes,
            pinned_bytes: counts.pinned_bytes,
            evictions,
        })
    }
}

/// A timeframe's due time from the begin of the phase, and the delay of the pacer.
struct Turn {
    due: Duration,
    late: Duration,
}

/// Reports each of `count` timeframes when it is due. A separate thread sleeps: a runtime's timers
/// have a resolution of a millisecond only.
fn pace(began: Instant, rate: f64, count: usize) -> mpsc::UnboundedReceiver<Turn> {
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for number in 0..count {
            let due = Duration::from_secs_f64(number as f64 / rate);
            std::thread::sleep((began + due).saturating_duration_since(Instant::now()));
            let late = Instant::now().saturating_duration_since(began + due);
            if sender.send(Turn { due, late }).is_err() {
                break;
            }
        }
    });
    receiver
}

/// Reads the status of the service every [`LOOK_EVERY`].
async fn look(client: Client, looks: mpsc::UnboundedSender<Status>) {
    let mut every = tokio::time::interval(LOOK_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        every.tick().await;
        if let Ok(status) = client.status().await
            && looks.send(status).is_err()
        {
            return;
        }
    }
}

impl Counts {
    fn new(length: Duration, began: Instant) -> Self {
        let window = length.div_f64(WINDOWS as f64);
        let windows = (0..WINDOWS).map(|n| {
            let at = window.as_secs_f64() * n as f64;
            (Durations::default(), Window { at, ..Window::default() })
        });
        Self {
            tables: Tables::default(),
            read: Read::default(),
            latency: Durations::default(),
            late: Durations::default(),
            register: Durations::default(),
            table: Durations::default(),
            consumed: Durations::default(),
            last_table: began,
            windows: windows.collect(),
            window,
            looks: Vec::new(),
            used_bytes: 0,
            pinned_bytes: 0,
        }
    }

    fn window(&mut self, at: Duration) -> Option<&mut (Durations, Window)> {
        let place = (at.as_secs_f64() / self.window.as_secs_f64()) as usize;
        self.windows.get_mut(place)
    }

    fn table(&mut self, read: &Read, began_us: u64) {
        self.tables.done += 1;
        self.tables.cells_checked += read.checked;
        self.tables.cells_wrong += read.wrong;
        self.read.rows += read.rows;
        self.read.cells += read.cells;
        self.read.objects += read.objects;
        self.read.bytes += read.bytes;
        self.latency.record_us(read.latency_us);
        self.table.record_us(read.table_us);
        self.last_table = Instant::now();
        // In the window of its due time.
        let due_us = now_us().saturating_sub(read.latency_us);
        let at = Duration::from_micros(due_us.saturating_sub(began_us));
        if let Some((latency, _)) = self.window(at) {
            latency.record_us(read.latency_us);
        }
    }

    fn look(&mut self, status: &Status, at: Duration) {
        let (used, pinned) = (status.memory.used_bytes, status.memory.pinned_bytes);
        self.used_bytes = self.used_bytes.max(used);
        self.pinned_bytes = self.pinned_bytes.max(pinned);
        self.looks.push(StatusSample {
            at: at.as_secs_f64(),
            in_flight: status.timeframes.len() as u64,
            used_bytes: used,
            pinned_bytes: pinned,
        });
    }

    fn into_phase(
        self,
        plan: PhasePlan<'_>,
        [seconds, quiet_after_seconds]: [f64; 2],
        loads: u64,
        service: Option<ServiceUse>,
    ) -> Phase {
        let windows = self.windows.into_iter().map(|(latency, window)| {
            let Latency { count: tables, p50_us, p99_us, max_us, .. } = latency.summary();
            Window { tables, p50_us, p99_us, max_us, ..window }
        });
        let windows = windows.collect();
        let each = |count: u64| count as f64 / seconds;
        let read = &self.read;
        Phase {
            name: plan.name.to_owned(),
            rate: plan.rate,
            seconds,
            quiet_after_seconds,
            timeframes: plan.numbers.len() as u64,
            throughput: Throughput {
                tables: each(self.tables.done),
                rows: each(read.rows),
                cells: each(read.cells),
                objects: each(read.objects),
                bytes: each(read.bytes),
                loads: each(loads),
            },
            tables: self.tables,
            latency: self.latency.summary(),
            late: self.late.summary(),
            register: self.register.summary(),
            table: self.table.summary(),
            consumed: self.consumed.summary(),
            service,
            windows,
            looks: self.looks,
        }
    }
}
