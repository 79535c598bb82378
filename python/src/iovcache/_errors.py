"""What went wrong, by what a caller can do about it."""

from __future__ import annotations

import re
from typing import Mapping, Optional

import pyarrow as pa
import pyarrow.flight as flight


class IovcacheError(Exception):
    """Any error of this package. ``code`` is the service's stable one, e.g. ``IOV-2010``."""

    def __init__(self, message: str, code: Optional[str] = None) -> None:
        super().__init__(message)
        self.code = code


class InvalidArgument(IovcacheError, ValueError):
    """The request is wrong: change it."""


class NotFound(IovcacheError, LookupError):
    """Nothing is valid at that time, or there is no such timeframe, table or path."""


class AlreadyExists(IovcacheError):
    """The id is taken by something else."""


class Unavailable(IovcacheError, ConnectionError):
    """Try again later: no connection, a source is down, memory is pinned."""


class ResourceExhausted(IovcacheError):
    """It can never fit, or is over the quota."""


class FailedPrecondition(IovcacheError):
    """The state does not allow it: a lease has ended, a session is unknown."""


class Stale(FailedPrecondition):
    """The object was given up by the service: its memory may hold something else."""


class Unauthenticated(IovcacheError, PermissionError):
    """Who are you?"""


class PermissionDenied(IovcacheError, PermissionError):
    """You may not."""


class DeadlineExceeded(IovcacheError, TimeoutError):
    """It was not done in time."""


class Internal(IovcacheError):
    """A bug of the service, or of this package."""


# The stable code stands in brackets at the start of what the service says. pyarrow writes text
# around it, and 'gRPC client debug context' behind it.
_CODED = re.compile(r"\[(IOV-\d{4})\] (.*?)(?:\. gRPC client debug context:|$)", re.DOTALL)

# pyarrow makes one exception of INVALID_ARGUMENT, RESOURCE_EXHAUSTED, FAILED_PRECONDITION and
# OUT_OF_RANGE. Which one it was is told by the code: these are not INVALID_ARGUMENT.
_BY_CODE = {
    "IOV-1020": ResourceExhausted,
    "IOV-1051": ResourceExhausted,
    "IOV-1060": ResourceExhausted,
    "IOV-2012": ResourceExhausted,
    "IOV-3006": ResourceExhausted,
    "IOV-4002": ResourceExhausted,
    "IOV-4011": ResourceExhausted,
    "IOV-2013": FailedPrecondition,
    "IOV-5001": FailedPrecondition,
    "IOV-5002": FailedPrecondition,
    "IOV-5003": FailedPrecondition,
    "IOV-5012": FailedPrecondition,
    "IOV-5013": AlreadyExists,
    "IOV-5015": ResourceExhausted,
    "IOV-5016": ResourceExhausted,
}


# What gRPC says of a connection that broke in the middle of an answer.
_BROKEN = ("Socket closed", "Stream removed", "Connection reset", "Broken pipe")


def translate(error: BaseException) -> IovcacheError:
    """The typed error for what pyarrow raised."""
    text = str(error)
    found = _CODED.search(text)
    code, message = (found.group(1), found.group(2).strip()) if found else (None, text)
    return _kind(error, code, text)(message, code)


_BY_NAME = {
    "UNAUTHENTICATED": Unauthenticated,
    "PERMISSION_DENIED": PermissionDenied,
    "INVALID_ARGUMENT": InvalidArgument,
}


def refused(line: Mapping[str, str]) -> IovcacheError:
    """The typed error for what the attach socket says to who is not let in."""
    found = _CODED.search(line["error"])
    code, message = found.groups() if found else (None, line["error"])
    return _BY_NAME.get(line.get("kind", ""), Unavailable)(message, code)


def _kind(error: BaseException, code: Optional[str], text: str) -> type:
    if code in _BY_CODE:
        return _BY_CODE[code]
    if isinstance(error, flight.FlightUnavailableError):
        return Unavailable
    if isinstance(error, flight.FlightTimedOutError):
        return DeadlineExceeded
    if isinstance(error, flight.FlightCancelledError):
        return DeadlineExceeded
    if isinstance(error, flight.FlightUnauthenticatedError):
        return Unauthenticated
    if isinstance(error, flight.FlightUnauthorizedError):
        return PermissionDenied
    if isinstance(error, KeyError):
        return NotFound
    if code is None and any(word in text for word in _BROKEN):
        return Unavailable
    # Older pyarrow has no class of its own for it.
    if "ALREADY_EXISTS" in text or "already exists" in text.lower():
        return AlreadyExists
    if isinstance(error, pa.ArrowInvalid):
        return InvalidArgument
    if isinstance(error, (OSError, flight.FlightServerError)) and code is None:
        return Unavailable
    return Internal
