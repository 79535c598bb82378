//! The versions of one path in the order of a file-backed server: by `from` as text, then by id.
//!
//! A source gives pages in order of time. Times with equally many digits have the same order as
//! text, so the pages of each number of digits are a lane, and the lanes are merged:
//!
//! ```text
//!  lane 12 digits:  999999999000 ─┐
//!  lane 13 digits: 1730000000000 ─┴─▶ 1730000000000, 999999999000
//! ```
//!
//! Versions before 1970 come first, in order of time.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::cache::{Cache, CacheError};
use crate::interval::Timestamp;
use crate::object::{ObjectId, ObjectInfo, Query};
use crate::source::PageKey;

/// Maximum versions of a path that are read at once; those of longer paths come in lanes.
pub(super) const PAGE: usize = 1024;
/// Versions per page of a lane.
const LANE_PAGE: usize = 256;
/// Digits of the greatest time.
const MAX_DIGITS: u32 = 19;
const LAST_ID: ObjectId = ObjectId::from_bytes([0xff; 16]);

/// The versions whose `from` has one number of digits.
#[derive(Debug)]
struct DigitLane {
    /// The page after it is read next.
    after: Option<PageKey>,
    /// Where the lane ends; `None`: with the last version.
    end: Option<Timestamp>,
    read: VecDeque<Arc<ObjectInfo>>,
    is_over: bool,
}

impl DigitLane {
    /// The lanes in the order of their first versions as text.
    fn all() -> VecDeque<Self> {
        let lane = |after, end| Self { after, end, read: VecDeque::new(), is_over: false };
        let at = Timestamp::from_millis;
        let before_1970 = lane(None, Some(at(0)));
        let digits = (1..=MAX_DIGITS).map(|digits| {
            let start = if digits == 1 { 0 } else { 10_i64.pow(digits - 1) };
            lane(Some((at(start - 1), LAST_ID)), 10_i64.checked_pow(digits).map(at))
        });
        std::iter::once(before_1970).chain(digits).collect()
    }

    async fn fill(&mut self, cache: &Cache, query: &Query) -> Result<(), CacheError> {
        while self.read.is_empty() && !self.is_over {
            // Most lanes are empty.
            let is_first = self.after.is_none_or(|(_, id)| id == LAST_ID);
            let limit = if is_first { 1 } else { LANE_PAGE };
            let page = cache.version_page(query, self.after, limit).await?;
            self.is_over = !page.more;
            self.read.extend(page.versions);
            self.after = self.read.back().map(|last| (last.validity.from(), last.id));
            let is_outside = |version: &Arc<ObjectInfo>| {
                self.end.is_some_and(|end| version.validity.from() >= end)
            };
            if self.read.back().is_some_and(is_outside) {
                self.read.retain(|version| !is_outside(version));
                self.is_over = true;
            }
        }
        Ok(())
    }

    fn first(&self) -> Option<(String, ObjectId)> {
        self.read.front().map(|version| key(version))
    }
}

fn key(version: &ObjectInfo) -> (String, ObjectId) {
    (version.validity.from().to_string(), version.id)
}

/// Reads the versions of a path in order.
#[derive(Debug)]
pub(super) struct OrderedVersions {
    cache: Cache,
    query: Query,
    /// Whether a short listing is kept, for times without an answer of the source.
    is_kept: bool,
    state: Reading,
}

#[derive(Debug)]
enum Reading {
    Begin,
    Lanes(VecDeque<DigitLane>),
    End,
}

/// A piece of the versions of a path.
#[derive(Debug)]
pub(super) enum OrderedPiece {
    Versions(Vec<Arc<ObjectInfo>>),
    /// The path has more than [`PAGE`] versions. They follow.
    Many,
    /// The source cannot list the path.
    NotListed,
}

impl OrderedVersions {
    pub(super) fn new(cache: Cache, query: Query, is_kept: bool) -> Self {
        Self { cache, query, is_kept, state: Reading::Begin }
    }

    /// The next piece of at most [`PAGE`] versions.
    ///
    /// # Errors
    /// [`CacheError`].
    pub(super) async fn next(&mut self) -> Result<Option<OrderedPiece>, CacheError> {
        match &mut self.state {
            Reading::Begin => {
                let asked = self.cache.now();
                let mut page = self.cache.version_page(&self.query, None, PAGE).await?;
                if !page.whole {
                    self.state = Reading::End;
                    return Ok(Some(OrderedPiece::NotListed));
                }
                if page.more {
                    self.state = Reading::Lanes(DigitLane::all());
                    return Ok(Some(OrderedPiece::Many));
                }
                self.state = Reading::End;
                if self.is_kept && self.query == Query::all(self.query.path.clone()) {
                    self.cache.keep_listing(&self.query.path, &page.versions, asked);
                }
                page.versions.sort_by_cached_key(|version| key(version));
                Ok(Some(OrderedPiece::Versions(page.versions)))
            }
            Reading::Lanes(lanes) => {
                let piece = next_of(lanes, &self.cache, &self.query).await?;
                Ok((!piece.is_empty()).then_some(OrderedPiece::Versions(piece)))
            }
            Reading::End => Ok(None),
        }
    }
}

/// The next versions of all lanes.
async fn next_of(
    lanes: &mut VecDeque<DigitLane>,
    cache: &Cache,
    query: &Query,
) -> Result<Vec<Arc<ObjectInfo>>, CacheError> {
    let mut piece = Vec::with_capacity(PAGE);
    while piece.len() < PAGE {
        for lane in lanes.iter_mut() {
            lane.fill(cache, query).await?;
        }
        lanes.retain(|lane| !lane.read.is_empty());
        let Some(first) = (0..lanes.len()).min_by_key(|place| lanes[*place].first()) else { break };
        let others = (0..lanes.len()).filter(|place| *place != first);
        let border = others.filter_map(|place| lanes[place].first()).min();
        let lane = &mut lanes[first];
        while piece.len() < PAGE
            && let Some(version) = lane.read.front()
            && border.as_ref().is_none_or(|border| key(version) < *border)
        {
            piece.extend(lane.read.pop_front());
        }
    }
    Ok(piece)
}
