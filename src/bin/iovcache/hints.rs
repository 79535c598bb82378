//! Hints after NOT_FOUND: known paths similar to the requested one, the nearest intervals, the unit
//! that was probably meant.

use std::time::Duration;

use iovcache::client::{Client, ClientError};
use iovcache::error::ErrorKind;
use iovcache::table::TimelineRequest;
use iovcache::{Coded as _, ObjectPath};

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

/// The failure of a request for `paths` at `times` (ms). NOT_FOUND and invalid paths get hints.
pub(crate) async fn explain(
    client: &Client,
    error: ClientError,
    paths: &[impl AsRef<str>],
    times: &[i64],
) -> Failure {
    let kind = error.kind();
    let failure = Failure::from(error);
    match kind {
        ErrorKind::NotFound => failure.with_more(hints(client, paths, times).await),
        ErrorKind::InvalidArgument => {
            failure.with_more(paths.iter().filter_map(|path| corrected(path.as_ref())).collect())
        }
        _ => failure,
    }
}

/// The hints for `paths` at `times` (ms), one per line. None after [`LIMIT`].
pub(crate) async fn hints(
    client: &Client,
    paths: &[impl AsRef<str>],
    times: &[i64],
) -> Vec<String> {
    let hints = tokio::time::timeout(LIMIT, all_hints(client, paths, times)).await;
    hints.unwrap_or_default()
}

async fn all_hints(client: &Client, paths: &[impl AsRef<str>], times: &[i64]) -> Vec<String> {
    let mut lines = Vec::new();
    let Ok(known) = client.paths("").await else { return lines };
    let known: Vec<&str> = known.iter().map(|entry| entry.path.as_str()).collect();
    for path in paths.iter().take(MAX_PATHS).map(AsRef::as_ref) {
        if !known.contains(&path) {
            lines.push(similar(path, &known));
            continue;
        }
        for at in times {
            match around(client, path, *at).await {
                Ok(Around::Version) => {}
                Ok(Around::Nothing { before, after }) => {
                    lines.push(nearest(path, *at, before, after));
                    break;
                }
                Err(_) => break,
            }
        }
    }
    lines
}

/// The hint at an unknown path or prefix of paths.
pub(crate) fn similar(path: &str, known: &[&str]) -> String {
    let unknown = format!("the service knows no path {path}");
    match nearest_paths(path, known) {
        Some(nearest) => format!("{unknown}; {nearest}"),
        None if known.is_empty() => format!("{unknown}: its sources list no path"),
        None => format!("{unknown}; `iovcache ls` lists those that it knows"),
    }
}

/// The `known` paths that are probably meant by an unknown one.
pub(crate) fn nearest_paths(path: &str, known: &[&str]) -> Option<String> {
    let named = |paths: &[&str], word: &str| {
        let more = match paths.len().saturating_sub(MAX_SIMILAR) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!("{}{more}", paths[..paths.len().min(MAX_SIMILAR)].join(word))
    };
    let lower = path.trim_matches('/').to_lowercase();
    let below = |other: &&str| {
        other.to_lowercase().strip_prefix(&lower).is_some_and(|rest| rest.starts_with('/'))
    };
    let inside: Vec<&str> = known.iter().copied().filter(below).collect();
    if !lower.is_empty() && !inside.is_empty() {
        return Some(format!("it is a folder with {}", named(&inside, ", ")));
    }
    // The last elements of a path alone.
    let ends = |other: &&str| {
        other.to_lowercase().strip_suffix(&lower).is_some_and(|rest| rest.ends_with('/'))
    };
    let ending: Vec<&str> = known.iter().copied().filter(ends).collect();
    if !lower.is_empty() && !ending.is_empty() {
        return Some(format!("did you mean {}?", named(&ending, " or ")));
    }
    let mut like: Vec<(f64, &str)> = known
        .iter()
        .map(|other| (strsim::jaro_winkler(&lower, &other.to_lowercase()), *other))
        .filter(|(similarity, _)| *similarity >= MIN_SIMILARITY)
        .collect();
    like.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    let like: Vec<&str> = like.iter().take(MAX_SIMILAR).map(|(_, other)| *other).collect();
    (!like.is_empty()).then(|| format!("did you mean {}?", named(&like, " or ")))
}

