"""A table and the objects of its cells."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any, Callable, Iterator, List, Optional, Tuple

import pyarrow as pa

from ._errors import FailedPrecondition, InvalidArgument
from ._resolver import MetaHeader

#: (row behind the last one, cell); a cell is 40 bytes, a payload, or None.
_Runs = List[Tuple[int, Any]]


class Column:
    """The objects of one column."""

    def __init__(self, table: "Table", name: str, runs: _Runs) -> None:
        self._table = table
        self.name = name
        self._runs = runs
        self._ends = [end for end, _ in runs]

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, row: int) -> Optional[memoryview]:
        """The object of a row, read-only; ``None`` where the cell is null."""
        if row < 0:
            row += len(self)
        if not 0 <= row < len(self):
            raise IndexError(f"the table has {len(self)} rows")
        return self._table._bytes(self._runs[bisect_right(self._ends, row)][1])

    def __iter__(self) -> Iterator[Optional[memoryview]]:
        for start, end, view in self.runs():
            for _ in range(start, end):
                yield view

    def runs(self) -> Iterator[Tuple[int, int, Optional[memoryview]]]:
        """First row, row behind the last one, and object of each run."""
        start = 0
        for end, cell in self._runs:
            yield start, end, self._table._bytes(cell)
            start = end

    def header(self, row: int) -> Optional[MetaHeader]:
        """The MetaHeader of a row, if its cell is one."""
        cell = self._runs[bisect_right(self._ends, row)][1]
        return MetaHeader.from_bytes(cell) if isinstance(cell, bytes) else None


class Table:
    """A table. Its objects stay where they are until it is closed."""

    def __init__(
        self,
        arrow: pa.Table,
        resolve: Optional[Callable[[MetaHeader], memoryview]],
        release: Callable[["Table"], None],
        objects: Callable[["Table"], pa.Table],
    ) -> None:
        #: The table as it came: one column of cells per object path.
        self.arrow = arrow
        self._resolve = resolve
        self._release = release
        self._load_objects = objects
        self._objects: Optional[pa.Table] = None
        self._closed = False
        self._columns = {
            field.name: Column(self, field.name, _runs(arrow.column(place)))
            for place, field in enumerate(arrow.schema)
            if field.metadata and b"url" in field.metadata
        }

    @property
    def lease(self) -> Optional[str]:
        """What keeps the objects."""
        return self._meta(b"iovcache.lease")

    @property
    def epoch(self) -> Optional[str]:
        """The instance of the service."""
        return self._meta(b"iovcache.epoch")

    def _meta(self, key: bytes) -> Optional[str]:
        value = (self.arrow.schema.metadata or {}).get(key)
        return value.decode() if value is not None else None

    @property
    def column_names(self) -> List[str]:
        """The columns of objects."""
        return list(self._columns)

    @property
    def objects(self) -> pa.Table:
        """Which version served which rows: column, path, row_start, row_end, object_id, …"""
        if self._objects is None:
            self._objects = self._load_objects(self)
        return self._objects

    def __len__(self) -> int:
        return int(self.arrow.num_rows)

    def __getitem__(self, name: str) -> Column:
        try:
            return self._columns[name]
        except KeyError:
            known = ", ".join(self._columns)
            raise KeyError(f"the table has no column {name!r}; it has {known}") from None

    def _bytes(self, cell: Any) -> Optional[memoryview]:
        if self._closed:
            raise FailedPrecondition("the table is closed: its objects may be gone")
        if cell is None:
            return None
        if isinstance(cell, memoryview):
            return cell
        if self._resolve is None:
            raise FailedPrecondition("not attached: ask with cell='payload'")
        return self._resolve(MetaHeader.from_bytes(cell))

    def close(self) -> None:
        """Lets the objects go."""
        if not self._closed:
            self._closed = True
            self._release(self)

    def __enter__(self) -> "Table":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _runs(column: pa.ChunkedArray) -> _Runs:
    runs: _Runs = []
    before = 0
    for chunk in column.chunks:
        for end, cell in _chunk_runs(chunk):
            if runs and _same(runs[-1][1], cell):
                runs[-1] = (before + end, runs[-1][1])
            else:
                runs.append((before + end, cell))
        before += len(chunk)
    return runs


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, memoryview) or isinstance(other, memoryview):
        return one is other
    return bool(one == other)


def _chunk_runs(chunk: pa.Array) -> Iterator[Tuple[int, Any]]:
    if len(chunk) == 0:
        return
    if pa.types.is_run_end_encoded(chunk.type):
        first, count = chunk.find_physical_offset(), chunk.find_physical_length()
        ends = chunk.run_ends.slice(first, count).to_pylist()
        values = chunk.values.slice(first, count)
        for place, end in enumerate(ends):
            yield min(end - chunk.offset, len(chunk)), _cell(values, place)
    elif pa.types.is_dictionary(chunk.type):
        cells: dict = {}
        keys = chunk.indices.to_pylist()
        for row, key in enumerate(keys):
            if row + 1 == len(keys) or keys[row + 1] != key:
                if key not in cells:
                    cells[key] = None if key is None else _cell(chunk.dictionary, key)
                yield row + 1, cells[key]
    else:
        for row in range(len(chunk)):
            yield row + 1, _cell(chunk, row)


def _cell(values: pa.Array, place: int) -> Any:
    value = values[place]
    if not value.is_valid:
        return None
    if pa.types.is_fixed_size_binary(value.type):
        return value.as_py()
    if pa.types.is_large_binary(value.type) or pa.types.is_binary(value.type):
        return memoryview(value.as_buffer()).toreadonly()
    if pa.types.is_struct(value.type):
        return MetaHeader(**value.as_py()).to_bytes()
    raise InvalidArgument(f"cells of type {value.type} cannot be resolved")
