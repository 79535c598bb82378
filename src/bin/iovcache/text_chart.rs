//! Charts in text: time spans as bars, shares as gauges.

use std::fmt::Write as _;

use iovcache::escape::escape;

/// Largest width of a chart of spans, without borders and labels.
const MAX_WIDTH: usize = 60;
/// Smallest width of a chart of spans; on a narrower screen its lines are wrapped.
const MIN_WIDTH: usize = 10;
/// Assumed width of the screen where stdout is no terminal.
const DEFAULT_COLUMNS: usize = 120;

/// Columns of the terminal at stdout.
pub(crate) fn screen_columns() -> usize {
    let size = rustix::termios::tcgetwinsize(std::io::stdout());
    size.map_or(DEFAULT_COLUMNS, |size| match size.ws_col {
        0 => DEFAULT_COLUMNS,
        columns => columns.into(),
    })
}

/// Breaks lines between words at `columns` columns; a longer word is not broken. A continuation is
/// indented by two more than its line.
pub(crate) fn wrap(text: &str, columns: usize) -> String {
    let mut wrapped = String::new();
    for line in text.lines() {
        let mut left = columns;
        let indent = line.len() - line.trim_start().len();
        let mut rest = line;
        loop {
            let is_long = rest.chars().nth(left).is_some();
            // A blank directly after the limit is a place to break too.
            let blanks = rest.char_indices().take(left + 1).filter(|&(_, c)| c == ' ');
            let place = blanks.last().map(|(at, _)| at).filter(|&at| {
                // Breaking at leading blanks would never end.
                is_long && !rest[..at].trim().is_empty()
            });
            let Some(place) = place else { break };
            wrapped += &format!("{}\n{:2$}", rest[..place].trim_end(), "", indent + 2);
            rest = rest[place..].trim_start();
            left = columns.saturating_sub(indent + 2).max(1);
        }
        wrapped += rest;
        wrapped.push('\n');
    }
    wrapped
}

/// A time span with its label.
#[derive(Debug, Clone)]
pub(crate) struct Bar {
    pub(crate) from: i64,
    pub(crate) until: i64,
    pub(crate) label: String,
}

/// One line per span: its bounds as `show` formats them, its position among all spans, its label. A
/// line has at most `columns` columns if that leaves the chart its smallest width.
pub(crate) fn bars(spans: &[Bar], show: impl Fn(i64) -> String, columns: usize) -> String {
    // An unbounded end would compress all finite spans: it is drawn slightly beyond them, also where
    // they have a single border.
    let finite = || {
        let borders = spans.iter().flat_map(|span| [span.from, span.until]);
        borders.filter(|&at| at != i64::MIN && at != i64::MAX)
    };
    let (first, last) = (finite().min().unwrap_or(0), finite().max().unwrap_or(1));
    let margin = ((i128::from(last) - i128::from(first)) / 10).max(1);
    let (begin, end) = (i128::from(first) - margin, i128::from(last) + margin);
    let longest = |which: fn(&Bar) -> i64| {
        spans.iter().map(|span| show(which(span)).len()).max().unwrap_or(0)
    };
    let (left, right) = (longest(|span| span.from), longest(|span| span.until));
    let label = spans.iter().map(|span| span.label.chars().count()).max().unwrap_or(0);
    let columns = columns.saturating_sub(left + right + label + " ─   ".chars().count() + 1);
    let width = columns.clamp(MIN_WIDTH, MAX_WIDTH);
    let place = |at: i64| {
        let at = match at {
            i64::MIN => begin,
            i64::MAX => end,
            at => i128::from(at),
        };
        usize::try_from((at - begin) * width as i128 / (end - begin)).unwrap_or(0).min(width)
    };
    let mut text = String::new();
    for span in spans {
        let (from, until) = (place(span.from), place(span.until).max(place(span.from) + 1));
        let bar: String = (0..=width)
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

/// A gauge of `width` characters: each part in proportion to `whole`.
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
        let text = bars(&[bar(0, 50), bar(50, 100), bar(100, i64::MAX)], crate::time::show, 120);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        let first = |line: &str| line.find('█').unwrap();
        assert!(first(lines[0]) < first(lines[1]) && first(lines[1]) < first(lines[2]));
        assert!(lines[2].contains("inf"));
    }

    #[test]
    fn a_chart_is_as_narrow_as_the_screen() {
        let bar = |from, until| Bar { from, until, label: "label".to_owned() };
        for columns in [50, 70, 200] {
            let text = bars(&[bar(0, 50), bar(50, 100)], |at| at.to_string(), columns);
            let widest = text.lines().map(|line| line.chars().count()).max().unwrap();
            assert!(widest <= columns && (columns == 200 || widest > columns - 3), "{text}");
        }
    }

    #[test]
    fn lines_are_wrapped_between_words_and_long_words_stay() {
        assert_eq!(wrap("  one two three", 9), "  one two\n    three\n");
        assert_eq!(wrap("short\n\nline", 9), "short\n\nline\n");
        assert_eq!(wrap("aaaaaaaaaaaaa b", 5), "aaaaaaaaaaaaa b\n");
    }

    #[test]
    fn a_single_finite_border_divides_the_chart() {
        let bar = |from, until| Bar { from, until, label: String::new() };
        for spans in [
            vec![bar(5, i64::MAX)],
            vec![bar(i64::MIN, 7)],
            vec![bar(i64::MIN, 7), bar(7, i64::MAX)],
            vec![bar(i64::MIN, i64::MAX)],
            vec![bar(i64::MIN, 5), bar(5, 6), bar(6, i64::MAX)],
        ] {
            let text = bars(&spans, |at| at.to_string(), 120);
            let is_drawn = |line: &str| line.contains('█');
            assert!(text.lines().count() == spans.len() && text.lines().all(is_drawn), "{text}");
        }
    }

    #[test]
    fn extreme_times_do_not_overflow() {
        let bar = |from, until| Bar { from, until, label: String::new() };
        bars(&[bar(i64::MIN, i64::MAX)], crate::time::show, 120);
        bars(&[bar(i64::MIN + 1, i64::MAX - 1)], crate::time::show, 120);
        assert_eq!(gauge(&[(1, '#'), (1, '+')], 4, 8), "##++····");
        assert_eq!(gauge(&[(9, '#')], 4, 4), "####");
    }
}
