//! A table that was asked for: its schema, its rows, and the pins that hold its objects.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;

use crate::budget::Charge;
use crate::cache::holders::gate::Gate;
use crate::cache::holders::lease::LeaseId;
use crate::cache::memory::in_use::InUseGuard;
use crate::cache::memory::object::PinSet;
use crate::cache::tables::plan::Assembled;
use crate::cache::tables::schema_cache::TableSchema;
use crate::table::{BatchMessages, Batches, Content, EncodeError, Message, MessageWriter};

/// A table whose objects are in shared memory and pinned.
///
/// It holds its pins itself too, until it is dropped. Its [`messages`](Self::messages) hold them as
/// long as its lease lasts: after that they end with an error.
#[derive(Debug)]
pub struct Answer {
    pub(super) form: Arc<TableSchema>,
    pub(super) content: Content,
    pub(super) timeframe: Option<u64>,
    pub(super) lease: LeaseId,
    /// Ends what is being sent once the lease ends.
    pub(super) gate: Arc<Gate>,
    /// It is one of many of a stream: its schema names neither its lease nor its timeframe.
    pub(super) of_stream: bool,
    pub(super) rows: u64,
    pub(super) pins: Arc<InUseGuard>,
    /// The timeframe's own table, whose encoded batches are kept.
    pub(super) assembled: Option<Arc<Assembled>>,
    /// The memory of the table's timestamps and runs, as long as anything of it is sent.
    pub(super) charges: Arc<[Arc<Charge>]>,
}

impl Answer {
    /// The lease that keeps the table's objects.
    pub fn lease(&self) -> &LeaseId {
        &self.lease
    }

    /// The table's schema.
    pub fn schema(&self) -> SchemaRef {
        let (timeframe, lease) = self.named();
        self.form.shape.schema_of(&self.form.schema, timeframe, lease)
    }

    /// What of it stands in its schema.
    fn named(&self) -> (Option<u64>, Option<&str>) {
        match self.of_stream {
            true => (None, None),
            false => (self.timeframe, Some(self.lease.as_str())),
        }
    }

    /// The first message: the schema.
    pub fn head(&self) -> Message {
        let (timeframe, lease) = self.named();
        let made = self.form.head.message(timeframe, lease);
        made.unwrap_or_else(|| MessageWriter::begin(&self.schema()).1)
    }

    /// How many timestamps, or effective spans, it answers.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The table as IPC messages, the schema first: each is made when it is asked for.
    ///
    /// # Errors
    /// [`EncodeError`].
    pub fn messages(
        &self,
    ) -> Result<impl Iterator<Item = Result<Message, EncodeError>> + Send + 'static, EncodeError>
    {
        // A batch that is taken apart here holds pins too, so all of it ends with the lease.
        let body = self.gate.guard(self.pinned_body()?.flat_map(|batch| {
            let (messages, error) = match batch {
                Ok(batch) => (Some(batch.into_messages()), None),
                Err(error) => (None, Some(error)),
            };
            messages.into_iter().flatten().map(Ok).chain(error.map(Err))
        }));
        Ok([Ok(self.head())].into_iter().chain(body))
    }

    /// The same without the schema, batch by batch.
    ///
    /// # Errors
    /// [`EncodeError`].
    pub fn body(
        &self,
    ) -> Result<
        impl Iterator<Item = Result<BatchMessages, EncodeError>> + Send + 'static,
        EncodeError,
    > {
        Ok(self.gate.guard(self.pinned_body()?))
    }

    /// The batches, which keep what they name pinned until the last of them is taken.
    fn pinned_body(
        &self,
    ) -> Result<
        impl Iterator<Item = Result<BatchMessages, EncodeError>> + Send + 'static,
        EncodeError,
    > {
        let kept = match &self.assembled {
            Some(assembled) => assembled.encoded(&self.form, &self.content)?,
            None => None,
        };
        let (kept, made) = match kept {
            Some(messages) => (Some(messages), None),
            None => {
                let dictionaries = Arc::clone(&self.form.dictionaries);
                let batches = self.encoded_batches();
                batches.check()?;
                (None, Some(batches.into_messages(dictionaries)))
            }
        };
        let kept = kept.map(|messages| (0..messages.len()).map(move |n| messages[n].clone()));
        let held = (self.hold(), Arc::clone(&self.charges));
        let batches = kept.into_iter().flatten().map(Ok).chain(made.into_iter().flatten());
        Ok(batches.inspect(move |_| {
            let _held = &held;
        }))
    }

    /// The batches for the wire, where their schema is that of the first message.
    fn encoded_batches(&self) -> Batches {
        self.content.batches_of(Arc::clone(&self.form.shape), Arc::clone(&self.form.schema))
    }

    /// The table's batches, made one after the other; at least one, if only an empty one.
    pub fn batches(&self) -> Batches {
        self.content.batches_of(Arc::clone(&self.form.shape), self.schema())
    }

    /// All batches at once.
    ///
    /// # Errors
    /// [`EncodeError`].
    pub fn to_batches(&self) -> Result<Vec<RecordBatch>, EncodeError> {
        self.batches().collect()
    }

    /// What is pinned for it, one pin per distinct object.
    pub fn pins(&self) -> &PinSet {
        &self.pins
    }

    /// Keeps all of it in shared memory for as long as that lives.
    pub fn hold(&self) -> Arc<InUseGuard> {
        Arc::clone(&self.pins)
    }
}

/// What can be said of a table before anything is loaded.
#[derive(Debug, Clone)]
pub struct Described {
    /// The table's schema.
    pub schema: SchemaRef,
    /// Its rows, where they can be told without a look at the versions.
    pub rows: Option<u64>,
}
