//! The versions of one path in memory: rows in order of `from`, in chunks.
//!
//! ```text
//!  chunk 0 [MIN, a)      chunk 1 [a, b)         chunk 2 [b, MAX)
//!  rows by (from, id)    rows                   rows
//!  carry: –              carry: rows of 0       carry: rows of 0, 1 that can be in effect from b
//! ```
//!
//! The versions that decide within a chunk's time are its own rows and its carry. So the cost of a
//! look-up or a change is that of one chunk, independent of the number of versions of the path.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;

use super::carry::{Carried, Carry};
use super::index::RowRef;
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{
    CreationLimits, Md5Sum, ObjectId, ObjectInfo, ObjectPath, Query, VersionMetadata,
};

/// Maximum number of rows of a chunk before it is split. Rows with the same `from` stay together.
pub(super) const CHUNK_ROWS: usize = 1024;
/// Maximum number of queries with limits or metadata whose carries are kept, per path.
const MAX_FILTERS: usize = 4;
/// Maximum bytes of metadata in memory: this many per row of the path, but at least
/// `METADATA_BYTES`. The rest is read from the files on demand.
const METADATA_ROW_BYTES: usize = 16;
const METADATA_BYTES: usize = 4 << 10;

/// Maximum number of descriptions of versions that a table keeps for look-ups.
const MAX_DESCRIBED: usize = 8 * CHUNK_ROWS;

/// Number of rows assumed for the limit of metadata while the index is read.
const INDEX_ROWS: usize = 4096;

/// One version. Its metadata is stored as a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) from: i64,
    pub(super) until: i64,
    pub(super) created: i64,
    pub(super) size_bytes: u64,
    /// State of its files; 0: they must be read again.
    pub(super) stamp: u64,
    pub(super) id: ObjectId,
    md5: [u8; 16],
    metadata: u32,
    has_md5: bool,
}

/// Maximum number of distinct metadata that are searched linearly.
const FEW_METADATA: usize = 32;

/// Number that stands for metadata not in memory.
const ON_DISK: u32 = u32::MAX;

impl Row {
    fn key(&self) -> (i64, ObjectId) {
        (self.from, self.id)
    }

    fn carried(&self) -> Carried {
        Carried { created: self.created, from: self.from, id: self.id, until: self.until }
    }

    pub(super) fn md5(&self) -> Option<Md5Sum> {
        self.has_md5.then_some(Md5Sum(self.md5))
    }

    /// The validity interval, if `from` is less than `until`.
    fn validity(&self) -> Option<ValidityInterval> {
        let [from, until] = [self.from, self.until].map(Timestamp::from_millis);
        ValidityInterval::new(from, until).ok()
    }
}

/// Distinct metadata of the versions of a path.
#[derive(Debug, Default)]
struct Interned {
    all: Vec<VersionMetadata>,
    /// Numbers of all of them; empty as long as there are at most [`FEW_METADATA`].
    numbers: HashMap<VersionMetadata, u32>,
    bytes: usize,
    /// The most recently returned number.
    last: u32,
    is_full: bool,
}

impl Interned {
    fn number(&mut self, metadata: VersionMetadata, rows: usize) -> u32 {
        if let Some(number) = self.known(&metadata) {
            return number;
        }
        let bytes = size_of::<VersionMetadata>() + metadata.heap_bytes();
        let limit = METADATA_BYTES.max(rows.saturating_mul(METADATA_ROW_BYTES));
        if self.bytes + bytes > limit {
            self.is_full = true;
            return ON_DISK;
        }
        self.bytes += bytes;
        let number = self.all.len() as u32;
        self.all.push(metadata.clone());
        match self.all.len() {
            ..=FEW_METADATA => {}
            // Earlier ones were found by linear search and are not in the map yet.
            count if count == FEW_METADATA + 1 => {
                self.numbers = self.all.iter().cloned().zip(0..).collect()
            }
            _ => drop(self.numbers.insert(metadata, number)),
        }
        number
    }

    /// The number of known metadata.
    fn known(&self, metadata: &VersionMetadata) -> Option<u32> {
        if self.all.len() > FEW_METADATA {
            return self.numbers.get(metadata).copied();
        }
        let place = self.all.iter().position(|known| known == metadata)?;
        u32::try_from(place).ok()
    }

