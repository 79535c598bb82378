//! The plots of a result.

use super::histogram::Latency;
use super::plot::{Axis, Plot, Scale, Series};
use super::result::{Curve, Phase, Point, ProfileResult, StatusSample, Window};
use super::text::{bytes, micros, number, phase_name};
use crate::common::show_bytes;

const LATENCY: Axis = Axis { label: "latency", scale: Scale::Log, show: micros };
const PERCENTILE: Axis =
    Axis { label: "share of tables with at most this latency", scale: Scale::Nines, show: percent };
const SECONDS: Axis = Axis { label: "seconds from the begin", scale: Scale::Time, show: seconds };

fn percent(share: f64) -> String {
    let text = format!("{:.4}", share * 100.0);
    format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
}

fn seconds(value: f64) -> String {
    let text = format!("{value:.2}");
    format!("{} s", text.trim_end_matches('0').trim_end_matches('.'))
}

pub(super) fn latency_plot(profile: &ProfileResult, before: Option<&ProfileResult>) -> Plot {
    let line = |(colour, phase): (usize, &Phase), dashed: bool| Series {
        name: if dashed { format!("{} before", phase_name(phase)) } else { phase_name(phase) },
        points: phase.latency.curve(),
        colour: colour % 6,
        dashed,
        dots: false,
    };
    let now = profile.phases.iter().enumerate().map(|phase| line(phase, false));
    let then = before.into_iter().flat_map(|before| before.phases.iter().enumerate());
    Plot {
        title: "Latency of a table".to_owned(),
        note: "from when its timeframe was due until each cell was resolved".to_owned(),
        x: PERCENTILE,
        y: LATENCY,
        series: now.chain(then.map(|phase| line(phase, true))).collect(),
        marks: Vec::new(),
    }
}

pub(super) fn parts_plot(phase: &Phase) -> Plot {
    let parts = [
        ("registered", &phase.register),
        ("asked until resolved", &phase.table),
        ("consumed", &phase.consumed),
        ("load came late by", &phase.late),
    ];
    let line = |(colour, (name, latency)): (usize, (&str, &Latency))| Series {
        name: name.to_owned(),
        points: latency.curve(),
        colour: colour + 2,
        ..Series::default()
    };
    Plot {
        title: "Where it goes".to_owned(),
        note: format!("the calls of a timeframe, each by itself ({})", phase_name(phase)),
        x: Axis { label: "share of calls with at most this duration", ..PERCENTILE },
        y: LATENCY,
        series: parts.into_iter().enumerate().map(line).collect(),
        marks: Vec::new(),
    }
}

/// A line through all phases in order, broken between them.
fn through(
    profile: &ProfileResult,
    name: &str,
    colour: usize,
    of: impl Fn(&Phase) -> Vec<(f64, u64)>,
) -> Series {
    let mut points = Vec::new();
    for (begin, phase) in phases_in_time(profile) {
        points.push((begin, f64::NAN));
        points.extend(of(phase).into_iter().map(|(at, value)| (begin + at, value as f64)));
    }
    Series { name: name.to_owned(), points, colour, ..Series::default() }
}

/// Each phase with the second at which it began.
fn phases_in_time(profile: &ProfileResult) -> impl Iterator<Item = (f64, &Phase)> {
    let mut begin = 0.0;
    profile.phases.iter().map(move |phase| {
        let began = begin;
        begin += phase.quiet_after_seconds;
        (began, phase)
    })
}

fn marks(profile: &ProfileResult) -> Vec<(f64, String)> {
    phases_in_time(profile).map(|(begin, phase)| (begin, phase_name(phase))).collect()
}

pub(super) fn over_time(profile: &ProfileResult) -> Plot {
    let line = |name: &str, colour: usize, of: fn(&Window) -> u64| {
        through(profile, name, colour, |phase| {
            let seen = phase.windows.iter().filter(|window| window.tables > 0);
            seen.map(|window| (window.at, of(window))).collect()
        })
    };
    Plot {
        title: "Latency over time".to_owned(),
        note: "by when the timeframe was due".to_owned(),
        x: SECONDS,
        y: LATENCY,
        series: vec![
            line("median", 0, |window| window.p50_us),
            line("99 %", 3, |window| window.p99_us),
            line("longest", 5, |window| window.max_us),
        ],
        marks: marks(profile),
    }
}

