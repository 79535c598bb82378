//! Policies for single paths: behaviour where no version is valid, time limit of the source, and
//! lifetime of answers.
//!
//! The policy with the longest matching prefix applies alone: policies are not merged.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use md5::{Digest as _, Md5};

use super::{
    Body, Details, Knowledge, PageKey, PathParts, PathSummary, Scan, Source, SourceError,
    SourceHealth, VersionPage, VersionStream, page_key, write_all,
};
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{Md5Sum, ObjectId, ObjectInfo, ObjectPath, Query};

/// Metadata key that marks a default object.
const DEFAULT: &str = "iovcache.default";

/// Behaviour of a table where no version is valid. It overrides the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenMissing {
    /// The request fails.
    Required,
    /// The value is null.
    Optional,
}

/// Policy for a path and the paths below it.
#[derive(Debug, Clone, Default)]
pub struct PathPolicy {
    /// The path.
    pub prefix: String,
    /// Behaviour where no version is valid; `None`: as the request says.
    pub missing: Option<WhenMissing>,
    /// Bytes of the object served where no version is valid.
    pub default: Option<Arc<[u8]>>,
    /// Time limit of the source for a look-up, and for a body.
    pub timeout: Option<Duration>,
    /// Lifetime of an answer of the source.
    pub refresh: Option<Duration>,
}

impl PathPolicy {
    /// With the contents of `file` as the default object.
    ///
    /// # Errors
    /// If `file` cannot be read.
    pub fn with_default_file(self, file: &Path) -> std::io::Result<Self> {
        Ok(Self { default: Some(std::fs::read(file)?.into()), ..self })
    }
}

/// All policies, those with the longest prefix first.
///
/// ```
/// use iovcache::ObjectPath;
/// use iovcache::source::{PathPolicy, Policies, WhenMissing};
/// let policy = |prefix: &str, missing| PathPolicy {
///     prefix: prefix.to_owned(),
///     missing: Some(missing),
///     ..PathPolicy::default()
/// };
/// let policies: Policies =
///     [policy("TPC", WhenMissing::Required), policy("TPC/Calib", WhenMissing::Optional)]
///         .into_iter()
///         .collect();
/// let path = |text: &str| ObjectPath::new(text).unwrap();
/// assert_eq!(policies.missing(&path("TPC/Calib/VDrift")), Some(WhenMissing::Optional));
/// assert_eq!(policies.missing(&path("TPC/Config")), Some(WhenMissing::Required));
/// assert_eq!(policies.missing(&path("ITS/Noise")), None);
/// ```
#[derive(Debug, Clone, Default)]
pub struct Policies(Arc<[PathPolicy]>);

impl FromIterator<PathPolicy> for Policies {
    fn from_iter<I: IntoIterator<Item = PathPolicy>>(policies: I) -> Self {
        let mut policies: Vec<PathPolicy> = policies.into_iter().collect();
        policies.sort_by_key(|policy| std::cmp::Reverse(policy.prefix.len()));
        Self(policies.into())
    }
}

impl Policies {
    /// The policy that applies to `path`.
    pub fn of(&self, path: &ObjectPath) -> Option<&PathPolicy> {
        self.0.iter().find(|policy| path.starts_with(policy.prefix.trim_matches('/')))
    }

    /// Behaviour where no version of `path` is valid; `None`: as the request says.
    pub fn missing(&self, path: &ObjectPath) -> Option<WhenMissing> {
        self.of(path)?.missing
    }
}

/// A source under policies.
pub struct PolicySource {
    inner: Arc<dyn Source>,
    policies: Policies,
}

impl fmt::Debug for PolicySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PolicySource({:?})", self.inner)
    }
}

impl PolicySource {
    /// Applies `policies` to `inner`.
    pub fn new(inner: Arc<dyn Source>, policies: Policies) -> Self {
        Self { inner, policies }
    }

    async fn in_time<T>(
        &self,
        path: &ObjectPath,
        work: impl Future<Output = Result<T, SourceError>>,
    ) -> Result<T, SourceError> {
        let Some(limit) = self.policies.of(path).and_then(|policy| policy.timeout) else {
            return work.await;
        };
        match tokio::time::timeout(limit, work).await {
            Ok(done) => done,
            Err(_) => Err(SourceError::Down {
                url: self.inner.url().to_owned(),
                what: path.to_string(),
                reason: format!("no answer in {} ms, the limit of this path", limit.as_millis()),
            }),
        }
    }

