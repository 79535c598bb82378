//! The options of a request that have a fixed set of values.

use serde::{Deserialize, Serialize};

/// Arrow encoding of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// `Dictionary<Int32, cell>`.
    #[default]
    Dictionary,
    /// `RunEndEncoded<Int32, cell>`.
    RunEnd,
    /// The cell in every row, not encoded.
    Plain,
}

/// Kind of the cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CellKind {
    /// The MetaHeader's bytes: `FixedSizeBinary(40)`.
    #[default]
    Binary,
    /// The MetaHeader's seven fields: `Struct`.
    Struct,
    /// handle, segment id, size: `FixedSizeList<Int64>[3]`, the cell of AliceO2's CCDB tables.
    O2,
    /// The object's bytes: `LargeBinary`.
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
    /// One row per chunk of one object: `offset` in bytes (Int64), `bytes` (Binary).
    Chunks,
    /// One row per distinct object of a column: `column`, `path` (Utf8, also run-end encoded),
    /// `object_id` (Utf8), `cell`, `first_row`, `rows` (Int64).
    Distinct,
}

/// Treatment of timestamps at which no object is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// The request fails.
    #[default]
    Error,
    /// The cell is null.
    Null,
}
