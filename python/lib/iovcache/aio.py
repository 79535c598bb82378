"""The calls of :mod:`iovcache` for asyncio. Each call runs in a thread.

    >>> from iovcache import aio
    >>> async def main():
    ...     async with await aio.connect("grpc://localhost:50051") as client:
    ...         async with await client.table({"v": "TPC/Calib/VDrift"}, timestamps=[5]) as table:
    ...             print(bytes(table["v"][0]))
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from types import TracebackType
from typing import Any, Dict, Optional, Type, TypeVar

from . import _client
from ._native import Column, Object
from ._table import Table

_T = TypeVar("_T")

__all__ = ["AsyncClient", "AsyncTable", "connect"]


async def _run(call: Callable[..., _T], *args: Any, **options: Any) -> _T:
    # A cancelled call runs to its end in its thread. Its result is then released.
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(None, functools.partial(call, *args, **options))


async def connect(url: str, **options: Any) -> AsyncClient:
    """As :func:`iovcache.connect`."""
    return AsyncClient(await _run(_client.connect, url, **options))


class AsyncTable:
    """A table for ``async with``. All other attributes are those of :class:`iovcache.Table`."""

    def __init__(self, table: Table) -> None:
        #: The wrapped table.
        self.table = table

    def __getattr__(self, name: str) -> Any:
        return getattr(self.table, name)

    def __getitem__(self, name: str) -> Column:
        return self.table[name]

    def __len__(self) -> int:
        return len(self.table)

    async def close(self) -> None:
        """As :meth:`iovcache.Table.close`."""
        await _run(self.table.close)

    async def __aenter__(self) -> AsyncTable:
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        await _run(self.table.__exit__, kind, error, trace)


class AsyncClient:
    """A connection to a service. Its methods have the arguments of :class:`iovcache.Client`."""

    def __init__(self, client: _client.Client) -> None:
        #: The wrapped client.
        self.client = client

    @property
    def url(self) -> str:
        """The address of the service."""
        return self.client.url

    async def table(self, *args: Any, **options: Any) -> AsyncTable:
        """As :meth:`iovcache.Client.table`."""
        return AsyncTable(await _run(self.client.table, *args, **options))

    async def timeframe(self, timeframe: int, **options: Any) -> AsyncTable:
        """As :meth:`iovcache.Client.timeframe`."""
        return AsyncTable(await _run(self.client.timeframe, timeframe, **options))

    async def get(self, path: str, *args: Any, **options: Any) -> Object:
        """As :meth:`iovcache.Client.get`."""
        return await _run(self.client.get, path, *args, **options)

    async def put_timeframe(self, timeframe: int, timestamps: Any, **options: Any) -> Dict[str, Any]:
        """As :meth:`iovcache.Client.put_timeframe`."""
        return await _run(self.client.put_timeframe, timeframe, timestamps, **options)

    async def consumed(self, timeframe: int, *, consumer: str) -> Dict[str, Any]:
        """As :meth:`iovcache.Client.consumed`."""
        return await _run(self.client.consumed, timeframe, consumer=consumer)

    async def oldest_possible(self, timeframe: int, *, consumer: str) -> Dict[str, Any]:
        """As :meth:`iovcache.Client.oldest_possible`."""
        return await _run(self.client.oldest_possible, timeframe, consumer=consumer)

    async def prefetch(self, columns: _client.Columns, **options: Any) -> Dict[str, Any]:
        """As :meth:`iovcache.Client.prefetch`."""
        return await _run(self.client.prefetch, columns, **options)

    async def invalidate(self, path: str) -> Dict[str, Any]:
        """As :meth:`iovcache.Client.invalidate`."""
        return await _run(self.client.invalidate, path)

    async def drop_timeframe(self, timeframe: int) -> Dict[str, Any]:
        """As :meth:`iovcache.Client.drop_timeframe`."""
        return await _run(self.client.drop_timeframe, timeframe)

    async def status(self) -> Dict[str, Any]:
        """As :meth:`iovcache.Client.status`."""
        return await _run(self.client.status)

    async def segments(self) -> Dict[str, Any]:
        """As :meth:`iovcache.Client.segments`."""
        return await _run(self.client.segments)

    async def paths(self, prefix: str = "") -> Dict[str, int]:
        """As :meth:`iovcache.Client.paths`."""
        return await _run(self.client.paths, prefix)

    async def close(self) -> None:
        """As :meth:`iovcache.Client.close`."""
        await _run(self.client.close)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        await self.close()