    /// Like [`number`](Self::number), for entries that are not collected yet. Neighbouring versions
    /// mostly have equal metadata.
    fn number_of<'a>(
        &mut self,
        entries: impl Iterator<Item = (&'a str, &'a str)> + Clone,
        rows: usize,
    ) -> u32 {
        let is_last = |last: &VersionMetadata| {
            let mut given = entries.clone();
            let is_next = |(key, value)| given.next().is_some_and(|(k, v)| k == key && v == value);
            last.iter().all(is_next) && given.next().is_none()
        };
        if self.all.get(self.last as usize).is_some_and(is_last) {
            return self.last;
        }
        if self.is_full {
            return ON_DISK;
        }
        self.last = self.number(entries.collect(), rows);
        self.last
    }
}

#[derive(Debug, Default)]
struct Chunk {
    /// In order of (from, id); never empty.
    rows: Vec<Row>,
    /// No row was created later (ms).
    created_until: i64,
    /// Rows of earlier chunks that can be in effect here; `None`: derived from earlier chunks.
    carry: Option<Carry>,
    /// The versions that decide here, for queries without conditions.
    versions: Option<Arc<[Arc<ObjectInfo>]>>,
}

impl Chunk {
    fn new(rows: Vec<Row>) -> Self {
        let created_until = latest_creation(&rows);
        Self { rows, created_until, carry: None, versions: None }
    }

    fn start(&self) -> i64 {
        self.rows.first().map_or(i64::MIN, |row| row.from)
    }
}

fn latest_creation(rows: &[Row]) -> i64 {
    rows.iter().map(|row| row.created).max().unwrap_or(i64::MIN)
}

/// Conditions of a query besides its path.
type Filter = (CreationLimits, BTreeMap<String, String>);

/// All versions of one path.
#[derive(Debug)]
pub(super) struct PathTable {
    path: ObjectPath,
    chunks: Vec<Chunk>,
    metadata: Interned,
    rows: usize,
    /// Upper bound of the number of descriptions that the chunks keep.
    kept_descriptions: usize,
    /// Carries of queries with conditions, by chunk. Any change of the table drops them.
    filters: Vec<(Filter, Vec<Carry>)>,
}

/// The versions that decide around a time.
#[derive(Debug)]
pub(super) struct DecidingWindow {
    pub(super) span: ValidityInterval,
    pub(super) versions: Vec<Arc<ObjectInfo>>,
}

/// Function that reads the metadata of a version from its files.
pub(super) type ReadMetadata<'a> = &'a dyn Fn(&Row) -> io::Result<VersionMetadata>;

impl PathTable {
    pub(super) fn new(path: ObjectPath) -> Self {
        let (chunks, filters) = (Vec::new(), Vec::new());
        Self { path, chunks, metadata: Interned::default(), rows: 0, kept_descriptions: 0, filters }
    }

    pub(super) fn len(&self) -> usize {
        self.rows
    }

    /// Whether some metadata is read from the files on demand.
    pub(super) fn reads_files(&self) -> bool {
        self.metadata.is_full
    }

