//! The driver: starts the devices, kills and restarts some as configured, and collects their
//! reports.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::conditions::CacheReport;
use crate::device::{MemoryPoint, Order, Told};
use crate::live::Live;
use crate::plan::{Plan, Seat};
use crate::process::{News, Process};
use crate::report::Report;
use crate::sink::SinkReport;
use crate::{Outcome, PATIENCE};

/// The consumer to be killed, and the timeframe at which it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kill {
    pub(crate) device: String,
    pub(crate) timeframe: u64,
}

impl Kill {
    /// From `NAME@TIMEFRAME`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let parts = text.split_once('@');
        let parsed = parts.and_then(|(device, at)| Some((device, at.parse().ok()?)));
        let (device, timeframe) =
            parsed.ok_or_else(|| format!("{text:?}: expected NAME@TIMEFRAME"))?;
        Ok(Self { device: device.to_owned(), timeframe })
    }
}

/// How long consumers are killed and restarted, one after the other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Soak {
    pub(crate) time: Duration,
    pub(crate) every: Duration,
}

struct Driver<'a> {
    plan: &'a Plan,
    live: Live,
    sender: Sender<News>,
    news: Receiver<News>,
    processes: BTreeMap<String, Process>,
    kills: Vec<Kill>,
    /// Processes that were killed on purpose.
    killed: BTreeSet<Seat>,
    memory: Vec<MemoryPoint>,
    report: Report,
}

/// Runs the workflow to its end.
pub(crate) fn run(plan: &Plan, kills: &[Kill], soak: Option<Soak>) -> Outcome<Report> {
    let (sender, news) = mpsc::channel();
    let mut driver = Driver {
        plan,
        live: Live::new(),
        sender,
        news,
        processes: BTreeMap::new(),
        kills: kills.to_vec(),
        killed: BTreeSet::new(),
        memory: Vec::new(),
        report: Report::default(),
    };
    let began = Instant::now();
    driver.start_all()?;
    let sink = match soak {
        None => driver.until_ended("sink")?,
        Some(soak) => driver.soak(soak)?,
    };
    let took = began.elapsed();
    driver.end(sink, took)
}