    fn default_of(&self, path: &ObjectPath) -> Option<&Arc<[u8]>> {
        self.policies.of(path)?.default.as_ref()
    }
}

/// The version of a default object: valid at all times, and outranked by every other version.
fn default_version(path: &ObjectPath, bytes: &[u8]) -> ObjectInfo {
    let md5 = Md5Sum(Md5::digest(bytes).into());
    let (validity, created) = (ValidityInterval::ALL, Timestamp::MIN);
    ObjectInfo {
        path: path.clone(),
        id: ObjectId::derived(path, validity, created, md5),
        validity,
        created,
        size_bytes: Some(bytes.len() as u64),
        md5: Some(md5),
        metadata: [(DEFAULT, "true")].into(),
    }
}

#[async_trait]
impl Source for PolicySource {
    fn url(&self) -> &str {
        self.inner.url()
    }

    fn inner(&self) -> Option<&dyn Source> {
        Some(&*self.inner)
    }

    fn refresh(&self) -> Duration {
        self.inner.refresh()
    }

    fn refresh_of(&self, path: &ObjectPath) -> Duration {
        let own = self.policies.of(path).and_then(|policy| policy.refresh);
        own.unwrap_or_else(|| self.inner.refresh_of(path))
    }

    async fn look_up(
        &self,
        query: &Query,
        at: Timestamp,
        held: Option<&Arc<ObjectInfo>>,
    ) -> Result<Knowledge, SourceError> {
        // The source does not know the default object: it cannot tell whether that changed.
        let held = held.filter(|version| !version.metadata.contains_key(DEFAULT));
        // Answers that the source remembers may be older than the policy of this path allows.
        if self.refresh_of(&query.path) < self.inner.refresh_of(&query.path) {
            self.inner.forget(&query.path);
        }
        let asked = self.inner.look_up(query, at, held);
        let mut knowledge = self.in_time(&query.path, asked).await?;
        if let Some(bytes) = self.default_of(&query.path) {
            knowledge.versions.push(Arc::new(default_version(&query.path, bytes)));
        }
        Ok(knowledge)
    }

    async fn list(&self, query: &Query) -> Result<Option<Vec<Arc<ObjectInfo>>>, SourceError> {
        let listed = self.in_time(&query.path, self.inner.list(query)).await?;
        let default = self.default_of(&query.path);
        let default = default.map(|bytes| Arc::new(default_version(&query.path, bytes)));
        Ok(listed.map(|versions| versions.into_iter().chain(default).collect()))
    }

    async fn list_page(
        &self,
        query: &Query,
        after: Option<PageKey>,
        limit: usize,
    ) -> Result<VersionPage, SourceError> {
        let asked = self.inner.list_page(query, after, limit);
        let mut page = self.in_time(&query.path, asked).await?;
        let Some(bytes) = self.default_of(&query.path) else { return Ok(page) };
        let default = Arc::new(default_version(&query.path, bytes));
        let key = page_key(&default);
        // No other version begins earlier.
        let is_here = Some(key) > after && page.whole && query.matches(&default);
        if is_here {
            let place = page.versions.partition_point(|version| page_key(version) < key);
            page.versions.insert(place, default);
            page.more |= page.versions.len() > limit;
            page.versions.truncate(limit);
        }
        Ok(page)
    }

    async fn newest(
        &self,
        query: &Query,
        at: Option<Timestamp>,
        limit: usize,
    ) -> Result<Option<Vec<Arc<ObjectInfo>>>, SourceError> {
        let asked = self.inner.newest(query, at, limit);
        let Some(mut newest) = self.in_time(&query.path, asked).await? else { return Ok(None) };
        if let Some(bytes) = self.default_of(&query.path)
            && newest.len() < limit
        {
            let default = default_version(&query.path, bytes);
            let is_valid = at.is_none_or(|at| default.validity.contains(at));
            newest.extend((is_valid && query.matches(&default)).then(|| Arc::new(default)));
        }
        Ok(Some(newest))
    }

