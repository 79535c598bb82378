//! Comparison of two results: faster, slower, or within chance.

use std::fmt::Write as _;

use super::histogram::Latency;
use super::options::Arguments;
use super::report;
use super::result::{BenchResult, Curve, Phase};
use super::text::{change, micros, number, phase_name, write_file};
use crate::common::out;
use crate::failure::Failure;

/// Relative changes below this are not reported, however precise: runs differ by it.
const LEAST_CHANGE: f64 = 0.03;

/// A figure of both results.
#[derive(Debug)]
struct Pair {
    name: String,
    before: f64,
    after: f64,
    show: fn(f64) -> String,
    /// Whether larger values are better.
    more: bool,
    /// Confidence intervals of the values: before, after.
    intervals: Option<[(f64, f64); 2]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Better,
    Worse,
    Same,
}

impl Pair {
    fn verdict(&self) -> Verdict {
        let change = self.after / self.before - 1.0;
        let apart =
            self.intervals.is_none_or(|[before, after]| before.1 < after.0 || after.1 < before.0);
        match change {
            change if !change.is_finite() || change.abs() < LEAST_CHANGE || !apart => Verdict::Same,
            change if (change > 0.0) == self.more => Verdict::Better,
            _ => Verdict::Worse,
        }
    }

    /// Percentage by which it became worse.
    fn worse_by(&self) -> f64 {
        match self.verdict() {
            Verdict::Worse if self.more => (self.before / self.after - 1.0) * 100.0,
            Verdict::Worse => (self.after / self.before - 1.0) * 100.0,
            Verdict::Better | Verdict::Same => 0.0,
        }
    }
}

/// Prints the comparison, and fails if a figure became worse by more than the allowed percentage.
///
/// # Errors
/// [`Failure`] if the results have no figures in common, or if one became too much worse.
pub(super) fn run(
    arguments: &Arguments,
    before: &BenchResult,
    after: &BenchResult,
) -> Result<(), Failure> {
    let pairs = pairs(before, after);
    if pairs.is_empty() {
        return Err(Failure::usage("the two results have no figures in common"));
    }
    match arguments.json {
        true => out(format!("{}\n", json(&pairs)).as_bytes())?,
        false => out(text(before, after, &pairs).as_bytes())?,
    }
    if let Some(file) = &arguments.html {
        write_file(file, &report::page(after, Some(before)))?;
    }
    let Some(limit) = arguments.fail_above else { return Ok(()) };
    let worst = pairs.iter().max_by(|a, b| a.worse_by().total_cmp(&b.worse_by()));
    match worst {
        Some(worst) if worst.worse_by() > limit => Err(Failure::failed(format!(
            "{}: {}, was {}: worse by {:.1} %",
            worst.name,
            (worst.show)(worst.after),
            (worst.show)(worst.before),
            worst.worse_by()
        ))),
        _ => Ok(()),
    }
}

/// All figures that both results have.
fn pairs(before: &BenchResult, after: &BenchResult) -> Vec<Pair> {
    let mut pairs = Vec::new();
    for now in &after.profiles {
        let Some(then) = before.profiles.iter().find(|then| then.name == now.name) else {
            continue;
        };
        for phase in &now.phases {
            let same = |other: &&Phase| other.name == phase.name && other.rate == phase.rate;
            if let Some(earlier) = then.phases.iter().find(same) {
                of_phase(&mut pairs, &now.name, earlier, phase);
            }
        }
    }
    for now in &after.curves {
        if let Some(then) = before.curves.iter().find(|then| then.name == now.name) {
            of_curve(&mut pairs, then, now);
        }
    }
    pairs
}

fn of_phase(pairs: &mut Vec<Pair>, profile: &str, before: &Phase, after: &Phase) {
    let name = format!("{profile}, {}", phase_name(after));
    for quantile in [0.5, 0.99, 0.999] {
        pairs.extend(of_latency(&name, quantile, &before.latency, &after.latency));
    }
    let mut plain = |what: &str, [before, after]: [f64; 2], show, more| {
        let name = format!("{name}: {what}");
        pairs.push(Pair { name, before, after, show, more, intervals: None });
    };
    plain("tables/s", [before, after].map(|phase| phase.throughput.tables), number, true);
    if let (Some(before), Some(after)) = (&before.service, &after.service) {
        let cpu = [before, after].map(|used| used.cpu_us_per_table);
        plain("CPU per table", cpu, micros, false);
        let private = [before, after].map(|used| used.memory.private_bytes as f64);
        plain("private memory", private, super::text::bytes, false);
    }
}

