//! A consumer: gathers its inputs per timeslice, resolves every distinct cell, and compares.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

use arrow_array::cast::AsArray as _;
use arrow_array::types::{Int32Type, Int64Type};
use arrow_array::{Array as _, RecordBatch};
use iovcache::Coded as _;
use iovcache::shm::attach::Attachment;
use iovcache::table::{CellValue, column_runs};
use md5::{Digest as _, Md5};

use crate::channel::{Checked, Message, connect, receive, send};
use crate::columns::{Column, Row};
use crate::device::{Order, Told, on_orders, tell};
use crate::plan::{Plan, Seat};
use crate::truth::Truth;
use crate::{Outcome, PATIENCE};

enum Event {
    Input(Message, Vec<RecordBatch>),
    HungUp(&'static str),
    Stop,
}

/// The inputs of one timeslice, and their result.
#[derive(Default)]
struct Inputs {
    data: Option<(RecordBatch, Instant)>,
    conditions: Option<(Vec<RecordBatch>, Instant)>,
}

/// From timeslice `hold_at` on the consumer stops as soon as it holds its inputs, so that it can be
/// killed at that moment.
pub(crate) fn run(plan: &Plan, seat: &Seat, hold_at: Option<u64>) -> Outcome<()> {
    let (sender, events) = mpsc::channel();
    on_orders({
        let sender = sender.clone();
        move |order| {
            if order == Order::Stop {
                let _ = sender.send(Event::Stop);
            }
        }
    });
    let truth = Truth::read(&plan.repository, &plan.paths())?;
    let attachment = attach(plan, seat)?;
    let sink = connect(&plan.socket("sink"), seat, None)?;
    let cache = connect(&plan.socket("cache"), seat, Some(attachment.session()))?;
    listen("cache", cache, sender.clone());
    // Last: once the source knows this device, all other connections must exist.
    let source = connect(&plan.socket("source"), seat, None)?;
    listen("source", source, sender);
    tell(&Told::Ready);

    let mut gathered: BTreeMap<u64, Inputs> = BTreeMap::new();
    let mut done = 0_u64;
    loop {
        let timeslice = match events.recv() {
            Ok(Event::Input(Message::Data { timeslice, .. }, table)) => {
                let table = table.into_iter().next().ok_or("data without a table")?;
                gathered.entry(timeslice).or_default().data = Some((table, Instant::now()));
                timeslice
            }
            Ok(Event::Input(Message::Conditions { timeslice }, table)) => {
                gathered.entry(timeslice).or_default().conditions = Some((table, Instant::now()));
                timeslice
            }
            Ok(Event::Input(other, _)) => return Err(format!("{other:?}, expected data").into()),
            Ok(Event::HungUp(who)) => return Err(format!("{who} is gone").into()),
            Ok(Event::Stop) | Err(_) => return Ok(()),
        };
        let whole = |inputs: &Inputs| inputs.data.is_some() && inputs.conditions.is_some();
        if !gathered.get(&timeslice).is_some_and(whole) {
            continue;
        }
        let Some(Inputs { data: Some(data), conditions: Some(conditions) }) =
            gathered.remove(&timeslice)
        else {
            continue;
        };
        tell(&Told::Working { timeslice });
        if hold_at.is_some_and(|hold_at| timeslice >= hold_at) {
            std::thread::sleep(PATIENCE);
            return Err("the driver did not kill it".into());
        }
        let mut checked = check(plan, &truth, &attachment, &data.0, &conditions.0)?;
        let wait = conditions.1.saturating_duration_since(data.1);
        checked.wait_micros = u64::try_from(wait.as_micros()).unwrap_or(u64::MAX);
        std::thread::sleep(plan.work(&seat.device, timeslice));
        send(&sink, &Message::Checked { timeslice, seat: seat.clone(), checked }, &[])?;
        done += 1;
        tell(&Told::Line(format!("{done} done · at {timeslice} · {} wait", gathered.len())));
    }
}

/// Attaches as soon as the cache is available: all devices start at the same time.
fn attach(plan: &Plan, seat: &Seat) -> Outcome<Attachment> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Attachment::open(&plan.socket("attach"), &seat.device, None) {
            Ok(attachment) => return Ok(attachment),
            Err(error) if error.kind().is_transient() && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(error.message().into()),
        }
    }
}

fn listen(name: &'static str, stream: UnixStream, sender: Sender<Event>) {
    std::thread::spawn(move || {
        while let Ok(Some((message, table))) = receive(&stream) {
            if sender.send(Event::Input(message, table)).is_err() {
                return;
            }
        }
        let _ = sender.send(Event::HungUp(name));
    });
}

/// Compares each run of cells with the right object for each of its rows.
fn check(
    plan: &Plan,
    truth: &Truth,
    attachment: &Attachment,
    data: &RecordBatch,
    conditions: &[RecordBatch],
) -> Outcome<Checked> {
    let rows = rows_of(data)?;
    let mut runs: Vec<i64> = rows.iter().filter_map(|(_, run)| *run).collect();
    runs.dedup();
    let changes = u64::from(runs.len() > 1);
    let mut checked = Checked { run_changes: changes, ..Checked::default() };
    for column in Column::all(plan) {
        let look_ups = column.look_ups(&rows);
        let mut row = 0;
        for batch in conditions {
            let first = row;
            let cells = batch.column_by_name(&column.name).ok_or("a column is missing")?;
            for (end, cell) in column_runs(cells)?.iter() {
                let mappings;
                let (bytes, got) = match &cell {
                    CellValue::Null => (0, None),
                    CellValue::Header(header) => {
                        mappings = attachment.mappings_for(header);
                        let bytes = mappings.read(header)?;
                        (bytes.len() as u64, Some(hex(&Md5::digest(bytes))))
                    }
                    CellValue::O2 { .. } | CellValue::Payload(_) => {
                        return Err("another cell where a MetaHeader belongs".into());
                    }
                };
                let before = checked.wrong_rows;
                for row in row..first + end {
                    let look_up = look_ups.get(row).ok_or("more rows than timestamps")?;
                    let right = look_up.as_ref().and_then(|look_up| truth.md5(look_up));
                    checked.rows += 1;
                    checked.nulls += u64::from(right.is_none() && got.is_none());
                    checked.wrong_rows += u64::from(right != got.as_deref());
                }
                row = first + end;
                checked.bytes += bytes;
                checked.wrong_bytes += if checked.wrong_rows > before { bytes } else { 0 };
            }
        }
        if row != rows.len() {
            return Err(format!("{}: {row} rows, expected {}", column.name, rows.len()).into());
        }
    }
    Ok(checked)
}

/// Timestamp and run of each row.
fn rows_of(data: &RecordBatch) -> Outcome<Vec<Row>> {
    let at = data.column(0).as_primitive_opt::<Int64Type>().ok_or("timestamps are not Int64")?;
    let runs = data.column(1).as_primitive_opt::<Int32Type>().ok_or("runs are not Int32")?;
    let run = |row: usize| runs.is_valid(row).then(|| i64::from(runs.value(row)));
    Ok((0..data.num_rows()).map(|row| (at.value(row), run(row))).collect())
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
