//! What every device has: a way to tell the driver how it is, and orders from it.
//!
//! Its stdout goes to the driver and its orders come on stdin, a line of JSON each. When stdin ends,
//! the driver is gone, and so is the device: none is left behind.

use std::io::{BufRead as _, Write as _};
use std::process::exit;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::plan::Seat;

/// What a device tells the driver.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Told {
    /// It can be connected to, or is connected.
    Ready,
    /// How it is, for the live line.
    Line(String),
    /// It has all inputs of a timeslice, and what it read is held for it.
    Working { timeslice: u64 },
    /// The cache's memory.
    Memory(MemoryPoint),
    /// What came of it.
    Ended(Value),
}

/// The cache at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MemoryPoint {
    pub(crate) millis: u64,
    pub(crate) total_bytes: u64,
    pub(crate) used_bytes: u64,
    pub(crate) pinned_bytes: u64,
    pub(crate) in_flight: u64,
    pub(crate) sessions: u64,
}

/// What the driver tells a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Begin: all are there.
    Start,
    /// Emit no more.
    Finish,
    /// This process is dead: nothing more comes from it.
    Gone(Seat),
    /// Come to an end.
    Stop,
}

pub(crate) fn tell(told: &Told) {
    let mut stdout = std::io::stdout().lock();
    // Without a driver nobody cares, and stdin says so too.
    if let Ok(line) = serde_json::to_string(told) {
        let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
    }
}

/// Gives each order to `take`, from a thread of its own.
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
