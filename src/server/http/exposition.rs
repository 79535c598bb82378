//! The two text formats of metrics, and the choice between them for a scraper.
//!
//! Metrics are first written as OpenMetrics 1.0. In Prometheus' older text format (0.0.4) the names
//! of counters in `# HELP` and `# TYPE` end in `_total`, and there is no `# UNIT` and no `# EOF`.

use std::collections::HashSet;

/// A text format of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MetricsFormat {
    /// Version 0.0.4 of Prometheus' text format.
    Text,
    OpenMetrics,
}

impl MetricsFormat {
    /// The format that fits an `Accept` header best. Without a header, and for a wildcard, the
    /// older format, which every scraper reads. (Prometheus prefers OpenMetrics by its weights.)
    pub(super) fn accepted(accept: Option<&str>) -> Self {
        let (mut text, mut open_metrics) = (0.0, 0.0);
        for range in accept.unwrap_or("*/*").split(',') {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
            let weight = parts.filter_map(|part| part.strip_prefix("q=")).next_back();
            let weight: f64 = weight.and_then(|weight| weight.parse().ok()).unwrap_or(1.0);
            match kind.as_str() {
                "application/openmetrics-text" => open_metrics = weight.max(open_metrics),
                "text/plain" | "text/*" | "*/*" => text = weight.max(text),
                _ => {}
            }
        }
        if open_metrics > 0.0 && open_metrics >= text { Self::OpenMetrics } else { Self::Text }
    }

    /// Its media type.
    pub(super) const fn media_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// Converts OpenMetrics text to this format.
    pub(super) fn of_open_metrics(self, text: String) -> String {
        match self {
            Self::OpenMetrics => text,
            Self::Text => to_text(&text),
        }
    }
}

fn to_text(open_metrics: &str) -> String {
    let counters: HashSet<&str> = open_metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .collect();
    let mut text = String::with_capacity(open_metrics.len());
    for line in open_metrics.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("UNIT" | "EOF"), ..) => continue,
            (Some("#"), Some(what @ ("HELP" | "TYPE")), Some(name), Some(rest)) => {
                let total = if counters.contains(name) { "_total" } else { "" };
                // A quote in a help text is escaped only in OpenMetrics.
                let rest = rest.replace("\\\"", "\"");
                text += &format!("# {what} {name}{total} {rest}\n");
            }
            _ => {
                text += line;
                text.push('\n');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scraper_gets_the_format_that_it_asks_for() {
        for (accept, format) in [
            (None, MetricsFormat::Text),
            (Some("*/*"), MetricsFormat::Text),
            (Some("text/plain"), MetricsFormat::Text),
            (Some("text/html,*/*;q=0.8"), MetricsFormat::Text),
            (Some("text/plain;version=0.0.4;q=1,*/*;q=0.1"), MetricsFormat::Text),
            (Some("application/openmetrics-text"), MetricsFormat::OpenMetrics),
            (
                Some(
                    "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3",
                ),
                MetricsFormat::OpenMetrics,
            ),
            (Some("application/openmetrics-text; q=0, text/plain"), MetricsFormat::Text),
            (Some("application/openmetrics-text;q=0.2,text/plain;q=0.7"), MetricsFormat::Text),
        ] {
            assert_eq!(MetricsFormat::accepted(accept), format, "{accept:?}");
        }
    }

    #[test]
    fn the_older_format_names_counters_by_their_samples() {
        let open = "# HELP hits A \\\"hit\\\".\n# TYPE hits counter\nhits_total 3\n# HELP used_bytes B.\n\
                    # TYPE used_bytes gauge\n# UNIT used_bytes bytes\nused_bytes 1\n# EOF\n";
        let text = "# HELP hits_total A \"hit\".\n# TYPE hits_total counter\nhits_total 3\n\
                    # HELP used_bytes B.\n# TYPE used_bytes gauge\nused_bytes 1\n";
        assert_eq!(MetricsFormat::Text.of_open_metrics(open.to_owned()), text);
        assert_eq!(MetricsFormat::OpenMetrics.of_open_metrics(open.to_owned()), open);
    }
}
