"""Timestamps that stay here: the service tells the effective spans, and the rows are made here.

Only where that loads nothing more than the rows need. Where two neighbouring timestamps are never
farther apart than some gap, each span of that length holds one of them: the service is told the gap,
and refuses if it has shorter spans.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any, Dict, List, Mapping, Optional, Tuple

import pyarrow as pa
import pyarrow.compute as pc

#: Fewer timestamps than this are sent along: that costs less than spans, which are larger than cells.
MIN_ROWS = 20_000

#: The code with which a gap is refused.
SHORT_SPAN = "IOV-2013"

_LAST = 2**63 - 1


class Held:
    """Ascending timestamps, in milliseconds, and the request that they are for."""

    def __init__(self, array: pa.Array, columns: Mapping[str, Any], gap: int) -> None:
        self._array = array
        self._columns = columns
        self._gap = gap

    @staticmethod
    def of(request: Mapping[str, Any], timestamps: Any) -> Optional["Held"]:
        """The timestamps, where rows can be made of them here."""
        plain = request["encoding"] == "run_end" and request.get("cell", "binary") == "binary"
        columns = request.get("columns")
        if not plain or not columns or request.get("timestamps_column"):
            return None
        if "session" in request or "timeframe" in request or "range" in request:
            return None
        array = _millis(timestamps)
        if array is None or len(array) < MIN_ROWS or array.null_count:
            return None
        if array[-1].as_py() >= _LAST - 1:
            return None
        try:
            gaps = pc.subtract_checked(array.slice(1), array.slice(0, len(array) - 1))
        except pa.ArrowInvalid:
            return None
        least, most = pc.min_max(gaps).values()
        if least.as_py() < 0:
            return None
        return Held(array, columns, max(most.as_py(), 1))

    def millis(self) -> List[int]:
        """The timestamps as a request has them."""
        return self._array.to_pylist()

    def spans_request(self, request: Mapping[str, Any]) -> Dict[str, Any]:
        """What the service is asked for."""
        first, last = self._array[0].as_py(), self._array[-1].as_py()
        bounds = {"from": first, "until": last + 1, "gap": self._gap}
        return {**request, "range": bounds, "view": "intervals"}

    def join(self, spans: pa.Table, nullable: bool) -> Optional[pa.Table]:
        """The rows; nothing where there are gaps, of which the service has to say what they mean."""
        values = memoryview(self._array.buffers()[1]).cast("q")
        offset, rows = self._array.offset, len(self._array)
        values = values[offset : offset + rows]
        starts, ends = spans.column("from").to_pylist(), spans.column("until").to_pylist()
        cells = spans.column("cell").combine_chunks()
        places = _places(spans.column("column"))
        fields, arrays = [], []
        for name, column in self._columns.items():
            first, last = places.get(name, (0, 0))
            run_ends, used, row = [], [], 0
            for place in range(first, last):
                if row < rows and values[row] < starts[place]:
                    return None
                end = bisect_left(values, ends[place], row)
                if end > row:
                    run_ends.append(end)
                    used.append(place)
                    row = end
            if row < rows:
                return None
            runs = pa.array(run_ends, pa.int32())
            array = pa.RunEndEncodedArray.from_arrays(runs, cells.take(pa.array(used, pa.int32())))
            path = column if isinstance(column, str) else column["path"]
            metadata = {"url": path, "ARROW:extension:name": "iovcache.metaheader"}
            fields.append(pa.field(name, array.type, nullable, metadata))
            arrays.append(array)
        return pa.Table.from_arrays(arrays, schema=pa.schema(fields, spans.schema.metadata))


def _millis(timestamps: Any) -> Optional[pa.Array]:
    """As plain Arrow milliseconds, where that needs no rounding."""
    try:
        if isinstance(timestamps, pa.ChunkedArray):
            timestamps = timestamps.combine_chunks()
        if isinstance(timestamps, (list, tuple)):
            if len(timestamps) < MIN_ROWS or not all(type(at) is int for at in timestamps):
                return None
            return pa.array(timestamps, pa.int64())
        if not isinstance(timestamps, pa.Array):
            timestamps = pa.array(timestamps)
        kind = timestamps.type
        if pa.types.is_integer(kind) or (pa.types.is_timestamp(kind) and kind.unit == "ms"):
            return timestamps.cast(pa.int64())
    except (pa.ArrowException, TypeError, OverflowError):
        # What is wrong with them is said where they are sent.
        pass
    return None


def _places(names: pa.ChunkedArray) -> Dict[str, Tuple[int, int]]:
    """The rows of each column, which follow each other."""
    places: Dict[str, Tuple[int, int]] = {}
    before = 0
    for chunk in names.chunks:
        start = 0
        for end, name in zip(chunk.run_ends.to_pylist(), chunk.values.to_pylist()):
            first, _ = places.get(name, (before + start, 0))
            places[name] = (first, before + end)
            start = end
        before += len(chunk)
    return places
