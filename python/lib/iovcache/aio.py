"""The calls of :mod:`iovcache` for asyncio. Each runs in a thread, so the event loop is not blocked.

    >>> from iovcache import aio
    >>> async def main():
    ...     async with await aio.connect("grpc://localhost:50051") as client:
    ...         async with await client.table({"v": "TPC/Calib/VDrift"}, timestamps=[5]) as table:
    ...             print(bytes(table["v"][0]))
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, List, Optional, Type, TypeVar

import pyarrow as pa

from . import _client
from ._native import Column
from ._table import Table

if TYPE_CHECKING:  # for type checkers alone: Python 3.9 does not have them
    import pandas
    import polars
    from typing_extensions import Concatenate, ParamSpec

    _P = ParamSpec("_P")

_T = TypeVar("_T")

__all__ = ["AsyncClient", "AsyncTable", "connect"]


async def _run(call: Callable[_P, _T], *args: _P.args, **options: _P.kwargs) -> _T:
    # A cancelled call runs to its end in its thread. Its result is then released.
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(None, functools.partial(call, *args, **options))


def _client_of(
    connect: Callable[_P, _client.Client],
) -> Callable[[Callable[..., None]], Callable[_P, Coroutine[Any, Any, AsyncClient]]]:
    """Makes the decorated function a coroutine that connects, with the arguments of `connect`."""

    def make(_: Callable[..., None]) -> Callable[_P, Coroutine[Any, Any, AsyncClient]]:
        @functools.wraps(connect)
        async def call(*args: _P.args, **options: _P.kwargs) -> AsyncClient:
            return AsyncClient(await _run(connect, *args, **options))

        return call

    return make


def _call(
    method: Callable[Concatenate[_client.Client, _P], _T],
) -> Callable[
    [Callable[..., None]], Callable[Concatenate[AsyncClient, _P], Coroutine[Any, Any, _T]]
]:
    """Makes the decorated method a coroutine with the arguments and the result of `method`."""

    def make(
        _: Callable[..., None],
    ) -> Callable[Concatenate[AsyncClient, _P], Coroutine[Any, Any, _T]]:
        @functools.wraps(method)
        async def call(self: AsyncClient, *args: _P.args, **options: _P.kwargs) -> _T:
            return await _run(method, self.client, *args, **options)

        return call

    return make


def _table(
    method: Callable[Concatenate[_client.Client, _P], Table],
) -> Callable[
    [Callable[..., None]], Callable[Concatenate[AsyncClient, _P], Coroutine[Any, Any, AsyncTable]]
]:
    """Like `_call`, for methods that return a table."""

    def make(
        _: Callable[..., None],
    ) -> Callable[Concatenate[AsyncClient, _P], Coroutine[Any, Any, AsyncTable]]:
        @functools.wraps(method)
        async def call(self: AsyncClient, *args: _P.args, **options: _P.kwargs) -> AsyncTable:
            return AsyncTable(await _run(method, self.client, *args, **options))

        return call

    return make


class AsyncTable:
    """A table for ``async with``, with the members of :class:`iovcache.Table`."""

    def __init__(self, table: Table) -> None:
        #: The table.
        self.table = table

    @property
    def arrow(self) -> pa.Table:
        """As :attr:`iovcache.Table.arrow`."""
        return self.table.arrow

    @property
    def objects(self) -> pa.Table:
        """As :attr:`iovcache.Table.objects`. The first access calls the service."""
        return self.table.objects

    @property
    def lease(self) -> Optional[str]:
        """As :attr:`iovcache.Table.lease`."""
        return self.table.lease

    @property
    def local(self) -> bool:
        """As :attr:`iovcache.Table.local`."""
        return self.table.local

    @property
    def epoch(self) -> Optional[str]:
        """As :attr:`iovcache.Table.epoch`."""
        return self.table.epoch

    @property
    def column_names(self) -> List[str]:
        """As :attr:`iovcache.Table.column_names`."""
        return self.table.column_names

    @property
    def closed(self) -> bool:
        """As :attr:`iovcache.Table.closed`."""
        return self.table.closed

    def to_pandas(self) -> pandas.DataFrame:
        """As :meth:`iovcache.Table.to_pandas`."""
        return self.table.to_pandas()

    def to_polars(self) -> polars.DataFrame:
        """As :meth:`iovcache.Table.to_polars`."""
        return self.table.to_polars()

    def __arrow_c_stream__(self, requested_schema: Optional[object] = None) -> object:
        """As :meth:`iovcache.Table.__arrow_c_stream__`."""
        return self.table.__arrow_c_stream__(requested_schema)

    def __getitem__(self, name: str) -> Column:
        return self.table[name]

    def __contains__(self, name: object) -> bool:
        return name in self.table

    def __iter__(self) -> Iterator[str]:
        return iter(self.table)

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        return repr(self.table)

    def _repr_html_(self) -> str:
        return self.table._repr_html_()

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
    """A connection to a service, with the calls of :class:`iovcache.Client` as coroutines."""

    def __init__(self, client: _client.Client) -> None:
        #: The client that makes the calls.
        self.client = client

    @property
    def url(self) -> str:
        """The address of the service."""
        return self.client.url

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self.client.closed

    @_table(_client.Client.table)
    def table(self) -> None: ...

    @_table(_client.Client.timeframe)
    def timeframe(self) -> None: ...

    @_call(_client.Client.get)
    def get(self) -> None: ...

    @_call(_client.Client.get_many)
    def get_many(self) -> None: ...

    @_call(_client.Client.path)
    def path(self) -> None: ...

    @_call(_client.Client.put_timeframe)
    def put_timeframe(self) -> None: ...

    @_call(_client.Client.consumed)
    def consumed(self) -> None: ...

    @_call(_client.Client.oldest_possible)
    def oldest_possible(self) -> None: ...

    @_call(_client.Client.prefetch)
    def prefetch(self) -> None: ...

    @_call(_client.Client.invalidate)
    def invalidate(self) -> None: ...

    @_call(_client.Client.drop_timeframe)
    def drop_timeframe(self) -> None: ...

    @_call(_client.Client.status)
    def status(self) -> None: ...

    @_call(_client.Client.segments)
    def segments(self) -> None: ...

    @_call(_client.Client.paths)
    def paths(self) -> None: ...

    @_call(_client.Client.close)
    def close(self) -> None: ...

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        await self.close()


@_client_of(_client.connect)
def connect() -> None: ...
