"""Errors, one class for each kind of reaction of the caller."""

from __future__ import annotations

from typing import Optional


class IovcacheError(Exception):
    """Any error of this package. Its text begins with the stable ``code``, e.g. ``IOV-2010``."""

    code: Optional[str]

    def __init__(self, message: str, code: Optional[str] = None) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type, tuple[str, Optional[str]]]:
        return (type(self), (str(self.args[0]), self.code))


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
    """The state does not allow it: a lease has ended, a session is unknown, a table is closed."""


class Stale(FailedPrecondition):
    """The object was given up by the service: its memory may hold something else."""


class ForkedProcess(FailedPrecondition):
    """This process was forked, and the client is its parent's: connect anew in the child."""


class Unauthenticated(IovcacheError, PermissionError):
    """The service asks for a token or certificate, or does not know this one."""


class PermissionDenied(IovcacheError, PermissionError):
    """The role of the token does not allow it."""


class DeadlineExceeded(IovcacheError, TimeoutError):
    """It was not done in time."""


class Internal(IovcacheError):
    """A bug of the service, or of this package."""


class ObjectsInUse(UserWarning):
    """A table was closed while objects of it are in use: its memory is released with the last."""


def invalid(message: str) -> InvalidArgument:
    """An argument that this package refuses by itself."""
    return InvalidArgument(f"[IOV-7014] {message}", "IOV-7014")
