//! The columns of tables, interned, and the schemas of their tables.
//!
//! ```text
//!  columns ──hash──▶ ColumnSet: equal columns are one set ──SchemaKey──▶ TableSchema ──▶ Answer
//!                       ▲                                     layout, schema, schema message,
//!                       └ held by timeframes and streams      dictionaries: made once
//! ```
//!
//! Timeframes and streams hold their set, so they neither hash nor compare columns per table.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow_schema::SchemaRef;
use foldhash::fast::RandomState;

use crate::object::ObjectPath;
use crate::shm::Epoch;
use crate::source::{Policies, WhenMissing};
use crate::sync::RwLock;
use crate::table::{
    CellKind, ColumnRequest, Dictionaries, Encoding, Missing, Request, SchemaMessage,
    SchemaMetadata, TableLayout, TableMarks, TableMetadata, TimeframeMark, View,
};

/// Maximum number of interned sets of columns,
const MAX_SETS: usize = 1_000;
/// and of their bytes in total, with their schemas. Beyond either limit no set is known any more;
/// timeframes and streams keep theirs.
const MAX_BYTES: usize = 16 << 20;
/// Maximum size of the schemas of one set, and of a set that is interned.
const MAX_SET_BYTES: usize = 8 << 20;
/// Maximum number of schemas of one set.
const MAX_SCHEMAS: usize = 64;

/// Number of the next schema.
static NEXT_SCHEMA: AtomicU64 = AtomicU64::new(1);

/// The columns of tables. Dereferences to them.
#[derive(Debug)]
pub(crate) struct ColumnSet {
    columns: Box<[ColumnRequest]>,
    schemas: RwLock<Schemas>,
}

/// The schemas of one set, each in another form.
#[derive(Debug, Default)]
struct Schemas {
    known: Vec<Arc<TableSchema>>,
    bytes: usize,
}

impl Deref for ColumnSet {
    type Target = [ColumnRequest];

    fn deref(&self) -> &[ColumnRequest] {
        &self.columns
    }
}

impl ColumnSet {
    fn new(columns: &[ColumnRequest]) -> Self {
        Self { columns: columns.into(), schemas: RwLock::default() }
    }

    /// Whether both are sets of equal columns. The same set is recognised by its address; equal
    /// columns can have two sets if one of them is not interned any more.
    pub(crate) fn equals(self: &Arc<Self>, other: &Arc<Self>) -> bool {
        Arc::ptr_eq(self, other) || self.columns == other.columns
    }

    fn known(&self, key: &SchemaKey) -> Option<Arc<TableSchema>> {
        self.schemas.read().known.iter().find(|schema| schema.key == *key).map(Arc::clone)
    }

    /// Keeps a schema, unless it is too large. Returns its bytes then.
    fn keep(&self, schema: &Arc<TableSchema>) -> usize {
        let bytes = schema.memory_bytes();
        if bytes > MAX_SET_BYTES {
            return 0;
        }
        let mut schemas = self.schemas.write();
        if schemas.known.len() == MAX_SCHEMAS || schemas.bytes + bytes > MAX_SET_BYTES {
            *schemas = Schemas::default();
        }
        schemas.bytes += bytes;
        schemas.known.push(Arc::clone(schema));
        bytes
    }
}

/// The schema of tables with the same columns and form.
#[derive(Debug)]
pub(crate) struct TableSchema {
    key: SchemaKey,
    /// Unique in the process.
    pub(crate) number: u64,
    /// Its [`TableMarks`] are placeholders.
    pub(crate) layout: Arc<TableLayout>,
    /// Its metadata lack the [`TableMarks`].
    pub(crate) schema: SchemaRef,
    pub(crate) schema_message: SchemaMessage,
    /// The dictionaries of the latest table.
    pub(crate) dictionaries: Arc<Dictionaries>,
}

/// The columns and the schema shared by all tables of one stream.
#[derive(Debug)]
pub(crate) struct StreamSchema {
    pub(crate) columns: Arc<ColumnSet>,
    pub(crate) table_schema: Arc<TableSchema>,
}

/// The form of a table: everything that determines its schema, beside the columns.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// The keys with null values.
    null_keys: Vec<Arc<str>>,
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
            null_keys: Vec::new(),
            requested: request.schema_metadata.clone(),
        }
    }

    /// With the keys that have null values.
    #[must_use]
    pub(crate) fn with_null_keys(self, null_keys: Vec<Arc<str>>) -> Self {
        Self { null_keys, ..self }
    }

    /// Whether the schema says which versions serve which rows, because the cells do not.
    fn names_versions(&self) -> bool {
        let by_cells = matches!(self.cell, CellKind::Binary | CellKind::Struct);
        self.lease && self.view == View::Rows && !by_cells
    }

    /// The key for the tables of a stream, which share one schema. Cells can be null, since the
    /// timestamps of some table can be, and data of a single table is not in the schema.
    pub(crate) fn of_stream(request: &Request) -> Self {
        Self::new(request, true, false, false)
    }
}

/// The sets of columns of recent tables.
#[derive(Debug, Default)]
pub(crate) struct ColumnSets {
    hasher: RandomState,
    known: RwLock<KnownSets>,
}

/// The known sets of columns, and their memory in bytes.
#[derive(Debug, Default)]
struct KnownSets {
    /// By hash; with equal hashes the later one.
    sets: HashMap<u64, Arc<ColumnSet>, RandomState>,
    bytes: usize,
}

impl KnownSets {
    /// Makes room for more bytes.
    fn take(&mut self, bytes: usize) {
        if self.sets.len() >= MAX_SETS || self.bytes + bytes > MAX_BYTES {
            *self = Self::default();
        }
        self.bytes += bytes;
    }
}

