//! Hints after NOT_FOUND: known paths similar to the requested one, the nearest intervals, the unit
//! that was probably meant.

use std::time::Duration;

use arrow_array::cast::AsArray as _;
use arrow_array::types::Int64Type;
use iovcache::Coded as _;
use iovcache::client::{Client, ClientError, TableRequest};
use iovcache::error::ErrorKind;

use crate::failure::Failure;
use crate::time;

/// Time limit for hints.
const LIMIT: Duration = Duration::from_secs(3);
/// Largest number of requested paths that get hints.
const MAX_PATHS: usize = 5;
/// Largest number of similar paths that a hint names.
const MAX_SIMILAR: usize = 3;
/// Smallest Jaro-Winkler similarity (0 to 1) of a path that a hint names.
const MIN_SIMILARITY: f64 = 0.8;

/// The failure of a request for `paths` at `times` (ms). NOT_FOUND gets hints.
pub(crate) async fn explain(
    client: &Client,
    error: ClientError,
    paths: &[&str],
    times: &[i64],
) -> Failure {
    let was_not_found = error.kind() == ErrorKind::NotFound;
    let failure = Failure::from(error);
    if !was_not_found {
        return failure;
    }
    let hints = tokio::time::timeout(LIMIT, hints(client, paths, times)).await;
    failure.with_more(hints.unwrap_or_default())
}

/// The hints, one per line.
pub(crate) async fn hints(client: &Client, paths: &[&str], times: &[i64]) -> Vec<String> {
    let mut lines = Vec::new();
    let known = client.paths("").await.unwrap_or_default();
    let known: Vec<&str> = known.iter().map(|entry| entry.path.as_str()).collect();
    for path in paths.iter().take(MAX_PATHS) {
        if !known.contains(path) {
            lines.push(similar(path, &known));
            continue;
        }
        let spans = spans(client, path).await.unwrap_or_default();
        let missing =
            times.iter().find(|at| !spans.iter().any(|(from, until)| (from..until).contains(at)));
        if let Some(at) = missing {
            lines.push(nearest(path, *at, &spans));
        }
    }
    lines.extend(times.iter().find_map(|at| time::other_unit(*at)));
    lines
}

fn similar(path: &str, known: &[&str]) -> String {
    let lower = path.to_lowercase();
    let mut like: Vec<(f64, &str)> = known
        .iter()
        .map(|other| (strsim::jaro_winkler(&lower, &other.to_lowercase()), *other))
        .filter(|(similarity, _)| *similarity >= MIN_SIMILARITY)
        .collect();
    like.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    let like: Vec<&str> = like.iter().take(MAX_SIMILAR).map(|(_, other)| *other).collect();
    match &like[..] {
        [] => format!("the service knows no path {path}; `iovcache ls` lists those that it knows"),
        like => format!("the service knows no path {path}; did you mean {}?", like.join(" or ")),
    }
}

/// The effective spans of a path in ascending order: begin and end in ms.
async fn spans(client: &Client, path: &str) -> Result<Vec<(i64, i64)>, ClientError> {
    let request = TableRequest::new().column("object", path).intervals(i64::MIN, i64::MAX);
    let mut spans = Vec::new();
    for batch in client.batches(&request).await? {
        let column = |name: &str| {
            batch.column_by_name(name).and_then(|column| column.as_primitive_opt::<Int64Type>())
        };
        if let (Some(from), Some(until)) = (column("from"), column("until")) {
            spans.extend(from.values().iter().copied().zip(until.values().iter().copied()));
        }
    }
    Ok(spans)
}

fn nearest(path: &str, at: i64, spans: &[(i64, i64)]) -> String {
    let show = |span: &(i64, i64)| format!("[{}, {})", time::show(span.0), time::show(span.1));
    let before = spans.iter().filter(|(_, until)| *until <= at).max_by_key(|(_, until)| *until);
    let after = spans.iter().filter(|(from, _)| *from > at).min_by_key(|(from, _)| *from);
    let at = time::show(at);
    match (before, after) {
        (Some(before), Some(after)) => format!(
            "{path} has no version at {at}; the nearest intervals are {} and {}",
            show(before),
            show(after)
        ),
        (Some(before), None) => {
            format!("{path} has no version at {at}; its last interval is {}", show(before))
        }
        (None, Some(after)) => {
            format!("{path} has no version at {at}; its first interval is {}", show(after))
        }
        (None, None) => format!("{path} has no version at {at}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn similar_paths_are_named_and_others_are_not() {
        let known = ["TPC/Calib/VDrift", "TPC/Calib/VDriftTgl", "ITS/Noise"];
        let told = similar("TPC/Calib/VDrfit", &known);
        assert!(told.contains("did you mean TPC/Calib/VDrift or TPC/Calib/VDriftTgl?"), "{told}");
        assert!(similar("tpc/calib/vdrift", &known).contains("did you mean TPC/Calib/VDrift"));
        assert!(!similar("MCH/HV", &known).contains("did you mean"));
    }

    #[test]
    fn the_intervals_before_and_after_a_time_are_named() {
        let spans = [(0, 10_000), (20_000, i64::MAX)];
        let told = nearest("A/B", 15_000, &spans);
        assert!(told.contains("at 1970-01-01T00:00:15Z"), "{told}");
        assert!(told.contains("[1970-01-01T00:00:00Z, 1970-01-01T00:00:10Z) and"), "{told}");
        assert!(told.ends_with("[1970-01-01T00:00:20Z, inf)"), "{told}");
        assert!(nearest("A/B", -5, &spans).contains("its first interval is"));
    }
}
