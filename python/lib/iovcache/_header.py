"""MetaHeaders: the 40 bytes of a cell."""

from __future__ import annotations

import struct
from typing import NamedTuple, Union

from ._errors import InvalidArgument

_HEADER = struct.Struct("<QQqqHHB3x")


class MetaHeader(NamedTuple):
    """The place of an object in shared memory. It pins no object: only tables and objects do."""

    size: int
    hint: int
    handle: int
    shared: int
    region_id: int
    segment_id: int
    managed: int

    @classmethod
    def from_bytes(cls, data: Union[bytes, bytearray, memoryview]) -> MetaHeader:
        """Parses exactly 40 bytes. Raises :class:`InvalidArgument` for any other length."""
        if len(data) != _HEADER.size:
            message = f"[IOV-4020] a MetaHeader has 40 bytes, these are {len(data)}"
            raise InvalidArgument(message, "IOV-4020")
        return cls(*_HEADER.unpack(data))

    def to_bytes(self) -> bytes:
        """The 40 bytes."""
        return _HEADER.pack(*self)
