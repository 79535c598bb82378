"""DataFrames and Arrow tables that users pass."""

from __future__ import annotations

import collections
from typing import Any, List, Optional

import pyarrow as pa

from ._errors import invalid

#: Names of the classes of pandas, Polars and libraries that follow them.
_FRAMES = ("DataFrame", "LazyFrame")


def is_of(values: Any, library: str) -> bool:
    """Whether it is an instance of a class of a library, or of a class derived from one."""
    return any(kind.__module__.split(".")[0] == library for kind in type(values).__mro__)


def is_frame(values: Any) -> bool:
    """Whether it is a table with named columns."""
    if isinstance(values, (pa.Table, pa.RecordBatch)):
        return True
    return any(kind.__name__ in _FRAMES for kind in type(values).__mro__)


def column_names(values: Any) -> Optional[List[str]]:
    """The names of the columns; ``None`` if it has no columns."""
    names: Any
    if isinstance(values, (pa.Table, pa.RecordBatch)):
        names = values.schema.names
    elif hasattr(values, "collect_schema"):
        names = values.collect_schema().names()
    else:
        names = getattr(values, "columns", getattr(values, "column_names", None))
    return None if names is None else [str(name) for name in names]


def first_names(names: List[str]) -> str:
    """The first of some names, for messages."""
    return ", ".join(names[:8])


def arrow_table(values: Any, what: str) -> Optional[pa.Table]:
    """A DataFrame or Arrow table as an Arrow table; ``None`` for anything else."""
    if not is_frame(values):
        return None
    names = column_names(values) or []
    twice = [name for name, count in collections.Counter(names).items() if count > 1]
    if twice:
        raise invalid(f"{what} has more than one column {first_names(twice)}")
    try:
        if isinstance(values, pa.RecordBatch):
            return pa.Table.from_batches([values])
        if isinstance(values, pa.Table):
            return values
        if is_of(values, "pandas"):
            return pa.Table.from_pandas(values, preserve_index=False)
        return values.to_arrow() if hasattr(values, "to_arrow") else None
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise invalid(f"{what} is no table of Arrow: {error}") from error