/// The hint at a path with empty elements, such as one with a slash at its begin or end.
pub(crate) fn corrected(path: &str) -> Option<String> {
    let elements: Vec<&str> = path.split('/').filter(|element| !element.is_empty()).collect();
    let meant = elements.join("/");
    let is_other = meant != path && ObjectPath::new(&meant).is_ok();
    is_other.then(|| format!("did you mean {meant}?"))
}

/// Begin and end of an effective span (ms).
pub(crate) type Times = (i64, i64);

/// The version of a path at a time, or its neighbours.
#[derive(Debug)]
enum Around {
    Version,
    /// No version, but these are the nearest ones.
    Nothing {
        before: Option<Times>,
        after: Option<Times>,
    },
}

async fn around(client: &Client, path: &str, at: i64) -> Result<Around, ClientError> {
    let Ok(path) = ObjectPath::new(path) else {
        return Ok(Around::Nothing { before: None, after: None });
    };
    let one = TimelineRequest { limit: Some(1), ..TimelineRequest::new(path) };
    // Nothing is valid at the latest time, or later.
    let after = match at {
        i64::MAX => None,
        at => first_span(client, TimelineRequest { from: Some(at), ..one.clone() }).await?,
    };
    if after.is_some_and(|(from, _)| from == at) {
        return Ok(Around::Version);
    }
    // Nothing is before the earliest time.
    let before = match at {
        i64::MIN => None,
        at => {
            let before = TimelineRequest { until: Some(at), latest: true, ..one };
            first_span(client, before).await?
        }
    };
    Ok(Around::Nothing { before, after })
}

/// The first span of the pages that `request` begins.
pub(crate) async fn first_span(
    client: &Client,
    request: TimelineRequest,
) -> Result<Option<Times>, ClientError> {
    let mut next = Some(request);
    while let Some(request) = next {
        let page = client.timeline(&request).await?;
        let found = if request.latest { page.spans.last() } else { page.spans.first() };
        if let Some(span) = found {
            return Ok(Some((span.from, span.until)));
        }
        next = request.after(&page);
    }
    Ok(None)
}

/// An effective span as text.
pub(crate) fn show(span: Times) -> String {
    format!("[{}, {})", time::show(span.0), time::show(span.1))
}

fn nearest(path: &str, at: i64, before: Option<Times>, after: Option<Times>) -> String {
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
        assert!(similar("vdrift", &known).ends_with("did you mean TPC/Calib/VDrift?"));
        assert!(
            similar("TPC/calib/", &known)
                .ends_with("it is a folder with TPC/Calib/VDrift, TPC/Calib/VDriftTgl")
        );
        assert!(similar("A", &["A/B", "A/C", "A/D", "A/E"]).ends_with("A/B, A/C, A/D and 1 more"));
        assert!(similar("A", &[]).ends_with("its sources list no path"));
        assert_eq!(corrected("/ITS//Noise/").as_deref(), Some("did you mean ITS/Noise?"));
        assert!(corrected("ITS/Noise").is_none() && corrected("/ITS/a b").is_none());
    }

    #[test]
    fn the_intervals_before_and_after_a_time_are_named() {
        let (first, second) = ((0, 10_000), (20_000, i64::MAX));
        let told = nearest("A/B", 15_000, Some(first), Some(second));
        assert!(told.contains("at 1970-01-01T00:00:15Z"), "{told}");
        assert!(told.contains("[1970-01-01T00:00:00Z, 1970-01-01T00:00:10Z) and"), "{told}");
        assert!(told.ends_with("[1970-01-01T00:00:20Z, inf)"), "{told}");
        assert!(nearest("A/B", -5, None, Some(first)).contains("its first interval is"));
        assert!(nearest("A/B", 99, Some(first), None).contains("its last interval is"));
    }
}
