"""A table and the objects of its cells."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Type

import pyarrow as pa

from ._errors import ObjectsInUse
from ._native import Column, NativeTable

if TYPE_CHECKING:
    import pandas
    import polars

_warned = threading.Event()


class TableContents:
    """The contents of a table: what :class:`Table` and :class:`iovcache.aio.AsyncTable` share."""

    def __init__(self, native: NativeTable) -> None:
        self._native = native
        self._columns: Dict[str, Column] = dict(native.columns())
        self._arrow: Optional[pa.Table] = None
        self._objects: Optional[pa.Table] = None

    @property
    def arrow(self) -> pa.Table:
        """The table in Arrow: one row per timestamp, one column of cells per requested column."""
        if self._arrow is None:
            self._arrow = _read(self._native.arrow())
        return self._arrow

    @property
    def objects(self) -> pa.Table:
        """The version of each run of rows: column, path, row_start, row_end, object_id, …"""
        if self._objects is None:
            self._objects = _read(self._native.objects())
        return self._objects

    @property
    def lease(self) -> Optional[str]:
        """The id of the lease that pins the objects; ``None`` if the table is :attr:`local`."""
        return self._native.metadata("iovcache.lease")

    @property
    def local(self) -> bool:
        """Whether the table was taken from shared memory, without a request."""
        return self._native.local

    @property
    def epoch(self) -> Optional[str]:
        """The id of the service's instance."""
        return self._native.metadata("iovcache.epoch")

    @property
    def column_names(self) -> List[str]:
        """Names of the columns of objects."""
        return list(self._columns)

    @property
    def closed(self) -> bool:
        """Whether the table is closed."""
        return self._native.closed

    def __arrow_c_stream__(self, requested_schema: Optional[object] = None) -> object:
        """The table for any library that reads Arrow streams: ``polars.DataFrame(table)``, DuckDB's
        ``from table``. Dictionaries and runs are decoded, because not every reader supports them. The
        metadata of the schema and its fields is that of :attr:`arrow`.
        """
        return _plain(self.arrow).__arrow_c_stream__(requested_schema)

    def to_pandas(self) -> pandas.DataFrame:
        """One row per timestamp; cells as in :attr:`arrow`, with dictionaries and runs decoded."""
        return _plain(self.arrow).to_pandas()

    def to_polars(self) -> polars.DataFrame:
        """One row per timestamp; cells as in :attr:`arrow`, with dictionaries and runs decoded."""
        import polars

        # Without metadata: functions of Polars refuse extension types that it does not know.
        plain = _plain(self.arrow)
        frame = polars.from_arrow(pa.table(plain.columns, names=plain.column_names))
        assert isinstance(frame, polars.DataFrame)
        return frame

    def __len__(self) -> int:
        return self._native.rows

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __getitem__(self, name: str) -> Column:
        try:
            return self._columns[name]
        except KeyError:
            known = ", ".join(self._columns)
            raise KeyError(f"the table has no column {name!r}; it has {known}") from None

    def __repr__(self) -> str:
        state = ", closed" if self.closed else ""
        return f"<iovcache.Table of {len(self)} rows, columns {', '.join(self._columns)}{state}>"

    def _repr_html_(self) -> str:
        columns = self._columns.values()
        lines = "".join(f"<tr><td>{c.name}</td><td>{c.path}</td></tr>" for c in columns)
        return f"<table><tr><th>{len(self)} rows</th><th>path</th></tr>{lines}</table>"

    def __reduce__(self) -> Any:
        raise TypeError(
            "a table cannot be pickled: its objects are pinned for this process; send bytes(object), "
            "or ask for the table in the other process"
        )


class Table(TableContents):
    """A table. Its objects are pinned until the table is closed, and longer while they are in use:
    the lease ends with the last one.
    """

    def __init__(self, native: NativeTable, consumed: Optional[Callable[[], object]] = None) -> None:
        super().__init__(native)
        self._consumed = consumed

    def close(self) -> None:
        """Releases the objects: those in use once they are no longer used, the others at once."""
        if self._native.close() and not _warned.is_set():
            _warned.set()
            warnings.warn(
                "a table is closed while objects of it are in use; its memory is released with the "
                "last of them (this is said once)",
                ObjectsInUse,
                stacklevel=2,
            )

    def __enter__(self) -> Table:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()
        # A consumer that failed can request the table again.
        if self._consumed is not None and kind is None:
            self._consumed()


def _read(stream: Any) -> pa.Table:
    return pa.RecordBatchReader.from_stream(stream).read_all()


def _plain(table: pa.Table) -> pa.Table:
    import pyarrow.compute

    compute: Any = pyarrow.compute  # its functions are created at run time
    columns: List[Any] = []
    fields: List[pa.Field] = []
    for field, column in zip(table.schema, table.columns):
        if pa.types.is_run_end_encoded(column.type):
            column = compute.run_end_decode(column)
        elif pa.types.is_dictionary(column.type):
            # Neither cast nor dictionary_decode supports nested types.
            rows = [chunk.dictionary.take(chunk.indices) for chunk in column.chunks]
            column = pa.chunked_array(rows, column.type.value_type)
        columns.append(column)
        fields.append(field.with_type(column.type))
    return pa.Table.from_arrays(columns, schema=pa.schema(fields, table.schema.metadata))
