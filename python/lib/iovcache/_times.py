"""Converts times of Python, numpy, pandas, Polars and Arrow to milliseconds since the Unix epoch.

A single time is an integer, an ISO 8601 text with a zone, ``now``, ``now-1h``, or an aware
datetime. A sequence of times is a column: as in Arrow and numpy, a column without a zone is in UTC.
Fractions of a millisecond are rounded down.
"""

from __future__ import annotations

import datetime
import operator
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, List, Optional, SupportsIndex, Union

import pyarrow as pa

from ._errors import invalid
from ._frames import column_names, first_names, is_frame, is_of
from ._native import milliseconds

#: A single time.
Time = Union[SupportsIndex, str, datetime.datetime, datetime.date]

Millis = Union[List[Optional[int]], "pa.Int64Array"]

_LEAST, _MOST, _MOST_COUNT = -(2**63), 2**63 - 1, 2**64 - 1
#: Units of numpy.
_MILLIS_PER = {"W": 604_800_000, "D": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
_PER_MILLI = {"us": 10**3, "ns": 10**6, "ps": 10**9, "fs": 10**12, "as": 10**15}
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
_EXPECTED = "milliseconds, an aware datetime, ISO 8601 with a zone, or now, now-1h, now+30m"


class NaiveTimestamps(UserWarning):
    """A column of timestamps has datetimes without a zone, which are read as UTC."""


def moment(value: Any, what: str) -> int:
    """A single time in milliseconds; ``what`` names it in errors."""
    if isinstance(value, str):
        try:
            return milliseconds(value)
        except ValueError as error:
            raise invalid(f"{what}: {error}") from None
    if _is_nat(value):
        raise invalid(f"{what} is {value!r}, which is no time; expected {_EXPECTED}")
    if isinstance(value, datetime.datetime):
        if value.utcoffset() is None:
            raise invalid(
                f"{what} is {value!r}, which has no time zone; expected an aware datetime, "
                "for instance value.replace(tzinfo=datetime.timezone.utc)"
            )
        return _of_datetime(value, what)
    if isinstance(value, datetime.date):
        midnight = datetime.datetime(value.year, value.month, value.day, tzinfo=_EPOCH.tzinfo)
        return _of_datetime(midnight, what)
    if _is_datetime64(value):
        return int(_of_datetime64(value.reshape(1), what)[0].as_py())
    return integer(value, what, expected=_EXPECTED)


def integer(value: Any, what: str, *, expected: str = "an integer") -> int:
    """An integer of any library (``operator.index``), as i64."""
    number = _index(value, what, expected)
    if not _LEAST <= number <= _MOST:
        raise invalid(f"{what} is {value!r}, which is no i64")
    return number


def count(value: Any, what: str) -> int:
    """An integer of any library, as u64: an id of a timeframe, a number of milliseconds."""
    expected = f"an integer from 0 to {_MOST_COUNT}"
    number = _index(value, what, expected)
    if not 0 <= number <= _MOST_COUNT:
        raise invalid(f"{what} is {value!r}; expected {expected}")
    return number


def seconds(value: Any, what: str) -> float:
    """A time limit in seconds."""
    try:
        limit = float(value)
    except (TypeError, ValueError, OverflowError):
        limit = -1.0
    if isinstance(value, (str, bytes)) or not 0 <= limit < _MOST_COUNT:
        raise invalid(f"{what} is {value!r}; expected seconds, at least 0")
    return limit


def _index(value: Any, what: str, expected: str) -> int:
    if isinstance(value, bool):
        raise invalid(f"{what} is {value!r}; expected {expected}")
    try:
        return operator.index(value)
    except TypeError:
        raise invalid(f"{what} is {value!r}; expected {expected}") from None


def _of_datetime(value: datetime.datetime, what: str) -> int:
    try:
        since = value - _EPOCH
    except (OverflowError, ValueError):
        # Times of pandas have a greater range than its differences.
        return moment(value.to_datetime64(), what)  # type: ignore[attr-defined]
    # Days alone are negative, and nanoseconds of pandas are left out: this rounds down.
    return (since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000


def column(values: Any) -> Millis:
    """A column of timestamps in milliseconds; null stays null."""
    if isinstance(values, list) and all(type(at) is int or at is None for at in values):
        for at in values:
            if at is not None and not _LEAST <= at <= _MOST:
                raise invalid(f"a timestamp is {at}, which is no i64")
        return values
    return _millis(_array(values))


def _refused(values: Any, why: str) -> Exception:
    kind = f"{type(values).__module__}.{type(values).__qualname__}".replace("builtins.", "")
    return invalid(f"timestamps is a {kind}: {why}")


def _array(given: Any) -> pa.Array:
    values: Any = given
    if isinstance(values, pa.ChunkedArray):
        return _combined(values)
    if isinstance(values, pa.Array):
        return values
    if values is None or isinstance(values, (str, bytes, bytearray, memoryview, Mapping)):
        raise _refused(values, "expected a sequence of times")
    if isinstance(values, (set, frozenset)):
        raise _refused(values, "its order is not defined; expected a sequence of times")
    names = column_names(values)
    if is_frame(values) or (names is not None and not isinstance(values, Iterable)):
        raise _refused(values, f"which of its columns? It has {first_names(names or [])}")
    try:
        if is_of(values, "polars"):
            return _combined(given.to_arrow())
        if is_of(values, "pandas"):
            if str(getattr(values, "dtype", "")) == "object":
                return _of_objects(list(values))
            return _combined(pa.array(values, from_pandas=True))
        if hasattr(values, "__arrow_array__"):
            return _combined(given.__arrow_array__())
        if hasattr(values, "__array__"):
            return _of_numpy(values)
        if hasattr(values, "__arrow_c_stream__") or hasattr(values, "__arrow_c_array__"):
            streamed = hasattr(values, "__arrow_c_stream__")
            return _combined(pa.chunked_array(values) if streamed else pa.array(values))
        if not isinstance(values, Iterable):
            raise _refused(values, "expected a sequence of times; a single one is [time]")
        return _of_objects(list(values))
    except (pa.ArrowException, TypeError, OverflowError, ValueError) as error:
        if isinstance(error, ValueError) and hasattr(error, "code"):
            raise
        raise _refused(values, f"these are no times: {error}") from error


def _combined(values: Any) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks() if values.num_chunks != 1 else values.chunk(0)
    if isinstance(values, pa.ChunkedArray):  # combine_chunks of some versions of pyarrow
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type)
    return values


def _of_numpy(values: Any) -> pa.Array:
    import numpy as np

    array = np.asanyarray(values)
    mask = np.ma.getmaskarray(array) if isinstance(array, np.ma.MaskedArray) else None
    array = np.asarray(array)
    if array.ndim != 1:
        raise _refused(values, f"it has {array.ndim} dimensions; expected one")
    if array.dtype.kind == "O":
        hidden = np.zeros(len(array), bool) if mask is None else mask
        return _of_objects([None if null else at for at, null in zip(array, hidden)])
    if array.dtype.kind == "M":
        if mask is not None:
            array = np.where(mask, np.datetime64("NaT"), array)
        return _of_datetime64(array, "a timestamp")
    if array.dtype.kind in "iu":
        native = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("=")))
        return pa.array(native, mask=mask)
    raise _refused(values, f"its type is {array.dtype}; expected integers or datetime64")