pub(super) fn memory_plot(profile: &ProfileResult) -> Plot {
    let line = |name: &str, colour: usize, of: fn(&StatusSample) -> u64| {
        through(profile, name, colour, |phase| {
            phase.looks.iter().map(|look| (look.at, of(look))).collect()
        })
    };
    Plot {
        title: "Shared memory over time".to_owned(),
        note: format!("of {}", show_bytes(profile.memory_bytes)),
        x: SECONDS,
        y: Axis { label: "shared memory", scale: Scale::Bytes, show: bytes },
        series: vec![
            line("used by objects", 0, |look| look.used_bytes),
            line("pinned for timeframes and consumers", 1, |look| look.pinned_bytes),
        ],
        marks: marks(profile),
    }
}

/// Latency over the rate, if several rates were measured.
pub(super) fn rates_plot(profile: &ProfileResult) -> Plot {
    let warm: Vec<&Phase> = profile.phases.iter().filter(|phase| phase.name == "warm").collect();
    let warm = if warm.len() > 1 { warm } else { Vec::new() };
    let line = |name: &str, colour: usize, of: fn(&Phase) -> u64| Series {
        name: name.to_owned(),
        points: warm.iter().map(|phase| (phase.rate, of(phase) as f64)).collect(),
        colour,
        dots: true,
        ..Series::default()
    };
    Plot {
        title: "Latency over load".to_owned(),
        note: "warm".to_owned(),
        x: Axis { label: "timeframes per second", scale: Scale::Linear, show: number },
        y: LATENCY,
        series: vec![
            line("median", 0, |phase| phase.latency.p50_us),
            line("99 %", 3, |phase| phase.latency.p99_us),
            line("99.9 %", 5, |phase| phase.latency.p99_9_us),
        ],
        marks: Vec::new(),
    }
}

pub(super) fn throughput_plot(curve: &Curve, before: Option<&Curve>) -> Plot {
    let line = |curve: &Curve, dashed: bool| Series {
        name: if dashed { "before".to_owned() } else { "requests".to_owned() },
        points: curve
            .points
            .iter()
            .map(|point| (point.x as f64, point.requests_per_second))
            .collect(),
        colour: 2,
        dashed,
        dots: true,
    };
    Plot {
        title: "Throughput over clients".to_owned(),
        note: curve.about.clone(),
        x: Axis { label: "clients", scale: Scale::Doubling, show: number },
        y: Axis { label: "requests per second", scale: Scale::Linear, show: number },
        series: before
            .into_iter()
            .map(|before| line(before, true))
            .chain([line(curve, false)])
            .collect(),
        marks: Vec::new(),
    }
}

pub(super) fn cost_plot(curve: &Curve, before: Option<&Curve>) -> Plot {
    let line = |curve: &Curve, of: fn(&Point) -> u64| {
        let point = |point: &Point| (point.x as f64, of(point) as f64);
        curve.points.iter().map(point).collect::<Vec<_>>()
    };
    let median = |point: &Point| point.latency.p50_us;
    let mut series = Vec::new();
    if let Some(before) = before {
        series.push(Series {
            name: "median before".to_owned(),
            points: line(before, median),
            colour: 0,
            dashed: true,
            dots: true,
        });
    }
    let own =
        [("median", 0, median as fn(&Point) -> u64), ("99 %", 3, |point| point.latency.p99_us)];
    series.extend(own.into_iter().map(|(name, colour, of)| Series {
        name: name.to_owned(),
        points: line(curve, of),
        colour,
        dashed: false,
        dots: true,
    }));
    Plot {
        title: match curve.name.as_str() {
            "clients" => "Latency over clients".to_owned(),
            "objects" => "Cost over distinct objects".to_owned(),
            "versions" => "Cost over versions in the index".to_owned(),
            name => format!("Cost over {name}"),
        },
        note: curve.about.clone(),
        x: Axis {
            label: axis_label(&curve.of),
            scale: if curve.of == "clients" { Scale::Doubling } else { Scale::Log },
            show: number,
        },
        y: LATENCY,
        series,
        marks: Vec::new(),
    }
}

/// The label of the x axis of a curve.
fn axis_label(of: &str) -> &'static str {
    match of {
        "clients" => "clients",
        "rows" => "rows of the table",
        "columns" => "columns of the table",
        "objects" => "distinct objects in the table",
        "versions" => "versions of the path",
        _ => "count",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_seconds_are_shown_as_people_write_them() {
        assert_eq!(percent(0.5), "50 %");
        assert_eq!(percent(0.99999), "99.999 %");
        assert_eq!(seconds(2.5), "2.5 s");
    }
}
