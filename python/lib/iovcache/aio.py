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
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Optional, Type, TypeVar

from . import _client
from ._table import Table, TableContents

if TYPE_CHECKING:  # for type checkers alone: Python 3.9 does not have them
    from typing_extensions import Concatenate, ParamSpec

    _P = ParamSpec("_P")

_T = TypeVar("_T")
_R = TypeVar("_R")

__all__ = ["AsyncClient", "AsyncTable", "connect"]


def _in_thread(
    call: Callable[_P, _T], answer: Callable[[_T], _R]
) -> Callable[[Callable[..., None]], Callable[_P, Coroutine[Any, Any, _R]]]:
    """Makes the decorated function a coroutine that runs `call` in a thread; `answer` converts the
    result.
    """

    def make(_: Callable[..., None]) -> Callable[_P, Coroutine[Any, Any, _R]]:
        @functools.wraps(call)
        async def run(*args: _P.args, **options: _P.kwargs) -> _R:
            # A cancelled call runs to its end in its thread. Its result is then released.
            return answer(await asyncio.to_thread(call, *args, **options))

        return run

    return make


def _of_client(
    method: Callable[Concatenate[_client.Client, _P], _T], answer: Callable[[_T], _R]
) -> Callable[
    [Callable[..., None]], Callable[Concatenate[AsyncClient, _P], Coroutine[Any, Any, _R]]
]:
    """As `_in_thread`, for a method of the client."""

    @functools.wraps(method)
    def call(self: AsyncClient, *args: _P.args, **options: _P.kwargs) -> _T:
        return method(self.client, *args, **options)

    return _in_thread(call, answer)


def _same(result: _T) -> _T:
    return result


class AsyncTable(TableContents):
    """A table for ``async with``, with the members of :class:`iovcache.Table`. The first access to
    :attr:`objects` calls the service.
    """

    def __init__(self, table: Table) -> None:
        super().__init__(table._native)
        #: The table.
        self.table = table

    async def close(self) -> None:
        """As :meth:`iovcache.Table.close`."""
        await asyncio.to_thread(self.table.close)

    async def __aenter__(self) -> AsyncTable:
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        await asyncio.to_thread(self.table.__exit__, kind, error, trace)


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

    @_of_client(_client.Client.table, AsyncTable)
    def table(self) -> None: ...

    @_of_client(_client.Client.timeframe, AsyncTable)
    def timeframe(self) -> None: ...

    @_of_client(_client.Client.get, _same)
    def get(self) -> None: ...

    @_of_client(_client.Client.get_many, _same)
    def get_many(self) -> None: ...

    @_of_client(_client.Client.path, _same)
    def path(self) -> None: ...

    @_of_client(_client.Client.put_timeframe, _same)
    def put_timeframe(self) -> None: ...

    @_of_client(_client.Client.consumed, _same)
    def consumed(self) -> None: ...

    @_of_client(_client.Client.oldest_possible, _same)
    def oldest_possible(self) -> None: ...

    @_of_client(_client.Client.prefetch, _same)
    def prefetch(self) -> None: ...

    @_of_client(_client.Client.invalidate, _same)
    def invalidate(self) -> None: ...

    @_of_client(_client.Client.drop_timeframe, _same)
    def drop_timeframe(self) -> None: ...

    @_of_client(_client.Client.status, _same)
    def status(self) -> None: ...

    @_of_client(_client.Client.segments, _same)
    def segments(self) -> None: ...

    @_of_client(_client.Client.paths, _same)
    def paths(self) -> None: ...

    @_of_client(_client.Client.close, _same)
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


@_in_thread(_client.connect, AsyncClient)
def connect() -> None: ...
