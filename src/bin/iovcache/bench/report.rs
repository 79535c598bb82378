//! A result as one self-contained page: plots, tiles with the main figures, and the rest in tables.

use std::fmt::{self, Write as _};

use super::histogram::Latency;
use super::plot::escaped;
use super::plots::{
    cost_plot, latency_plot, memory_plot, over_time, parts_plot, rates_plot, throughput_plot,
};
use super::result::{BenchResult, Curve, Phase, ProfileResult, ServiceUse};
use super::text::{bytes, change, micros, number, phase_name};
use crate::common::show_bytes;

const STYLE: &str = include_str!("report.css");

/// The page of a result, compared with an earlier one if given.
pub(super) fn page(result: &BenchResult, before: Option<&BenchResult>) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_page(&mut text, result, before);
    text
}

fn write_page(
    text: &mut String,
    result: &BenchResult,
    before: Option<&BenchResult>,
) -> fmt::Result {
    writeln!(
        text,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n<meta \
         name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>iovcache \
         bench</title>\n<style>\n{STYLE}</style></head><body><main>"
    )?;
    write_header(text, result, before)?;
    for profile in &result.profiles {
        let earlier = before
            .and_then(|before| before.profiles.iter().find(|earlier| earlier.name == profile.name));
        write_profile(text, profile, earlier)?;
    }
    if !result.curves.is_empty() {
        write_curves(text, &result.curves, before.map_or(&[], |before| &before.curves))?;
    }
    writeln!(
        text,
        "<footer>Latency counts from the moment at which a timeframe was due, whether or not the \
         load came late (coordinated omission does not hide waiting). Objects are handed over by \
         reference: their bytes are not copied. Percentiles are read from HDR histograms of three \
         digits; the JSON of <code>--output</code> has all of them, and <code>iovcache bench \
         --compare</code> puts two beside each other.</footer></main></body></html>"
    )
}

fn write_header(
    text: &mut String,
    result: &BenchResult,
    before: Option<&BenchResult>,
) -> fmt::Result {
    let machine = &result.machine;
    writeln!(
        text,
        "<header><h1>iovcache under load</h1><p>Version {}, {} cores of {}, {}, Linux {}, {}. Took \
         {:.0} s.</p>",
        escaped(&result.version),
        machine.cores,
        escaped(&machine.cpu),
        show_bytes(machine.memory_bytes),
        escaped(&machine.kernel),
        day(result.began_ms),
        result.took_seconds
    )?;
    if let Some(before) = before {
        writeln!(
            text,
            "<p>Dashed: before, version {} of {}.</p>",
            escaped(&before.version),
            day(before.began_ms)
        )?;
    }
    if !machine.optimised {
        text.push_str(
            "<p class=\"warning\">A build without optimisation: these figures say nothing about \
             speed.</p>\n",
        );
    }
    write_verdict(text, result)?;
    text.push_str("<nav>");
    for profile in &result.profiles {
        let name = escaped(&profile.name);
        write!(text, "<a href=\"#{name}\">{name}</a>")?;
    }
    if !result.curves.is_empty() {
        text.push_str("<a href=\"#curves\">curves</a>");
    }
    text.push_str("</nav></header>\n");
    Ok(())
}

/// Whether all cells were right.
fn write_verdict(text: &mut String, result: &BenchResult) -> fmt::Result {
    let faults = result.faults();
    let phases = || result.profiles.iter().flat_map(|profile| &profile.phases);
    let checked: u64 = phases().map(|phase| phase.tables.cells_checked).sum();
    match &faults[..] {
        [] if checked > 0 => writeln!(
            text,
            "<p class=\"verdict good\">0 of {} cells were wrong; nothing was left behind.</p>",
            number(checked as f64)
        )?,
        [] => {}
        faults => {
            writeln!(text, "<p class=\"verdict bad\">{}</p>", escaped(&faults.join("; ")))?;
        }
    }
    Ok(())
}

/// The day of a time in ms, UTC (the civil calendar, by Howard Hinnant's `civil_from_days`).
fn day(ms: u64) -> String {
    let days = (ms / 86_400_000) as i64 + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year}-{month:02}-{day:02}")
}

