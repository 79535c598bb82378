//! Shared by all devices: reports to the driver, and orders from it.
//!
//! The device's stdout carries its reports and its stdin the orders, a line of JSON each. When
//! stdin ends, the driver is dead and the device ends too, so no process is left over.

use std::io::{BufRead as _, Write as _};
use std::process::exit;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::plan::Seat;

/// A report of a device to the driver.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Told {
    /// It accepts connections, or is connected.
    Ready,
    /// Its state, for the live line.
    Line(String),
    /// It has all inputs of a timeslice, and holds the objects that it read for it.
    Working { timeslice: u64 },
    /// The cache's memory.
    Memory(MemoryPoint),
    /// Its result.
    Ended(Value),
}

/// Memory of the cache at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MemoryPoint {
    pub(crate) millis: u64,
    pub(crate) total_bytes: u64,
    pub(crate) used_bytes: u64,
    pub(crate) pinned_bytes: u64,
    pub(crate) in_flight: u64,
    pub(crate) sessions: u64,
}

/// An order of the driver to a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Start: all devices are ready.
    Start,
    /// Stop emitting.
    Finish,
    /// This process is dead: it sends nothing more.
    Gone(Seat),
    /// Terminate.
    Stop,
}

pub(crate) fn tell(told: &Told) {
    let mut stdout = std::io::stdout().lock();
    // Without a driver the report is of no use; the end of stdin reports its death as well.
    if let Ok(line) = serde_json::to_string(told) {
        let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
    }
}

/// Passes each order to `take`, on a separate thread.
pub(crate) fn on_orders(mut take: impl FnMut(Order) + Send + 'static) {
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            match serde_json::from_str(&line) {
                Ok(order) => take(order),
                Err(_) => break,
            }
        }
        exit(1);
    });
}
