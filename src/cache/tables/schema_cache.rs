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
use std::sync::Arc;

use arrow_schema::SchemaRef;
use foldhash::fast::RandomState;

use crate::object::ObjectPath;
use crate::shm::Epoch;
use crate::source::{Policies, WhenMissing};
use crate::sync::{Mutex, RwLock};
use crate::table::{
    CellKind, ColumnRequest, Dictionaries, Encoding, Meta, Missing, Request, SchemaMessage,
    SchemaMetadata, TableLayout, View,
};

/// Maximum number of cached schemas,
const MAX_SCHEMAS: usize = 1_000;
/// and of their bytes in total. Beyond either limit the cache is emptied.
const MAX_BYTES: usize = 16 << 20;
/// A larger schema is not cached.
const MAX_SCHEMA_BYTES: usize = 8 << 20;

/// The schema of tables of one kind.
#[derive(Debug)]
pub(crate) struct TableSchema {
    key: SchemaKey,
    /// The keys with null values.
    null_keys: Box<[Arc<str>]>,
    /// The key that each column depends on.
    keys: Box<[Option<Arc<str>>]>,
    /// Its lease and timeframe are placeholders.
    pub(crate) layout: Arc<TableLayout>,
    /// Its metadata lack the lease and the timeframe.
    pub(crate) schema: SchemaRef,
    pub(crate) head: SchemaMessage,
    /// The dictionaries of the latest table.
    pub(crate) dictionaries: Arc<Dictionaries>,
}

impl TableSchema {
    fn is_for(&self, key: &SchemaKey, columns: &[ColumnRequest], null_keys: &[Arc<str>]) -> bool {
        let own = self
            .layout
            .columns
            .iter()
            .zip(&self.keys)
            .map(|((name, path), key)| (name, path, key.as_ref()));
        let wanted = columns
            .iter()
            .map(|column| (&column.name, &column.path, column.key.as_ref().map(|used| &used.key)));
        self.key == *key && *self.null_keys == *null_keys && own.eq(wanted)
    }
}

/// The state shared by all tables of one stream.
#[derive(Debug)]
pub(crate) struct StreamSchema {
    pub(crate) table_schema: Arc<TableSchema>,
    /// The columns of a registered timeframe that were found to equal those of the stream. The next
    /// timeframe usually shares them.
    registered: Mutex<Option<Arc<[ColumnRequest]>>>,
}

impl StreamSchema {
    pub(crate) fn new(table_schema: Arc<TableSchema>) -> Self {
        Self { table_schema, registered: Mutex::default() }
    }

    /// Whether a timeframe is registered with the columns of the stream.
    pub(crate) fn has(&self, own: &[ColumnRequest], registered: &Arc<[ColumnRequest]>) -> bool {
        let mut known = self.registered.lock();
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
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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
    requested: SchemaMetadata,
}

impl SchemaKey {
    /// The key for the table of a request; the flags name the parts of its schema.
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
            requested: request.schema_metadata.clone(),
        }
    }

    /// Whether the request asked for metadata of its own, so that few others share the schema.
    pub(crate) fn is_individual(&self) -> bool {
        !self.requested.is_empty()
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
    schema_cache: HashMap<u64, Arc<TableSchema>, RandomState>,
    bytes: usize,
}

impl SchemaCache {
    fn hash(&self, key: &SchemaKey, columns: &[ColumnRequest], null_keys: &[Arc<str>]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        key.hash(&mut hasher);
        null_keys.hash(&mut hasher);
        for column in columns {
            column.name.hash(&mut hasher);
            column.path.hash(&mut hasher);
            column.key.as_ref().map(|used| &used.key).hash(&mut hasher);
        }
        hasher.finish()
    }
}

impl SchemaCache {
    /// The schema for `key` and `columns`, with the keys that have nulls.
    pub(crate) fn table_schema(
        &self,
        key: SchemaKey,
        columns: &[ColumnRequest],
        null_keys: &[Arc<str>],
        instance: &Instance<'_>,
    ) -> Arc<TableSchema> {
        let key = SchemaKey { attach: instance.attach.is_some(), ..key };
        let hash = self.hash(&key, columns, null_keys);
        let known = {
            let known = self.known.read();
            known.schema_cache.get(&hash).map(Arc::clone)
        };
        if let Some(table_schema) =
            known.filter(|table_schema| table_schema.is_for(&key, columns, null_keys))
        {
            return table_schema;
        }
        let table_schema = Arc::new(TableSchema::new(key, columns, null_keys, instance));
        let mut known = self.known.write();
        // The schema exists three times: encoded, as an Arrow schema, and as the layout.
        let bytes = table_schema.head.bytes() * 4;
        if bytes <= MAX_SCHEMA_BYTES {
            if known.schema_cache.len() == MAX_SCHEMAS || known.bytes + bytes > MAX_BYTES {
                *known = CachedSchema::default();
            }
            known.bytes += bytes;
            known.schema_cache.insert(hash, Arc::clone(&table_schema));
        }
        table_schema
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
    fn new(
        key: SchemaKey,
        columns: &[ColumnRequest],
        null_keys: &[Arc<str>],
        instance: &Instance<'_>,
    ) -> Self {
        let policies = instance.policies;
        let is_optional = |path: &ObjectPath| policies.missing(path) == Some(WhenMissing::Optional);
        let optional = |column: &&ColumnRequest| {
            column.path.paths().into_iter().any(is_optional)
                || column.key.as_ref().is_some_and(|used| null_keys.contains(&used.key))
        };
        let optional = columns.iter().filter(optional).map(|column| column.name.to_string());
        let meta = Meta {
            epoch: instance.epoch.to_string(),
            attach: instance.attach.map(|path| path.display().to_string()),
            timeframe: key.timeframe.then_some(0),
            lease: key.lease.then(String::new),
            requested: key.requested.clone(),
        };
        let layout = TableLayout {
            view: key.view,
            encoding: key.encoding,
            cell: key.cell,
            timestamps_column: key.timestamps_column,
            null_timestamps: key.null_timestamps,
            nullable: key.nullable,
            optional: optional.collect(),
            columns: columns.iter().map(|one| (one.name.clone(), one.path.clone())).collect(),
            keyed: columns.iter().any(|one| one.key.is_some()),
            meta,
        };
        let head = SchemaMessage::new(&layout);
        let schema = layout.schema_of(&layout.schema(), None, None);
        let keys = columns.iter().map(|one| Some(Arc::clone(&one.key.as_ref()?.key)));
        Self {
            key,
            null_keys: null_keys.into(),
            keys: keys.collect(),
            layout: Arc::new(layout),
            schema,
            head,
            dictionaries: Arc::default(),
        }
    }
}
