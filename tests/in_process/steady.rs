//! Objects in memory that are queried as rarely as those of a repository. A [`MemorySource`] alone
//! is queried for every table.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use iovcache::object::Query;
use iovcache::source::{
    Body, Knowledge, MemorySource, PathSummary, Source, SourceError, SourceHealth,
};
use iovcache::{ObjectInfo, Timestamp};

#[derive(Debug)]
pub struct Steady(pub MemorySource);

#[async_trait]
impl Source for Steady {
    fn url(&self) -> &str {
        self.0.url()
    }

    fn refresh(&self) -> Duration {
        Duration::from_secs(3_600)
    }

    async fn look_up(
        &self,
        query: &Query,
        at: Timestamp,
        held: Option<&Arc<ObjectInfo>>,
    ) -> Result<Knowledge, SourceError> {
        self.0.look_up(query, at, held).await
    }

    async fn fetch(&self, version: &ObjectInfo, body: &mut dyn Body) -> Result<(), SourceError> {
        self.0.fetch(version, body).await
    }

    fn health(&self) -> Vec<SourceHealth> {
        self.0.health()
    }

    async fn paths(&self, prefix: &str) -> Result<Vec<PathSummary>, SourceError> {
        self.0.paths(prefix).await
    }
}
