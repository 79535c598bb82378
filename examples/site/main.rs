//! Load of a site on its CCDB: 1,000 to 100,000 nodes behind 1 to 3 tiers of HTTP caches.
//!
//! `cargo run --release --example site` measures the requests of one service, simulates sites with
//! that traffic and prints a table; `-- --seed N` draws other phases. The results are in
//! `docs/scale.md`.
//!
//! ```text
//!  measure: one real cache over a CCDB server that counts ─▶ Traffic (per path: look-ups, bodies)
//!  model:   nodes × Traffic ─▶ tier 1 ─▶ … ─▶ CCDB: requests and bytes per second at each
//! ```

#[path = "../../tests/fake_ccdb/mod.rs"]
mod fake_ccdb;
mod measure;
mod model;

use model::{Scenario, Site};

/// Bytes of an object, and number of objects that a node needs at a time.
const OBJECT_BYTES: u64 = 1 << 20;
const PATHS: usize = 50;
/// Nodes per cache, and caches per cache of the next tier.
const NODES_PER_CACHE: usize = 100;
const CACHES_PER_CACHE: usize = 10;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let seed = arguments.iter().position(|argument| argument == "--seed");
    let seed = seed.and_then(|place| arguments.get(place + 1)?.parse().ok()).unwrap_or(1);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let traffic = runtime.block_on(measure::measure());
    println!("seed {seed}; measured of one service: {traffic:?}\n");
    println!(
        "| nodes | tiers | what happens | tier 1 each | tier 2 each | tier 3 each | CCDB look-ups | CCDB bodies | CCDB | stale at most |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for nodes in [1_000, 10_000, 100_000] {
        for tiers in 1..=3 {
            let site = Site {
                nodes,
                tiers,
                paths: PATHS,
                object_bytes: OBJECT_BYTES,
                nodes_per_cache: NODES_PER_CACHE,
                caches_per_cache: CACHES_PER_CACHE,
                traffic,
                seed,
            };
            for scenario in Scenario::ALL {
                println!("{}", site.run(scenario));
            }
        }
    }
    // The sites of `tests/site`: 20 nodes behind one proxy, which fetch each of 50 objects once.
    let small = Site {
        nodes: 20,
        tiers: 1,
        paths: PATHS,
        object_bytes: 2_000,
        nodes_per_cache: 20,
        caches_per_cache: 1,
        traffic,
        seed,
    };
    let bodies = small.bodies_at_ccdb(Scenario::ColdStart);
    println!("\n20 nodes behind one proxy: {bodies} bodies from the CCDB (tests/site: {PATHS})");
    assert_eq!(bodies, PATHS as u64);
}
