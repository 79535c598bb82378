//! Layout and schema of a table, known before any object is loaded.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_schema::{DataType, Field, Fields, Schema, SchemaRef};

use super::arrow_timestamps::TIMESTAMP;
use super::column::ColumnPath;
use super::request_options::{CellKind, Encoding, View};
use super::schema_metadata::SchemaMetadata;
use crate::shm::MetaHeader;

/// Metadata key of a column for its object path, as in AliceO2's tables.
const URL: &str = "url";
const EXTENSION_NAME: &str = "ARROW:extension:name";
const EXTENSION: &str = "iovcache.metaheader";
/// Keys of the schema's metadata whose values differ from table to table.
pub(crate) const TIMEFRAME: &str = "iovcache.timeframe";
pub(crate) const REGISTRATION: &str = "iovcache.registration";
pub(super) const LEASE: &str = "iovcache.lease";
pub(crate) const VERSIONS: &str = "iovcache.versions";

/// A timeframe in the metadata of a table's schema.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TimeframeMark {
    /// Id of the timeframe.
    pub timeframe: u64,
    /// Number of its registration, unique within the epoch: an id can be registered again.
    pub registration: u64,
}

/// Metadata of a table's schema.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableMetadata {
    /// Epoch of the service instance.
    pub epoch: String,
    /// Path of the attach socket.
    pub attach: Option<String>,
    /// The timeframe.
    pub timeframe: Option<TimeframeMark>,
    /// Id of the lease that keeps the objects.
    pub lease: Option<String>,
    /// Digest of which versions serve which rows.
    pub versions: Option<String>,
    /// Entries that the request asked for.
    pub requested: SchemaMetadata,
}

/// Values that differ in the schemas of tables with one layout.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct TableMarks<'a> {
    /// The timeframe.
    pub(crate) timeframe: Option<TimeframeMark>,
    /// Id of the lease.
    pub(crate) lease: Option<&'a str>,
    /// Digest of which versions serve which rows.
    pub(crate) versions: Option<&'a str>,
}

/// Layout of a table: rows, columns and their Arrow types.
#[derive(Debug, Clone)]
pub struct TableLayout {
    /// Kind of the rows.
    pub view: View,
    /// How columns are encoded.
    pub encoding: Encoding,
    /// Kind of the cells.
    pub cell: CellKind,
    /// Whether the timestamps are the first column.
    pub timestamps_column: bool,
    /// Whether timestamps can be null.
    pub null_timestamps: bool,
    /// Whether cells can be null.
    pub nullable: bool,
    /// Columns whose cells can be null even if `nullable` is false.
    pub optional: Vec<String>,
    /// Name and path of each column.
    pub columns: Vec<(Arc<str>, ColumnPath)>,
    /// Whether a column depends on a key; the view objects then has a column with its value.
    pub keyed: bool,
    /// Other metadata of the schema.
    pub meta: TableMetadata,
}

impl TableMetadata {
    fn entries(&self) -> HashMap<String, String> {
        let entries = [
            ("iovcache.version", Some(env!("CARGO_PKG_VERSION").to_owned())),
            ("iovcache.epoch", Some(self.epoch.clone())),
            ("iovcache.attach", self.attach.clone()),
            (TIMEFRAME, self.timeframe.map(|mark| mark.timeframe.to_string())),
            (REGISTRATION, self.timeframe.map(|mark| mark.registration.to_string())),
            (LEASE, self.lease.clone()),
            (VERSIONS, self.versions.clone()),
        ];
        let there = entries.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
        let requested = self.requested.iter();
        let requested = requested.map(|(key, value)| (key.to_owned(), value.to_owned()));
        there.chain(requested).collect()
    }
}

impl TableLayout {
    /// Arrow schema of the table; [`View`] lists the columns.
    pub fn schema(&self) -> SchemaRef {
        let fields = match self.view {
            View::Rows => self.row_fields(),
            View::Objects => object_fields(self.keyed),
            View::Distinct => self.distinct_fields(),
            View::Intervals => self.interval_fields(),
            View::Chunks => Fields::from(vec![
                Field::new("offset", DataType::Int64, false),
                Field::new("bytes", DataType::Binary, false),
            ]),
        };
        Arc::new(Schema::new_with_metadata(fields, self.meta.entries()))
    }

    /// Arrow schema of the table, made from that of a table with the same layout, `like`.
    pub(crate) fn schema_of(&self, like: &Schema, marks: TableMarks<'_>) -> SchemaRef {
        let [lease, versions] = [marks.lease, marks.versions].map(|text| text.map(str::to_owned));
        let meta =
            TableMetadata { timeframe: marks.timeframe, lease, versions, ..self.meta.clone() };
        Arc::new(Schema::new_with_metadata(like.fields.clone(), meta.entries()))
    }

