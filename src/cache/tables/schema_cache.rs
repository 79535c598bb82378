//! What all tables of one form have in common, made once: the shape, the schema, and its bytes.
//!
//! ```text
//!  request × columns ──hash──▶ known? ──yes──▶ Form ──▶ Answer: lease and timeframe of its own
//!                                 │ no               ▲
//!                                 └─▶ make it, keep ─┘
//! ```

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use arrow_schema::SchemaRef;
use foldhash::fast::RandomState;

use crate::shm::Epoch;
use crate::source::{Policies, WhenMissing};
use crate::table::{
    CellKind, ColumnRequest, Dictionaries, Encoding, Meta, Missing, Request, SchemaMessage,
    TableLayout, View,
};

/// So many forms are kept,
const MAX_FORMS: usize = 1_000;
/// which take this many bytes together; beyond, all are made anew as they are asked for.
const MAX_BYTES: usize = 16 << 20;
/// A form larger than this is not kept.
const MAX_FORM_BYTES: usize = 8 << 20;

/// A form of tables.
#[derive(Debug)]
pub(crate) struct TableSchema {
    key: SchemaKey,
    /// Lease and timeframe in it stand for any.
    pub(crate) shape: Arc<TableLayout>,
    /// Its metadata lack the lease and the timeframe.
    pub(crate) schema: SchemaRef,
    pub(crate) head: SchemaMessage,
    /// Those of the last table.
    pub(crate) dictionaries: Arc<Dictionaries>,
}

impl TableSchema {
    fn has(&self, columns: &[ColumnRequest]) -> bool {
        let own = self.shape.columns.iter().map(|(name, path)| (name, path));
        own.eq(columns.iter().map(|column| (&column.name, &column.path)))
    }
}

/// What all tables of one stream have in common, found out once.
#[derive(Debug)]
pub(crate) struct StreamSchema {
    pub(crate) form: Arc<TableSchema>,
    /// The columns of a timeframe in flight that were found to be those of the stream: the next
    /// timeframe has the very same, as a rule.
    registered: Mutex<Option<Arc<[ColumnRequest]>>>,
}

impl StreamSchema {
    pub(crate) fn new(form: Arc<TableSchema>) -> Self {
        Self { form, registered: Mutex::default() }
    }

    /// Whether a timeframe is registered with the columns of the stream.
    pub(crate) fn has(&self, own: &[ColumnRequest], registered: &Arc<[ColumnRequest]>) -> bool {
        let mut known = self.registered.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref().is_some_and(|known| Arc::ptr_eq(known, registered)) {
            return true;
        }
        let equal = *own == **registered;
        if equal {
            *known = Some(Arc::clone(registered));
        }
        equal
    }
}

/// What decides the form, beside the columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SchemaKey {
    view: View,
    encoding: Encoding,
    cell: CellKind,
    timestamps_column: bool,
    null_timestamps: bool,
    nullable: bool,
    timeframe: bool,
    lease: bool,
    attach: bool,
}

impl SchemaKey {
    /// Of the table of a request, which has these things in its schema.
    pub(crate) fn new(request: &Request, nulls: bool, timeframe: bool, lease: bool) -> Self {
        Self {
            view: request.view,
            encoding: request.encoding,
            cell: request.cell,
            timestamps_column: request.timestamps_column,
            null_timestamps: nulls,
            nullable: nulls || request.missing == Missing::Null,
            timeframe,
            lease,
            attach: false,
        }
    }

    /// Of one of many tables of a stream, which share one schema: cells can be null, since the
    /// timestamps of another can be, and what is of one table alone is not in it.
    pub(crate) fn of_stream(request: &Request) -> Self {
        Self::new(request, true, false, false)
    }
}

/// The forms of the tables that were sent.
#[derive(Debug, Default)]
pub(crate) struct SchemaCache {
    hasher: RandomState,
    known: RwLock<CachedSchema>,
}

#[derive(Debug, Default)]
struct CachedSchema {
    /// By hash; of two with the same one, the later.
    forms: HashMap<u64, Arc<TableSchema>, RandomState>,
    bytes: usize,
}

impl SchemaCache {
    fn hash(&self, key: SchemaKey, columns: &[ColumnRequest]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        key.hash(&mut hasher);
        for column in columns {
            column.name.hash(&mut hasher);
            column.path.hash(&mut hasher);
        }
        hasher.finish()
    }
}

impl SchemaCache {
    /// The form that `key` and `columns` decide.
    pub(crate) fn form(
        &self,
        key: SchemaKey,
        columns: &[ColumnRequest],
        instance: &Instance<'_>,
    ) -> Arc<TableSchema> {
        let key = SchemaKey { attach: instance.attach.is_some(), ..key };
        let hash = self.hash(key, columns);
        let known = {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            known.forms.get(&hash).map(Arc::clone)
        };
        if let Some(form) = known.filter(|form| form.key == key && form.has(columns)) {
            return form;
        }
        let form = Arc::new(TableSchema::new(key, columns, instance));
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        // Its schema is there three times: encoded, as Arrow's, and as the shape.
        let bytes = form.head.bytes() * 4;
        if bytes <= MAX_FORM_BYTES {
            if known.forms.len() == MAX_FORMS || known.bytes + bytes > MAX_BYTES {
                *known = CachedSchema::default();
            }
            known.bytes += bytes;
            known.forms.insert(hash, Arc::clone(&form));
        }
        form
    }
}

/// What the service itself contributes to a schema.
#[derive(Debug)]
pub(crate) struct Instance<'a> {
    pub(crate) epoch: Epoch,
    /// The attach socket.
    pub(crate) attach: Option<&'a Path>,
    pub(crate) policies: &'a Policies,
}

impl TableSchema {
    fn new(key: SchemaKey, columns: &[ColumnRequest], instance: &Instance<'_>) -> Self {
        let policies = instance.policies;
        let optional =
            |column: &&ColumnRequest| policies.missing(&column.path) == Some(WhenMissing::Optional);
        let optional = columns.iter().filter(optional).map(|column| column.name.to_string());
        let meta = Meta {
            epoch: instance.epoch.to_string(),
            attach: instance.attach.map(|path| path.display().to_string()),
            timeframe: key.timeframe.then_some(0),
            lease: key.lease.then(String::new),
        };
        let shape = TableLayout {
            view: key.view,
            encoding: key.encoding,
            cell: key.cell,
            timestamps_column: key.timestamps_column,
            null_timestamps: key.null_timestamps,
            nullable: key.nullable,
            optional: optional.collect(),
            columns: columns.iter().map(|one| (one.name.clone(), one.path.clone())).collect(),
            meta,
        };
        let head = SchemaMessage::new(&shape);
        let schema = shape.schema_of(&shape.schema(), None, None);
        Self { key, shape: Arc::new(shape), schema, head, dictionaries: Arc::default() }
    }
}
