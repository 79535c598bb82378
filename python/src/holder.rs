//! The holder of an object's bytes: the lease of its table, or the pin of a look-up.

use std::sync::Arc;

use pyo3::prelude::*;

use crate::plane_object::PlaneObject;
use crate::shared::Shared;

/// The pin of an object, and the source of the facts about its version.
pub(crate) enum Holder {
    /// A cell of a table, whose lease pins it.
    Table {
        shared: Arc<Shared>,
        column: String,
        /// The first row that the object serves.
        row: usize,
    },
    /// The object of a path at a time.
    Plane(PlaneObject),
}

impl Holder {
    /// In a forked child no object is pinned: each read checks that the block still holds the object.
    pub(crate) fn check(&self) -> PyResult<()> {
        match self {
            Self::Plane(object) => object.check(),
            Self::Table { shared, column, row } => shared.check(column, *row),
        }
    }

    /// The object id.
    pub(crate) fn id(&self, py: Python<'_>) -> PyResult<String> {
        match self {
            Self::Plane(object) => Ok(object.id()),
            Self::Table { .. } => self.record(py, "object_id")?.extract(),
        }
    }

    /// The version's own validity interval in milliseconds.
    pub(crate) fn validity(&self, py: Python<'_>) -> PyResult<(i64, i64)> {
        match self {
            Self::Plane(object) => Ok(object.validity()),
            Self::Table { .. } => {
                let from = self.record(py, "valid_from")?.extract()?;
                Ok((from, self.record(py, "valid_until")?.extract()?))
            }
        }
    }

    /// A field of the objects view; the service is asked for it the first time.
    pub(crate) fn record<'py>(&self, py: Python<'py>, field: &str) -> PyResult<Bound<'py, PyAny>> {
        let record = match self {
            Self::Plane(object) => object.record(py)?,
            Self::Table { shared, column, row } => shared.objects(py)?.record(py, column, *row)?,
        };
        record.as_any().get_item(field)
    }
}
