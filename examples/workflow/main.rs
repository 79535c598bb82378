//! A workflow of real processes around an embedded cache, modelled on a DPL topology.
//!
//! ```text
//!            timestamps           tables of MetaHeaders
//!  source ─────────────▶ cache ─────────────────────────▶ consumers ──checked──▶ sink
//!    │ │                   ▲   (segments: attach socket)      ▲                  │ │
//!    │ └───────────────────│──────── timestamps ──────────────┘                  │ │
//!    │                     └──────────── oldest possible timeslice ──────────────┘ │
//!    └◀───────────────────────────────── consumed ─────────────────────────────────┘
//! ```
//!
//! One program, which starts itself once per device. A consumer has instances that take timeslices
//! in turn (timeslice modulo n), so they finish out of order. It gathers both of its inputs per
//! timeslice, resolves every distinct MetaHeader to the bytes in shared memory, and compares their
//! MD5 with the right one for each row, taken from the repository's own properties.
//!
//! Each row has a timestamp and a run number. Runs change inside of timeframes; two columns depend on
//! the run, one of them uniform: one version per run and timeframe.
//!
//! ```text
//!  cargo run --example workflow
//!  cargo run --example workflow -- --data FOLDER --kill tracker_t1@20
//!  cargo run --example workflow -- --soak 60s
//! ```

mod channel;
mod columns;
mod conditions;
mod consumer;
mod data;
mod device;
mod driver;
mod live;
mod plan;
mod process;
mod report;
mod sink;
mod source;
mod truth;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use crate::data::Generated;
use crate::driver::{Kill, Soak};
use crate::plan::{Kind, Plan, Seat};
use crate::truth::Truth;

/// Longer than any single step of a run takes.
const PATIENCE: Duration = Duration::from_secs(60);

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Runs a workflow of real processes around an embedded cache, and checks every byte that they read
#[derive(Debug, Parser)]
#[command(name = "workflow")]
struct Arguments {
    /// How many timeframes the source emits
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    timeframes: u64,
    /// Timestamps in each timeframe
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(i64).range(1..=1_000_000))]
    rows: i64,
    /// Timeframes per second, as far as the consumers keep up
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
    /// Maximum number of timeframes sent and not yet consumed
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=4_000))]
    in_flight: u64,
    /// Memory of the cache, in MiB
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    memory_mib: u64,
    /// A folder with a manifest.csv; by default objects are made up
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// A consumer, its instances and the milliseconds of its work per timeframe
    #[arg(long = "consumer", value_name = "NAME=INSTANCES:MILLISECONDS", value_parser = Kind::parse)]
    consumers: Vec<Kind>,
    /// Kill a consumer with SIGKILL when it has reached a timeframe
    #[arg(long, value_name = "NAME@TIMEFRAME", value_parser = Kill::parse)]
    kill: Vec<Kill>,
    /// For this time, kill a consumer every second and start it again: 20 of them, 64 timeframes in
    /// flight, four times as many objects as there is memory
    #[arg(long, value_name = "TIME", value_parser = parse_time, conflicts_with_all = ["data", "kill"])]
    soak: Option<Duration>,
    /// The report as JSON
    #[arg(long)]
    json: bool,
    /// Run as this device
    #[arg(long, hide = true, requires = "folder")]
    device: Option<String>,
    #[arg(long, hide = true, default_value_t = 0)]
    incarnation: u32,
    #[arg(long, hide = true)]
    folder: Option<PathBuf>,
    #[arg(long, hide = true)]
    hold_at: Option<u64>,
}

