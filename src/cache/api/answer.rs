//! The answer to a request: the schema and rows of its table, and the pins of its objects.

use std::sync::{Arc, OnceLock};

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;

use crate::budget::Charge;
use crate::cache::holders::gate::Gate;
use crate::cache::holders::lease::LeaseId;
use crate::cache::memory::in_use::InUseGuard;
use crate::cache::memory::object::PinSet;
use crate::cache::memory::pin_request::PinRequest as _;
use crate::cache::tables::column_sets::TableSchema;
use crate::cache::tables::plan::Assembled;
use crate::cache::versions::linked_timeline::VersionSet;
use crate::object::{ObjectId, ObjectInfo};
use crate::source::in_place;
use crate::table::{
    BatchMessages, Batches, Content, EncodeError, Message, MessageWriter, Objects, TableMarks,
    TimeframeMark,
};

/// From this number of rows on, a pass over them does not block other tasks of the thread.
const MANY_ROWS: u64 = 1 << 16;

/// A table whose objects are in shared memory and pinned.
///
/// It holds its pins itself until it is dropped. Its [`messages`](Self::messages) hold the pins as
/// long as its lease lasts; afterwards they end with an error.
#[derive(Debug)]
pub struct Answer {
    pub(super) table_schema: Arc<TableSchema>,
    pub(super) content: Content,
    pub(super) timeframe: Option<TimeframeMark>,
    pub(super) lease: LeaseId,
    /// Stops the messages when the lease ends.
    pub(super) gate: Arc<Gate>,
    /// Digest of which versions serve which rows, once it was needed.
    pub(super) versions: OnceLock<String>,
    /// The table is one of many of a stream: its schema has no [`TableMarks`].
    pub(super) of_stream: bool,
    pub(super) rows: u64,
    pub(super) pins: Arc<InUseGuard>,
    /// The timeframe's own table, whose encoded batches are cached.
    pub(super) assembled: Option<Arc<Assembled>>,
    /// Budget for the table's timestamps and runs, charged while any of it is being sent.
    pub(super) charges: Arc<[Arc<Charge>]>,
}

impl Answer {
    /// The lease that keeps the table's objects.
    pub fn lease(&self) -> &LeaseId {
        &self.lease
    }

    /// The table's schema: a field per column with the metadata `url` (its object path), in the
    /// encoding and with the cells that the request names. Its own metadata are `iovcache.version`,
    /// `iovcache.epoch`, and, where they apply, `iovcache.attach`, `iovcache.timeframe` with
    /// `iovcache.registration`, `iovcache.lease` and, with cells that do not name their versions,
    /// `iovcache.versions`.
    pub fn schema(&self) -> SchemaRef {
        self.table_schema.layout.schema_of(&self.table_schema.schema, self.marks())
    }