fn write_profile(
    text: &mut String,
    profile: &ProfileResult,
    before: Option<&ProfileResult>,
) -> fmt::Result {
    let name = escaped(&profile.name);
    writeln!(
        text,
        "<section id=\"{name}\"><h2>{name}</h2><p>{}.",
        escaped(&sentence(&profile.about))
    )?;
    writeln!(
        text,
        "{} consumers, {} timeframes in flight, {} objects of {} in {} of shared memory.</p>",
        profile.consumers,
        profile.in_flight,
        profile.versions,
        show_bytes(profile.object_bytes),
        show_bytes(profile.memory_bytes)
    )?;
    if let Some(phase) = profile.phases.last() {
        let earlier = before.and_then(|before| before.phases.last());
        write_tiles(text, phase, earlier)?;
    }
    text.push_str("<div class=\"plots\">\n");
    text.push_str(&latency_plot(profile, before).html());
    if let Some(phase) = profile.phases.last() {
        text.push_str(&parts_plot(phase).html());
        text.push_str(&over_time(profile).html());
        text.push_str(&memory_plot(profile).html());
    }
    text.push_str(&rates_plot(profile).html());
    text.push_str("</div>\n");
    write_figures(text, profile)?;
    text.push_str("</section>\n");
    Ok(())
}

fn write_tiles(text: &mut String, phase: &Phase, before: Option<&Phase>) -> fmt::Result {
    let change = |of: fn(&Phase) -> u64| match before {
        None => phase_name(phase),
        Some(before) => change(of(before) as f64, of(phase) as f64),
    };
    let mut tiles = Vec::new();
    type Of = fn(&Phase) -> u64;
    let latency: [(&str, Of); 3] = [
        ("median", |phase| phase.latency.p50_us),
        ("99 %", |phase| phase.latency.p99_us),
        ("99.9 %", |phase| phase.latency.p99_9_us),
    ];
    for (name, of) in latency {
        tiles.push((format!("latency, {name}"), micros(of(phase) as f64), change(of)));
    }
    let throughput = &phase.throughput;
    let cells = format!("{} cells/s", number(throughput.cells));
    tiles.push(("tables per second".to_owned(), number(throughput.tables), cells));
    let handed = format!("{} objects/s", number(throughput.objects));
    tiles.push(("handed over".to_owned(), format!("{}/s", bytes(throughput.bytes)), handed));
    if let Some(used) = &phase.service {
        let cores = format!("{:.2} cores busy", used.cores);
        tiles.push(("CPU per table".to_owned(), micros(used.cpu_us_per_table), cores));
        let private = format!("{} private", show_bytes(used.memory.private_bytes));
        tiles.push(("objects in memory".to_owned(), show_bytes(used.used_bytes), private));
    }
    if phase.tables.cells_checked > 0 {
        let of = format!("of {} checked", number(phase.tables.cells_checked as f64));
        tiles.push(("cells wrong".to_owned(), phase.tables.cells_wrong.to_string(), of));
    }
    text.push_str("<div class=\"tiles\">\n");
    for (name, value, small) in tiles {
        writeln!(
            text,
            "<div class=\"tile\"><span>{name}</span><b>{value}</b><small>{small}</small></div>"
        )?;
    }
    text.push_str("</div>\n");
    Ok(())
}

/// `text` with a capital first letter.
fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

fn write_figures(text: &mut String, profile: &ProfileResult) -> fmt::Result {
    text.push_str(
        "<details><summary>All figures</summary><div class=\"scroll\"><table><thead><tr><th>phase\
         </th><th>tables</th><th>p50</th><th>p90</th><th>p99</th><th>p99.9</th><th>longest</th>\
         <th>tables/s</th><th>rows/s</th><th>cells/s</th><th>objects/s</th><th>loads/s</th><th>CPU \
         per table</th><th>evictions</th><th>failed</th><th>lost</th><th>wrong</th></tr></thead>\
         <tbody>\n",
    );
    profile.phases.iter().try_for_each(|phase| write_phase(text, phase))?;
    text.push_str("</tbody></table>\n");
    write_failures(text, profile)?;
    text.push_str("</div></details>\n");
    Ok(())
}