/// Parses seconds, or minutes or hours with a suffix.
fn parse_time(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.strip_suffix(['s', 'm', 'h']) {
        Some(number) if text.ends_with('m') => (number, 60.0),
        Some(number) if text.ends_with('h') => (number, 3600.0),
        Some(number) => (number, 1.0),
        None => (text, 1.0),
    };
    let seconds = number.parse::<f64>().ok().map(|number| number * unit);
    let seconds = seconds.filter(|seconds| *seconds > 0.0 && *seconds < 1e7);
    seconds.map(Duration::from_secs_f64).ok_or_else(|| format!("{text:?}: expected 60s, 5m or 8h"))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match (&arguments.device, &arguments.folder) {
        (Some(device), Some(folder)) => be(device, folder, &arguments).map(|()| true),
        _ => drive(&arguments),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let name = arguments.device.as_deref().unwrap_or("workflow");
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn be(device: &str, folder: &Path, arguments: &Arguments) -> Outcome<()> {
    let plan = Plan::read(folder)?;
    let seat = Seat { device: device.to_owned(), incarnation: arguments.incarnation };
    match device {
        "source" => source::run(&plan, &seat),
        "cache" => conditions::run(&plan, &seat),
        "sink" => sink::run(&plan),
        _ => consumer::run(&plan, &seat, arguments.hold_at),
    }
}

/// Runs the workflow; returns whether it passed.
fn drive(arguments: &Arguments) -> Outcome<bool> {
    let folder = std::env::temp_dir().join(format!("iovcache-workflow-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let driven = planned(arguments, &folder).and_then(|plan| {
        let instances = plan.instances();
        if let Some(kill) = arguments.kill.iter().find(|kill| !instances.contains(&kill.device)) {
            let names = instances.join(", ");
            return Err(format!("--kill {}: expected one of {names}", kill.device).into());
        }
        plan.write()?;
        let every = Duration::from_secs(1);
        driver::run(&plan, &arguments.kill, arguments.soak.map(|time| Soak { time, every }))
    });
    let _ = std::fs::remove_dir_all(&folder);
    let report = driven?;
    match arguments.json {
        true => println!("{}", serde_json::to_string(&report)?),
        false => print!("{report}"),
    }
    Ok(report.failures.is_empty())
}

fn planned(arguments: &Arguments, folder: &Path) -> Outcome<Plan> {
    let kind =
        |name: &str, pipeline, work_millis| Kind { name: name.to_owned(), pipeline, work_millis };
    let mut kinds = arguments.consumers.clone();
    let mut plan = Plan {
        folder: folder.to_owned(),
        repository: folder.join("repository"),
        columns: Vec::new(),
        timeframes: arguments.timeframes,
        rows: arguments.rows,
        borders_millis: Vec::new(),
        every_micros: (1e6 / arguments.rate.clamp(0.01, 1e6)) as u64,
        in_flight: arguments.in_flight,
        memory_bytes: arguments.memory_mib << 20,
        segment_bytes: 4 << 20,
        kinds: Vec::new(),
    };
    if arguments.soak.is_some() {
        // 4 paths x 64 versions x 256 KiB; each version serves some eight timeframes.
        let data =
            Generated { paths: 4, versions: 64, step_millis: 1_600, object_bytes: 256 << 10 };
        plan.memory_bytes = (64 << 20) / 4;
        (plan.timeframes, plan.in_flight, plan.every_micros) = (u64::MAX, 64, 1_000);
        plan.columns = data.write(&plan.repository)?;
        if kinds.is_empty() {
            kinds = vec![kind("quick", 5, 0), kind("steady", 5, 5), kind("slow", 10, 40)];
        }
    } else if let Some(folder) = &arguments.data {
        plan.columns = data::of_manifest(folder, &plan.repository)?;
    } else {
        let data = Generated { paths: 3, versions: 24, step_millis: 777, object_bytes: 300_000 };
        plan.columns = data.write(&plan.repository)?;
    }
    let borders = Truth::read(&plan.repository, &plan.columns)?.borders();
    data::of_runs(&plan.repository, &borders)?;
    let turns = if arguments.soak.is_some() { 64 * 8 } else { arguments.timeframes };
    plan.borders_millis = spread(&borders, usize::try_from(turns)?);
    if kinds.is_empty() {
        kinds = vec![kind("tracker", 3, 30), kind("clusterizer", 2, 12), kind("quality", 1, 2)];
    }
    plan.kinds = kinds;
    Ok(plan)
}

/// Borders of `timeframes` timeframes over the whole time in which versions change, each with as
/// many interval borders inside as the others: a long time without changes is covered by few
/// timeframes.
fn spread(borders: &[i64], timeframes: usize) -> Vec<i64> {
    let last = borders.len().saturating_sub(1);
    let at = |turn: usize| {
        // Interpolated between two interval borders, so that no two timeframe borders coincide.
        let place = turn as f64 * last as f64 / timeframes as f64;
        let (below, above) = (borders[place as usize], borders[(place as usize + 1).min(last)]);
        below + ((above - below) as f64 * place.fract()) as i64
    };
    if borders.is_empty() { Vec::new() } else { (0..=timeframes).map(at).collect() }
}
