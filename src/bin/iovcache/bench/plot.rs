//! A plot as inline SVG: lines over two axes with units. Colours and shadows come from the style of
//! the page; it needs no other files.

use std::fmt::{self, Write as _};

/// The area of a plot, in the units of its view box.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 340.0;
const LEFT: f64 = 66.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 32.0;
const BOTTOM: f64 = 50.0;
/// Maximum number of points of a line; more cannot be distinguished.
const MAX_POINTS: usize = 240;

/// The scale of an axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Scale {
    Linear,
    /// Linear; ends at the last value.
    Time,
    /// Linear; ticks are round in KiB, MiB, GiB.
    Bytes,
    Log,
    /// Logarithmic; a tick at each power of two.
    Doubling,
    /// Shares of a whole, expanded towards 1: 90 %, 99 %, 99.9 %.
    Nines,
}

/// An axis.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis {
    pub(super) label: &'static str,
    pub(super) scale: Scale,
    /// Formats a value with its unit.
    pub(super) show: fn(f64) -> String,
}

/// A line.
#[derive(Debug, Clone, Default)]
pub(super) struct Series {
    pub(super) name: String,
    /// The points; a value that is not finite breaks the line.
    pub(super) points: Vec<(f64, f64)>,
    /// Index of the colour in the page's style.
    pub(super) colour: usize,
    /// Dashed: the result to compare with.
    pub(super) dashed: bool,
    /// Draw a dot at each point.
    pub(super) dots: bool,
}

/// A plot.
#[derive(Debug, Clone)]
pub(super) struct Plot {
    pub(super) title: String,
    pub(super) note: String,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) series: Vec<Series>,
    /// Positions along x that are marked, each with its label.
    pub(super) marks: Vec<(f64, String)>,
}

/// Escapes text for HTML.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The label of a tick, without a fraction of zeros.
fn tick(text: &str) -> String {
    let number = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(number);
    match number.split_once('.') {
        Some((whole, fraction)) if fraction.bytes().all(|digit| digit == b'0') => {
            escaped(&format!("{whole}{unit}"))
        }
        _ => escaped(text),
    }
}

/// The drawn range of an axis, and its ticks.
#[derive(Debug)]
struct Range {
    scale: Scale,
    from: f64,
    to: f64,
    ticks: Vec<f64>,
}

impl Range {
    /// Ticks at the same distance, from 0 or the lowest value on.
    fn evenly(scale: Scale, least: f64, most: f64) -> Self {
        let (least, most) = (least.min(0.0), if most > 0.0 { most } else { 1.0 });
        let step = match scale {
            Scale::Bytes => 2_f64.powf(((most - least) / 6.0).max(1.0).log2().ceil()),
            _ => nice_step((most - least) / 5.0),
        };
        let to = (most / step).ceil() * step;
        let to = if scale == Scale::Time { most } else { to };
        let count = ((to - least) / step + 1e-6).floor() as i64;
        let ticks = (0..=count).map(|n| least + n as f64 * step).collect();
        Self { scale, from: least, to, ticks }
    }

