//! Plots times against the number of versions on logarithmic axes: linear cost is a straight line.

use std::fmt::Write as _;

use crate::Row;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 480.0;
const MARGIN: f64 = 60.0;
/// Name, colour and value of each line.
type Line = (&'static str, &'static str, fn(&Row) -> f64);
const LINES: [Line; 7] = [
    ("import", "#1f77b4", |row| row.import),
    ("cp -r", "#aec7e8", |row| row.copy),
    ("find | wc -l", "#ffbb78", |row| row.find),
    ("start without index", "#ff7f0e", |row| row.start_without),
    ("start with index", "#2ca02c", |row| row.start),
    ("new version seen", "#d62728", |row| row.seen),
    ("ls of all paths", "#9467bd", |row| row.list),
];

/// The plot of `rows`, all of one layout.
pub(crate) fn svg(rows: &[&Row]) -> String {
    let values = || rows.iter().flat_map(|row| LINES.map(|(_, _, value)| value(row).max(1e-4)));
    let (low, high) = (values().fold(f64::MAX, f64::min), values().fold(0.0, f64::max));
    let (low, high) = (low.log10().floor(), high.log10().ceil().max(low.log10().floor() + 1.0));
    let sizes = || rows.iter().map(|row| (row.versions as f64).log10());
    let (first, last) = (sizes().fold(f64::MAX, f64::min), sizes().fold(0.0, f64::max));
    let x = |size: f64| MARGIN + (size - first) / (last - first).max(1.0) * (WIDTH - 4.0 * MARGIN);
    let y = |value: f64| {
        HEIGHT - MARGIN - (value.max(1e-4).log10() - low) / (high - low) * (HEIGHT - 2.0 * MARGIN)
    };
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" \
         fill=\"white\"/>\n"
    );
    for power in low as i32..=high as i32 {
        let (at, right) = (y(10_f64.powi(power)), WIDTH - 3.0 * MARGIN);
        writeln!(
            text,
            "<line x1=\"{MARGIN}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>"
        )
        .unwrap();
        writeln!(text, "<text x=\"8\" y=\"{:.1}\">10^{power} s</text>", at + 4.0).unwrap();
    }
    for row in rows {
        let at = x((row.versions as f64).log10());
        let below = HEIGHT - MARGIN + 18.0;
        writeln!(
            text,
            "<text x=\"{at:.1}\" y=\"{below}\" text-anchor=\"middle\">{}</text>",
            row.versions
        )
        .unwrap();
    }
    for (nth, (name, colour, value)) in LINES.iter().enumerate() {
        let points: Vec<String> = rows
            .iter()
            .map(|row| format!("{:.1},{:.1}", x((row.versions as f64).log10()), y(value(row))))
            .collect();
        writeln!(
            text,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            points.join(" ")
        )
        .unwrap();
        let (left, top) = (WIDTH - 2.8 * MARGIN, MARGIN + 20.0 * nth as f64);
        writeln!(text, "<text x=\"{left}\" y=\"{top}\" fill=\"{colour}\">{name}</text>").unwrap();
    }
    text.push_str("</svg>\n");
    text
}
