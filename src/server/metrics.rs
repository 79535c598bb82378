//! The metrics of a cache in Prometheus' format, each with a help text.
//!
//! Labels are bounded: besides `version` of `build_info` these are `source`, with one value per
//! configured source, and at most [`MAX_SOURCES`], `reason` of `local_asks`, and `outcome` of
//! `config_reloads`.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::log::LogWriter;
use super::reloads::Reloads;
use crate::cache::{Cache, LocalFigures, LookUpSums};
use crate::source::SourceHealth;
use crate::table::{MemoryStatus, SourceState, Status};
use crate::telemetry::{Histogram, Timing};

/// Maximum sources with metrics of their own.
const MAX_SOURCES: usize = 64;

/// All metrics of a service.
pub(super) fn registry(cache: Cache, log: Option<LogWriter>, reloads: Reloads) -> Registry {
    let mut registry = Registry::with_prefix("iovcache");
    registry.register_collector(Box::new(CacheMetrics(cache)));
    registry.register_collector(Box::new(ConfigurationFigures(reloads)));
    if let Some(log) = log {
        registry.register_collector(Box::new(LogFigures(log)));
    }
    registry
}

/// Lines lost by the log.
#[derive(Debug)]
struct LogFigures(LogWriter);

impl Collector for LogFigures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let lost = ConstCounter::new(self.0.lost_lines());
        let help = "Lines of the log lost because stderr was not read.";
        let name = "log_lines_lost";
        lost.encode(encoder.encode_descriptor(name, help, None, lost.metric_type())?)
    }
}

/// The configuration in force, and the results of reading it again.
#[derive(Debug)]
struct ConfigurationFigures(Reloads);

impl Collector for ConfigurationFigures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let status = self.0.status();
        let help = "Times that the configuration was read again on SIGHUP, by outcome.";
        let mut reloads =
            encoder.encode_descriptor("config_reloads", help, None, MetricType::Counter)?;
        for (outcome, count) in [("applied", status.applied), ("refused", status.refused)] {
            ConstCounter::new(count).encode(reloads.encode_family(&[("outcome", outcome)])?)?;
        }
        let gauges = [
            (
                "config_last_reload_successful",
                "Whether the last configuration that was read is in force: 1 or 0.",
                u64::from(status.refusal.is_none()),
            ),
            (
                "config_restart_keys",
                "Changed keys of the configuration that take effect after a restart.",
                status.restart.len() as u64,
            ),
        ];
        encode_gauges(&gauges, None, &mut encoder)?;
        let (name, help) =
            ("config_read_time", "When the configuration in force was read, since 1970.");
        let read = ConstGauge::new(status.read_ms as f64 / 1e3);
        let unit = Some(&Unit::Seconds);
        read.encode(encoder.encode_descriptor(name, help, unit, read.metric_type())?)
    }
}

/// All metrics of a cache, read on each scrape.
#[derive(Debug)]
struct CacheMetrics(Cache);

impl Collector for CacheMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let build = ConstGauge::new(1_i64);
        let help = "Version of the service; the value is 1.";
        let mut place = encoder.encode_descriptor("build_info", help, None, build.metric_type())?;
        build.encode(place.encode_family(&[("version", env!("CARGO_PKG_VERSION"))])?)?;
        for (name, help, value) in self.0.counters().all() {
            let counter = ConstCounter::new(value);
            let unit = name.ends_with("_bytes").then_some(&Unit::Bytes);
            let name = name.trim_end_matches("_bytes");
            let place = encoder.encode_descriptor(name, help, unit, counter.metric_type())?;
            counter.encode(place)?;
        }
        let status = self.0.status();
        encode_memory(&status.memory, self.0.budget().used_bytes(), &mut encoder)?;
        encode_state(&status, &mut encoder)?;
        for (name, help, timing) in self.0.counters().timings.all() {
            let unit = Some(&Unit::Seconds);
            let place = encoder.encode_descriptor(name, help, unit, MetricType::Histogram)?;
            encode_timing(&timing, place)?;
        }
        if let Some(figures) = self.0.local_figures() {
            encode_local(&figures, &mut encoder)?;
        }
        encode_sources(&by_url(self.0.sources()), &mut encoder)
    }
}

/// Name, help text and value of a gauge.
type Gauge = (&'static str, &'static str, u64);

fn encode_gauges(
    gauges: &[Gauge],
    unit: Option<&Unit>,
    encoder: &mut DescriptorEncoder<'_>,
) -> Result<(), fmt::Error> {
    for (name, help, value) in gauges {
        let gauge = ConstGauge::new(i64::try_from(*value).unwrap_or(i64::MAX));
        gauge.encode(encoder.encode_descriptor(name, help, unit, gauge.metric_type())?)?;
    }
    Ok(())
}

fn encode_memory(
    memory: &MemoryStatus,
    request_bytes: u64,
    encoder: &mut DescriptorEncoder<'_>,
) -> Result<(), fmt::Error> {
    let gauges = [
        ("memory_total", "Total shared memory of the cache.", memory.total_bytes),
        ("memory_used", "Memory used by objects, pinned or not.", memory.used_bytes),
        ("memory_pinned", "Memory used by pinned objects.", memory.pinned_bytes),
        ("memory_free", "Memory not used by any object.", memory.free_bytes),
        (
            "memory_largest_free",
            "The largest object that fits without an eviction.",
            memory.largest_free_bytes,
        ),
        ("request_memory", "Memory outside the segments that requests hold.", request_bytes),
    ];
    encode_gauges(&gauges, Some(&Unit::Bytes), encoder)
}

