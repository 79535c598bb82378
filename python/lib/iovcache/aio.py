"""The calls of :mod:`iovcache` for asyncio. Each runs in a thread, so the event loop is not blocked.
Cancelling the task of a call ends the call at once; so do ``asyncio.wait_for`` and Ctrl-C.

Waits for a timeframe or a change take no thread: the loop waits for a descriptor, if it can
(``loop.add_reader``), and the thread is for the result.

    >>> from iovcache import aio
    >>> async def main():
    ...     async with await aio.connect("grpc://localhost:50051") as client:
    ...         async with await client.table({"v": "TPC/Calib/VDrift"}, timestamps=[5]) as table:
    ...             print(bytes(table["v"][0]))
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Optional, Type, TypeVar, Union

from . import _client
from ._errors import DeadlineExceeded
from ._native import NativeEvent, Object
from ._table import Table, TableContents
from ._threads import in_thread
from ._times import Time, count, seconds

if TYPE_CHECKING:  # for type checkers alone: Python 3.9 does not have them
    from typing_extensions import Concatenate, ParamSpec

    _P = ParamSpec("_P")

#: First and longest pause of a wait for a path that the service does not publish, in seconds.
_PAUSES = 0.001, 1.0

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
            return answer(await in_thread(call, *args, **options))

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


async def _until_readable(event: NativeEvent, limit: Optional[float]) -> bool:
    """Waits for the descriptor of an event, which is then closed; False after ``limit`` seconds."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    descriptor = event.fileno()

    def is_readable() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(descriptor, is_readable)
    try:
        await asyncio.wait_for(ready, limit)
    except asyncio.TimeoutError:
        return False
    finally:
        loop.remove_reader(descriptor)
        event.close()
    return True


class _Limit:
    """A time limit in seconds; None: no limit."""

    def __init__(self, seconds: Optional[float]) -> None:
        self._ends = None if seconds is None else time.monotonic() + seconds

    def left(self) -> Optional[float]:
        return None if self._ends is None else max(0.0, self._ends - time.monotonic())


async def _until_loaded(client: _client.Client, timeframe: int, limit: _Limit) -> None:
    """Waits until a timeframe is no longer being loaded, as far as shared memory tells."""
    number = count(timeframe, "timeframe")
    while True:
        event = await in_thread(client._native.timeframe_event, number)
        if event is None or not await _until_readable(event, limit.left()):
            return


def _after_loading(
    take: Callable[Concatenate[AsyncClient, _P], Coroutine[Any, Any, AsyncTable]],
) -> Callable[Concatenate[AsyncClient, _P], Coroutine[Any, Any, AsyncTable]]:
    """Waits for the timeframe before ``take``, without a thread."""

    @functools.wraps(take)
    async def run(self: AsyncClient, *args: _P.args, **options: _P.kwargs) -> AsyncTable:
        wait_ms: Any = options.get("wait_ms")
        patience = self.client._patience
        limit = _Limit(patience if wait_ms is None else count(wait_ms, "wait_ms") / 1000)
        timeframe: Any = args[0] if args else options.get("timeframe")
        await _until_loaded(self.client, timeframe, limit)
        if wait_ms is not None:
            options["wait_ms"] = min(wait_ms, int(1000 * (limit.left() or 0)))
        return await take(self, *args, **options)

    return run


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
        await in_thread(self.table.close)

    async def __aenter__(self) -> AsyncTable:
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        await in_thread(self.table.__exit__, kind, error, trace)


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

    @_after_loading
    @_of_client(_client.Client.timeframe, AsyncTable)
    def timeframe(self) -> None: ...

    async def changed(
        self,
        path: str,
        at: Time,
        known: Union[Object, str, None],
        timeout: Optional[float] = None,
    ) -> bool:
        """As :meth:`iovcache.Path.changed`."""
        if timeout is not None:
            timeout = seconds(timeout, "timeout")
        if timeout == 0:
            # It does not wait, but looks into shared memory.
            return await in_thread(lambda: self.client.path(path).changed(at, known, 0))
        try:
            await asyncio.wait_for(self._until_changed(path, at, known), timeout)
        except DeadlineExceeded:  # of the service
            raise
        except asyncio.TimeoutError:
            return False
        return True

    async def _until_changed(
        self, path: str, at: Time, known: Union[Object, str, None]
    ) -> None:
        handle = await self.path(path)
        pause, longest = _PAUSES
        while True:
            changed, event = await in_thread(handle._change_step, at, known)
            if changed:
                return
            if event is not None:
                await _until_readable(event, None)
                pause, _ = _PAUSES
            else:
                await asyncio.sleep(pause)
                pause = min(2 * pause, longest)

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
