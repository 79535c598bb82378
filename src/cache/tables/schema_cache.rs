//! The schema cache: layout, schema and encoded schema message, shared by tables of one kind.
//!
//! ```text
//!  request × columns ──hash──▶ cached? ──yes──▶ TableSchema ──▶ Answer: with its lease
//!                                 │ no               ▲
//!                                 └─▶ make, insert ──┘
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

/// Maximum number of cached schemas,
const MAX_FORMS: usize = 1_000;
/// and of their bytes in total. Beyond either limit the cache is emptied.
const MAX_BYTES: usize = 16 << 20;
/// A larger schema is not cached.
const MAX_FORM_BYTES: usize = 8 << 20;

/// The schema of tables of one kind.
#[derive(Debug)]
pub(crate) struct TableSchema {
    key: SchemaKey,
    /// Its lease and timeframe are placeholders.
    pub(crate) shape: Arc<TableLayout>,
    /// Its metadata lack the lease and the timeframe.
    pub(crate) schema: SchemaRef,
    pub(crate) head: SchemaMessage,
    /// The dictionaries of the latest table.
    pub(crate) dictionaries: Arc<Dictionaries>,
}

impl TableSchema {
    fn has(&self, columns: &[ColumnRequest]) -> bool {
        let own = self.shape.columns.iter().map(|(name, path)| (name, path));
        own.eq(columns.iter().map(|column| (&column.name, &column.path)))
    }
}

/// The state shared by all tables of one stream.
#[derive(Debug)]
pub(crate) struct StreamSchema {
    pub(crate) form: Arc<TableSchema>,
    /// The columns of a registered timeframe that were found to equal those of the stream. The next
    /// timeframe usually shares them.
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

/// Everything that determines the schema, beside the columns.
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
    /// The key for the table of a request; the flags tell what is in its schema.
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

    /// The key for the tables of a stream, which share one schema. Cells can be null, since the
    /// timestamps of some table can be, and data of a single table is not in the schema.
    pub(crate) fn of_stream(request: &Request) -> Self {
        Self::new(request, true, false, false)
    }
}

/// The schemas of recent tables.
#[derive(Debug, Default)]
pub(crate) struct SchemaCache {
    hasher: RandomState,
    known: RwLock<CachedSchema>,
}

#[derive(Debug, Default)]
struct CachedSchema {
    /// By hash; with equal hashes the later one.
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
    /// The schema for `key` and `columns`.
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
        // The schema exists three times: encoded, as an Arrow schema, and as the layout.
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

/// The properties of this service instance in a schema.
#[derive(Debug)]
pub(crate) struct Instance<'a> {
    pub(crate) epoch: Epoch,
    /// The path of the attach socket.
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
