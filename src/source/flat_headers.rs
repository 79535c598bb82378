//! AliceO2's flattened map of headers after the bytes of each object, as read by DPL's
//! `extractCCDBHeaders`.
//!
//! ```text
//!  ┌─────────────────────┬──────────────────────────────────┬────────┬──────────────┐
//!  │ bytes of the object │ key NUL value NUL … in key order │ int32  │ $HEADER$ NUL │
//!  └─────────────────────┴──────────────────────────────────┴────────┴──────────────┘
//!                        ◀────── value of int32: bytes from here to the end ────────▶
//! ```
//!
//! Format: AliceO2, `CcdbApi::appendFlatHeader` and `DataRefUtils::extractCCDBHeaders`.
//!
//! The size in the description of a version covers object and map, so reservations, limits and
//! tables count both. The inner source gets its own description back, restored from the metadata
//! [`BODY`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use md5::{Digest as _, Md5};

use super::{
    Body, BodyError, Details, Knowledge, PageKey, PathParts, PathSummary, Source, SourceError,
    SourceHealth, VersionPage, in_place, write_all,
};
use crate::interval::Timestamp;
use crate::object::{Md5Sum, ObjectId, ObjectInfo, ObjectPath, Query};

/// Metadata key of versions with a map. Its value is size and MD5 of the object alone as
/// `<size>:<md5>`; either is empty if the inner source does not give it.
const BODY: &str = "iovcache.body";

/// End of the map.
const ANNOTATION: &[u8] = b"$HEADER$\0";

/// Minimum size of a piece that is hashed while other tasks leave the thread: smaller pieces are
/// hashed at once.
const HASH_BESIDE_FROM_BYTES: usize = 256 << 10;

/// A source that appends the flattened headers to each object.
#[derive(Debug)]
pub struct HeaderSource {
    inner: Arc<dyn Source>,
}

impl HeaderSource {
    /// Appends the headers to the objects of `inner`.
    pub fn new(inner: Arc<dyn Source>) -> Self {
        Self { inner }
    }
}

/// The flattened headers of `version`, described as by the inner source.
fn flat_headers(version: &ObjectInfo) -> Vec<u8> {
    let mut headers: BTreeMap<&str, String> =
        version.metadata.iter().map(|(key, value)| (key, value.to_owned())).collect();
    headers.insert("ETag", format!("\"{}\"", version.id));
    headers.insert("Valid-From", version.validity.from().as_millis().to_string());
    headers.insert("Valid-Until", version.validity.until().as_millis().to_string());
    headers.insert("Created", version.created.as_millis().to_string());
    if let Some(size) = version.size_bytes {
        headers.insert("Content-Length", size.to_string());
    }
    if let Some(md5) = version.md5 {
        headers.insert("Content-MD5", md5.to_string());
    }
    let mut map = Vec::new();
    for (key, value) in headers {
        // A NUL or an empty key would end the map early for its reader.
        if key.contains('\0') || value.contains('\0') || key.is_empty() {
            continue;
        }
        map.extend_from_slice(key.as_bytes());
        map.push(0);
        map.extend_from_slice(value.as_bytes());
        map.push(0);
    }
    let length = map.len() + size_of::<i32>() + ANNOTATION.len();
    map.extend_from_slice(&i32::try_from(length).unwrap_or(i32::MAX).to_le_bytes());
    map.extend_from_slice(ANNOTATION);
    map
}

/// The description of `version` with its map included.
fn with_map(version: &Arc<ObjectInfo>) -> Arc<ObjectInfo> {
    if version.metadata.contains_key(BODY) {
        return Arc::clone(version);
    }
    let map = flat_headers(version).len() as u64;
    let text = |known: Option<String>| known.unwrap_or_default();
    let size = text(version.size_bytes.map(|size| size.to_string()));
    let md5 = text(version.md5.map(|md5| md5.to_string()));
    let metadata = version.metadata.with(BODY, &format!("{size}:{md5}"));
    let size_bytes = version.size_bytes.map(|size| size.saturating_add(map));
    Arc::new(ObjectInfo { size_bytes, md5: None, metadata, ..ObjectInfo::clone(version) })
}

/// The description of `version` as given by the inner source.
fn without_map(version: &ObjectInfo) -> ObjectInfo {
    let mut inner = version.clone();
    if let Some(body) = version.metadata.get(BODY) {
        let (size, md5) = body.split_once(':').unwrap_or_default();
        inner.size_bytes = size.parse().ok();
        inner.md5 = Md5Sum::parse(md5);
        inner.metadata = version.metadata.without(BODY);
    }
    inner
}

/// The body passed to the inner source: it keeps room for the map after the object.
struct BodyWithMap<'a> {
    outer: &'a mut dyn Body,
    map_bytes: u64,
    /// Size reserved by the inner source.
    reserved_bytes: u64,
    digest: Md5,
}

