//! The stream of `/events`: one snapshot a second, drawn once for all listeners.
//!
//! ```text
//!  listener ─┐              younger than a second: the last snapshot again
//!  listener ─┼─▶ Live::frame ─┤
//!  listener ─┘              older: one of them draws, the others wait for it
//! ```
//!
//! Without listeners nothing is drawn. A slow reader gets fewer snapshots, not older ones: each is
//! made when there is room for it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::Stream;
use hyper::body::{Bytes, Frame};
use serde::Serialize;
use tokio::sync::{Mutex, Semaphore};

use crate::cache::{Cache, Snapshot};
use crate::server::reloads::Reloads;

/// Maximum concurrent listeners.
const MAX_LISTENERS: usize = 16;
/// Interval between two snapshots.
const PERIOD: Duration = Duration::from_secs(1);
/// Snapshots take at most one part in this many of one core's time, for any number of objects.
const MOST_WORK: u32 = 20;
/// Samples of the counters kept for new listeners: five minutes.
const HISTORY: usize = 300;
/// Longest duration of a stream. Browsers reconnect by themselves.
const MAX_AGE: Duration = Duration::from_secs(600);

/// The counters whose rates are drawn, at one time.
#[derive(Debug, Clone, Serialize)]
struct Sample {
    /// In milliseconds from the start of the service.
    at: u64,
    tables: u64,
    hits: u64,
    loads: u64,
    loaded_bytes: u64,
    look_ups: u64,
    evictions: u64,
    ccdb_requests: u64,
    errors: u64,
}

impl Sample {
    fn of(snapshot: &Snapshot) -> Self {
        let count = |name: &str| snapshot.counters.get(name).copied().unwrap_or(0);
        Self {
            at: snapshot.uptime_ms,
            tables: count("tables"),
            hits: count("hits"),
            loads: count("loads"),
            loaded_bytes: count("loaded_bytes"),
            look_ups: count("look_ups"),
            evictions: count("evictions"),
            ccdb_requests: count("ccdb_requests"),
            errors: count("errors"),
        }
    }
}

/// One snapshot as it is sent.
#[derive(Serialize)]
struct Event<'a> {
    sample: &'a Sample,
    snapshot: &'a Snapshot,
    /// Lines about the configuration, as in `/readyz`.
    notes: Vec<String>,
    /// Named segments that another program removed or overwrote.
    lost: Vec<String>,
}

#[derive(Debug, Default)]
struct LatestEvent {
    frame: Bytes,
    at: Option<Instant>,
    /// The time that drawing took.
    cost: Duration,
    history: VecDeque<Sample>,
}

/// The snapshots of a cache, shared by all listeners.
#[derive(Debug)]
pub(in crate::server) struct Live {
    cache: Cache,
    reloads: Reloads,
    places: Arc<Semaphore>,
    drawn: Mutex<LatestEvent>,
}

impl Live {
    pub(in crate::server) fn new(cache: Cache, reloads: Reloads) -> Arc<Self> {
        let places = Arc::new(Semaphore::new(MAX_LISTENERS));
        Arc::new(Self { cache, reloads, places, drawn: Mutex::default() })
    }

    /// The stream of one listener; `None` if there are too many listeners.
    pub(in crate::server) fn listen(
        self: Arc<Self>,
    ) -> Option<impl Stream<Item = Result<Frame<Bytes>, Infallible>> + Send + 'static> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        Some(async_stream::stream! {
            let _place = place;
            let began = Instant::now();
            yield Ok(Frame::data(self.history().await));
            while began.elapsed() < MAX_AGE {
                yield Ok(Frame::data(self.frame().await));
                tokio::time::sleep(PERIOD).await;
            }
        })
    }

    async fn history(&self) -> Bytes {
        let history = &self.drawn.lock().await.history;
        let samples = serde_json::to_string(history).unwrap_or_default();
        // If the connection breaks, the browser tries again after two seconds.
        format!("retry: 2000\nevent: history\ndata: {samples}\n\n").into()
    }

    /// The snapshot of this second.
    async fn frame(&self) -> Bytes {
        let mut drawn = self.drawn.lock().await;
        let period = PERIOD.mul_f64(0.9).max(drawn.cost * MOST_WORK);
        if drawn.at.is_some_and(|at| at.elapsed() < period) {
            return drawn.frame.clone();
        }
        let began = Instant::now();
        let (cache, notes) = (self.cache.clone(), self.reloads.notes());
        let draw = move || {
            let snapshot = cache.snapshot();
            let sample = Sample::of(&snapshot);
            let lost = cache.lost_segments().iter().map(ToString::to_string).collect();
            let event = Event { sample: &sample, snapshot: &snapshot, notes, lost };
            let text = serde_json::to_string(&event).unwrap_or_default();
            (sample, Bytes::from(format!("data: {text}\n\n")))
        };
        if let Ok((sample, frame)) = tokio::task::spawn_blocking(draw).await {
            drawn.history.push_back(sample);
            if drawn.history.len() > HISTORY {
                drawn.history.pop_front();
            }
            drawn.frame = frame;
        }
        (drawn.at, drawn.cost) = (Some(Instant::now()), began.elapsed());
        drawn.frame.clone()
    }
}