fn of_curve(pairs: &mut Vec<Pair>, before: &Curve, after: &Curve) {
    for now in &after.points {
        let Some(then) = before.points.iter().find(|then| then.x == now.x) else { continue };
        let name = format!("{} {}", number(now.x as f64), after.name);
        pairs.extend(of_latency(&name, 0.5, &then.latency, &now.latency));
        if after.name == "clients" {
            pairs.push(Pair {
                name: format!("{name}: requests/s"),
                before: then.requests_per_second,
                after: now.requests_per_second,
                show: number,
                more: true,
                intervals: None,
            });
        }
    }
}

fn of_latency(name: &str, quantile: f64, before: &Latency, after: &Latency) -> Option<Pair> {
    let [then, now] = [before, after].map(|latency| latency.quantile(quantile));
    let intervals = [before.interval(quantile), after.interval(quantile)];
    Some(Pair {
        name: format!("{name}: p{}", quantile * 100.0),
        before: then?,
        after: now?,
        show: micros,
        more: false,
        intervals: Some(intervals),
    })
}

fn text(before: &BenchResult, after: &BenchResult, pairs: &[Pair]) -> String {
    let mut text = String::new();
    for (what, differ) in [
        (
            "on different machines",
            before.machine.cpu != after.machine.cpu || before.machine.cores != after.machine.cores,
        ),
        ("with different memory", before.options.memory_bytes != after.options.memory_bytes),
        ("in different builds", before.machine.optimised != after.machine.optimised),
    ] {
        if differ {
            text.push_str("They were measured ");
            text.push_str(what);
            text.push_str(".\n");
        }
    }
    let width = pairs.iter().map(|pair| pair.name.chars().count()).max().unwrap_or(0);
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{:<width$} {:>12} {:>12} {:>10}", "", "before", "after", "change");
    for pair in pairs {
        let verdict = match pair.verdict() {
            Verdict::Better => "better",
            Verdict::Worse => "worse",
            Verdict::Same => "",
        };
        let line = format!(
            "{:<width$} {:>12} {:>12} {:>10}  {verdict}",
            pair.name,
            (pair.show)(pair.before),
            (pair.show)(pair.after),
            change(pair.before, pair.after)
        );
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

fn json(pairs: &[Pair]) -> serde_json::Value {
    let one = |pair: &Pair| {
        serde_json::json!({
            "name": pair.name,
            "before": pair.before,
            "after": pair.after,
            "verdict": match pair.verdict() {
                Verdict::Better => "better",
                Verdict::Worse => "worse",
                Verdict::Same => "same",
            },
        })
    };
    pairs.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::histogram::Durations;

    fn latency(values: impl Iterator<Item = u64>) -> Latency {
        let mut durations = Durations::default();
        values.for_each(|us| durations.record_us(us));
        durations.summary()
    }

    #[test]
    fn medians_that_differ_are_reported_and_chance_is_not() {
        let pair = |before: &Latency, after: &Latency| of_latency("x", 0.5, before, after).unwrap();
        let (slow, fast) = (latency(1_000..2_000), latency(500..1_000));
        assert_eq!(pair(&slow, &fast).verdict(), Verdict::Better);
        assert_eq!(pair(&fast, &slow).verdict(), Verdict::Worse);
        assert!((pair(&fast, &slow).worse_by() - 100.0).abs() < 2.0);
        assert_eq!(pair(&slow, &slow).verdict(), Verdict::Same);
        // Few values, far apart: the medians may differ by chance.
        let (few, other) =
            (latency([10, 900, 1_000].into_iter()), latency([20, 700, 990].into_iter()));
        assert_eq!(pair(&few, &other).verdict(), Verdict::Same);
        assert!(of_latency("x", 0.5, &Latency::default(), &few).is_none());
    }

    #[test]
    fn more_requests_are_better_and_changes_have_signs() {
        let pair = Pair {
            name: String::new(),
            before: 100.0,
            after: 80.0,
            show: number,
            more: true,
            intervals: None,
        };
        assert_eq!(pair.verdict(), Verdict::Worse);
        assert_eq!(pair.worse_by(), 25.0);
        assert_eq!(change(100.0, 80.0), "−20.0 %");
        assert_eq!(change(80.0, 100.0), "+25.0 %");
        assert_eq!(change(0.0, 1.0), "-");
    }
}
