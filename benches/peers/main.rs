//! Other stores that hold objects for the processes of a node, measured in one run with the same
//! work.
//!
//! ```text
//!  look up one object of 1,000, one of 1,000,000
//!  look up 10,000 keys   get 100 × 8 MiB   store 1,000 × 64 KiB
//!   ours: a service and a table of it; look-ups in shared memory; a table that is kept
//!    floors: plain shared memory and a hash map; Boost.Interprocess (C++, compiled here)
//!   peers: iceoryx2, LMDB (their own package, compiled here), Redis, memcached (started here)
//! ```
//!
//! `cargo bench --bench peers`, or `cargo bench --bench peers -- redis lmdb` for some of them. A
//! peer that is not installed is skipped with a message. An object counts as got when one byte of
//! each of its pages was read at its place in memory, or in the peer's copy.

mod boost;
mod floor;
mod foreign;
mod memcached;
mod ours;
mod redis;
mod server;
mod work;

use std::process::ExitCode;
use std::time::Duration;

use work::{LOOK_UPS, Left, Took, Work};

/// A peer: its name, how it does the work, and the function that measures it.
struct Peer {
    name: &'static str,
    how: &'static str,
    measure: fn(&Work) -> Result<Took, Left>,
}

const PEERS: [Peer; 9] = [
    Peer {
        name: "plain shm and a hash map",
        how: "floor: one process, a std HashMap, a memfd mapped twice; one by its time in a sorted vector",
        measure: floor::measure,
    },
    Peer {
        name: "Boost.Interprocess",
        how: "floor: find and construct by name in a managed segment, from another process",
        measure: boost::measure,
    },
    Peer {
        name: "iovcache",
        how: "one request over the Unix socket, resolved; storing: loaded from a source and pinned",
        measure: ours::service,
    },
    Peer {
        name: "iovcache, shared memory",
        how: "LocalPath::at of held paths, get_many: no request",
        measure: ours::local,
    },
    Peer {
        name: "iovcache, held",
        how: "cells of a table that is held; storing: reserve, fill with CRC-32C, publish",
        measure: ours::held,
    },
    Peer {
        name: "iceoryx2",
        how: "one request with all keys to a hand-written server; one of few: a held handle of a blackboard; storing: publish",
        measure: foreign::iceoryx2,
    },
    Peer {
        name: "LMDB",
        how: "one read transaction for all, one for each; storing: one write transaction, not synced",
        measure: foreign::lmdb,
    },
    Peer {
        name: "Redis",
        how: "MGET, GET, SET in a pipeline, Unix socket",
        measure: redis::measure,
    },
    Peer {
        name: "memcached",
        how: "get of 100 keys each, get, set in a pipeline, Unix socket",
        measure: memcached::measure,
    },
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // Cargo passes `--bench`; `--test` asks for one round, to check that it works.
    let quick = arguments.iter().any(|argument| argument == "--test");
    let wanted: Vec<String> = arguments
        .iter()
        .filter(|argument| !argument.starts_with("--"))
        .map(|argument| argument.to_lowercase())
        .collect();
    let work = if quick { Work::QUICK } else { Work::FULL };
    println!(
        "| | one of {}, pinned, read, released | one of {} | look up {} keys, each | get {} × {} MiB, each | store {} × {} KiB, each | how |",
        work.few,
        work.many,
        work.keys,
        work.large,
        work.large_bytes >> 20,
        work.stored,
        work.stored_bytes >> 10
    );
    println!("|---|---|---|---|---|---|---|");
    let mut failed = false;
    for peer in PEERS {
        let name = peer.name.to_lowercase();
        if !wanted.is_empty() && !wanted.iter().any(|wanted| name.contains(wanted)) {
            continue;
        }
        match (peer.measure)(&work) {
            Ok(took) => {
                let parts = [
                    (took.few, LOOK_UPS),
                    (took.many, LOOK_UPS),
                    (took.look_up, work.keys),
                    (took.get, work.large),
                    (took.store, work.stored),
                ];
                let cells = parts
                    .map(|(took, count)| took.map_or("-".to_owned(), |took| each(took, count)));
                println!("| {} | {} | {} |", peer.name, cells.join(" | "), peer.how);
            }
            Err(Left::NotThere(why)) => {
                println!("| {} | - | - | - | - | - | left out: {why} |", peer.name)
            }
            Err(Left::Failed(why)) => {
                failed = true;
                println!("| {} | - | - | - | - | - | failed: {why} |", peer.name);
            }
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn each(took: Duration, count: usize) -> String {
    match took.as_secs_f64() * 1e6 / count.max(1) as f64 {
        us if us < 0.1 => format!("{:.1} ns", us * 1e3),
        us if us < 1.0 => format!("{us:.3} µs"),
        us if us < 100.0 => format!("{us:.2} µs"),
        us => format!("{us:.0} µs"),
    }
}
