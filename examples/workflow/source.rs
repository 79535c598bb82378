//! The source: emits timeframes at its rate while sent minus consumed stays within the limit.
//!
//! It alone tells the sink to which processes a timeslice went.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arrow_array::{ArrayRef, Int32Array, Int64Array, RecordBatch};

use crate::channel::{Message, accept, connect, receive, send};
use crate::columns::KEY;
use crate::device::{Order, Told, on_orders, tell};
use crate::plan::{Plan, Seat};
use crate::{Outcome, PATIENCE};

/// An event that wakes the source.
enum Event {
    Start,
    Finish,
    Consumed(u64),
    SinkGone,
}

type Outlets = BTreeMap<String, (Seat, UnixStream)>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn run(plan: &Plan, seat: &Seat) -> Outcome<()> {
    let outlets: Arc<Mutex<Outlets>> = Arc::default();
    accept(&plan.socket("source"), {
        let outlets = Arc::clone(&outlets);
        move |seat, _, stream| {
            let Ok(clone) = stream.try_clone() else { return };
            // Listed first: once welcomed, the consumer counts as connected. Data waits for the
            // lock, so the welcome is the first message.
            let mut outlets = lock(&outlets);
            outlets.insert(seat.device.clone(), (seat.clone(), clone));
            if send(&stream, &Message::Welcome, &[]).is_err() {
                outlets.remove(&seat.device);
            }
        }
    })?;
    let (sender, events) = mpsc::channel();
    let stopped = Arc::new(AtomicBool::new(false));
    on_orders({
        let (sender, stopped) = (sender.clone(), Arc::clone(&stopped));
        move |order| {
            let event = match order {
                Order::Start => Event::Start,
                Order::Stop => {
                    stopped.store(true, Ordering::Release);
                    Event::Finish
                }
                Order::Finish | Order::Gone(_) => Event::Finish,
            };
            let _ = sender.send(event);
        }
    });
    let cache = connect(&plan.socket("cache"), seat, None)?;
    let sink = connect(&plan.socket("sink"), seat, None)?;
    let feedback = sink.try_clone()?;
    std::thread::spawn(move || {
        while let Ok(Some((Message::OldestPossible { complete, .. }, _))) = receive(&feedback) {
            let _ = sender.send(Event::Consumed(complete));
        }
        let _ = sender.send(Event::SinkGone);
    });
    tell(&Told::Ready);
    let sent = emit(plan, &outlets, &cache, &sink, &events)?;
    send(&sink, &Message::End { timeslices: sent }, &[])?;
    // The sink still reports finished timeslices, and the driver sends the last order.
    while !stopped.load(Ordering::Acquire) {
        match events.recv_timeout(PATIENCE) {
            Ok(Event::Consumed(complete)) => {
                tell(&Told::Line(format!("sent {sent} · {} in flight", sent - complete)));
            }
            Ok(_) => {}
            Err(_) => return Err("no order to stop came".into()),
        }
    }
    Ok(())
}

fn emit(
    plan: &Plan,
    outlets: &Mutex<Outlets>,
    cache: &UnixStream,
    sink: &UnixStream,
    events: &mpsc::Receiver<Event>,
) -> Outcome<u64> {
    let (mut sent, mut consumed, mut started) = (0, 0, false);
    let mut due = Instant::now();
    let mut heard = Instant::now();
    while sent < plan.timeframes {
        let free = started && sent - consumed < plan.in_flight;
        let pause = due.saturating_duration_since(Instant::now());
        if free && pause.is_zero() {
            let seats = send_data(plan, outlets, sent)?;
            if !seats.is_empty() {
                let message = Message::Data { timeslice: sent, seats: seats.clone() };
                send(cache, &message, &[rows(plan, sent)?])?;
            }
            send(sink, &Message::Expected { timeslice: sent, seats }, &[])?;
            sent += 1;
            due = Instant::now() + Duration::from_micros(plan.every_micros);
            tell(&Told::Line(format!("sent {sent} · {} in flight", sent - consumed)));
            heard = Instant::now();
            continue;
        }
        match events.recv_timeout(if free { pause } else { PATIENCE }) {
            Ok(Event::Start) => started = true,
            Ok(Event::Finish) => break,
            Ok(Event::Consumed(complete)) => consumed = complete,
            Ok(Event::SinkGone) | Err(RecvTimeoutError::Disconnected) => {
                return Err("the sink is gone".into());
            }
            Err(RecvTimeoutError::Timeout) if heard.elapsed() > PATIENCE => {
                return Err(format!("{consumed} of {sent} timeslices came back, no more").into());
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
    Ok(sent)
}

/// Sends the data of a timeslice to the connected consumers whose turn it is.
fn send_data(plan: &Plan, outlets: &Mutex<Outlets>, timeslice: u64) -> Outcome<Vec<Seat>> {
    let table = [rows(plan, timeslice)?];
    let mut seats = Vec::new();
    for device in plan.instances_of(timeslice) {
        let Some((seat, stream)) = lock(outlets)
            .get(&device)
            .and_then(|(seat, stream)| Some((seat.clone(), stream.try_clone().ok()?)))
        else {
            continue;
        };
        let message = Message::Data { timeslice, seats: Vec::new() };
        match send(&stream, &message, &table) {
            Ok(()) => seats.push(seat),
            // The process died. It may have been restarted already, as another process.
            Err(_) => {
                let mut outlets = lock(outlets);
                if outlets.get(&device).is_some_and(|(there, _)| *there == seat) {
                    outlets.remove(&device);
                }
            }
        }
    }
    Ok(seats)
}

/// Timestamp and run of each row.
fn rows(plan: &Plan, timeslice: u64) -> Outcome<RecordBatch> {
    let rows = plan.rows_of(timeslice);
    let at: ArrayRef = Arc::new(rows.iter().map(|(at, _)| Some(*at)).collect::<Int64Array>());
    let runs = rows.iter().map(|(_, run)| run.map(i32::try_from).transpose());
    let runs: ArrayRef = Arc::new(runs.collect::<Result<Int32Array, _>>()?);
    Ok(RecordBatch::try_from_iter_with_nullable([("timestamp", at, false), (KEY, runs, true)])?)
}