    /// Ticks at 1, 2 and 5 of each decade; over many decades, one per decade.
    fn by_decades(least: f64, most: f64) -> Self {
        let least = if least > 0.0 { least } else { 1.0 };
        let most = most.max(least * 1.5);
        let decades = (least.log10().floor() as i32)..=(most.log10().ceil() as i32);
        let many = (most / least).log10() > 3.2;
        let steps: &[f64] = if many { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let all: Vec<f64> = decades
            .flat_map(|decade| steps.iter().map(move |step| step * 10_f64.powi(decade)))
            .collect();
        let from = all.iter().copied().rfind(|tick| *tick <= least * 1.0001);
        let to = all.iter().copied().find(|tick| *tick >= most * 0.9999);
        let (from, to) = (from.unwrap_or(least), to.unwrap_or(most));
        let ticks = all.into_iter().filter(|tick| (from..=to).contains(tick)).collect();
        Self { scale: Scale::Log, from, to, ticks }
    }

    fn of(axis: Axis, values: impl Iterator<Item = f64> + Clone) -> Self {
        let scale = axis.scale;
        let above = matches!(scale, Scale::Log | Scale::Doubling);
        let fits = |value: &f64| value.is_finite() && (!above || *value > 0.0);
        let least = values.clone().filter(fits).fold(f64::INFINITY, f64::min);
        let most = values.filter(fits).fold(f64::NEG_INFINITY, f64::max);
        let (least, most) = if least <= most { (least, most) } else { (0.0, 1.0) };
        match scale {
            Scale::Linear | Scale::Bytes | Scale::Time => Self::evenly(scale, least, most),
            Scale::Log => Self::by_decades(least, most),
            Scale::Doubling => {
                let least = if least > 0.0 { least } else { 1.0 };
                let (first, last) = (least.log2().floor() as i32, most.max(least).log2().ceil());
                let last = (last as i32).max(first + 1);
                let ticks = (first..=last).map(|power| 2_f64.powi(power)).collect();
                Self { scale, from: 2_f64.powi(first), to: 2_f64.powi(last), ticks }
            }
            Scale::Nines => {
                let most = most.min(0.999_999_9);
                let ticks = [0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999_999];
                let beyond = ticks.iter().copied().find(|tick| *tick >= most).unwrap_or(most);
                let ticks = ticks.into_iter().filter(|tick| *tick <= beyond).collect();
                Self { scale, from: 0.0, to: beyond.max(0.9), ticks }
            }
        }
    }

    /// The position of a value, from 0 to 1.
    fn share(&self, value: f64) -> f64 {
        let place = |value: f64| match self.scale {
            Scale::Linear | Scale::Bytes | Scale::Time => value,
            Scale::Log | Scale::Doubling => value.max(f64::MIN_POSITIVE).log10(),
            Scale::Nines => -(1.0 - value.clamp(0.0, 0.999_999_9)).log10(),
        };
        let (from, to) = (place(self.from), place(self.to));
        ((place(value) - from) / (to - from)).clamp(0.0, 1.0)
    }
}

/// The smallest step of at least `least` that is 1, 2 or 5 times a power of ten.
fn nice_step(least: f64) -> f64 {
    let power = 10_f64.powf(least.max(1e-9).log10().floor());
    let nice = [1.0, 2.0, 5.0, 10.0].into_iter().find(|step| step * power >= least * 0.999);
    nice.unwrap_or(10.0) * power
}

impl Plot {
    /// The figure: title, legend, SVG. Empty if there are no values.
    pub(super) fn html(&self) -> String {
        let mut text = String::new();
        if self.series.iter().any(|series| !series.points.is_empty()) {
            // Writing to a String cannot fail.
            let _ = self.write(&mut text);
        }
        text
    }

    fn write(&self, text: &mut String) -> fmt::Result {
        let title = escaped(&self.title);
        writeln!(text, "<figure class=\"plot\"><figcaption><b>{title}</b>")?;
        writeln!(text, "<span>{}</span></figcaption>", escaped(&self.note))?;
        if self.series.len() > 1 {
            text.push_str("<ul class=\"legend\">");
            for series in &self.series {
                let dashed = if series.dashed { " dashed" } else { "" };
                write!(
                    text,
                    "<li><i class=\"c{}{dashed}\"></i>{}</li>",
                    series.colour,
                    escaped(&series.name)
                )?;
            }
            text.push_str("</ul>\n");
        }
        let points = || self.series.iter().flat_map(|series| &series.points);
        let x = Range::of(self.x, points().map(|point| point.0));
        let y = Range::of(self.y, points().map(|point| point.1));
        writeln!(
            text,
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">"
        )?;
        self.write_axes(text, &x, &y)?;
        for series in &self.series {
            self.write_series(text, series, &x, &y)?;
        }
        text.push_str("</svg></figure>\n");
        Ok(())
    }

