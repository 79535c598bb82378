//! The options of a request that have a fixed set of values.

use serde::{Deserialize, Serialize};

/// The shape of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// `Dictionary<Int32, cell>`.
    #[default]
    Dictionary,
    /// `RunEndEncoded<Int32, cell>`.
    RunEnd,
    /// The cell itself in every row.
    Plain,
}

/// What stands in a cell.
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

/// What the rows of the answer are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum View {
    /// One per timestamp.
    #[default]
    Rows,
    /// One per run: which version served it.
    Objects,
    /// One per effective span that touches a range.
    Intervals,
    /// Pieces of one object.
    Chunks,
    /// One per distinct object of a column.
    Distinct,
}

/// What happens where nothing is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// The request fails.
    #[default]
    Error,
    /// The cell is null.
    Null,
}