impl BodyWithMap<'_> {
    fn room(&self) -> usize {
        let room = self.reserved_bytes.saturating_sub(self.outer.written_bytes());
        usize::try_from(room).unwrap_or(usize::MAX)
    }
}

#[async_trait]
impl Body for BodyWithMap<'_> {
    async fn reserve(&mut self, size_bytes: u64) -> Result<(), BodyError> {
        self.outer.reserve(size_bytes.saturating_add(self.map_bytes)).await?;
        self.reserved_bytes = size_bytes;
        Ok(())
    }

    fn spare(&mut self) -> &mut [u8] {
        let room = self.room();
        let spare = self.outer.spare();
        let room = room.min(spare.len());
        &mut spare[..room]
    }

    fn advance(&mut self, count: usize) {
        let room = self.room();
        assert!(count <= room, "advanced by {count} bytes where {room} were spare");
        let Self { outer, digest, .. } = self;
        let written = &outer.spare()[..count];
        if count < HASH_BESIDE_FROM_BYTES {
            digest.update(written);
        } else {
            in_place(|| digest.update(written));
        }
        outer.advance(count);
    }

    fn written_bytes(&self) -> u64 {
        self.outer.written_bytes()
    }
}

#[async_trait]
impl Source for HeaderSource {
    fn url(&self) -> &str {
        self.inner.url()
    }

    fn inner(&self) -> Option<&dyn Source> {
        Some(&*self.inner)
    }

    fn refresh(&self) -> Duration {
        self.inner.refresh()
    }

    async fn look_up(
        &self,
        query: &Query,
        at: Timestamp,
        held: Option<&Arc<ObjectInfo>>,
    ) -> Result<Knowledge, SourceError> {
        let inner_held = held.map(|held| Arc::new(without_map(held)));
        let mut knowledge = self.inner.look_up(query, at, inner_held.as_ref()).await?;
        for version in &mut knowledge.versions {
            *version = match (held, &inner_held) {
                // An unchanged version stays the same `Arc`.
                (Some(held), Some(inner)) if Arc::ptr_eq(version, inner) => Arc::clone(held),
                _ => with_map(version),
            };
        }
        Ok(knowledge)
    }

    async fn list(&self, query: &Query) -> Result<Option<Vec<Arc<ObjectInfo>>>, SourceError> {
        let listed = self.inner.list(query).await?;
        Ok(listed.map(|versions| versions.iter().map(with_map).collect()))
    }

    async fn list_page(
        &self,
        query: &Query,
        after: Option<PageKey>,
        limit: usize,
    ) -> Result<VersionPage, SourceError> {
        let page = self.inner.list_page(query, after, limit).await?;
        let versions = page.versions.iter().map(with_map).collect();
        Ok(VersionPage { versions, ..page })
    }

    async fn newest(
        &self,
        query: &Query,
        at: Option<Timestamp>,
        limit: usize,
    ) -> Result<Option<Vec<Arc<ObjectInfo>>>, SourceError> {
        let newest = self.inner.newest(query, at, limit).await?;
        Ok(newest.map(|versions| versions.iter().map(with_map).collect()))
    }

    async fn describe(
        &self,
        path: &ObjectPath,
        from: Timestamp,
        created: Timestamp,
        id: ObjectId,
    ) -> Result<Option<Arc<ObjectInfo>>, SourceError> {
        let version = self.inner.describe(path, from, created, id).await?;
        Ok(version.as_ref().map(with_map))
    }

    async fn fetch(&self, version: &ObjectInfo, body: &mut dyn Body) -> Result<(), SourceError> {
        let inner = without_map(version);
        let map = flat_headers(&inner);
        let unusable = |reason: String| SourceError::Unusable {
            url: self.url().to_owned(),
            what: format!("{} {}", version.path, version.id),
            reason,
        };
        let map_bytes = map.len() as u64;
        let mut with_map =
            BodyWithMap { outer: body, map_bytes, reserved_bytes: 0, digest: Md5::new() };
        self.inner.fetch(&inner, &mut with_map).await?;
        let BodyWithMap { outer, reserved_bytes, digest, .. } = with_map;
        let written = outer.written_bytes();
        if written != reserved_bytes {
            let reason = format!("{written} bytes came of {reserved_bytes} that were announced");
            return Err(unusable(reason));
        }
        if let Some(expected) = inner.size_bytes.filter(|size| *size != written) {
            return Err(unusable(format!("it has {written} bytes, expected {expected}")));
        }
        let found = Md5Sum(digest.finalize().into());
        if let Some(expected) = inner.md5.filter(|md5| *md5 != found) {
            return Err(unusable(format!("its MD5 is {found}, expected {expected}")));
        }
        let stored = async {
            // For an object without bytes, the inner source may have reserved nothing.
            outer.reserve(written.saturating_add(map_bytes)).await?;
            write_all(outer, &map).await
        };
        let what = format!("the headers of {}", version.path);
        stored.await.map_err(|error| SourceError::Body { what, error })
    }

