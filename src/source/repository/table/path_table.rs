//! The rows of one path, and their changes.

use std::collections::BTreeMap;

use super::chunk::{CHUNK_ROWS, Chunk, latest_creation};
use super::interned_metadata::InternedMetadata;
use super::row::Row;
use crate::object::{CreationLimits, ObjectId, ObjectInfo, ObjectPath};
use crate::source::repository::carry::Carry;
use crate::source::repository::index::RowRef;

/// Number of rows assumed for the limit of metadata while the index is read.
const INDEX_ROWS: usize = 4096;

/// Conditions of a query besides its path.
pub(super) type Filter = (CreationLimits, BTreeMap<String, String>);

/// All versions of one path.
#[derive(Debug)]
pub(crate) struct PathTable {
    pub(super) path: ObjectPath,
    pub(super) chunks: Vec<Chunk>,
    pub(super) metadata: InternedMetadata,
    rows: usize,
    /// Upper bound of the number of descriptions that the chunks keep.
    pub(super) kept_descriptions: usize,
    /// Carries of queries with conditions, by chunk. Any change of the table drops them.
    pub(super) filters: Vec<(Filter, Vec<Carry>)>,
}

impl PathTable {
    pub(crate) fn new(path: ObjectPath) -> Self {
        let (chunks, filters) = (Vec::new(), Vec::new());
        Self {
            path,
            chunks,
            metadata: InternedMetadata::default(),
            rows: 0,
            kept_descriptions: 0,
            filters,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.rows
    }

    /// Whether some metadata is read from the files on demand.
    pub(crate) fn reads_files(&self) -> bool {
        self.metadata.is_full
    }

    /// Approximate memory of the rows in bytes.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        let rows: usize = self.chunks.iter().map(|chunk| chunk.rows.capacity()).sum();
        let carried: usize = self.chunks.iter().map(|chunk| chunk.carry_bytes()).sum();
        rows * size_of::<Row>() + carried + self.metadata.bytes
    }

    /// The row of a version read from its files.
    pub(crate) fn row(&mut self, info: ObjectInfo, stamp: u64) -> Row {
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
    pub(crate) fn indexed(&mut self, row: &RowRef<'_>) -> Option<Row> {
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
    pub(crate) fn froms(&self) -> impl Iterator<Item = i64> {
        let mut last = None;
        self.iter()
            .filter_map(move |row| (last.replace(row.from) != Some(row.from)).then_some(row.from))
    }

    /// At most `limit` different `from`, the latest first.
    pub(crate) fn latest_froms(&self, limit: usize) -> Vec<i64> {
        let mut last = None;
        let rows = self.chunks.iter().rev().flat_map(|chunk| chunk.rows.iter().rev());
        let froms = rows.map(|row| row.from).filter(|from| last.replace(*from) != Some(*from));
        froms.take(limit).collect()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Row> {
        self.chunks.iter().flat_map(|chunk| &chunk.rows)
    }

    /// All rows in order, in blocks, each with a time (ms) after which none of them was created.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = (i64, &[Row])> {
        self.chunks.iter().map(|chunk| (chunk.created_until, &*chunk.rows))
    }

    /// At most `limit` rows after `after`, in order.
    pub(crate) fn rows_after(&self, after: Option<(i64, ObjectId)>, limit: usize) -> Vec<Row> {
        let first = after.map_or(0, |(from, _)| self.chunk_at(from));
        let rows = self.chunks.iter().skip(first).flat_map(|chunk| &chunk.rows);
        rows.filter(|row| Some(row.key()) > after).take(limit).copied().collect()
    }

    /// Index of the chunk whose time contains `at`.
    pub(super) fn chunk_at(&self, at: i64) -> usize {
        self.chunks.partition_point(|chunk| chunk.start() <= at).saturating_sub(1)
    }

    /// The rows of one `from`.
    pub(crate) fn folder(&self, from: i64) -> &[Row] {
        let Some(chunk) = self.chunks.get(self.chunk_at(from)) else { return &[] };
        let first = chunk.rows.partition_point(|row| row.from < from);
        let end = first + chunk.rows[first..].partition_point(|row| row.from == from);
        &chunk.rows[first..end]
    }

    /// The version `id` whose interval begins at `from`.
    pub(crate) fn find(&self, from: i64, id: ObjectId) -> Option<&Row> {
        self.folder(from).iter().find(|row| row.id == id)
    }

    /// Replaces all rows; `rows` may be in any order. If a version occurs twice, its last row
    /// counts.
    pub(crate) fn fill(&mut self, mut rows: Vec<Row>) {
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

    /// Replaces all rows by those of `chunks`, which have their carries.
    pub(super) fn set_chunks(&mut self, chunks: Vec<Chunk>, rows: usize) {
        self.rows = rows;
        self.filters.clear();
        self.kept_descriptions = 0;
        self.chunks = chunks;
        self.chunks.shrink_to_fit();
        self.metadata.all.shrink_to_fit();
        self.thin_out();
    }

    /// Replaces the rows of one `from`. All of `rows` begin there.
    pub(crate) fn replace_folder(&mut self, from: i64, mut rows: Vec<Row>) {
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
    pub(super) fn carry_from(&mut self, place: usize) {
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
    pub(super) fn carry_of(&self, place: usize) -> Carry {
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
        let carries = self.chunks.iter().filter_map(|chunk| chunk.carry.as_ref());
        let mut carried: usize = carries.map(Carry::len).sum();
        let mut step = 2;
        while carried > most_carried(self.rows) && step < 2 * self.chunks.len() {
            carried = drop_carries(&mut self.chunks, step);
            step *= 2;
        }
    }
}

/// Maximum length of all carries of a table with this many rows.
pub(super) fn most_carried(rows: usize) -> usize {
    4 * CHUNK_ROWS + rows / 4
}

/// Drops the carries of all chunks whose number is no multiple of `step`. Returns the length of the
/// others.
pub(super) fn drop_carries(chunks: &mut [Chunk], step: usize) -> usize {
    let mut kept = 0;
    for (at, chunk) in chunks.iter_mut().enumerate() {
        match at.is_multiple_of(step) {
            true => kept += chunk.carry.as_ref().map_or(0, Carry::len),
            false => chunk.carry = None,
        }
    }
    kept
}