    fn write_axes(&self, text: &mut String, x: &Range, y: &Range) -> fmt::Result {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for at in &y.ticks {
            let place = across_y(y, *at);
            let class = if *at == y.from { "axis" } else { "grid" };
            writeln!(
                text,
                "<line class=\"{class}\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{place:.1}\" \
                 y2=\"{place:.1}\"/><text class=\"tick\" x=\"{}\" y=\"{:.1}\" \
                 text-anchor=\"end\">{}</text>",
                LEFT - 8.0,
                place + 4.0,
                tick(&(self.y.show)(*at))
            )?;
        }
        for at in &x.ticks {
            let place = across_x(x, *at);
            writeln!(
                text,
                "<line class=\"grid\" x1=\"{place:.1}\" x2=\"{place:.1}\" y1=\"{TOP}\" \
                 y2=\"{bottom}\"/><text class=\"tick\" x=\"{place:.1}\" y=\"{}\" \
                 text-anchor=\"middle\">{}</text>",
                bottom + 17.0,
                tick(&(self.x.show)(*at))
            )?;
        }
        for (at, name) in &self.marks {
            let place = across_x(x, *at);
            writeln!(
                text,
                "<line class=\"mark\" x1=\"{place:.1}\" x2=\"{place:.1}\" y1=\"{TOP}\" \
                 y2=\"{bottom}\"/><text class=\"tick\" x=\"{:.1}\" y=\"{}\">{}</text>",
                place + 3.0,
                TOP - 5.0,
                escaped(name)
            )?;
        }
        writeln!(
            text,
            "<text class=\"label\" x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>\
             <text class=\"label\" x=\"0\" y=\"14\">{}</text>",
            f64::midpoint(LEFT, right),
            HEIGHT - 10.0,
            escaped(self.x.label),
            escaped(self.y.label)
        )
    }

    fn write_series(
        &self,
        text: &mut String,
        series: &Series,
        x: &Range,
        y: &Range,
    ) -> fmt::Result {
        let place = |&(at, value): &(f64, f64)| (across_x(x, at), across_y(y, value));
        let every = series.points.len().div_ceil(MAX_POINTS).max(1);
        let last = series.points.len().saturating_sub(1);
        let kept = series.points.iter().enumerate();
        let kept: Vec<&(f64, f64)> = kept
            .filter(|(number, point)| {
                number % every == 0 || *number == last || !point.1.is_finite()
            })
            .map(|(_, point)| point)
            .collect();
        Self::write_line(text, series, &kept, place)?;
        // A tooltip for each point; for many points, for some of them.
        let said = kept.len().div_ceil(40).max(1);
        for (number, point) in kept.iter().enumerate() {
            if !point.1.is_finite() || (!series.dots && number % said != 0) {
                continue;
            }
            let (at, value) = place(point);
            let radius = if series.dots && !series.dashed { 3.4 } else { 0.0 };
            writeln!(
                text,
                "<g class=\"dot c{}\"><circle cx=\"{at:.1}\" cy=\"{value:.1}\" r=\"{radius}\"/>\
                 <circle class=\"hit\" cx=\"{at:.1}\" cy=\"{value:.1}\" r=\"9\"/>\
                 <title>{}: {}, {}</title></g>",
                series.colour,
                escaped(&series.name),
                escaped(&(self.x.show)(point.0)),
                escaped(&(self.y.show)(point.1))
            )?;
        }
        Ok(())
    }