    fn row_fields(&self) -> Fields {
        let timestamps = self
            .timestamps_column
            .then(|| Field::new(TIMESTAMP, DataType::Int64, self.null_timestamps));
        let columns = self.columns.iter().map(|(name, path)| {
            let mut metadata = self.extension();
            metadata.insert(URL.to_owned(), path.to_string());
            let nullable = self.nullable || self.optional.iter().any(|one| **one == **name);
            let data_type = encoded_type(self.encoding, self.cell, nullable);
            Field::new(&**name, data_type, nullable).with_metadata(metadata)
        });
        timestamps.into_iter().chain(columns).collect()
    }

    fn interval_fields(&self) -> Fields {
        let cell = Field::new("cell", cell_type(self.cell), false).with_metadata(self.extension());
        Fields::from(vec![
            Field::new("column", text_type(self.encoding), false),
            Field::new("path", text_type(self.encoding), false),
            Field::new("from", DataType::Int64, false),
            Field::new("until", DataType::Int64, false),
            Field::new("object_id", DataType::Utf8, false),
            cell,
        ])
    }

    fn distinct_fields(&self) -> Fields {
        let cell = Field::new("cell", cell_type(self.cell), false).with_metadata(self.extension());
        Fields::from(vec![
            Field::new("column", text_type(self.encoding), false),
            Field::new("path", text_type(self.encoding), false),
            Field::new("object_id", DataType::Utf8, false),
            cell,
            Field::new("first_row", DataType::Int64, false),
            Field::new("rows", DataType::Int64, false),
        ])
    }

    fn extension(&self) -> HashMap<String, String> {
        match self.cell {
            CellKind::Binary | CellKind::Struct => {
                HashMap::from([(EXTENSION_NAME.to_owned(), EXTENSION.to_owned())])
            }
            CellKind::O2 | CellKind::Payload => HashMap::new(),
        }
    }
}

/// The seven fields of a MetaHeader.
pub(super) fn header_fields() -> Fields {
    Fields::from(vec![
        Field::new("size", DataType::UInt64, false),
        Field::new("hint", DataType::UInt64, false),
        Field::new("handle", DataType::Int64, false),
        Field::new("shared", DataType::Int64, false),
        Field::new("region_id", DataType::UInt16, false),
        Field::new("segment_id", DataType::UInt16, false),
        Field::new("managed", DataType::UInt8, false),
    ])
}

/// Item of `FixedSizeList<Int64>[3]`, AliceO2's cell.
pub(super) fn o2_item() -> Arc<Field> {
    Arc::new(Field::new("item", DataType::Int64, false))
}

/// Arrow type of a cell.
pub(super) fn cell_type(cell: CellKind) -> DataType {
    match cell {
        CellKind::Binary => DataType::FixedSizeBinary(MetaHeader::BYTES as i32),
        CellKind::Struct => DataType::Struct(header_fields()),
        CellKind::O2 => DataType::FixedSizeList(o2_item(), 3),
        CellKind::Payload => DataType::LargeBinary,
    }
}

/// Arrow type of texts that repeat over many rows of the intervals view.
pub(super) fn text_type(encoding: Encoding) -> DataType {
    match encoding {
        Encoding::Plain | Encoding::Dictionary => DataType::Utf8,
        Encoding::RunEnd => DataType::RunEndEncoded(
            Arc::new(Field::new("run_ends", DataType::Int32, false)),
            Arc::new(Field::new("values", DataType::Utf8, false)),
        ),
    }
}

fn encoded_type(encoding: Encoding, cell: CellKind, nullable: bool) -> DataType {
    match encoding {
        Encoding::Plain => cell_type(cell),
        Encoding::Dictionary => {
            DataType::Dictionary(Box::new(DataType::Int32), Box::new(cell_type(cell)))
        }
        Encoding::RunEnd => DataType::RunEndEncoded(
            Arc::new(Field::new("run_ends", DataType::Int32, false)),
            Arc::new(Field::new("values", cell_type(cell), nullable)),
        ),
    }
}

/// Columns of the objects view.
fn object_fields(keyed: bool) -> Fields {
    let entry = Fields::from(vec![
        Field::new("key", DataType::Utf8, false),
        Field::new("value", DataType::Utf8, false),
    ]);
    let entries = Arc::new(Field::new("entries", DataType::Struct(entry), false));
    let mut fields = vec![
        Field::new("column", DataType::Utf8, false),
        Field::new("path", DataType::Utf8, false),
        Field::new("row_start", DataType::Int64, false),
        Field::new("row_end", DataType::Int64, false),
        Field::new("object_id", DataType::Utf8, false),
        Field::new("valid_from", DataType::Int64, false),
        Field::new("valid_until", DataType::Int64, false),
        Field::new("created", DataType::Int64, false),
        Field::new("size", DataType::UInt64, false),
        Field::new("generation", DataType::UInt64, false),
        Field::new("cache", DataType::Utf8, false),
        Field::new("metadata", DataType::Map(entries, false), false),
    ];
    if keyed {
        fields.push(Field::new("key", DataType::Utf8, true));
    }
    Fields::from(fields)
}