    /// Values of this table in its schema.
    fn marks(&self) -> TableMarks<'_> {
        if self.of_stream {
            return TableMarks::default();
        }
        let digest = || match self.rows >= MANY_ROWS {
            true => in_place(|| self.content.served_digest()),
            false => self.content.served_digest(),
        };
        let is_named = self.table_schema.layout.meta.versions.is_some();
        TableMarks {
            timeframe: self.timeframe,
            lease: Some(self.lease.as_str()),
            versions: is_named.then(|| &self.versions.get_or_init(digest)[..]),
        }
    }

    /// The first message: the schema.
    pub fn schema_message(&self) -> Message {
        let made = self.table_schema.schema_message.message(self.marks());
        made.unwrap_or_else(|| MessageWriter::begin(&self.schema()).1)
    }

    /// Number of rows: timestamps in the view `rows`, else the rows of its view (runs, effective
    /// spans, distinct objects, chunks).
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The table as IPC messages, the schema first. Each message is made on demand. Batches of
    /// MetaHeaders are split below 2 MiB; a dictionary is sent once, before the first batch that
    /// uses it.
    ///
    /// # Errors
    /// [`EncodeError`] if an object is too large for a cell of its bytes (64 MiB), or lies in memory
    /// that the kind of cell cannot name.
    pub fn messages(
        &self,
    ) -> Result<impl Iterator<Item = Result<Message, EncodeError>> + Send + 'static, EncodeError>
    {
        // The batches taken apart here hold pins too, so all messages end with the lease.
        let body = self.gate.guard(self.pinned_body()?.flat_map(|batch| {
            let (messages, error) = match batch {
                Ok(batch) => (Some(batch.into_messages()), None),
                Err(error) => (None, Some(error)),
            };
            messages.into_iter().flatten().map(Ok).chain(error.map(Err))
        }));
        Ok([Ok(self.schema_message())].into_iter().chain(body))
    }

    /// Like [`messages`](Self::messages) without the schema, one batch at a time.
    ///
    /// # Errors
    /// As [`messages`](Self::messages).
    pub fn body(
        &self,
    ) -> Result<
        impl Iterator<Item = Result<BatchMessages, EncodeError>> + Send + 'static,
        EncodeError,
    > {
        Ok(self.gate.guard(self.pinned_body()?))
    }

    /// The batches. Their objects stay pinned until the last batch is taken.
    fn pinned_body(
        &self,
    ) -> Result<
        impl Iterator<Item = Result<BatchMessages, EncodeError>> + Send + 'static,
        EncodeError,
    > {
        let kept = match &self.assembled {
            Some(assembled) => assembled.encoded(&self.table_schema, &self.content)?,
            None => None,
        };
        let (kept, made) = match kept {
            Some(messages) => (Some(messages), None),
            None => {
                let dictionaries = Arc::clone(&self.table_schema.dictionaries);
                let batches = self.encoded_batches();
                batches.check()?;
                if self.rows >= MANY_ROWS {
                    in_place(|| batches.prepare());
                }
                let messages = batches.into_messages(dictionaries);
                self.gate.withdraw_at_end(messages.payload_pins());
                (None, Some(messages))
            }
        };
        let kept = kept.map(|messages| (0..messages.len()).map(move |n| messages[n].clone()));
        let held = (self.hold(), Arc::clone(&self.charges));
        let batches = kept.into_iter().flatten().map(Ok).chain(made.into_iter().flatten());
        Ok(batches.inspect(move |_| {
            let _held = &held;
        }))
    }

    /// The batches for the wire, whose schema is that of the first message.
    fn encoded_batches(&self) -> Batches {
        self.content.batches_of(
            Arc::clone(&self.table_schema.layout),
            Arc::clone(&self.table_schema.schema),
        )
    }

    /// The table's batches, made one after the other. There is at least one, which may be empty.
    pub fn batches(&self) -> Batches {
        self.content.batches_of(Arc::clone(&self.table_schema.layout), self.schema())
    }

    /// All batches at once.
    ///
    /// # Errors
    /// As [`messages`](Self::messages).
    pub fn to_batches(&self) -> Result<Vec<RecordBatch>, EncodeError> {
        self.batches().collect()
    }

    /// The pins of the table, one per distinct object.
    pub fn pins(&self) -> &PinSet {
        &self.pins
    }

    /// Keeps all objects in shared memory until the returned value is dropped.
    pub fn hold(&self) -> Arc<InUseGuard> {
        Arc::clone(&self.pins)
    }
}

/// The objects of the cells of a table, in use.
#[derive(Debug)]
pub(super) struct TableObjects {
    pub(super) versions: Arc<VersionSet>,
    pub(super) pins: Arc<InUseGuard>,
    /// Withdraws the objects from messages when the lease ends, also when all messages are made.
    pub(super) gate: Arc<Gate>,
    /// Budget for the table, charged while any of it is being sent.
    pub(super) _charges: Arc<[Arc<Charge>]>,
}

impl Objects for TableObjects {
    fn id(&self, number: u32) -> ObjectId {
        self.versions.id(number as usize)
    }

    fn version(&self, number: u32) -> &ObjectInfo {
        self.versions.info(number as usize)
    }

    fn bytes(&self, number: u32) -> &[u8] {
        self.pins.pins()[number as usize].payload()
    }

    fn note_reading(&self) {
        self.gate.renew();
    }
}

/// The facts about a table that are known before anything is loaded.
#[derive(Debug, Clone)]
pub struct Described {
    /// The table's schema.
    pub schema: SchemaRef,
    /// Number of rows, if it is known without a look-up of versions.
    pub rows: Option<u64>,
}
