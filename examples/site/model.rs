//! The traffic of many nodes, second by second.
//!
//! The caches behave as configured in `deploy/`: bodies by UUID are kept for ever, and fetched once
//! for any number of simultaneous requests; look-ups pass. Nodes of a dead tier use the next one.

use std::collections::HashSet;

use crate::measure::Traffic;

/// Seconds over which nodes start, and seconds simulated.
const START_SECONDS: usize = 10;
const SECONDS: usize = 60;
/// Time at which a run begins or a tier dies.
const EVENT_SECOND: f64 = 20.0;
/// Bytes of a look-up and its answer, without a body.
const LOOK_UP_BYTES: u64 = 700;

/// Scenario at a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scenario {
    /// All nodes start within ten seconds with empty memory, and all caches are empty.
    ColdStart,
    /// Every path gets a new version at one moment.
    RunStart,
    /// Like [`RunStart`](Self::RunStart), with the first tier dead.
    RunStartWithoutTierOne,
}

impl Scenario {
    pub(crate) const ALL: [Self; 3] =
        [Self::ColdStart, Self::RunStart, Self::RunStartWithoutTierOne];

    fn name(self) -> &'static str {
        match self {
            Self::ColdStart => "cold start",
            Self::RunStart => "run start",
            Self::RunStartWithoutTierOne => "run start, tier 1 dead",
        }
    }
}

/// A site, and the requests of one of its nodes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Site {
    pub(crate) nodes: usize,
    pub(crate) tiers: usize,
    pub(crate) paths: usize,
    pub(crate) object_bytes: u64,
    pub(crate) nodes_per_cache: usize,
    pub(crate) caches_per_cache: usize,
    pub(crate) traffic: Traffic,
    pub(crate) seed: u64,
}

/// A portable generator with the same numbers everywhere (SplitMix64).
struct Random(u64);

impl Random {
    /// Between 0 and 1.
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Requests per second at one tier.
#[derive(Debug, Clone)]
struct Load {
    look_ups: Vec<f64>,
    bodies: Vec<u64>,
}

impl Load {
    fn new() -> Self {
        Self { look_ups: vec![0.0; SECONDS], bodies: vec![0; SECONDS] }
    }

    /// Maximum requests and maximum bytes in one second.
    fn peak(&self, object_bytes: u64) -> (f64, f64) {
        let both = || self.look_ups.iter().zip(&self.bodies);
        let requests = both().map(|(look_ups, bodies)| look_ups + *bodies as f64);
        let bytes = both().map(|(look_ups, bodies)| {
            look_ups * LOOK_UP_BYTES as f64 + (*bodies * object_bytes) as f64
        });
        (requests.fold(0.0, f64::max), bytes.fold(0.0, f64::max))
    }
}

impl Site {
    /// The cache of a tier (1 …) above a node.
    fn cache_of(&self, node: usize, tier: usize) -> usize {
        let mut place = node / self.nodes_per_cache;
        for _ in 1..tier {
            place /= self.caches_per_cache;
        }
        place
    }

    fn caches(&self, tier: usize) -> usize {
        self.cache_of(self.nodes - 1, tier) + 1
    }

    /// The load of each tier, the CCDB's last, and the maximum age of a version that a node serves.
    fn simulate(&self, scenario: Scenario) -> (Vec<Load>, f64) {
        let mut random = Random(self.seed);
        let mut loads = vec![Load::new(); self.tiers + 1];
        let traffic = self.traffic;
        let pause = traffic.refresh_seconds / traffic.look_ups_per_refresh;
        let first_tier = if scenario == Scenario::RunStartWithoutTierOne { 2 } else { 1 };
        let mut bodies: Vec<(f64, usize, usize)> = Vec::new();
        let mut stale: f64 = 0.0;
        for node in 0..self.nodes {
            let start = random.next() * START_SECONDS as f64;
            // A node's paths are requested together, so they are confirmed together.
            let mut at = if scenario == Scenario::ColdStart { start } else { start - pause * 2.0 };
            let mut is_first = scenario == Scenario::ColdStart;
            let mut has_new = scenario == Scenario::ColdStart;
            while at < SECONDS as f64 {
                if at >= 0.0 {
                    let each = if is_first { traffic.cold_look_ups } else { 1.0 };
                    // Look-ups pass through every tier.
                    for load in &mut loads[first_tier - 1..] {
                        load.look_ups[at as usize] += each * self.paths as f64;
                    }
                    let news = !has_new && at >= EVENT_SECOND;
                    if is_first || news {
                        bodies.extend((0..self.paths).map(|path| (at, node, path)));
                    }
                    if news {
                        stale = stale.max(at - EVENT_SECOND);
                        has_new = true;
                    }
                    is_first = false;
                }
                at += pause;
            }
        }
        bodies.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut stored: Vec<HashSet<(usize, usize)>> = vec![HashSet::new(); self.tiers];
        for (at, node, path) in bodies {
            let mut missed = true;
            for tier in first_tier..=self.tiers {
                loads[tier - 1].bodies[at as usize] += 1;
                missed = stored[tier - 1].insert((self.cache_of(node, tier), path));
                if !missed {
                    break;
                }
            }
            loads[self.tiers].bodies[at as usize] += u64::from(missed);
        }
        (loads, stale)
    }

    /// Total bodies that the CCDB sends.
    pub(crate) fn bodies_at_ccdb(&self, scenario: Scenario) -> u64 {
        let (loads, _) = self.simulate(scenario);
        loads[self.tiers].bodies.iter().sum()
    }

    /// One line of the table.
    pub(crate) fn run(&self, scenario: Scenario) -> String {
        let (loads, stale) = self.simulate(scenario);
        let tier = |tier: usize| {
            if tier > self.tiers {
                return "–".to_owned();
            }
            let (requests, bytes) = loads[tier - 1].peak(self.object_bytes);
            let caches = self.caches(tier) as f64;
            format!("{:.0}/s, {:.1} MB/s", requests / caches, bytes / caches / 1e6)
        };
        let ccdb = &loads[self.tiers];
        let (_, bytes) = ccdb.peak(self.object_bytes);
        let look_ups = ccdb.look_ups.iter().copied().fold(0.0, f64::max);
        let bodies: u64 = ccdb.bodies.iter().sum();
        format!(
            "| {} | {} | {} | {} | {} | {} | {look_ups:.0}/s | {bodies} | {:.1} MB/s | {} |",
            self.nodes,
            self.tiers,
            scenario.name(),
            tier(1),
            tier(2),
            tier(3),
            bytes / 1e6,
            if scenario == Scenario::ColdStart {
                "–".to_owned()
            } else {
                format!("{stale:.1} s")
            },
        )
    }
}