impl ColumnSets {
    /// The set of these columns.
    pub(crate) fn intern(&self, columns: &[ColumnRequest]) -> Arc<ColumnSet> {
        let hash = self.hasher.hash_one(columns);
        let known = self.known.read().sets.get(&hash).map(Arc::clone);
        if let Some(known) = known.filter(|known| known[..] == *columns) {
            return known;
        }
        let set = Arc::new(ColumnSet::new(columns));
        let bytes = columns.iter().map(ColumnRequest::memory_bytes).sum::<u64>();
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        if bytes <= MAX_SET_BYTES {
            let mut known = self.known.write();
            known.take(bytes);
            known.sets.insert(hash, Arc::clone(&set));
        }
        set
    }

    /// The schema of tables with these columns in the form `key`.
    pub(crate) fn table_schema(
        &self,
        columns: &Arc<ColumnSet>,
        key: SchemaKey,
        instance: &Instance<'_>,
    ) -> Arc<TableSchema> {
        let key = SchemaKey { attach: instance.attach.is_some(), ..key };
        if let Some(known) = columns.known(&key) {
            return known;
        }
        let schema = Arc::new(TableSchema::new(key, columns, instance));
        let bytes = columns.keep(&schema);
        self.known.write().take(bytes);
        schema
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
        let is_optional = |path: &ObjectPath| policies.missing(path) == Some(WhenMissing::Optional);
        let optional = |column: &&ColumnRequest| {
            column.path.paths().into_iter().any(is_optional)
                || column.key.as_ref().is_some_and(|used| key.null_keys.contains(&used.key))
        };
        let optional = columns.iter().filter(optional).map(|column| column.name.to_string());
        let meta = TableMetadata {
            epoch: instance.epoch.to_string(),
            attach: instance.attach.map(|path| path.display().to_string()),
            timeframe: key.timeframe.then(TimeframeMark::default),
            lease: key.lease.then(String::new),
            versions: key.names_versions().then(String::new),
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
        let schema_message = SchemaMessage::new(&layout);
        let schema = layout.schema_of(&layout.schema(), TableMarks::default());
        let (layout, dictionaries) = (Arc::new(layout), Arc::default());
        let number = NEXT_SCHEMA.fetch_add(1, Ordering::Relaxed);
        Self { key, number, layout, schema, schema_message, dictionaries }
    }

    /// Memory in bytes: the schema exists three times, encoded, as an Arrow schema, and as the
    /// layout.
    fn memory_bytes(&self) -> usize {
        self.schema_message.bytes() * 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::ColumnList;

    fn columns(path: &str) -> Vec<ColumnRequest> {
        let json = format!(r#"{{"a": {{"path": "{path}", "key": "run"}}, "b": "B"}}"#);
        let ColumnList(columns) = serde_json::from_str(&json).unwrap();
        columns
    }

    fn key(metadata: usize) -> SchemaKey {
        let json = format!(
            r#"{{"table": "t", "timestamps": [], "schema_metadata": {{"n": "{metadata}"}}}}"#
        );
        SchemaKey::new(&Request::parse(json.as_bytes()).unwrap(), false, true, true)
    }

    fn instance(policies: &Policies) -> Instance<'_> {
        Instance { epoch: Epoch(1), attach: None, policies }
    }

    #[test]
    fn equal_columns_are_one_set_with_one_schema_per_form() {
        let (sets, policies) = (ColumnSets::default(), Policies::default());
        let instance = instance(&policies);
        let [one, same, other] = ["A", "A", "C"].map(|path| sets.intern(&columns(path)));
        assert!(Arc::ptr_eq(&one, &same) && one.equals(&same));
        assert!(!Arc::ptr_eq(&one, &other) && !one.equals(&other));
        let made = sets.table_schema(&one, key(1), &instance);
        assert!(Arc::ptr_eq(&made, &sets.table_schema(&same, key(1), &instance)));
        let null_keys = key(1).with_null_keys(vec!["run".into()]);
        for different in [key(2), null_keys] {
            let found = sets.table_schema(&one, different.clone(), &instance);
            assert!(!Arc::ptr_eq(&made, &found) && found.key == different);
        }
        let of_other = sets.table_schema(&other, key(1), &instance);
        assert_eq!(of_other.layout.columns[0].1.to_string(), "C");
        assert!(!Arc::ptr_eq(&made, &of_other));
    }

    #[test]
    fn schemas_of_many_forms_and_columns_take_bounded_memory() {
        let (sets, policies) = (ColumnSets::default(), Policies::default());
        let instance = instance(&policies);
        let set = sets.intern(&columns("A"));
        for metadata in 0..3 * MAX_SCHEMAS {
            sets.table_schema(&set, key(metadata), &instance);
            let schemas = set.schemas.read();
            let bytes = schemas.known.iter().map(|schema| schema.memory_bytes()).sum::<usize>();
            assert!(schemas.known.len() <= MAX_SCHEMAS && bytes == schemas.bytes);
        }
        for number in 0..2 * MAX_SETS {
            sets.intern(&columns(&format!("P{number}")));
            assert!(sets.known.read().sets.len() <= MAX_SETS);
        }
        // A set in use keeps its schemas, and equals the one that was interned after it.
        let again = sets.intern(&columns("A"));
        assert!(set.equals(&again) && !Arc::ptr_eq(&set, &again));
        assert!(set.known(&SchemaKey { attach: false, ..key(3 * MAX_SCHEMAS - 1) }).is_some());
    }
}