def _of_datetime64(array: Any, what: str) -> pa.Int64Array:
    """An array of datetime64 of any unit, also of a multiple such as ``M8[25s]``."""
    import numpy as np

    unit, count = np.datetime_data(array.dtype)
    if unit == "generic":
        raise invalid(f"{what} is a datetime64 without a unit; expected {_EXPECTED}")
    array = array.astype(array.dtype.newbyteorder("="))
    if count == 1 and unit in ("s", "ms", "us", "ns"):
        return _millis(pa.array(array))
    # numpy converts units without a check for overflow: these are integers of Python.
    ticks = array.astype(np.int64).tolist()
    millis = [
        None if null else _of_ticks(tick * count, unit)
        for tick, null in zip(ticks, np.isnat(array).tolist())
    ]
    for at in millis:
        if at is not None and not _LEAST <= at <= _MOST:
            raise invalid(f"{what} is at {at} ms, which is no i64 of milliseconds")
    return pa.array(millis, pa.int64())


def _of_ticks(ticks: int, unit: str) -> int:
    """Milliseconds at a number of units of numpy since the Unix epoch."""
    if unit in "YM":
        # The calendar repeats every 4,800 months.
        cycles, month = divmod(ticks * (12 if unit == "Y" else 1), 4_800)
        start = datetime.date(1970 + month // 12, month % 12 + 1, 1)
        return (cycles * 146_097 + start.toordinal() - _EPOCH.toordinal()) * 86_400_000
    if unit in _MILLIS_PER:
        return ticks * _MILLIS_PER[unit]
    return ticks // _PER_MILLI[unit]


def _of_objects(values: List[Any]) -> pa.Array:
    millis: List[Optional[int]] = []
    naive = False
    value: Any
    for value in values:
        if value is None or _is_nat(value):
            millis.append(None)
        elif isinstance(value, str):
            raise invalid(
                f"a timestamp is the text {value!r}; expected {_EXPECTED.split(',')[0]} or datetimes"
            )
        elif isinstance(value, datetime.datetime) and value.tzinfo is None:
            naive = True
            aware = value.replace(tzinfo=datetime.timezone.utc)
            millis.append(_of_datetime(aware, "a timestamp"))
        elif getattr(value, "shape", ()) != ():
            raise invalid(f"a timestamp is {value!r}; expected one dimension")
        else:
            millis.append(moment(value, "a timestamp"))
    if naive:
        message = "datetimes without a zone are taken as UTC; give them one to say so"
        warnings.warn(message, NaiveTimestamps, stacklevel=5)
    return pa.array(millis, pa.int64())


def _is_nat(value: Any) -> bool:
    missing = type(value).__name__ in ("NaTType", "NAType")
    return missing or (_is_datetime64(value) and bool(value != value))


def _is_datetime64(value: Any) -> bool:
    """Whether it is a datetime64 of numpy, or an array of no dimension with one."""
    if type(value).__module__ != "numpy":
        return False
    return getattr(value, "dtype", None) is not None and (value.dtype.kind, value.shape) == ("M", ())


def _compute(name: str) -> Any:
    """A function of pyarrow.compute, imported on demand: the import is slow."""
    import pyarrow.compute

    return getattr(pyarrow.compute, name)


def decoded(array: pa.Array, what: str) -> pa.Array:
    """The values of an array without dictionary, runs and extension type."""
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        plain = decoded(array.storage, what)
        if pa.types.is_integer(plain.type):
            # Booleans, periods: what such an integer counts is known to the extension alone.
            raise invalid(f"{what} {kind}; expected plain values, of no extension type")
        return plain
    if pa.types.is_dictionary(kind):
        return decoded(array.dictionary_decode(), what)
    if pa.types.is_run_end_encoded(kind):
        return decoded(_compute("run_end_decode")(array), what)
    return array


def _millis(array: pa.Array) -> pa.Int64Array:
    """Any Arrow array of times as int64 milliseconds."""
    array = decoded(array, "timestamps are")
    kind = array.type
    if pa.types.is_null(kind):
        return array.cast(pa.int64())
    try:
        if pa.types.is_integer(kind):
            return array.cast(pa.int64())
        if pa.types.is_timestamp(kind):
            ticks = array.cast(pa.int64()) if kind.unit != "s" else array.cast(
                pa.timestamp("ms", kind.tz)
            ).cast(pa.int64())
            scale = {"s": 1, "ms": 1, "us": 1000, "ns": 1_000_000}[kind.unit]
            return ticks if scale == 1 else _floored(ticks, scale)
        if pa.types.is_date(kind):
            return array.cast(pa.timestamp("ms")).cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise invalid(f"a timestamp is no i64 of milliseconds: {error}") from error
    raise invalid(f"timestamps are {kind}; expected integers (milliseconds) or timestamps")


def _floored(ticks: pa.Int64Array, scale: int) -> pa.Int64Array:
    # Arrow rounds quotients towards zero.
    unit, subtract = pa.scalar(scale, pa.int64()), _compute("subtract")
    quotient = _compute("divide")(ticks, unit)
    rest = subtract(ticks, _compute("multiply")(quotient, unit))
    less = _compute("less")(rest, pa.scalar(0, pa.int64())).cast(pa.int64())
    return subtract(quotient, less)