    fn known_details(&self, version: &ObjectInfo) -> Option<Details> {
        self.inner.known_details(&without_map(version))
    }

    async fn details(&self, version: &ObjectInfo) -> Result<Details, SourceError> {
        self.inner.details(&without_map(version)).await
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
    use super::super::{MemorySource, VecBody};
    use super::*;
    use crate::interval::ValidityInterval;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn version(metadata: &[(&str, &str)], md5: Option<Md5Sum>) -> ObjectInfo {
        ObjectInfo {
            path: ObjectPath::new("TPC/Calib/VDrift").unwrap(),
            id: ObjectId::from_bytes([7; 16]),
            validity: ValidityInterval::new(at(1000), at(9000)).unwrap(),
            created: at(5),
            size_bytes: None,
            md5,
            metadata: metadata.iter().copied().collect(),
        }
    }

    fn source(info: ObjectInfo, bytes: &[u8]) -> HeaderSource {
        let memory = MemorySource::new();
        memory.put(info, bytes);
        HeaderSource::new(Arc::new(memory))
    }

    async fn described(source: &HeaderSource) -> Arc<ObjectInfo> {
        let query = Query::all(ObjectPath::new("TPC/Calib/VDrift").unwrap());
        let knowledge = source.look_up(&query, at(2000), None).await.unwrap();
        Arc::clone(&knowledge.versions[0])
    }

    /// The payload without its map, and the headers as AliceO2's `extractCCDBHeaders` finds them.
    fn extracted(payload: &[u8]) -> (&[u8], BTreeMap<String, String>) {
        let (rest, annotation) = payload.split_at(payload.len() - 9);
        assert_eq!(annotation, b"$HEADER$\0");
        let length = i32::from_le_bytes(*rest.last_chunk().unwrap()) as usize;
        let start = payload.len() - length;
        let map = &payload[start..payload.len() - 13];
        let texts: Vec<String> = map
            .strip_suffix(&[0])
            .unwrap()
            .split(|byte| *byte == 0)
            .map(|text| String::from_utf8(text.to_vec()).unwrap())
            .collect();
        let pairs = texts.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone()));
        (&payload[..start], pairs.collect())
    }

    #[tokio::test]
    async fn the_map_follows_the_object_counts_in_its_size_and_is_what_aliceo2_extracts() {
        for bytes in [&b"drift 1"[..], b"", &[7; 300_000]] {
            let md5 = Md5Sum(Md5::digest(bytes).into());
            let metadata = [("runNumber", "559544"), ("empty", ""), ("ETag", "of another")];
            let source = source(version(&metadata, Some(md5)), bytes);
            let version = described(&source).await;
            let mut body = VecBody::default();
            source.fetch(&version, &mut body).await.unwrap();
            assert_eq!(version.size_bytes, Some(body.bytes().len() as u64));
            let (object, headers) = extracted(body.bytes());
            assert_eq!(object, bytes);
            let expected = [
                ("Content-Length", bytes.len().to_string()),
                ("Content-MD5", md5.to_string()),
                ("Created", "5".to_owned()),
                ("ETag", "\"07070707-0707-0707-0707-070707070707\"".to_owned()),
                ("Valid-From", "1000".to_owned()),
                ("Valid-Until", "9000".to_owned()),
                ("empty", String::new()),
                ("runNumber", "559544".to_owned()),
            ];
            assert_eq!(headers, expected.map(|(key, value)| (key.to_owned(), value)).into());
        }
    }

    #[tokio::test]
    async fn bytes_of_another_digest_are_refused_before_the_map_hides_them() {
        let source = source(version(&[], Some(Md5Sum([1; 16]))), b"drift 1");
        let version = described(&source).await;
        assert_eq!(version.md5, None, "that of object and map is not known");
        let error = source.fetch(&version, &mut VecBody::default()).await.unwrap_err();
        assert!(error.to_string().contains("its MD5 is"), "{error}");
    }

    #[tokio::test]
    async fn the_inner_source_sees_its_own_description_and_a_held_version_stays_the_same() {
        let source = source(version(&[("a", "b")], None), b"drift 1");
        let first = described(&source).await;
        let inner = without_map(&first);
        assert_eq!((inner.size_bytes, inner.metadata.len()), (Some(7), 1));
        assert_eq!(with_map(&Arc::new(inner)), first);
        assert!(Arc::ptr_eq(&with_map(&first), &first), "never twice");
    }

    #[test]
    fn a_header_that_would_end_early_is_left_out() {
        let map = flat_headers(&version(&[("a\0b", "c"), ("d", "e\0f"), ("", "g")], None));
        let (_, headers) = extracted(&map);
        let keys: Vec<&str> = headers.keys().map(String::as_str).collect();
        assert_eq!(keys, ["Created", "ETag", "Valid-From", "Valid-Until"]);
    }
}
