//! The connections of the HTTP port: a new one always has room.
//!
//! A connection *progresses* when it is made, when it has sent a request, and with each part of an
//! answer that it took. If there are too many, the connection with the oldest progress is ended:
//! clients that send single bytes, or do not read, make room for active ones. The new connection
//! waits until the old one is closed, so that a crowd never has more descriptors than its share.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::sync::{Mutex, MutexGuard};

/// All connections of the port.
#[derive(Debug, Clone)]
pub(super) struct Visitors(Arc<VisitorsShared>);

#[derive(Debug)]
struct VisitorsShared {
    began: Instant,
    places: Arc<Semaphore>,
    present: Mutex<OpenConnections>,
}

#[derive(Debug, Default)]
struct OpenConnections {
    next: u64,
    connections: HashMap<u64, VisitorConnection>,
}

#[derive(Debug)]
struct VisitorConnection {
    progressed_micros: Arc<AtomicU64>,
    end: CancellationToken,
}

impl Visitors {
    pub(super) fn new(limit: usize) -> Self {
        let shared = VisitorsShared {
            began: Instant::now(),
            places: Arc::new(Semaphore::new(limit.max(1))),
            present: Mutex::default(),
        };
        Self(Arc::new(shared))
    }

    fn present(&self) -> MutexGuard<'_, OpenConnections> {
        self.0.present.lock()
    }

    fn micros(&self) -> u64 {
        u64::try_from(self.0.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Ends the connection with the oldest progress.
    fn end_the_slowest(&self) {
        let mut present = self.present();
        let last =
            |connection: &VisitorConnection| connection.progressed_micros.load(Ordering::Relaxed);
        let slowest = present.connections.iter().min_by_key(|(_, other)| last(other));
        let slowest = slowest.map(|(id, _)| *id);
        if let Some(ended) = slowest.and_then(|id| present.connections.remove(&id)) {
            ended.end.cancel();
        }
    }

    /// Registers a new connection. If there is no room, completes when an ended one is closed.
    pub(super) async fn enter(&self) -> Arc<Visitor> {
        let places = Arc::clone(&self.0.places);
        let place = match Arc::clone(&places).try_acquire_owned() {
            Ok(place) => Some(place),
            Err(_) => {
                self.end_the_slowest();
                // The semaphore is never closed.
                places.acquire_owned().await.ok()
            }
        };
        let progressed_micros = Arc::new(AtomicU64::new(self.micros()));
        let end = CancellationToken::new();
        let mut present = self.present();
        let id = present.next;
        present.next += 1;
        let connection = VisitorConnection {
            progressed_micros: Arc::clone(&progressed_micros),
            end: end.clone(),
        };
        present.connections.insert(id, connection);
        drop(present);
        Arc::new(Visitor { id, visitors: self.clone(), progressed_micros, end, _place: place })
    }
}

/// One connection. Its slot is freed on drop.
#[derive(Debug)]
pub(super) struct Visitor {
    id: u64,
    visitors: Visitors,
    progressed_micros: Arc<AtomicU64>,
    end: CancellationToken,
    _place: Option<OwnedSemaphorePermit>,
}

impl Visitor {
    pub(super) fn progressed(&self) {
        self.progressed_micros.store(self.visitors.micros(), Ordering::Relaxed);
    }

    /// Completes when the connection has to make room for another one.
    pub(super) async fn ended(&self) {
        self.end.cancelled().await;
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        self.visitors.present().connections.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn the_connection_that_progressed_the_longest_ago_makes_room() {
        let visitors = Visitors::new(3);
        let step = || std::thread::sleep(Duration::from_millis(2));
        let enter = async || {
            step();
            visitors.enter().await
        };
        let [first, second, third] = [enter().await, enter().await, enter().await];
        step();
        first.progressed();
        let mut fourth = std::pin::pin!(enter());
        // The one that was ended has its descriptor until its task has dropped it.
        assert!(futures::poll!(fourth.as_mut()).is_pending());
        assert!(second.end.is_cancelled());
        drop(second);
        let fourth = fourth.await;
        assert!([&first, &third, &fourth].iter().all(|visitor| !visitor.end.is_cancelled()));
        drop(third);
        let _fifth = enter().await;
        assert!(!first.end.is_cancelled() && !fourth.end.is_cancelled());
        assert_eq!(visitors.present().connections.len(), 3);
    }
}
