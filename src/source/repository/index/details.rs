//! The columns of an index with the facts about uploads, and their search by version.

use std::cmp::Ordering;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use arrow_array::builder::{Int64Builder, StringBuilder};
use arrow_array::cast::AsArray as _;
use arrow_array::types::Int64Type;
use arrow_array::{Array as _, ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field};

use crate::interval::Timestamp;
use crate::source::Details;

/// Place of the first of these columns.
const FIRST: usize = 11;

/// The columns with the facts about uploads. All values of a row are null if they are unknown.
pub(super) fn fields() -> Vec<Field> {
    vec![
        Field::new("file_name", DataType::Utf8, true),
        Field::new("content_type", DataType::Utf8, true),
        Field::new("uploaded_from", DataType::Utf8, true),
        Field::new("last_modified", DataType::Int64, true),
        Field::new("initial_until", DataType::Int64, true),
    ]
}

/// The columns of rows with these facts.
pub(super) fn columns_of<'a>(rows: impl Iterator<Item = Option<&'a Details>>) -> Vec<ArrayRef> {
    let [mut file_name, mut content_type, mut uploaded_from] =
        std::array::from_fn(|_| StringBuilder::new());
    let [mut last_modified, mut initial_until] = std::array::from_fn(|_| Int64Builder::new());
    let none = Details::default();
    for row in rows {
        let details = row.unwrap_or(&none);
        file_name.append_option(details.file_name.as_deref());
        content_type.append_option(details.content_type.as_deref());
        uploaded_from.append_option(details.uploaded_from.as_deref());
        last_modified.append_option(details.last_modified.map(Timestamp::as_millis));
        initial_until.append_option(details.initial_until.map(Timestamp::as_millis));
    }
    vec![
        Arc::new(file_name.finish()),
        Arc::new(content_type.finish()),
        Arc::new(uploaded_from.finish()),
        Arc::new(last_modified.finish()),
        Arc::new(initial_until.finish()),
    ]
}

/// Facts about an upload, in the order of the columns.
pub(super) type UploadFactsRef<'a> = ([Option<&'a str>; 3], [Option<i64>; 2]);

pub(super) fn facts_of(details: &Details) -> UploadFactsRef<'_> {
    let Details { file_name, content_type, uploaded_from, last_modified, initial_until } = details;
    let texts = [file_name, content_type, uploaded_from].map(Option::as_deref);
    (texts, [last_modified, initial_until].map(|time| time.map(Timestamp::as_millis)))
}

/// These columns of a batch.
#[derive(Debug)]
pub(super) struct DetailColumns {
    texts: [StringArray; 3],
    times: [Int64Array; 2],
}

impl DetailColumns {
    /// `None` for a batch without them. It panics if they have other types than [`fields`]: callers
    /// catch that.
    pub(super) fn of(batch: &RecordBatch) -> Option<Self> {
        let text = |at: usize| batch.column(FIRST + at).as_string::<i32>().clone();
        let time = |at: usize| batch.column(FIRST + at).as_primitive::<Int64Type>().clone();
        (batch.num_columns() > FIRST)
            .then(|| Self { texts: [text(0), text(1), text(2)], times: [time(3), time(4)] })
    }

    pub(super) fn facts(&self, at: usize) -> UploadFactsRef<'_> {
        (
            self.texts.each_ref().map(|of| of.is_valid(at).then(|| of.value(at))),
            self.times.each_ref().map(|of| of.is_valid(at).then(|| of.value(at))),
        )
    }

    pub(super) fn row(&self, at: usize) -> Details {
        let (texts, times) = self.facts(at);
        let [file_name, content_type, uploaded_from] = texts.map(|text| text.map(str::to_owned));
        let [last_modified, initial_until] = times.map(|time| time.map(Timestamp::from_millis));
        Details { file_name, content_type, last_modified, initial_until, uploaded_from }
    }
}

/// Path (as its number), `from` and id of a row: the order of the rows of a file.
pub(super) type RowKey = (i32, i64, [u8; 16]);

/// Keys of the first and of the last row of a batch.
pub(super) type KeyBounds = [RowKey; 2];

/// Whether a row with this key would be in a batch with these bounds: before it, in it, or after it.
pub(super) fn place_of(key: &RowKey, [first, last]: &KeyBounds) -> Ordering {
    match (key < first, key > last) {
        (true, _) => Ordering::Less,
        (_, true) => Ordering::Greater,
        _ => Ordering::Equal,
    }
}

/// The facts of the rows of one batch.
#[derive(Debug)]
pub(super) struct KnownBatch {
    number: usize,
    bounds: KeyBounds,
    rows: Vec<FactsOfRow>,
}

/// A row's key and stamp, and the facts about the upload.
pub(super) type FactsOfRow = (RowKey, u64, Option<Details>);

impl KnownBatch {
    /// Rows in ascending order; `None` if there are none.
    pub(super) fn new(number: usize, rows: Vec<FactsOfRow>) -> Option<Self> {
        let bounds = [rows.first()?.0, rows.last()?.0];
        Some(Self { number, bounds, rows })
    }

    pub(super) fn bounds(&self) -> KeyBounds {
        self.bounds
    }

    /// The facts of a version in the state that `stamp` describes.
    pub(super) fn find(&self, key: &RowKey, stamp: u64) -> Option<&Details> {
        let place = self.rows.binary_search_by(|(other, ..)| other.cmp(key)).ok()?;
        let (_, known, details) = &self.rows[place];
        details.as_ref().filter(|_| *known == stamp && stamp != 0)
    }
}

/// Number of batches of a file whose facts are kept: listings are in the order of the intervals'
/// texts, in which times with different numbers of digits alternate.
const KEPT_BATCHES: usize = 8;

/// Batches of a file: the bounds of all batches that were read, and the facts of those used last.
#[derive(Debug, Default)]
pub(super) struct KnownBatches {
    bounds: HashMap<usize, KeyBounds>,
    /// The batch that was used last comes first.
    kept: VecDeque<KnownBatch>,
    #[cfg(test)]
    pub(super) read_count: usize,
}

impl KnownBatches {
    pub(super) fn bounds(&self, number: usize) -> Option<KeyBounds> {
        self.bounds.get(&number).copied()
    }

    pub(super) fn set_bounds(&mut self, of: &KnownBatch) {
        self.bounds.insert(of.number, of.bounds);
        #[cfg(test)]
        {
            self.read_count += 1;
        }
    }

    /// The kept batch in which a row with this key would be.
    pub(super) fn with(&mut self, key: &RowKey) -> Option<&KnownBatch> {
        let at = self.kept.iter().position(|batch| place_of(key, &batch.bounds).is_eq())?;
        let batch = self.kept.remove(at)?;
        self.kept.push_front(batch);
        self.kept.front()
    }

    /// Number of the batch behind the last kept one that lies before this key: for versions in order,
    /// the batch with the key.
    pub(super) fn next_for(&self, key: &RowKey) -> Option<usize> {
        let before = self.kept.iter().filter(|batch| place_of(key, &batch.bounds).is_gt());
        before.map(|batch| batch.number + 1).max()
    }

    pub(super) fn keep(&mut self, batch: KnownBatch) {
        self.kept.truncate(KEPT_BATCHES - 1);
        self.kept.push_front(batch);
    }
}