impl Driver<'_> {
    fn start(&mut self, device: &str, incarnation: u32) -> Outcome<()> {
        let seat = Seat { device: device.to_owned(), incarnation };
        // Only the first incarnation is killed: its successor stays.
        let hold_at = self.kills.iter().find(|kill| kill.device == device && incarnation == 0);
        let hold_at = hold_at.map(|kill| kill.timeframe);
        let process = Process::start(self.plan, seat, hold_at, self.sender.clone())?;
        self.processes.insert(device.to_owned(), process);
        Ok(())
    }

    fn start_all(&mut self) -> Outcome<()> {
        for device in ["sink", "cache", "source"] {
            self.live.add(device);
            self.start(device, 0)?;
        }
        let consumers = self.plan.instances();
        for device in &consumers {
            self.live.add(device);
            self.start(device, 0)?;
        }
        let mut missing = self.processes.len();
        while missing > 0 {
            match self.hear(PATIENCE)? {
                Some((_, Told::Ready)) => missing -= 1,
                Some(_) => {}
                None => return Err(format!("{missing} devices do not get ready").into()),
            }
        }
        self.order("source", &Order::Start);
        Ok(())
    }

    fn order(&mut self, device: &str, order: &Order) {
        if let Some(process) = self.processes.get_mut(device) {
            process.order(order);
        }
    }

    /// The next report of a device; `None`: no report within `limit`.
    fn hear(&mut self, limit: Duration) -> Outcome<Option<(Seat, Told)>> {
        let deadline = Instant::now() + limit;
        loop {
            let (seat, told) = match self
                .news
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(News::Told(seat, told)) => (seat, told),
                Ok(News::Silent(seat)) if self.killed.contains(&seat) => continue,
                Ok(News::Silent(seat)) => return Err(format!("{} died", seat.device).into()),
                Err(RecvTimeoutError::Timeout) => return Ok(None),
                Err(RecvTimeoutError::Disconnected) => return Err("all devices are gone".into()),
            };
            match &told {
                Told::Line(line) => self.live.say(&seat.device, line),
                Told::Memory(point) => self.memory.push(*point),
                Told::Working { timeslice } => self.kill_if_due(&seat, *timeslice),
                Told::Ready | Told::Ended(_) => {}
            }
            return Ok(Some((seat, told)));
        }
    }

    fn kill_if_due(&mut self, seat: &Seat, timeslice: u64) {
        let due = |kill: &Kill| kill.device == seat.device && timeslice >= kill.timeframe;
        if seat.incarnation == 0 && self.kills.iter().any(due) {
            self.kills.retain(|kill| !due(kill));
            self.kill(&seat.device);
            self.report.killed.push(format!("{} at timeframe {timeslice}", seat.device));
            self.live.say(&seat.device, "killed");
        }
    }

    /// Kills with SIGKILL and tells the sink, which cannot know by itself that the process sends no
    /// more.
    fn kill(&mut self, device: &str) {
        let Some(process) = self.processes.get_mut(device) else { return };
        process.kill();
        let seat = process.seat.clone();
        self.killed.insert(seat.clone());
        self.order("sink", &Order::Gone(seat));
    }

    /// Waits until a device has reported its result. Some device must make progress meanwhile.
    fn until_ended(&mut self, device: &str) -> Outcome<Value> {
        let mut moved = Instant::now();
        while moved.elapsed() < PATIENCE {
            match self.hear(PATIENCE)? {
                Some((seat, Told::Ended(value))) if seat.device == device => return Ok(value),
                Some((seat, Told::Line(_))) if seat.device == "sink" => moved = Instant::now(),
                _ => {}
            }
        }
        Err(format!("no timeslice gets whole any more, and {device} does not end").into())
    }

    /// Kills and restarts one consumer after the other until the time is over.
    fn soak(&mut self, soak: Soak) -> Outcome<Value> {
        let consumers = self.plan.instances();
        let began = Instant::now();
        let mut next = began + soak.every;
        let mut turn = 0;
        let mut moved = Instant::now();
        while began.elapsed() < soak.time {
            if let Some((seat, Told::Line(_))) =
                self.hear(next.saturating_duration_since(Instant::now()))?
                && seat.device == "sink"
            {
                moved = Instant::now();
            }
            if moved.elapsed() > PATIENCE {
                return Err("no timeslice gets whole any more".into());
            }
            if Instant::now() < next {
                continue;
            }
            next += soak.every;
            // The step has no divisor in common with 20: all are killed in turn, never two
            // neighbours.
            turn += 7;
            let device = &consumers[turn % consumers.len()];
            let incarnation = self.processes.get(device).map_or(0, |one| one.seat.incarnation);
            self.kill(device);
            self.start(device, incarnation + 1)?;
            self.report.killed.push(format!("{device} after {:.0?}", began.elapsed()));
        }
        self.order("source", &Order::Finish);
        self.until_ended("sink")
    }

    /// Ends the devices, consumers first: the cache sees their sessions end, and must then hold
    /// nothing.
    fn end(mut self, sink: Value, took: Duration) -> Outcome<Report> {
        let sink: SinkReport = serde_json::from_value(sink)?;
        let mut devices = self.plan.instances();
        devices.extend(["cache", "source", "sink"].map(str::to_owned));
        let mut cache = CacheReport::default();
        for device in devices {
            let Some(process) = self.processes.get_mut(&device) else { continue };
            let seat = process.seat.clone();
            if self.killed.contains(&seat) {
                continue;
            }
            self.killed.insert(seat);
            self.order(&device, &Order::Stop);
            if device == "cache" {
                cache = serde_json::from_value(self.until_ended("cache")?)?;
            }
            let ended_well = self.processes.get_mut(&device).map(Process::wait).transpose()?;
            if ended_well == Some(false) {
                self.report.failures.push(format!("{device} did not end well"));
            }
        }
        self.live.clear();
        for kill in &self.kills {
            let Kill { device, timeframe } = kill;
            let never = format!("{device} never reached timeframe {timeframe}, and lives");
            self.report.failures.push(never);
        }
        self.report.fill(self.plan, sink, cache, self.memory, took);
        Ok(self.report)
    }
}
