//! The options of a request that have a fixed set of values.

use serde::{Deserialize, Serialize};

/// Arrow encoding of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// `Dictionary<Int32, cell>`: each distinct cell of a column crosses the wire once per table.
    /// pandas, Polars and DuckDB read it.
    #[default]
    Dictionary,
    /// `RunEndEncoded<run_ends: Int32, values: cell>`: one cell per run of equal rows. Its size
    /// follows the number of runs, not of rows.
    RunEnd,
    /// The cell in every row, not encoded: 40 bytes per row and column with [`CellKind::Binary`].
    Plain,
}

/// Kind of the cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CellKind {
    /// The MetaHeader's bytes: `FixedSizeBinary(40)`, little endian, the layout of
    /// `fair::mq::shmem::MetaHeader` on x86-64.
    #[default]
    Binary,
    /// The MetaHeader's seven fields: `Struct<size: UInt64, hint: UInt64, handle: Int64, shared:
    /// Int64, region_id: UInt16, segment_id: UInt16, managed: UInt8>`, none nullable.
    Struct,
    /// handle, segment id, size: `FixedSizeList<Int64>[3]`, the cell of AliceO2's CCDB tables.
    O2,
    /// The object's bytes: `LargeBinary`. An object of more than 64 MiB is refused:
    /// [`View::Chunks`] sends it in pieces.
    Payload,
}

/// Kind of the rows of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum View {
    /// One row per timestamp: optionally `timestamp` (Int64, milliseconds), then a column of cells
    /// for each requested column.
    #[default]
    Rows,
    /// One row per run, with the version that served it: `column`, `path` (Utf8), `row_start`,
    /// `row_end` (Int64), `object_id` (Utf8), `valid_from`, `valid_until`, `created` (Int64,
    /// milliseconds), `size` in bytes, `generation` (UInt64), `cache` (Utf8), `metadata` (Map), and
    /// `key` (Utf8) if a column depends on a key.
    Objects,
    /// One row per effective span that touches a range: `column`, `path` (Utf8, also run-end
    /// encoded), `from`, `until` (Int64, milliseconds), `object_id` (Utf8), `cell`.
    Intervals,
    /// One row per chunk of one object: `offset` in bytes (Int64), `bytes` (Binary, at most 1 MiB).
    /// The request has one column and one timestamp; an object of 0 bytes has no row.
    Chunks,
    /// One row per distinct object of a column: `column`, `path` (Utf8, also run-end encoded),
    /// `object_id` (Utf8), `cell`, `first_row`, `rows` (Int64).
    Distinct,
}

/// Treatment of timestamps at which no object is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// The request is NOT_FOUND. The error names each such column with its first and last
    /// timestamp.
    #[default]
    Error,
    /// The cell is null, and the field of the column is nullable.
    Null,
}
