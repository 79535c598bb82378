//! The options of a run.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use iovcache::server::{ByteSize, TimeSpan};

use super::profile::Part;
use crate::common::{Access, folder};
use crate::failure::Failure;

/// Duration of each profile, by default and with `--quick`.
const DURATION: Duration = Duration::from_secs(10);
const QUICK_DURATION: Duration = Duration::from_secs(2);
/// Shared memory of the service, by default and with `--quick`.
const MEMORY_BYTES: u64 = 1 << 30;
const QUICK_MEMORY_BYTES: u64 = 128 << 20;
/// Smallest memory in which the profiles fit.
const LEAST_MEMORY_BYTES: u64 = 64 << 20;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Parts to measure (several, with a comma between); by default all of them.
    #[arg(long, value_enum, value_name = "PART", value_delimiter = ',')]
    pub(super) profile: Vec<Part>,
    /// Duration of each rate of a profile. [default: 10s, with --quick 2s]
    #[arg(long, short, value_name = "TIME")]
    pub(super) duration: Option<TimeSpan>,
    /// Timeframes per second, whether or not the service keeps up; several rates with a comma
    /// between are measured one after the other. [default: that of the profile]
    #[arg(long, short = 'R', value_name = "RATE", value_delimiter = ',', value_parser = rate)]
    pub(super) rate: Vec<f64>,
    /// Number of consumers that read each timeframe, each a process. [default: that of the profile]
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub(super) consumers: Option<u16>,
    /// Shared memory of the service; the objects are scaled to it. [default: 1GiB, with --quick
    /// 128MiB]
    #[arg(long, value_name = "BYTES")]
    pub(super) memory: Option<ByteSize>,
    /// A short run with less memory and fewer consumers, to see that all of it works.
    #[arg(long)]
    pub(super) quick: bool,
    /// Measure this service instead of starting one. It must serve the objects of --prepare.
    #[arg(long, value_name = "URL")]
    pub(super) server: Option<String>,
    #[command(flatten)]
    pub(super) access: Access,
    /// Write the objects of the profiles into this repository folder and exit: for a service that
    /// is measured with --server. Use the same --memory and --profile for both.
    #[arg(long, value_name = "FOLDER", conflicts_with = "server", value_parser = folder())]
    pub(super) prepare: Option<PathBuf>,
    /// Seed of the random choices: which requests fail, which consumers are killed.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) seed: u64,
    /// Print the result as JSON instead of a table.
    #[arg(long)]
    pub(super) json: bool,
    /// Write the result into this file, as JSON for --compare.
    #[arg(long, short, value_name = "FILE.json")]
    pub(super) output: Option<PathBuf>,
    /// Write the result into this file, as a self-contained page with plots.
    #[arg(long, value_name = "FILE.html")]
    pub(super) html: Option<PathBuf>,
    /// Measure nothing: compare two results. With --html, write a page that shows both.
    #[arg(long, num_args = 2, value_names = ["BEFORE.json", "AFTER.json"])]
    #[arg(conflicts_with_all = ["profile", "duration", "rate", "consumers", "memory", "quick",
        "server", "prepare", "output"])]
    pub(super) compare: Vec<PathBuf>,
    /// With --compare: fail if a figure became worse by more than this percentage.
    #[arg(long, value_name = "PERCENT", requires = "compare", value_parser = rate)]
    pub(super) fail_above: Option<f64>,
    /// Run as one of the processes of a run.
    #[arg(long, hide = true, value_enum)]
    pub(super) role: Option<Role>,
}

/// The processes of a run that have no command of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Role {
    Consumer,
    Service,
}

/// A number above zero.
fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse::<f64>().ok().filter(|rate| rate.is_finite() && *rate > 0.0);
    rate.ok_or_else(|| format!("{text:?} is no number above 0"))
}

impl Arguments {
    /// The selected parts, each once, in their order.
    pub(super) fn parts(&self) -> Vec<Part> {
        let mut parts = match self.profile.is_empty() {
            true => Part::value_variants().to_vec(),
            false => self.profile.clone(),
        };
        parts.sort_unstable();
        parts.dedup();
        parts
    }

    pub(super) fn duration(&self) -> Duration {
        let default = if self.quick { QUICK_DURATION } else { DURATION };
        self.duration.map_or(default, TimeSpan::duration)
    }

    /// # Errors
    /// [`Failure`] if it is less than [`LEAST_MEMORY_BYTES`].
    pub(super) fn memory_bytes(&self) -> Result<u64, Failure> {
        let default = if self.quick { QUICK_MEMORY_BYTES } else { MEMORY_BYTES };
        match self.memory.map_or(default, ByteSize::bytes) {
            little if little < LEAST_MEMORY_BYTES => Err(Failure::usage(format!(
                "--memory: {little} bytes hold no profile, at least {LEAST_MEMORY_BYTES} do"
            ))),
            bytes => Ok(bytes),
        }
    }
}