/// The row of one phase.
fn write_phase(text: &mut String, phase: &Phase) -> fmt::Result {
    let (tables, latency, throughput) = (&phase.tables, &phase.latency, &phase.throughput);
    write!(
        text,
        "<tr><td>{}</td><td>{} of {}</td>",
        phase_name(phase),
        tables.done,
        tables.expected
    )?;
    let Latencies(all) = Latencies::of(latency);
    for us in all {
        write!(text, "<td>{}</td>", micros(us))?;
    }
    for value in
        [throughput.tables, throughput.rows, throughput.cells, throughput.objects, throughput.loads]
    {
        write!(text, "<td>{}</td>", number(value))?;
    }
    let of = |value: fn(&ServiceUse) -> String| {
        phase.service.as_ref().map_or_else(|| "-".to_owned(), value)
    };
    writeln!(
        text,
        "<td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
        of(|used| micros(used.cpu_us_per_table)),
        of(|used| used.evictions.to_string()),
        tables.failed,
        tables.lost,
        tables.cells_wrong
    )
}

/// The failures by kind, and the faults that the run itself made.
fn write_failures(text: &mut String, profile: &ProfileResult) -> fmt::Result {
    for phase in &profile.phases {
        for (kind, failure) in &phase.tables.failures {
            let (count, first) = (failure.count, escaped(&failure.first));
            writeln!(text, "<p>{}: {count} × {kind}, the first: {first}</p>", phase_name(phase))?;
        }
    }
    let deaths: u64 = profile.phases.iter().map(|phase| phase.tables.deaths).sum();
    if deaths > 0 {
        writeln!(text, "<p>{deaths} consumers were killed (SIGKILL) and replaced.</p>")?;
    }
    if !profile.source_faults.is_empty() {
        let faults = profile.source_faults.iter().map(|(name, count)| format!("{count} × {name}"));
        let faults = faults.collect::<Vec<_>>().join(", ");
        writeln!(text, "<p>The source: {}.</p>", escaped(&faults))?;
    }
    Ok(())
}

/// The percentiles of a table row.
struct Latencies([f64; 5]);

impl Latencies {
    fn of(latency: &Latency) -> Self {
        let Latency { p50_us, p90_us, p99_us, p99_9_us, max_us, .. } = *latency;
        Self([p50_us, p90_us, p99_us, p99_9_us, max_us].map(|us| us as f64))
    }
}

fn write_curves(text: &mut String, curves: &[Curve], before: &[Curve]) -> fmt::Result {
    text.push_str(
        "<section id=\"curves\"><h2>curves</h2><p>What one request costs: all objects resident, \
         from the request to resolved cells, over a Unix socket; one asks after the other.</p><div \
         class=\"plots\">\n",
    );
    for curve in curves {
        let earlier = before.iter().find(|earlier| earlier.name == curve.name);
        if curve.name == "clients" {
            text.push_str(&throughput_plot(curve, earlier).html());
        }
        text.push_str(&cost_plot(curve, earlier).html());
    }
    text.push_str(
        "</div><details><summary>All figures</summary><div class=\"scroll\"><table><thead><tr><th>\
         curve</th><th></th><th>requests/s</th><th>p50</th><th>p90</th><th>p99</th><th>p99.9</th>\
         <th>longest</th><th>service's CPU</th></tr></thead><tbody>\n",
    );
    for curve in curves {
        for point in &curve.points {
            write!(
                text,
                "<tr><td>{}</td><td>{}</td><td>{}</td>",
                escaped(&curve.name),
                point.x,
                number(point.requests_per_second)
            )?;
            let Latencies(all) = Latencies::of(&point.latency);
            for us in all {
                write!(text, "<td>{}</td>", micros(us))?;
            }
            let cpu = point.cpu_us.map_or_else(|| "-".to_owned(), micros);
            writeln!(text, "<td>{cpu}</td></tr>")?;
        }
    }
    text.push_str("</tbody></table></div></details></section>\n");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        assert_eq!(day(0), "1970-01-01");
        assert_eq!(day(951_782_400_000), "2000-02-29");
        assert_eq!(day(1_792_800_000_000), "2026-10-24");
    }
}
