//! A source whose objects are loaded only while its gate is open.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use iovcache::object::Query;
use iovcache::source::{
    Body, Knowledge, MemorySource, PathSummary, Source, SourceError, SourceHealth,
};
use iovcache::{ObjectInfo, Timestamp};
use tokio::sync::watch;

use super::steady::Steady;

/// Opens and closes a gate: `send_replace(true)` opens it.
pub type Gate = watch::Sender<bool>;

#[derive(Debug)]
pub struct Gated {
    objects: Steady,
    is_open: watch::Receiver<bool>,
}

impl Gated {
    /// The objects behind a gate, which is open if `is_open`.
    pub fn new(objects: MemorySource, is_open: bool) -> (Self, Gate) {
        let (gate, is_open) = watch::channel(is_open);
        (Self { objects: Steady(objects), is_open }, gate)
    }
}

#[async_trait]
impl Source for Gated {
    fn url(&self) -> &str {
        self.objects.url()
    }

    fn refresh(&self) -> Duration {
        self.objects.refresh()
    }

    async fn look_up(
        &self,
        query: &Query,
        at: Timestamp,
        held: Option<&Arc<ObjectInfo>>,
    ) -> Result<Knowledge, SourceError> {
        self.objects.look_up(query, at, held).await
    }

    async fn fetch(&self, version: &ObjectInfo, body: &mut dyn Body) -> Result<(), SourceError> {
        let mut is_open = self.is_open.clone();
        let _ = is_open.wait_for(|is_open| *is_open).await;
        self.objects.fetch(version, body).await
    }

    fn health(&self) -> Vec<SourceHealth> {
        self.objects.health()
    }

    async fn paths(&self, prefix: &str) -> Result<Vec<PathSummary>, SourceError> {
        self.objects.paths(prefix).await
    }
}
