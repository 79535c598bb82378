//! Runs iovcache and its floor alternately in short turns. On a machine with other load the
//! meaningful figure is the ratio of two neighbouring turns, reported as its median.
#![allow(dead_code, reason = "each bench uses its part")]

pub(crate) mod bare;
pub(crate) mod exchange;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use arrow_flight::flight_service_client::FlightServiceClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// Duration of one turn of each side.
const TURN: Duration = Duration::from_millis(10);
/// Duration of all turns of one pair.
const ALL: Duration = Duration::from_secs(3);

/// Whether the command line selects `name`: its arguments are parts of names; none selects all.
pub(crate) fn wanted(name: &str) -> bool {
    let asked: Vec<String> = std::env::args().skip(1).filter(|one| !one.starts_with('-')).collect();
    asked.is_empty() || asked.iter().any(|part| name.contains(part.as_str()))
}

/// Whether the bench is only to be tried, with `--test`: each side takes one turn.
fn is_trial() -> bool {
    std::env::args().any(|argument| argument == "--test")
}

/// Result of a pair.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Beside {
    /// The floor's median.
    pub(crate) floor: Duration,
    /// The median of iovcache.
    pub(crate) ours: Duration,
    /// The median ratio.
    pub(crate) ratio: f64,
}

/// Runs both sides in turns and prints the medians. `aim` is the ratio to be met.
pub(crate) fn beside(
    name: &str,
    aim: f64,
    mut floor: impl FnMut(),
    mut ours: impl FnMut(),
) -> Option<Beside> {
    beside_timed(name, aim, || timed(&mut floor), || timed(&mut ours))
}

/// Measures how long `work` takes.
pub(crate) fn timed(work: &mut impl FnMut()) -> Duration {
    let began = Instant::now();
    work();
    began.elapsed()
}

/// Like [`beside`], for work that measures its own time, so that part of it can be left out.
pub(crate) fn beside_timed(
    name: &str,
    aim: f64,
    mut floor: impl FnMut() -> Duration,
    mut ours: impl FnMut() -> Duration,
) -> Option<Beside> {
    if !wanted(name) {
        return None;
    }
    // For a profiler: one side alone, for the same time.
    if let Ok(side) = std::env::var("BESIDE_ONLY") {
        let alone: &mut dyn FnMut() -> Duration =
            if side == "floor" { &mut floor } else { &mut ours };
        let began = Instant::now();
        let mut times = 0;
        while began.elapsed() < ALL {
            alone();
            times += 1;
        }
        println!("{name}\n    {side} alone, {times} times");
        return None;
    }
    let (floors, ourselves) = (rounds(&mut floor), rounds(&mut ours));
    let mut pairs: Vec<(f64, f64)> = Vec::new();
    let began = Instant::now();
    let (all, least) = if is_trial() { (Duration::ZERO, 1) } else { (ALL, 20) };
    while began.elapsed() < all || pairs.len() < least {
        // The order alternates, so that neither side always finds the other's data in the caches.
        let pair = if pairs.len().is_multiple_of(2) {
            let one = turn(&mut floor, floors);
            (one, turn(&mut ours, ourselves))
        } else {
            let one = turn(&mut ours, ourselves);
            (turn(&mut floor, floors), one)
        };
        pairs.push(pair);
    }
    let ratios: Vec<f64> = pairs.iter().map(|(floor, ours)| ours / floor).collect();
    let floor = middle(pairs.iter().map(|pair| pair.0).collect(), 0.5);
    let ours = middle(pairs.iter().map(|pair| pair.1).collect(), 0.5);
    let ratio = middle(ratios.clone(), 0.5);
    let (low, high) = (middle(ratios.clone(), 0.1), middle(ratios, 0.9));
    let [floor, ours] = [floor, ours].map(Duration::from_secs_f64);
    let met = if ratio <= aim { "met" } else { "MISSED" };
    println!(
        "{name}\n    floor {floor:?}, ours {ours:?}, ratio {ratio:.2} ({low:.2} to {high:.2}), aim \
         {aim:.2} {met}"
    );
    Some(Beside { floor, ours, ratio })
}

/// The quantile `part` of `all`: 0.5 is the median.
fn middle(mut all: Vec<f64>, part: f64) -> f64 {
    all.sort_by(f64::total_cmp);
    all[((all.len() - 1) as f64 * part) as usize]
}

/// Number of rounds in one turn.
fn rounds(work: &mut impl FnMut() -> Duration) -> u32 {
    let mut rounds = 1;
    loop {
        let took = turn(work, rounds) * f64::from(rounds);
        if took >= TURN.as_secs_f64() / 2.0 {
            return ((f64::from(rounds) * TURN.as_secs_f64() / took) as u32).max(1);
        }
        rounds *= 2;
    }
}

/// Seconds per round. For many short rounds this is the median: a round during which the machine
/// did other work is an outlier.
fn turn(work: &mut impl FnMut() -> Duration, rounds: u32) -> f64 {
    middle((0..rounds).map(|_| work().as_secs_f64()).collect(), 0.5)
}

/// A connection to a Unix socket.
pub(crate) async fn connect(socket: PathBuf) -> FlightServiceClient<Channel> {
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        }))
        .await
        .unwrap();
    FlightServiceClient::new(channel).max_decoding_message_size(usize::MAX)
}
