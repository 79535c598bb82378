//! Look-ups in a table: the versions that decide around a time, and pages of versions.

use std::io;
use std::sync::Arc;

use super::chunk::{CHUNK_ROWS, Chunk};
use super::interned_metadata::has_all;
use super::path_table::{Filter, PathTable};
use super::row::Row;
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{CreationLimits, ObjectId, ObjectInfo, Query, VersionMetadata};
use crate::source::repository::carry::Carry;

/// Maximum number of queries with limits or metadata whose carries are kept, per path.
const MAX_FILTERS: usize = 4;
/// Maximum number of descriptions of versions that a table keeps for look-ups.
pub(super) const MAX_DESCRIBED: usize = 8 * CHUNK_ROWS;

/// The versions that decide around a time.
#[derive(Debug)]
pub(crate) struct DecidingWindow {
    pub(crate) span: ValidityInterval,
    pub(crate) versions: Vec<Arc<ObjectInfo>>,
}

/// Function that reads the metadata of a version from its files.
pub(crate) type ReadMetadata<'a> = &'a dyn Fn(&Row) -> io::Result<VersionMetadata>;

impl PathTable {
    /// The versions that decide around `at` for `query`.
    ///
    /// # Errors
    /// If metadata must be read from a file and cannot be.
    pub(crate) fn window(
        &mut self,
        query: &Query,
        at: i64,
        read: ReadMetadata<'_>,
    ) -> io::Result<DecidingWindow> {
        let place = self.chunk_at(at);
        let from = if place == 0 { i64::MIN } else { self.chunks[place].start() };
        let until = self.chunks.get(place + 1).map_or(i64::MAX, Chunk::start);
        let [from, until] = [from, until].map(Timestamp::from_millis);
        let span = ValidityInterval::new(from, until).unwrap_or(ValidityInterval::ALL);
        if self.chunks.is_empty() {
            return Ok(DecidingWindow { span, versions: Vec::new() });
        }
        let all = query.limits == CreationLimits::default() && query.metadata.is_empty();
        if all {
            if let Some(versions) = &self.chunks[place].versions {
                return Ok(DecidingWindow { span, versions: versions.to_vec() });
            }
            let carry = self.carry_of(place);
            let versions = self.described(place, &carry, query, read)?;
            self.keep(place, &versions);
            return Ok(DecidingWindow { span, versions });
        }
        let carry = self.filtered_carry(place, query, read)?;
        let versions = self.described(place, &carry, query, read)?;
        Ok(DecidingWindow { span, versions })
    }

    /// Start of the chunk that contains `at`.
    pub(crate) fn chunk_start(&self, at: i64) -> i64 {
        self.chunks.get(self.chunk_at(at)).map_or(i64::MIN, Chunk::start)
    }

    /// The rows that can be in effect in the chunk that contains `at`.
    pub(crate) fn deciding_rows(&self, at: i64) -> Vec<Row> {
        let place = self.chunk_at(at);
        let Some(chunk) = self.chunks.get(place) else { return Vec::new() };
        let carry = self.carry_of(place);
        let carried = carry.iter().filter_map(|entry| self.find(entry.from, entry.id));
        carried.chain(&chunk.rows).copied().collect()
    }

    /// Keeps the descriptions of a chunk. A description takes several times the memory of a row, so
    /// those of other chunks are dropped when there are many.
    fn keep(&mut self, place: usize, versions: &[Arc<ObjectInfo>]) {
        if self.kept_descriptions + versions.len() > MAX_DESCRIBED {
            self.chunks.iter_mut().for_each(|chunk| chunk.versions = None);
            self.kept_descriptions = 0;
        }
        self.kept_descriptions += versions.len();
        self.chunks[place].versions = Some(versions.into());
    }

    /// The versions of a chunk and of its carry that match `query`.
    fn described(
        &self,
        place: usize,
        carry: &Carry,
        query: &Query,
        read: ReadMetadata<'_>,
    ) -> io::Result<Vec<Arc<ObjectInfo>>> {
        let carried = carry.iter().filter_map(|entry| self.find(entry.from, entry.id));
        let mut versions = Vec::with_capacity(self.chunks[place].rows.len());
        for row in carried.chain(&self.chunks[place].rows) {
            if !query.limits.admit(Timestamp::from_millis(row.created)) {
                continue;
            }
            if let Some(info) = self.info(row, read)?
                && query.matches(&info)
            {
                versions.push(Arc::new(info));
            }
        }
        Ok(versions)
    }

