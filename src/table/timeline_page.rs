//! The action `timeline`: the effective spans of one path, in pages. It loads no object.

use serde::{Deserialize, Serialize};

use super::request::RequestError;
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{CreationLimits, ObjectId, ObjectPath};

/// Maximum number of spans of a page.
pub const TIMELINE_PAGE_SPANS: usize = 10_000;

/// Body of `timeline`: which page to list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimelineRequest {
    /// The object path.
    pub path: ObjectPath,
    /// Begin of the listed time (ms); by default unbounded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<i64>,
    /// End of the listed time (ms), exclusive; by default unbounded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<i64>,
    /// Only versions created at or after this time (ms).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// Only versions created at or before this time (ms).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Timestamp>,
    /// Maximum number of spans; at most, and by default, [`TIMELINE_PAGE_SPANS`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// List the last spans of the time instead of the first.
    #[serde(default)]
    pub latest: bool,
}

impl TimelineRequest {
    /// The first page of all spans of `path`.
    pub const fn new(path: ObjectPath) -> Self {
        let (from, until, not_before, not_after, limit) = (None, None, None, None, None);
        Self { path, from, until, not_before, not_after, limit, latest: false }
    }

    /// The listed time.
    ///
    /// # Errors
    /// [`RequestError::Field`] if it is empty.
    pub fn range(&self) -> Result<ValidityInterval, RequestError> {
        let (from, until) = (self.from.unwrap_or(i64::MIN), self.until.unwrap_or(i64::MAX));
        let [from, until] = [from, until].map(Timestamp::from_millis);
        ValidityInterval::new(from, until).map_err(|_| {
            let reason = format!("it must be greater than `from`, {from}");
            RequestError::Field { field: "until", reason }
        })
    }

    /// The limits on the creation time.
    pub const fn limits(&self) -> CreationLimits {
        CreationLimits { not_before: self.not_before, not_after: self.not_after }
    }

    /// Maximum number of spans of the page.
    pub fn page_spans(&self) -> usize {
        self.limit.map_or(TIMELINE_PAGE_SPANS, |limit| limit as usize).clamp(1, TIMELINE_PAGE_SPANS)
    }

    /// The request for the page after `page`, if there is one.
    #[must_use]
    pub fn after(&self, page: &TimelinePage) -> Option<Self> {
        let next = page.next?;
        Some(match self.latest {
            false => Self { from: Some(next), ..self.clone() },
            true => Self { until: Some(next), ..self.clone() },
        })
    }
}

/// Time in which one version is effective.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineSpan {
    /// Begin (ms).
    pub from: i64,
    /// End (ms), exclusive.
    pub until: i64,
    /// The version.
    pub object_id: ObjectId,
}

/// Answer of `timeline`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelinePage {
    /// The spans in ascending order, cut at the listed time. Between them no version is valid.
    pub spans: Vec<TimelineSpan>,
    /// Begin of the next page, or its end for `latest`; `None`: this is the last page. A span at
    /// the border of two pages is in both, cut at the border.
    pub next: Option<i64>,
    /// Whether the source could not confirm an earlier answer in time.
    #[serde(default)]
    pub stale: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_request_names_an_empty_time_and_bounds_its_length() {
        let path = ObjectPath::new("A/B").unwrap();
        let all = TimelineRequest::new(path);
        assert_eq!(all.range().unwrap(), ValidityInterval::ALL);
        assert_eq!(all.page_spans(), TIMELINE_PAGE_SPANS);
        let long = TimelineRequest { limit: Some(u32::MAX), ..all.clone() };
        assert_eq!(long.page_spans(), TIMELINE_PAGE_SPANS);
        let none = TimelineRequest { limit: Some(0), ..all.clone() };
        assert_eq!(none.page_spans(), 1);
        let empty = TimelineRequest { from: Some(5), until: Some(5), ..all };
        let error = empty.range().unwrap_err().to_string();
        assert!(error.contains("until") && error.contains('5'), "{error}");
    }

    #[test]
    fn the_next_page_begins_where_the_page_ends_in_either_order() {
        let request = TimelineRequest::new(ObjectPath::new("A/B").unwrap());
        let page = TimelinePage { next: Some(7), ..TimelinePage::default() };
        let next = request.after(&page).unwrap();
        assert_eq!((next.from, next.until), (Some(7), None));
        let latest = TimelineRequest { latest: true, ..request.clone() };
        let next = latest.after(&page).unwrap();
        assert_eq!((next.from, next.until), (None, Some(7)));
        assert!(request.after(&TimelinePage::default()).is_none());
    }
}