/// Objects, timeframes, sessions, segments and sources.
fn encode_state(status: &Status, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
    let up = status.sources.iter().filter(|source| source.state == SourceState::Up).count();
    let lost = status.lost_segments.len();
    let gauges = [
        ("objects", "Objects in shared memory.", status.objects),
        ("timeframes", "Timeframes in flight.", status.timeframes.len() as u64),
        ("sessions", "Processes that are attached.", status.sessions.len() as u64),
        (
            "segments_lost",
            "Segments with names that another program removed or overwrote.",
            lost as u64,
        ),
        ("sources_up", "Sources that answer.", up as u64),
    ];
    encode_gauges(&gauges, None, encoder)
}

/// Look-ups, pins and paths of consumers that look up by themselves.
fn encode_local(
    figures: &LocalFigures,
    encoder: &mut DescriptorEncoder<'_>,
) -> Result<(), fmt::Error> {
    let hits = ConstCounter::new(figures.look_ups.hits);
    let help = "Look-ups that consumers answered from shared memory by themselves.";
    hits.encode(encoder.encode_descriptor("local_hits", help, None, hits.metric_type())?)?;
    let help = "Look-ups for which consumers had to ask the service, by reason.";
    let mut asks = encoder.encode_descriptor("local_asks", help, None, MetricType::Counter)?;
    for (reason, count) in LookUpSums::REASONS.into_iter().zip(figures.look_ups.asks) {
        ConstCounter::new(count).encode(asks.encode_family(&[("reason", reason)])?)?;
    }
    let counts = [
        ("local_sessions", "Sessions that can look up by themselves.", figures.sessions),
        ("local_pins", "Objects that consumers pin by themselves.", figures.slots),
        ("local_paths", "Paths that are published for look-ups.", figures.paths),
    ];
    encode_gauges(&counts, None, encoder)?;
    let memory = [
        ("local_snapshots", "Memory used by published timelines.", figures.snapshot_bytes),
        (
            "local_quarantined",
            "Memory of freed objects that a consumer still pins.",
            figures.quarantined_bytes,
        ),
    ];
    encode_gauges(&memory, Some(&Unit::Bytes), encoder)
}

/// Merges the metrics of sources with the same URL, which may be configured for several paths.
fn by_url(sources: Vec<SourceHealth>) -> Vec<SourceHealth> {
    let mut merged: Vec<SourceHealth> = Vec::new();
    for source in sources {
        let Some(known) = merged.iter_mut().find(|known| known.url == source.url) else {
            if merged.len() < MAX_SOURCES {
                merged.push(source);
            }
            continue;
        };
        known.requests += source.requests;
        known.failures += source.failures;
        known.state = known.state.worse(source.state);
        known.latency.sum += source.latency.sum;
        let counts = known.latency.counts.iter_mut().zip(&source.latency.counts);
        counts.for_each(|(known, more)| *known += more);
    }
    merged
}

fn encode_timing(timing: &Timing, mut place: MetricEncoder<'_>) -> Result<(), fmt::Error> {
    let bounds = Histogram::BOUNDS_MICROS.iter().map(|micros| *micros as f64 / 1e6);
    let buckets: Vec<(f64, u64)> =
        bounds.chain([f64::INFINITY]).zip(timing.counts.iter().copied()).collect();
    let count = timing.counts.iter().sum();
    place.encode_histogram::<NoLabelSet>(timing.sum.as_secs_f64(), count, &buckets, None)
}

fn encode_sources(
    sources: &[SourceHealth],
    encoder: &mut DescriptorEncoder<'_>,
) -> Result<(), fmt::Error> {
    let requests = ("source_requests", "Requests to the source.");
    let failures = ("source_failures", "Requests to the source that failed.");
    for (name, help) in [requests, failures] {
        let mut all = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for source in sources {
            let value = if name == failures.0 { source.failures } else { source.requests };
            let labels = [("source", source.url.as_str())];
            ConstCounter::new(value).encode(all.encode_family(&labels)?)?;
        }
    }
    let help = "Whether the source answers: 1 or 0.";
    let mut all = encoder.encode_descriptor("source_up", help, None, MetricType::Gauge)?;
    for source in sources {
        let up = i64::from(source.state == crate::source::Reachability::Up);
        ConstGauge::new(up).encode(all.encode_family(&[("source", source.url.as_str())])?)?;
    }
    let help = "Latency of the answers of the source.";
    let (name, unit) = ("source_latency", Some(&Unit::Seconds));
    let mut all = encoder.encode_descriptor(name, help, unit, MetricType::Histogram)?;
    for source in sources.iter().filter(|source| !source.latency.counts.is_empty()) {
        encode_timing(&source.latency, all.encode_family(&[("source", source.url.as_str())])?)?;
    }
    Ok(())
}