    /// Approximate memory of the rows in bytes.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        let rows: usize = self.chunks.iter().map(|chunk| chunk.rows.capacity()).sum();
        let carried: usize = self.chunks.iter().map(|chunk| chunk.carry_bytes()).sum();
        rows * size_of::<Row>() + carried + self.metadata.bytes
    }

    /// The row of a version read from its files.
    pub(super) fn row(&mut self, info: ObjectInfo, stamp: u64) -> Row {
        let metadata = self.metadata.number(info.metadata, self.rows);
        Row {
            from: info.validity.from().as_millis(),
            until: info.validity.until().as_millis(),
            created: info.created.as_millis(),
            size_bytes: info.size_bytes.unwrap_or(0),
            stamp,
            id: info.id,
            md5: info.md5.map_or([0; 16], |md5| md5.0),
            metadata,
            has_md5: info.md5.is_some(),
        }
    }

    /// The row of a version read from the index, if its interval is not empty.
    pub(super) fn indexed(&mut self, row: &RowRef<'_>) -> Option<Row> {
        if row.from >= row.until {
            return None;
        }
        let metadata = self.metadata.number_of(row.metadata(), self.rows.max(INDEX_ROWS));
        Some(Row {
            from: row.from,
            until: row.until,
            created: row.created,
            size_bytes: row.size_bytes,
            stamp: row.stamp,
            id: row.id,
            md5: row.md5.map_or([0; 16], |md5| md5.0),
            metadata,
            has_md5: row.md5.is_some(),
        })
    }

    /// Distinct `from` of all rows, ascending.
    pub(super) fn froms(&self) -> impl Iterator<Item = i64> {
        let mut last = None;
        self.iter()
            .filter_map(move |row| (last.replace(row.from) != Some(row.from)).then_some(row.from))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Row> {
        self.chunks.iter().flat_map(|chunk| &chunk.rows)
    }

    /// All rows in order, in blocks, each with a time (ms) after which none of them was created.
    pub(super) fn blocks(&self) -> impl Iterator<Item = (i64, &[Row])> {
        self.chunks.iter().map(|chunk| (chunk.created_until, &*chunk.rows))
    }

    /// Whether the metadata of a row match `query`.
    ///
    /// # Errors
    /// If they must be read from a file and cannot be.
    pub(super) fn has_metadata(
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

    /// At most `limit` rows after `after`, in order.
    pub(super) fn rows_after(&self, after: Option<(i64, ObjectId)>, limit: usize) -> Vec<Row> {
        let first = after.map_or(0, |(from, _)| self.chunk_at(from));
        let rows = self.chunks.iter().skip(first).flat_map(|chunk| &chunk.rows);
        rows.filter(|row| Some(row.key()) > after).take(limit).copied().collect()
    }

    /// Index of the chunk whose time contains `at`.
    fn chunk_at(&self, at: i64) -> usize {
        self.chunks.partition_point(|chunk| chunk.start() <= at).saturating_sub(1)
    }

    /// The rows of one `from`.
    pub(super) fn folder(&self, from: i64) -> &[Row] {
        let Some(chunk) = self.chunks.get(self.chunk_at(from)) else { return &[] };
        let first = chunk.rows.partition_point(|row| row.from < from);
        let end = first + chunk.rows[first..].partition_point(|row| row.from == from);
        &chunk.rows[first..end]
    }

    /// The version `id` whose interval begins at `from`.
    pub(super) fn find(&self, from: i64, id: ObjectId) -> Option<&Row> {
        self.folder(from).iter().find(|row| row.id == id)
    }

    /// Replaces all rows; `rows` may be in any order. If a version occurs twice, its last row
    /// counts.
    pub(super) fn fill(&mut self, mut rows: Vec<Row>) {
        if !rows.is_sorted_by_key(Row::key) {
            rows.sort_by_key(Row::key);
        }
        rows.dedup_by(|next, row| {
            let same = next.key() == row.key();
            if same {
                *row = *next;
            }
            same
        });
        self.rows = rows.len();
        self.filters.clear();
        self.chunks.clear();
        let mut rest = &rows[..];
        while !rest.is_empty() {
            let mut end = rest.len().min(CHUNK_ROWS);
            let last = rest[end - 1].from;
            if rest.get(end).is_some_and(|next| next.from == last) {
                // Ends before this `from`, or after it if the chunk would be empty.
                let before = rest[..end].partition_point(|row| row.from < last);
                let inner = rest.partition_point(|row| row.from <= last);
                end = if before > 0 { before } else { inner };
            }
            self.chunks.push(Chunk::new(rest[..end].to_vec()));
            rest = &rest[end..];
        }
        self.chunks.shrink_to_fit();
        self.metadata.all.shrink_to_fit();
        self.carry_from(0);
    }

    /// Replaces the rows of one `from`. All of `rows` begin there.
    pub(super) fn replace_folder(&mut self, from: i64, mut rows: Vec<Row>) {
        rows.sort_unstable_by_key(Row::key);
        rows.dedup_by_key(|row| row.key());
        let old = self.folder(from).to_vec();
        if old == rows {
            return;
        }
        // A change of stamps alone changes no answer.
        let same = |(a, b): (&Row, &Row)| Row { stamp: 0, ..*a } == Row { stamp: 0, ..*b };
        let only_stamps = old.len() == rows.len() && old.iter().zip(&rows).all(same);
        let added_only = old.iter().all(|row| rows.iter().any(|new| same((row, new))));
        let added: Vec<Row> =
            rows.iter().filter(|new| !old.iter().any(|row| same((row, new)))).copied().collect();
        self.rows = self.rows - old.len() + rows.len();
        if self.chunks.is_empty() {
            return self.fill(rows);
        }
        let place = self.chunk_at(from);
        let chunk = &mut self.chunks[place];
        let first = chunk.rows.partition_point(|row| row.from < from);
        let end = first + chunk.rows[first..].partition_point(|row| row.from == from);
        chunk.created_until = chunk.created_until.max(latest_creation(&rows));
        chunk.rows.splice(first..end, rows);
        if only_stamps {
            return;
        }
        self.filters.clear();
        self.changed(place, &added, added_only);
    }

    /// Restores chunks and carries after a change in the chunk `place`. `added` are its new rows;
    /// with `added_only` no row was removed or changed.
    fn changed(&mut self, place: usize, added: &[Row], added_only: bool) {
        if self.chunks[place].rows.is_empty() {
            self.chunks.remove(place);
            // The time of the removed chunk now belongs to the one before.
            for chunk in &mut self.chunks {
                chunk.versions = None;
            }
            return self.carry_from(place.saturating_sub(1));
        }
        self.split(place);
        if !added_only {
            return self.carry_from(place);
        }
        // The first row may have changed, and with it the end of the previous chunk's time.
        self.chunks[place].versions = None;
        if place > 0 {
            self.chunks[place - 1].versions = None;
        }
        for inner in place + 1..self.chunks.len() {
            let start = self.chunks[inner].start();
            let chunk = &mut self.chunks[inner];
            let mut touched = false;
            for row in added.iter().filter(|row| row.from < start && row.until > start) {
                touched |= chunk.carry.as_mut().is_none_or(|carry| carry.insert(row.carried()));
            }
            if touched {
                chunk.versions = None;
            }
        }
    }

    /// Splits a chunk that is too long, between two values of `from`.
    fn split(&mut self, place: usize) {
        let rows = &self.chunks[place].rows;
        if rows.len() <= CHUNK_ROWS {
            return;
        }
        // Appends in order of time leave full chunks.
        let last_chunk = place + 1 == self.chunks.len();
        let wanted = if last_chunk { rows.len() - 1 } else { rows.len() / 2 };
        let border = rows[wanted].from;
        let before = rows.partition_point(|row| row.from < border);
        let at = if before > 0 { before } else { rows.partition_point(|row| row.from <= border) };
        if at >= rows.len() {
            return;
        }
        let inner = self.chunks[place].rows.split_off(at);
        self.chunks[place].rows.shrink_to_fit();
        self.chunks[place].versions = None;
        let start = inner[0].from;
        let carry =
            self.carry_of(place).rolled(self.chunks[place].rows.iter().map(Row::carried), start);
        self.chunks.insert(place + 1, Chunk { carry: Some(carry), ..Chunk::new(inner) });
    }

    /// Computes the carries of all chunks from `place` on.
    fn carry_from(&mut self, place: usize) {
        let mut carry = self.carry_of(place);
        for at in place..self.chunks.len() {
            if at > place {
                let start = self.chunks[at].start();
                let rows = self.chunks[at - 1].rows.iter().map(Row::carried);
                carry = carry.rolled(rows, start);
            }
            self.chunks[at].carry = Some(carry.clone());
            self.chunks[at].versions = None;
        }
        self.thin_out();
    }

    /// The carry of the chunk `place`, derived from the nearest earlier chunk that keeps one.
    fn carry_of(&self, place: usize) -> Carry {
        let kept = (1..=place).rev().find_map(|at| {
            let carry = self.chunks.get(at)?.carry.as_ref()?;
            Some((at, carry.clone()))
        });
        let (first, mut carry) = kept.unwrap_or_default();
        for at in first..place {
            let start = self.chunks[at + 1].start();
            carry = carry.rolled(self.chunks[at].rows.iter().map(Row::carried), start);
        }
        carry
    }

    /// If intervals are nested so deeply that the carries are longer than the rows, every second
    /// carry is dropped, repeatedly. Dropped carries are derived on demand.
    fn thin_out(&mut self) {
        let length = |chunks: &[Chunk]| -> usize {
            chunks.iter().filter_map(|chunk| chunk.carry.as_ref()).map(Carry::len).sum()
        };
        let mut step = 2;
        while length(&self.chunks) > 4 * CHUNK_ROWS + self.rows / 4 && step < 2 * self.chunks.len()
        {
            for (at, chunk) in self.chunks.iter_mut().enumerate() {
                if at % step != 0 {
                    chunk.carry = None;
                }
            }
            step *= 2;
        }
    }

    /// The versions that decide around `at` for `query`.
    ///
    /// # Errors
    /// If metadata must be read from a file and cannot be.
    pub(super) fn window(
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
    pub(super) fn page(
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
    pub(super) fn info(&self, row: &Row, read: ReadMetadata<'_>) -> io::Result<Option<ObjectInfo>> {
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
}

#[cfg(test)]
impl Chunk {
    fn carry_bytes(&self) -> usize {
        self.carry.as_ref().map_or(0, |carry| carry.len() * size_of::<Carried>())
    }
}

fn has_all(metadata: &VersionMetadata, query: &Query) -> bool {
    query.metadata.iter().all(|(key, value)| metadata.get(key) == Some(value.as_str()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path() -> ObjectPath {
        ObjectPath::new("A/B").unwrap()
    }

    /// (from, length, created, metadata, id)
    type Plan = (i64, i64, i64, u8, u8);

    fn info(plan: Plan, metadata: &str) -> ObjectInfo {
        let (from, length, created, _, id) = plan;
        let [from, until, created] = [from, from + length, created].map(Timestamp::from_millis);
        ObjectInfo {
            path: path(),
            id: ObjectId::from_bytes([id; 16]),
            validity: ValidityInterval::new(from, until).unwrap(),
            created,
            size_bytes: Some(1),
            md5: None,
            metadata: [("k", metadata)].into(),
        }
    }

    fn winner(versions: &[Arc<ObjectInfo>], at: i64) -> Option<ObjectId> {
        let at = Timestamp::from_millis(at);
        let valid = versions.iter().filter(|version| version.validity.contains(at));
        valid.max_by_key(|version| version.rank()).map(|version| version.id)
    }

    fn never(_: &Row) -> io::Result<VersionMetadata> {
        panic!("all metadata is in memory")
    }

    fn plans(count: usize) -> impl Strategy<Value = Vec<Plan>> {
        let one = (-40..40_i64, 1..60_i64, 0..6_i64, 0..3_u8, any::<u8>());
        proptest::collection::vec(one, 0..count)
    }

    /// Divides the rows into chunks of a few rows.
    fn small_chunks(table: &mut PathTable) {
        let rows: Vec<Row> = table.iter().copied().collect();
        table.chunks.clear();
        let mut rest = &rows[..];
        while !rest.is_empty() {
            let wanted = rest.len().min(3);
            let last = rest[wanted - 1].from;
            let end = rest.partition_point(|row| row.from <= last);
            table.chunks.push(Chunk::new(rest[..end].to_vec()));
            rest = &rest[end..];
        }
        table.carry_from(0);
    }

    fn check(table: &mut PathTable, all: &[Arc<ObjectInfo>]) {
        assert_eq!(table.len(), table.iter().count());
        let queries = [
            Query::all(path()),
            Query { metadata: [("k".to_owned(), "1".to_owned())].into(), ..Query::all(path()) },
            Query {
                limits: CreationLimits {
                    not_after: Some(Timestamp::from_millis(3)),
                    not_before: None,
                },
                ..Query::all(path())
            },
        ];
        for query in queries {
            let seen: Vec<_> = all.iter().filter(|info| query.matches(info)).cloned().collect();
            for at in (-45..105).chain([i64::MIN, i64::MAX - 1]) {
                let window = table.window(&query, at, &never).unwrap();
                assert!(window.span.contains(Timestamp::from_millis(at)), "{at} {window:?}");
                let edges = [window.span.from().as_millis(), window.span.until().as_millis() - 1];
                for time in [at, edges[0].clamp(-45, 105), edges[1].clamp(-45, 105)] {
                    if window.span.contains(Timestamp::from_millis(time)) {
                        let expected = winner(&seen, time);
                        assert_eq!(winner(&window.versions, time), expected, "{time}");
                    }
                }
            }
            let (page, more) = table.page(&query, None, usize::MAX, &never).unwrap();
            assert!(!more);
            assert_eq!(page.len(), seen.len());
        }
    }

    proptest! {
        #[test]
        fn windows_decide_like_the_scan_whatever_was_changed_before(
            first in plans(40),
            changes in proptest::collection::vec((plans(3), -40..40_i64), 0..12),
        ) {
            let mut all: BTreeMap<(i64, u8), Arc<ObjectInfo>> = BTreeMap::new();
            let mut table = PathTable::new(path());
            let mut rows = Vec::new();
            for plan in first {
                let info = info(plan, &plan.3.to_string());
                if all.insert((plan.0, plan.4), Arc::new(info)).is_none() {}
            }
            for info in all.values() {
                rows.push(table.row(ObjectInfo::clone(info), 1));
            }
            table.fill(rows);
            small_chunks(&mut table);
            check(&mut table, &all.values().cloned().collect::<Vec<_>>());
            for (folder, from) in changes {
                all.retain(|(at, _), _| *at != from);
                for plan in folder {
                    let plan = (from, plan.1, plan.2, plan.3, plan.4);
                    all.insert((from, plan.4), Arc::new(info(plan, &plan.3.to_string())));
                }
                let there = all.range((from, 0)..=(from, 255)).map(|(_, info)| Arc::clone(info));
                let rows = there.collect::<Vec<_>>();
                let rows = rows.iter().map(|info| table.row(ObjectInfo::clone(info), 2)).collect();
                table.replace_folder(from, rows);
                check(&mut table, &all.values().cloned().collect::<Vec<_>>());
            }
        }
    }

    fn steady(count: i64) -> PathTable {
        let mut table = PathTable::new(path());
        let rows = (0..count)
            .map(|n| {
                let mut row = table.row(info((0, 1, n, 0, 0), ""), 1);
                (row.from, row.until) = (n * 10, i64::MAX);
                row
            })
            .collect();
        table.fill(rows);
        table
    }

    #[test]
    fn a_hundred_thousand_versions_that_never_end_take_a_hundred_bytes_each() {
        let table = steady(100_000);
        let bytes = table.bytes();
        assert!(bytes < 100 * 100_000, "{bytes}");
    }

    #[test]
    fn a_look_up_of_every_time_keeps_the_descriptions_of_a_few_chunks() {
        let mut table = steady(50_000);
        for at in (0..500_000).step_by(1_000) {
            table.window(&Query::all(path()), at, &never).unwrap();
        }
        let kept = table.chunks.iter().filter_map(|chunk| chunk.versions.as_ref());
        let kept: usize = kept.map(|versions| versions.len()).sum();
        assert!((1..=MAX_DESCRIBED).contains(&kept), "{kept}");
    }

    #[test]
    fn deeply_nested_intervals_take_no_more_memory_than_their_rows() {
        let mut table = PathTable::new(path());
        let count = 50_000_i64;
        let rows = (0..count)
            .map(|n| {
                // Later rows are nested in earlier ones, and have later creation times.
                let mut row = table.row(info((0, 1, n, 0, 0), ""), 1);
                (row.from, row.until) = (n, 3 * count - n);
                row
            })
            .collect();
        table.fill(rows);
        let bytes = table.bytes();
        assert!(bytes < 120 * count as usize, "{bytes}");
        for at in [0, 1, 20_000, 49_999, 50_001, 120_000, 149_999] {
            let window = table.window(&Query::all(path()), at, &never).unwrap();
            let created =
                window.versions.iter().filter(|v| v.validity.contains(Timestamp::from_millis(at)));
            let created = created.map(|v| v.created.as_millis()).max();
            let expected = (0..count).filter(|n| *n <= at && at < 3 * count - n).max();
            assert_eq!(created, expected, "at {at}");
        }
    }
}