    /// Writes the line through `points`, with a gap where a value is not finite.
    fn write_line(
        text: &mut String,
        series: &Series,
        points: &[&(f64, f64)],
        place: impl Fn(&(f64, f64)) -> (f64, f64),
    ) -> fmt::Result {
        let dashed = if series.dashed { " dashed" } else { "" };
        write!(text, "<path class=\"line c{}{dashed}\" d=\"", series.colour)?;
        let mut pen = 'M';
        for point in points {
            if !point.1.is_finite() {
                pen = 'M';
                continue;
            }
            let (at, value) = place(point);
            write!(text, "{pen}{at:.1} {value:.1}")?;
            pen = 'L';
        }
        text.push_str("\"/>\n");
        Ok(())
    }
}

fn across_x(range: &Range, value: f64) -> f64 {
    LEFT + range.share(value) * (WIDTH - LEFT - RIGHT)
}

fn across_y(range: &Range, value: f64) -> f64 {
    HEIGHT - BOTTOM - range.share(value) * (HEIGHT - TOP - BOTTOM)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(scale: Scale) -> Axis {
        Axis { label: "a <b>", scale, show: |value| format!("{value}") }
    }

    #[test]
    fn ticks_are_round_and_hold_all_values() {
        let range = Range::of(axis(Scale::Linear), [3.0, 47.0].into_iter());
        assert_eq!((range.from, range.to), (0.0, 50.0));
        assert_eq!(range.ticks, [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]);
        let range = Range::of(axis(Scale::Log), [130.0, 900.0].into_iter());
        assert_eq!(range.ticks, [100.0, 200.0, 500.0, 1_000.0]);
        let range = Range::of(axis(Scale::Log), [1.0, 1e6].into_iter());
        assert_eq!(range.ticks.len(), 7);
        let range = Range::of(axis(Scale::Nines), [0.001, 0.9995].into_iter());
        assert_eq!(range.ticks, [0.0, 0.5, 0.9, 0.99, 0.999, 0.9999]);
        assert!(range.share(0.99) - 2.0 * range.share(0.9) < 1e-9);
        let range = Range::of(axis(Scale::Doubling), [1.0, 64.0].into_iter());
        assert_eq!(range.ticks, [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]);
        let mebibyte = 1024.0 * 1024.0;
        let range = Range::of(axis(Scale::Bytes), [90.0 * mebibyte].into_iter());
        assert_eq!(range.ticks[1], 16.0 * mebibyte);
        let shown = ["5.00 ms", "10.0 ms", "1.5 M", "0 B"].map(tick);
        assert_eq!(shown, ["5 ms", "10 ms", "1.5 M", "0 B"]);
    }

    #[test]
    fn a_line_is_broken_where_there_is_no_value() {
        let points = vec![(0.0, 1.0), (1.0, 1.0), (1.5, f64::NAN), (2.0, 1.0), (3.0, 1.0)];
        let series = Series { points, ..Series::default() };
        let (x, y) = (axis(Scale::Linear), axis(Scale::Linear));
        let [title, note] = ["", ""].map(str::to_owned);
        let html = Plot { title, note, x, y, series: vec![series], marks: Vec::new() }.html();
        let path = html.split("d=\"").nth(1).unwrap().split('"').next().unwrap();
        assert_eq!((path.matches('M').count(), path.matches('L').count()), (2, 2), "{path}");
    }

    #[test]
    fn values_without_sense_leave_a_plot_that_can_be_drawn() {
        use Scale::{Bytes, Doubling, Linear, Log, Nines, Time};
        for scale in [Linear, Time, Bytes, Log, Doubling, Nines] {
            for values in [vec![], vec![0.0], vec![f64::NAN], vec![f64::INFINITY, -1.0], vec![1.0]]
            {
                let range = Range::of(axis(scale), values.clone().into_iter());
                let share = range.share(0.5);
                assert!((0.0..=1.0).contains(&share), "{scale:?} {values:?} {range:?}");
            }
        }
    }

    #[test]
    fn a_plot_has_its_lines_labels_and_legend_and_escapes_what_it_shows() {
        let series = |name: &str| Series {
            name: name.to_owned(),
            points: vec![(1.0, 2.0), (2.0, 3.0)],
            dots: true,
            ..Series::default()
        };
        let plot = Plot {
            title: "T & t".to_owned(),
            note: String::new(),
            x: axis(Scale::Linear),
            y: axis(Scale::Log),
            series: vec![series("one"), series("two")],
            marks: vec![(1.5, "here".to_owned())],
        };
        let html = plot.html();
        assert_eq!(html.matches("class=\"line").count(), 2);
        assert_eq!(html.matches("class=\"dot").count(), 4);
        assert!(html.contains("T &amp; t") && html.contains("a &lt;b&gt;"));
        assert!(html.contains("<li>"));
        assert_eq!(Plot { series: vec![Series::default()], ..plot }.html(), "");
    }
}
