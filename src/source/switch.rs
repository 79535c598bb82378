//! A source for tests that can be switched off.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;

use super::{Body, Knowledge, MemorySource, PathSummary, Source, SourceError, SourceHealth};
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{ObjectInfo, Query};

/// A source that can be switched off or silenced, and can be limited to answers for single times.
#[derive(Debug, Default)]
pub(super) struct Switch {
    pub(super) memory: MemorySource,
    pub(super) off: AtomicBool,
    pub(super) silent: AtomicBool,
    pub(super) by_time: AtomicBool,
    pub(super) fetched: AtomicU64,
}

impl Switch {
    async fn check(&self) -> Result<(), SourceError> {
        if self.silent.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        match self.off.load(Ordering::SeqCst) {
            false => Ok(()),
            true => Err(SourceError::Down {
                url: "switch:".into(),
                what: "anything".into(),
                reason: "switched off".into(),
            }),
        }
    }
}

#[async_trait]
impl Source for Switch {
    fn url(&self) -> &str {
        "switch:"
    }
    fn refresh(&self) -> Duration {
        Duration::from_secs(1)
    }
    async fn look_up(
        &self,
        query: &Query,
        at: Timestamp,
        held: Option<&Arc<ObjectInfo>>,
    ) -> Result<Knowledge, SourceError> {
        self.check().await?;
        let mut knowledge = self.memory.look_up(query, at, held).await?;
        if self.by_time.load(Ordering::SeqCst) {
            let next = Timestamp::from_millis(at.as_millis() + 1);
            knowledge.span = ValidityInterval::new(at, next).unwrap();
            knowledge.versions.retain(|version| version.validity.contains(at));
        }
        Ok(knowledge)
    }
    async fn fetch(&self, version: &ObjectInfo, body: &mut dyn Body) -> Result<(), SourceError> {
        self.check().await?;
        self.fetched.fetch_add(1, Ordering::SeqCst);
        self.memory.fetch(version, body).await
    }
    fn health(&self) -> Vec<SourceHealth> {
        self.memory.health()
    }
    async fn paths(&self, prefix: &str) -> Result<Vec<PathSummary>, SourceError> {
        self.check().await?;
        self.memory.paths(prefix).await
    }
}
