"""Key columns, given separately or in one DataFrame with the timestamps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Dict, List, Tuple

import pyarrow as pa

from ._errors import invalid
from ._frames import arrow_table, first_names, is_of
from ._times import decoded

#: Names of the column of timestamps, in order of preference, as in the service.
TIMESTAMPS = ("timestamp", "fTimestamp")


def column(name: str, values: Any) -> pa.Array:
    """The values of a key as an Arrow array of int64 or strings; null stays null."""
    array = decoded(_array(name, values), f"keys: {name!r} is")
    kind = array.type
    if pa.types.is_null(kind):
        return array.cast(pa.int64())
    if pa.types.is_integer(kind):
        try:
            return array.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise invalid(f"keys: {name!r} has a value that is no i64: {error}") from error
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or str(kind) == "string_view":
        return array.cast(pa.string())
    raise invalid(f"keys: {name!r} is {kind}; expected integers or strings")


def _array(name: str, values: Any) -> pa.Array:
    if values is None or isinstance(values, (str, bytes, Mapping, set, frozenset)):
        kind = type(values).__name__
        raise invalid(f"keys: {name!r} is a {kind}; expected one value per timestamp")
    try:
        if isinstance(values, (pa.Array, pa.ChunkedArray)):
            array = values
        elif hasattr(values, "to_arrow"):
            array = values.to_arrow()
        elif is_of(values, "pandas"):
            array = pa.array(values, from_pandas=True)
        elif hasattr(values, "__array__") or hasattr(values, "__arrow_array__"):
            array = pa.array(values)
        else:
            values = list(values)
            if any(isinstance(value, bool) for value in values):
                raise invalid(f"keys: {name!r} has a bool; expected integers or strings")
            array = pa.array(values)
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise invalid(f"keys: {name!r}: {error}; expected integers or strings") from error
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks() if array.num_chunks != 1 else array.chunk(0)
    return array


def named_in(columns: Any) -> List[str]:
    """Names of the keys in the columns."""
    if not isinstance(columns, Mapping):
        return []
    specs = [column for column in columns.values() if isinstance(column, Mapping)]
    return sorted({str(spec["key"]) for spec in specs if "key" in spec})


def split(
    timestamps: Any, keys: Any, columns: Any
) -> Tuple[Any, Dict[str, pa.Array]]:
    """The timestamps and the keys of a call. Given are a column of timestamps and a mapping of
    keys, or a DataFrame with both; in that case ``keys`` are names of its columns, or None."""
    given = {} if not isinstance(keys, Mapping) else dict(keys)
    names: Iterable[str] = ()
    if isinstance(keys, str):
        names = [keys]
    elif keys is not None and not isinstance(keys, Mapping):
        if not isinstance(keys, Iterable):
            raise invalid(f"keys is {keys!r}; expected {{name: values}} or names of columns")
        names = [str(name) for name in keys]
    elif keys is None:
        names = named_in(columns)
    if not names and not given:
        # Without keys a DataFrame is refused: its column of timestamps would be a guess.
        return timestamps, {}
    table = arrow_table(timestamps, "timestamps")
    if table is None:
        if names and keys is not None:
            raise invalid(f"keys names {', '.join(names)}; the timestamps are no DataFrame with them")
        return timestamps, {name: column(name, values) for name, values in given.items()}
    for name in names:
        if name not in table.column_names:
            there = first_names(table.column_names)
            raise invalid(f"there is no column {name!r} in the timestamps; there are {there}")
        given[name] = table.column(name)
    times = _timestamps(table, list(given))
    return times, {name: column(name, values) for name, values in given.items()}


def _timestamps(table: pa.Table, keys: List[str]) -> pa.ChunkedArray:
    for name in TIMESTAMPS:
        if name in table.column_names:
            return table.column(name)
    fitting = [
        name
        for name, kind in zip(table.column_names, table.schema.types)
        if name not in keys and (pa.types.is_integer(kind) or pa.types.is_timestamp(kind))
    ]
    if len(fitting) != 1:
        there = first_names(table.column_names)
        raise invalid(
            f"timestamps has no column timestamp or fTimestamp; which of its columns? It has {there}"
        )
    return table.column(fitting[0])
