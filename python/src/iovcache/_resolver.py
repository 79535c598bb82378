"""From a MetaHeader to the bytes: checked on every field, without any I/O."""

from __future__ import annotations

import mmap
import struct
import threading
from typing import Dict, NamedTuple, Tuple, Union

from ._errors import FailedPrecondition, InvalidArgument, Stale

_HEADER = struct.Struct("<QQqqHHB3x")
_BLOCK = struct.Struct("<QQ")

#: What stands in front of each payload.
_OVERHEAD = 64
#: The head of a segment.
_SEGMENT_HEADER = 4096


class MetaHeader(NamedTuple):
    """Where an object lies: the 40 bytes of a cell."""

    size: int
    hint: int
    handle: int
    shared: int
    region_id: int
    segment_id: int
    managed: int

    @classmethod
    def from_bytes(cls, data: Union[bytes, memoryview]) -> "MetaHeader":
        """From exactly 40 bytes."""
        if len(data) != _HEADER.size:
            raise InvalidArgument(f"a MetaHeader has 40 bytes, these are {len(data)}", "IOV-4020")
        return cls(*_HEADER.unpack(data))

    def to_bytes(self) -> bytes:
        """The 40 bytes."""
        return _HEADER.pack(*self)

    @property
    def place(self) -> Tuple[str, int]:
        """Kind and number of the segment or region."""
        return ("segment", self.segment_id) if self.managed else ("region", self.region_id)


class Resolver:
    """The segments and regions that are mapped, read-only."""

    def __init__(self) -> None:
        self._views: Dict[Tuple[str, int], memoryview] = {}
        self._lock = threading.Lock()

    def add(self, kind: str, number: int, size: int, fd: int) -> None:
        """Maps a segment or region; the descriptor is still the caller's afterwards."""
        # The mapping lives as long as any view of it: it is never closed by hand.
        view = memoryview(mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ))
        if kind == "segment" and bytes(view[256:264]) != b"IOVCACHE":
            raise FailedPrecondition(f"segment {number} is none of iovcache", "IOV-4051")
        with self._lock:
            self._views = {**self._without_retired(), (kind, number): view}

    def _without_retired(self) -> Dict[Tuple[str, int], memoryview]:
        # What the service has given back keeps memory from the node as long as it is mapped.
        def in_use(place: Tuple[str, int], view: memoryview) -> bool:
            return place[0] != "segment" or bytes(view[76:80]) == b"\0\0\0\0"

        return {place: view for place, view in self._views.items() if in_use(place, view)}

    def knows(self, header: MetaHeader) -> bool:
        """Whether the segment or region of a header is mapped."""
        return header.place in self._views

    def resolve(self, header: Union[MetaHeader, bytes]) -> memoryview:
        """The object's bytes, read-only and without a copy.

        Raises:
            Stale: the object was given up.
            FailedPrecondition: its segment is not mapped.
            InvalidArgument: no such header can be.
        """
        if not isinstance(header, MetaHeader):
            header = MetaHeader.from_bytes(header)
        if header.managed not in (0, 1):
            raise InvalidArgument(f"managed is {header.managed}", "IOV-4042")
        view = self._views.get(header.place)
        if view is None:
            kind, number = header.place
            code = "IOV-4040" if header.managed else "IOV-4041"
            raise FailedPrecondition(f"{kind} {number} is not mapped", code)
        payload = header.handle + 16 if header.managed else header.handle
        first = _SEGMENT_HEADER + _OVERHEAD if header.managed else _OVERHEAD
        if payload % _OVERHEAD:
            message = f"no payload can begin at handle {header.handle}"
            raise InvalidArgument(message, "IOV-4043")
        if payload < first or payload + header.size > len(view):
            message = f"{header.size} bytes at handle {header.handle} reach out of the segment"
            raise InvalidArgument(message, "IOV-4044")
        generation, size = _BLOCK.unpack_from(view, payload - _OVERHEAD)
        if generation != header.hint or generation == 0:
            message = f"the block has generation {generation} where {header.hint} is asked for"
            raise Stale(message, "IOV-4045")
        if size != header.size:
            message = f"the block has {size} bytes where the header says {header.size}"
            raise InvalidArgument(message, "IOV-4046")
        return view[payload : payload + size]
