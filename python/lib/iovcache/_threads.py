"""Threads for the calls of :mod:`iovcache.aio`.

Each call that runs has a thread of its own; while ``_MOST`` run, the next ones wait for their turn. A
call ends as soon as its task is cancelled, so it delays neither other calls nor the end of the process.
"""

from __future__ import annotations

import asyncio
import atexit
import collections
import contextvars
import functools
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Deque, Dict, Optional, TypeVar

from ._native import Cancellation

if TYPE_CHECKING:  # for type checkers alone: Python 3.9 does not have it
    from typing_extensions import ParamSpec

    _P = ParamSpec("_P")

_T = TypeVar("_T")

#: Most calls that run at the same time.
_MOST = 256
#: Seconds for which a thread waits for another call.
_IDLE_LIMIT = 1.0
#: Seconds for which the end of the process waits for cancelled calls.
_EXIT_LIMIT = 1.0


class _Call:
    """A call, and the future that gets its answer."""

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Callable[[], Any]) -> None:
        self.future: asyncio.Future[Any] = loop.create_future()
        self.cancellation = Cancellation()
        self._loop = loop
        self._work = work

    def run(self) -> None:
        answer: Any = None
        error: Optional[BaseException] = None
        try:
            answer = self.cancellation.run(self._work)
        except BaseException as caught:  # noqa: BLE001 - for the task
            error = caught
        try:
            self._loop.call_soon_threadsafe(self._finish, answer, error)
        except RuntimeError:
            pass  # The event loop is closed.

    def _finish(self, answer: Any, error: Optional[BaseException]) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(answer)
        elif isinstance(error, asyncio.CancelledError):
            self.future.cancel()
        else:
            self.future.set_exception(error)


class _Threads:
    """The threads of a process."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._threads = 0
        self._idle = 0
        self._running: Dict[threading.Thread, _Call] = {}
        self._waiting: Deque[_Call] = collections.deque()

    def start(self, call: _Call) -> None:
        with self._changed:
            self._waiting.append(call)
            if self._idle >= len(self._waiting):
                self._changed.notify()
                return
            if self._threads >= _MOST:
                return
            thread = threading.Thread(target=self._run, name="iovcache-aio", daemon=True)
            self._threads += 1
        try:
            thread.start()
        except RuntimeError:
            with self._changed:
                self._threads -= 1
                if self._threads > 0 or call not in self._waiting:
                    return  # Another thread takes it.
                self._waiting.remove(call)
            raise

    def _run(self) -> None:
        thread = threading.current_thread()
        while True:
            with self._changed:
                if not self._waiting:
                    self._idle += 1
                    self._changed.wait(_IDLE_LIMIT)
                    self._idle -= 1
                if not self._waiting:
                    self._threads -= 1
                    return
                call = self._waiting.popleft()
                self._running[thread] = call
            call.run()
            # An idle thread must not keep the answer, which pins its objects.
            del call
            with self._changed:
                del self._running[thread]

    def end(self) -> None:
        """Cancels all calls."""
        with self._changed:
            self._waiting.clear()
            running = list(self._running.values())
        for call in running:
            call.cancellation.cancel()
        deadline = time.monotonic() + _EXIT_LIMIT
        while self._running and time.monotonic() < deadline:
            time.sleep(0.001)


_threads = _Threads()


def _renew() -> None:
    """A forked child has none of the threads of its parent."""
    global _threads
    _threads = _Threads()


os.register_at_fork(after_in_child=_renew)
atexit.register(lambda: _threads.end())


async def in_thread(call: Callable[_P, _T], *args: _P.args, **options: _P.kwargs) -> _T:
    """Runs a call in a thread. If the task is cancelled, the waits of the call end at once."""
    context = contextvars.copy_context()
    work = functools.partial(context.run, functools.partial(call, *args, **options))
    started = _Call(asyncio.get_running_loop(), work)
    _threads.start(started)
    try:
        answer: _T = await started.future
        return answer
    finally:
        started.cancellation.cancel()