    fn filtered_carry(
        &mut self,
        place: usize,
        query: &Query,
        read: ReadMetadata<'_>,
    ) -> io::Result<Carry> {
        let is_it = |(known, _): &(Filter, Vec<Carry>)| {
            known.0 == query.limits && known.1 == query.metadata
        };
        if let Some((_, carries)) = self.filters.iter().find(|known| is_it(known)) {
            return Ok(carries[place].clone());
        }
        let known: Vec<bool> = self.metadata.all.iter().map(|one| has_all(one, query)).collect();
        let mut carries = Vec::with_capacity(self.chunks.len());
        let mut carry = Carry::default();
        for (at, chunk) in self.chunks.iter().enumerate() {
            carries.push(carry.clone());
            let Some(next) = self.chunks.get(at + 1) else { break };
            let mut rows = Vec::with_capacity(chunk.rows.len());
            for row in &chunk.rows {
                let created = Timestamp::from_millis(row.created);
                let matches = query.limits.admit(created)
                    && match known.get(row.metadata as usize) {
                        Some(matches) => *matches,
                        None => query.metadata.is_empty() || has_all(&read(row)?, query),
                    };
                if matches {
                    rows.push(row.carried());
                }
            }
            carry = carry.rolled(rows.into_iter(), next.start());
        }
        let wanted = carries[place].clone();
        if self.filters.len() >= MAX_FILTERS {
            self.filters.remove(0);
        }
        self.filters.push(((query.limits, query.metadata.clone()), carries));
        Ok(wanted)
    }

    /// Page of at most `limit` versions that match `query`, in order of (from, id), after `after`;
    /// and whether more follow.
    ///
    /// # Errors
    /// If metadata must be read from a file and cannot be.
    pub(crate) fn page(
        &self,
        query: &Query,
        after: Option<(i64, ObjectId)>,
        limit: usize,
        read: ReadMetadata<'_>,
    ) -> io::Result<(Vec<Arc<ObjectInfo>>, bool)> {
        let first = after.map_or(0, |(from, _)| self.chunk_at(from));
        let rows = self.chunks.iter().skip(first).flat_map(|chunk| &chunk.rows);
        let mut versions = Vec::new();
        for row in rows.filter(|row| Some(row.key()) > after) {
            if !query.limits.admit(Timestamp::from_millis(row.created)) {
                continue;
            }
            let Some(info) = self.info(row, read)? else { continue };
            if query.matches(&info) {
                if versions.len() == limit {
                    return Ok((versions, true));
                }
                versions.push(Arc::new(info));
            }
        }
        Ok((versions, false))
    }

    /// The description of a row's version; `None` if its interval is empty.
    ///
    /// # Errors
    /// If its metadata must be read from a file and cannot be.
    pub(crate) fn info(&self, row: &Row, read: ReadMetadata<'_>) -> io::Result<Option<ObjectInfo>> {
        let metadata = match self.metadata.all.get(row.metadata as usize) {
            Some(metadata) => metadata.clone(),
            None => read(row)?,
        };
        Ok(row.validity().map(|validity| ObjectInfo {
            path: self.path.clone(),
            id: row.id,
            validity,
            created: Timestamp::from_millis(row.created),
            size_bytes: Some(row.size_bytes),
            md5: row.md5(),
            metadata,
        }))
    }

    /// Whether the metadata of a row match `query`.
    ///
    /// # Errors
    /// If they must be read from a file and cannot be.
    pub(crate) fn has_metadata(
        &self,
        row: &Row,
        query: &Query,
        read: ReadMetadata<'_>,
    ) -> io::Result<bool> {
        if query.metadata.is_empty() {
            return Ok(true);
        }
        match self.metadata.all.get(row.metadata as usize) {
            Some(metadata) => Ok(has_all(metadata, query)),
            None => Ok(has_all(&read(row)?, query)),
        }
    }
}
