//! The sink: knows for each timeslice which consumers are expected and which have reported, and
//! announces the oldest timeslice that is still possible.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::channel::{Checked, Message, accept, receive, send};
use crate::device::{Order, Told, on_orders, tell};
use crate::plan::{Plan, Seat};
use crate::{Outcome, PATIENCE};

enum Event {
    Came(Message),
    Feedback(UnixStream),
    Gone(Seat),
    Stop,
}

/// Reports of one consumer, all of its processes together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeviceReport {
    pub(crate) timeframes: u64,
    /// Timeframes that it missed because it was dead, or died of them.
    pub(crate) gone: u64,
    pub(crate) rows: u64,
    pub(crate) nulls: u64,
    pub(crate) wrong_rows: u64,
    pub(crate) bytes: u64,
    pub(crate) wrong_bytes: u64,
    /// Timeframes with rows of more than one run.
    pub(crate) run_changes: u64,
    /// In ascending order.
    pub(crate) waits_micros: Vec<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SinkReport {
    pub(crate) timeframes: u64,
    /// Timeslices that were complete before an earlier one.
    pub(crate) out_of_order: u64,
    pub(crate) devices: BTreeMap<String, DeviceReport>,
}

/// A timeslice that is not complete yet.
#[derive(Debug, Default)]
struct Slice {
    /// The processes that it was sent to, once the source has reported them.
    expected: Option<Vec<Seat>>,
    came: Vec<Seat>,
}

struct Sink<'a> {
    plan: &'a Plan,
    open: BTreeMap<u64, Slice>,
    /// Complete timeslices from `oldest` on.
    whole: BTreeSet<u64>,
    /// All timeslices below are complete.
    oldest: u64,
    complete: u64,
    /// The last incarnation of each consumer known to be dead.
    dead: BTreeMap<String, u32>,
    end: Option<u64>,
    report: SinkReport,
}

pub(crate) fn run(plan: &Plan) -> Outcome<()> {
    let (sender, events) = mpsc::channel();
    on_orders({
        let sender = sender.clone();
        move |order| {
            let event = match order {
                Order::Gone(seat) => Event::Gone(seat),
                Order::Stop => Event::Stop,
                Order::Start | Order::Finish => return,
            };
            let _ = sender.send(event);
        }
    });
    accept(&plan.socket("sink"), move |seat, _, stream| {
        if matches!(seat.device.as_str(), "cache" | "source") {
            // Welcomed by the thread that sends feedback, once it is listed there.
            let Ok(stream) = stream.try_clone() else { return };
            let _ = sender.send(Event::Feedback(stream));
        } else if send(&stream, &Message::Welcome, &[]).is_err() {
            return;
        }
        while let Ok(Some((message, _))) = receive(&stream) {
            if sender.send(Event::Came(message)).is_err() {
                return;
            }
        }
    })?;
    tell(&Told::Ready);
    let devices = plan.instances().into_iter().map(|name| (name, DeviceReport::default()));
    let report = SinkReport { devices: devices.collect(), ..SinkReport::default() };
    let (open, dead) = (BTreeMap::new(), BTreeMap::new());
    let whole = BTreeSet::new();
    let mut sink = Sink { plan, open, whole, oldest: 0, complete: 0, dead, end: None, report };
    let mut feedback = Vec::new();
    let mut ended = false;
    loop {
        match events.recv_timeout(PATIENCE) {
            Ok(Event::Came(message)) => sink.take(message)?,
            Ok(Event::Gone(seat)) => _ = sink.dead.insert(seat.device, seat.incarnation),
            Ok(Event::Feedback(stream)) => {
                if send(&stream, &Message::Welcome, &[]).is_ok() {
                    feedback.push(stream);
                }
            }
            Ok(Event::Stop) => return Ok(()),
            Err(_) => return Err("nothing comes any more".into()),
        }
        if sink.settle() {
            let (timeslice, complete) = (sink.oldest, sink.complete);
            // A dead device needs no message; the driver notices its death.
            let message = Message::OldestPossible { timeslice, complete };
            feedback.retain(|stream| send(stream, &message, &[]).is_ok());
            tell(&Told::Line(format!("{complete} whole · oldest possible {timeslice}")));
        }
        if sink.end == Some(sink.oldest) && !ended {
            ended = true;
            let mut report = sink.report.clone();
            report.timeframes = sink.complete;
            report.devices.values_mut().for_each(|device| device.waits_micros.sort_unstable());
            tell(&Told::Ended(json!(report)));
        }
    }
}

impl Sink<'_> {
    fn take(&mut self, message: Message) -> Outcome<()> {
        match message {
            Message::Expected { timeslice, seats } => {
                self.open.entry(timeslice).or_default().expected = Some(seats);
            }
            Message::End { timeslices } => self.end = Some(timeslices),
            Message::Checked { timeslice, seat, checked } => {
                // A message sent just before a process died may arrive after it was counted as
                // dead.
                let is_open = timeslice >= self.oldest && !self.whole.contains(&timeslice);
                let slice = is_open.then(|| self.open.entry(timeslice).or_default());
                if let Some(slice) = slice
                    && !slice.came.contains(&seat)
                {
                    self.report.add(&seat.device, checked);
                    slice.came.push(seat);
                }
            }
            other => return Err(format!("{other:?}, expected what a timeslice came to").into()),
        }
        Ok(())
    }

    /// Counts the timeslices that are complete now; returns whether there are more than before.
    fn settle(&mut self) -> bool {
        let before = self.complete;
        let (dead, plan) = (&self.dead, self.plan);
        let is_dead = |seat: &Seat| dead.get(&seat.device).is_some_and(|&n| seat.incarnation <= n);
        let mut whole = Vec::new();
        for (&timeslice, slice) in &self.open {
            let Some(expected) = &slice.expected else { continue };
            if expected.iter().all(|seat| slice.came.contains(seat) || is_dead(seat)) {
                whole.push(timeslice);
            }
        }
        for timeslice in whole {
            let Some(slice) = self.open.remove(&timeslice) else { continue };
            for name in plan.instances_of(timeslice) {
                if !slice.came.iter().any(|seat| seat.device == name) {
                    self.report.devices.entry(name).or_default().gone += 1;
                }
            }
            self.complete += 1;
            self.whole.insert(timeslice);
            let earlier = self.open.keys().next().is_some_and(|&first| first < timeslice);
            self.report.out_of_order += u64::from(earlier);
        }
        // Every timeslice that was sent is open until it is complete, and they are sent in order.
        let first_open = self.open.keys().next().copied();
        self.oldest = first_open.unwrap_or(self.complete).min(self.complete).max(self.oldest);
        self.whole = self.whole.split_off(&self.oldest);
        self.complete > before
    }
}

impl SinkReport {
    fn add(&mut self, device: &str, checked: Checked) {
        let report = self.devices.entry(device.to_owned()).or_default();
        report.timeframes += 1;
        report.rows += checked.rows;
        report.nulls += checked.nulls;
        report.wrong_rows += checked.wrong_rows;
        report.bytes += checked.bytes;
        report.wrong_bytes += checked.wrong_bytes;
        report.run_changes += checked.run_changes;
        report.waits_micros.push(checked.wait_micros);
    }
}
