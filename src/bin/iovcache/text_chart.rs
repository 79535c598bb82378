//! Pictures in text: spans of time as bars, shares as gauges.

use std::fmt::Write as _;

use iovcache::escape::escape;

/// How wide a picture is.
const WIDTH: usize = 60;

/// A span of time and what it is called.
#[derive(Debug, Clone)]
pub(crate) struct Bar {
    pub(crate) from: i64,
    pub(crate) until: i64,
    pub(crate) label: String,
}

/// One line per span: its borders as `show` has them, where it lies among all of them, its label.
pub(crate) fn bars(spans: &[Bar], show: impl Fn(i64) -> String) -> String {
    // Ends without end would leave nothing of the rest: they are drawn a bit beyond it.
    let finite = || {
        let borders = spans.iter().flat_map(|span| [span.from, span.until]);
        borders.filter(|&at| at != i64::MIN && at != i64::MAX)
    };
    let (first, last) = (finite().min().unwrap_or(0), finite().max().unwrap_or(1));
    let width = (i128::from(last) - i128::from(first)).max(1);
    let margin = width / 10;
    let (begin, end) = (i128::from(first) - margin, i128::from(last) + margin);
    let place = |at: i64| {
        let at = match at {
            i64::MIN => begin,
            i64::MAX => end,
            at => i128::from(at),
        };
        usize::try_from((at - begin) * WIDTH as i128 / (end - begin)).unwrap_or(0).min(WIDTH)
    };
    let longest = |which: fn(&Bar) -> i64| {
        spans.iter().map(|span| show(which(span)).len()).max().unwrap_or(0)
    };
    let (left, right) = (longest(|span| span.from), longest(|span| span.until));
    let mut text = String::new();
    for span in spans {
        let (from, until) = (place(span.from), place(span.until).max(place(span.from) + 1));
        let bar: String = (0..=WIDTH)
            .map(|column| if (from..until).contains(&column) { '█' } else { '·' })
            .collect();
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{:>left$} ─ {:<right$} {bar} {}",
            show(span.from),
            show(span.until),
            escape(&span.label)
        );
    }
    text
}

/// A share of a whole, as a gauge.
pub(crate) fn gauge(parts: &[(u64, char)], whole: u64, width: usize) -> String {
    let mut text = String::new();
    for &(part, mark) in parts {
        let cells = (part as f64 / whole.max(1) as f64 * width as f64).round() as usize;
        text.extend(std::iter::repeat_n(mark, cells.min(width - text.chars().count())));
    }
    while text.chars().count() < width {
        text.push('·');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_stand_where_their_times_are() {
        let bar = |from, until| Bar { from, until, label: "x".to_owned() };
        let text = bars(&[bar(0, 50), bar(50, 100), bar(100, i64::MAX)], crate::time::show);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        let first = |line: &str| line.find('█').unwrap();
        assert!(first(lines[0]) < first(lines[1]) && first(lines[1]) < first(lines[2]));
        assert!(lines[2].contains("inf"));
    }

    #[test]
    fn extreme_times_do_not_overflow() {
        let bar = |from, until| Bar { from, until, label: String::new() };
        bars(&[bar(i64::MIN, i64::MAX)], crate::time::show);
        bars(&[bar(i64::MIN + 1, i64::MAX - 1)], crate::time::show);
        assert_eq!(gauge(&[(1, '#'), (1, '+')], 4, 8), "##++····");
        assert_eq!(gauge(&[(9, '#')], 4, 4), "####");
    }
}