    async fn scan(&self, scan: &Scan) -> Result<Option<VersionStream>, SourceError> {
        // Default objects belong into the listing of their path.
        match self.policies.0.iter().any(|policy| policy.default.is_some()) {
            true => Ok(None),
            false => self.inner.scan(scan).await,
        }
    }

    async fn describe(
        &self,
        path: &ObjectPath,
        from: Timestamp,
        created: Timestamp,
        id: ObjectId,
    ) -> Result<Option<Arc<ObjectInfo>>, SourceError> {
        if let Some(bytes) = self.default_of(path) {
            let default = default_version(path, bytes);
            if default.id == id {
                return Ok(Some(Arc::new(default)));
            }
        }
        self.in_time(path, self.inner.describe(path, from, created, id)).await
    }

    async fn fetch(&self, version: &ObjectInfo, body: &mut dyn Body) -> Result<(), SourceError> {
        if version.metadata.contains_key(DEFAULT)
            && let Some(bytes) = self.default_of(&version.path)
            && version.id == default_version(&version.path, bytes).id
        {
            let stored = async {
                body.reserve(bytes.len() as u64).await?;
                write_all(body, bytes).await
            };
            let what = format!("the default of {}", version.path);
            return stored.await.map_err(|error| SourceError::Body { what, error });
        }
        self.in_time(&version.path, self.inner.fetch(version, body)).await
    }

    async fn details(&self, version: &ObjectInfo) -> Result<Details, SourceError> {
        if version.metadata.contains_key(DEFAULT) {
            return Ok(Details::default());
        }
        self.in_time(&version.path, self.inner.details(version)).await
    }

    fn health(&self) -> Vec<SourceHealth> {
        self.inner.health()
    }

    async fn paths(&self, prefix: &str) -> Result<Vec<PathSummary>, SourceError> {
        self.inner.paths(prefix).await
    }

    async fn path_parts(&self, prefix: &str) -> Result<PathParts, SourceError> {
        self.inner.path_parts(prefix).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{MemorySource, VecBody};

    fn path(text: &str) -> ObjectPath {
        ObjectPath::new(text).unwrap()
    }

    #[tokio::test]
    async fn a_default_object_holds_where_nothing_else_does_and_nowhere_else() {
        let memory = MemorySource::new();
        let at = Timestamp::from_millis;
        let info = ObjectInfo {
            path: path("A/B"),
            id: ObjectId::from_bytes([1; 16]),
            validity: ValidityInterval::new(at(10), at(20)).unwrap(),
            created: at(i64::MIN),
            size_bytes: None,
            md5: None,
            metadata: Default::default(),
        };
        memory.put(info, *b"real");
        let default = PathPolicy {
            prefix: "A".into(),
            default: Some(b"default".to_vec().into()),
            ..PathPolicy::default()
        };
        let source = PolicySource::new(Arc::new(memory), [default].into_iter().collect());
        for (millis, bytes) in
            [(9, &b"default"[..]), (10, b"real"), (19, b"real"), (20, b"default")]
        {
            let known = source.look_up(&Query::all(path("A/B")), at(millis), None).await.unwrap();
            let valid = known.versions.iter().filter(|v| v.validity.contains(at(millis)));
            let winner = valid.max_by_key(|version| version.rank()).unwrap();
            let mut body = VecBody::default();
            source.fetch(winner, &mut body).await.unwrap();
            assert_eq!(body.bytes(), bytes, "at {millis}");
        }
        let other = source.look_up(&Query::all(path("AB/C")), at(1), None).await.unwrap();
        assert!(other.versions.is_empty(), "that is another path");
    }

    #[test]
    fn the_longest_prefix_counts() {
        let policy = |prefix: &str, seconds| PathPolicy {
            prefix: prefix.into(),
            refresh: Some(Duration::from_secs(seconds)),
            ..PathPolicy::default()
        };
        let all: Policies =
            [policy("A", 1), policy("A/B/C", 3), policy("A/B", 2)].into_iter().collect();
        let seconds = |text: &str| all.of(&path(text)).and_then(|one| one.refresh);
        for (text, wanted) in [("A/B/C/D", 3), ("A/B/C", 3), ("A/B/CC", 2), ("A/X", 1)] {
            assert_eq!(seconds(text), Some(Duration::from_secs(wanted)), "{text}");
        }
        assert_eq!(seconds("B"), None);
    }
}
