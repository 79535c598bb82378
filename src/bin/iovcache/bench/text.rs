//! A result as a text table.

use std::fmt::{self, Write as _};
use std::fs;
use std::io;
use std::path::Path;

use super::histogram::Latency;
use super::result::{BenchResult, Curve, Phase, ProfileResult};
use crate::common::show_bytes;
use crate::failure::Failure;

/// A duration in microseconds with a readable unit.
pub(super) fn micros(us: f64) -> String {
    match us {
        us if us < 1_000.0 => format!("{us:.0} µs"),
        us if us < 10_000.0 => format!("{:.2} ms", us / 1e3),
        us if us < 1_000_000.0 => format!("{:.1} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    }
}

/// A number in a readable form: `1,200`, `12.0 k`, `1.2 M`.
pub(super) fn number(value: f64) -> String {
    let units = [(1e9, 1e9, " G"), (1e6, 1e6, " M"), (1e4, 1e3, " k")];
    match units.iter().find(|(least, ..)| value >= *least) {
        Some((_, unit, name)) => format!("{:.1}{name}", value / unit),
        None if value >= 999.5 => {
            let whole = value.round();
            format!("{:.0},{:03.0}", (whole / 1e3).floor(), whole % 1e3)
        }
        None if value >= 10.0 || value.fract() == 0.0 => format!("{value:.0}"),
        None => format!("{value:.1}"),
    }
}

/// Bytes per second with a readable unit.
pub(super) fn bytes(value: f64) -> String {
    // Values beyond 2^63 do not occur.
    show_bytes(value.max(0.0) as u64)
}

/// The whole result.
pub(super) fn show(result: &BenchResult) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_result(&mut text, result);
    text
}

fn write_result(text: &mut String, result: &BenchResult) -> fmt::Result {
    let machine = &result.machine;
    writeln!(
        text,
        "iovcache {} on {} cores of {}, {}, Linux {}; {:.1} s",
        result.version,
        machine.cores,
        machine.cpu,
        show_bytes(machine.memory_bytes),
        machine.kernel,
        result.took_seconds
    )?;
    if !machine.optimised {
        writeln!(
            text,
            "This is a build without optimisation: its figures say nothing about speed."
        )?;
    }
    result.profiles.iter().try_for_each(|profile| write_profile(text, profile))?;
    result.curves.iter().try_for_each(|curve| write_curve(text, curve))
}

fn write_profile(text: &mut String, profile: &ProfileResult) -> fmt::Result {
    writeln!(text, "\n{}: {}", profile.name, profile.about)?;
    writeln!(
        text,
        "  {} consumers, {} timeframes in flight; {} objects of {} in all, {} of memory",
        profile.consumers,
        profile.in_flight,
        profile.versions,
        show_bytes(profile.object_bytes),
        show_bytes(profile.memory_bytes)
    )?;
    writeln!(
        text,
        "\n  {:<28}{:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "latency", "count", "p50", "p90", "p99", "p99.9", "max"
    )?;
    for phase in &profile.phases {
        let name = phase_name(phase);
        write_latency(text, &format!("{name}, from due"), &phase.latency)?;
        write_latency(text, "  registered", &phase.register)?;
        write_latency(text, "  asked until resolved", &phase.table)?;
        write_latency(text, "  consumed", &phase.consumed)?;
        write_latency(text, "  load came late by", &phase.late)?;
    }
    write_rates(text, profile)?;
    write_failures(text, profile)
}

/// The rates of each phase, and its use of the service.
fn write_rates(text: &mut String, profile: &ProfileResult) -> fmt::Result {
    writeln!(text, "\n  {:<28}{}", "per second", header(profile, phase_name))?;
    let line = |text: &mut String, name: &str, value: &dyn Fn(&Phase) -> String| {
        writeln!(text, "  {name:<28}{}", header(profile, value))
    };
    line(text, "tables", &|phase| number(phase.throughput.tables))?;
    line(text, "rows", &|phase| number(phase.throughput.rows))?;
    line(text, "cells", &|phase| number(phase.throughput.cells))?;
    line(text, "objects handed over", &|phase| number(phase.throughput.objects))?;
    line(text, "their bytes, not copied", &|phase| bytes(phase.throughput.bytes))?;
    line(text, "objects loaded", &|phase| number(phase.throughput.loads))?;
    let of = |value: fn(&super::result::ServiceUse) -> String| {
        move |phase: &Phase| phase.service.as_ref().map_or_else(|| "-".to_owned(), value)
    };
    line(text, "processor time per table", &of(|used| micros(used.cpu_us_per_table)))?;
    line(text, "cores kept busy", &of(|used| format!("{:.2}", used.cores)))?;
    line(text, "private memory", &of(|used| show_bytes(used.memory.private_bytes)))?;
    line(text, "shared memory, used", &of(|used| show_bytes(used.used_bytes)))?;
    line(text, "shared memory, pinned", &of(|used| show_bytes(used.pinned_bytes)))?;
    line(text, "tables received", &|phase| {
        format!("{} of {}", phase.tables.done, phase.tables.expected)
    })?;
    line(text, "failed, lost", &|phase| format!("{}, {}", phase.tables.failed, phase.tables.lost))?;
    line(text, "cells wrong", &|phase| match phase.tables.cells_checked {
        0 => "not checked".to_owned(),
        checked => format!("{} of {}", phase.tables.cells_wrong, number(checked as f64)),
    })
}

/// The failures by kind, and the faults that the run itself made.
fn write_failures(text: &mut String, profile: &ProfileResult) -> fmt::Result {
    for phase in &profile.phases {
        for (kind, failure) in &phase.tables.failures {
            writeln!(
                text,
                "  {}: {} × {kind}, the first: {}",
                phase_name(phase),
                failure.count,
                failure.first
            )?;
        }
    }
    let deaths: u64 = profile.phases.iter().map(|phase| phase.tables.deaths).sum();
    if deaths > 0 {
        writeln!(text, "  {deaths} consumers were killed and replaced")?;
    }
    if !profile.source_faults.is_empty() {
        let faults = profile.source_faults.iter().map(|(name, count)| format!("{count} × {name}"));
        writeln!(text, "  the source: {}", faults.collect::<Vec<_>>().join(", "))?;
    }
    Ok(())
}

fn header(profile: &ProfileResult, value: impl Fn(&Phase) -> String) -> String {
    profile.phases.iter().map(|phase| format!("{:>20}", value(phase))).collect()
}

/// Name and rate of a phase.
pub(super) fn phase_name(phase: &Phase) -> String {
    format!("{}, {}/s", phase.name, number(phase.rate))
}

fn write_latency(text: &mut String, name: &str, latency: &Latency) -> fmt::Result {
    let Latency { count, p50_us, p90_us, p99_us, p99_9_us, max_us, .. } = latency;
    write!(text, "  {name:<28}{count:>9}")?;
    for us in [p50_us, p90_us, p99_us, p99_9_us, max_us] {
        write!(text, " {:>9}", micros(*us as f64))?;
    }
    writeln!(text)
}

fn write_curve(text: &mut String, curve: &Curve) -> fmt::Result {
    writeln!(text, "\nover {}: {}", curve.name, curve.about)?;
    writeln!(
        text,
        "  {:>12} {:>12} {:>10} {:>10} {:>16}",
        curve.of, "requests/s", "p50", "p99", "service's CPU"
    )?;
    for point in &curve.points {
        writeln!(
            text,
            "  {:>12} {:>12} {:>10} {:>10} {:>16}",
            point.x,
            number(point.requests_per_second),
            micros(point.latency.p50_us as f64),
            micros(point.latency.p99_us as f64),
            point.cpu_us.map_or_else(|| "-".to_owned(), micros)
        )?;
    }
    Ok(())
}

/// A change in percent, with its sign.
pub(super) fn change(before: f64, after: f64) -> String {
    match (after / before - 1.0) * 100.0 {
        change if change.is_finite() => format!("{change:+.1} %").replace('-', "−"),
        _ => "-".to_owned(),
    }
}

/// Writes a file of results.
///
/// # Errors
/// [`Failure`] names the file.
/// Checks that a file can be written, and changes nothing.
///
/// # Errors
/// [`Failure`] if it cannot.
pub(super) fn check_writable(file: &Path) -> Result<(), Failure> {
    let opened = match fs::File::options().append(true).open(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::File::create_new(file).and_then(|_| fs::remove_file(file))
        }
        opened => opened.map(drop),
    };
    opened.map_err(|error| Failure::io(file.display(), error))
}

pub(super) fn write_file(file: &Path, text: &str) -> Result<(), Failure> {
    fs::write(file, text).map_err(|error| Failure::io(file.display(), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_units() {
        assert_eq!(micros(87.4), "87 µs");
        assert_eq!(micros(8_740.0), "8.74 ms");
        assert_eq!(micros(87_400.0), "87.4 ms");
        assert_eq!(micros(8_740_000.0), "8.74 s");
        assert_eq!(number(0.0), "0");
        assert_eq!(number(4.25), "4.2");
        assert_eq!(number(1_234.0), "1,234");
        assert_eq!(number(9_050.0), "9,050");
        assert_eq!(number(999.7), "1,000");
        assert_eq!(number(12_345.0), "12.3 k");
        assert_eq!(number(50.0), "50");
        assert_eq!(number(12_345_678.0), "12.3 M");
    }
}
