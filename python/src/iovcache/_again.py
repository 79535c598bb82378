"""A service that is gone comes back: what does no harm when it is asked twice is asked again."""

from __future__ import annotations

import random
import time
from typing import Callable, Optional, TypeVar

from ._errors import IovcacheError, Unavailable

T = TypeVar("T")

_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 1.0
#: The service is stopping: its successor may answer.
_DRAINING = "IOV-5021"


def until_answered(limit: float, call: Callable[[Optional[float]], T]) -> T:
    """Makes a call until a service answers it, for ``limit`` seconds at most.

    Between two calls it rests: 20 ms, 40 ms … 1 s, each shortened by up to a half at random, so that
    many who lost the same service do not come back at the same moment. After the first time the call
    is told how much time is left. What the service itself calls unavailable (a source is down,
    memory is pinned) is told at once.
    """
    deadline = time.monotonic() + limit
    pause = _FIRST_PAUSE
    left: Optional[float] = None
    while True:
        try:
            return call(left)
        except IovcacheError as error:
            rest = pause * (1.0 - random.random() / 2)
            if not _is_no_answer(error) or time.monotonic() + rest >= deadline:
                raise
        time.sleep(rest)
        pause = min(pause * 2, _LONGEST_PAUSE)
        left = max(deadline - time.monotonic(), 0.0)


def _is_no_answer(error: IovcacheError) -> bool:
    return isinstance(error, Unavailable) and error.code in (None, _DRAINING)
