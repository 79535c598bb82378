"""Errors: one class per kind, which tells the caller how to react."""

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
    """The request is wrong, and must be changed."""


class NotFound(IovcacheError, LookupError):
    """No version is valid at that time, or there is no such timeframe, table or path."""


class AlreadyExists(IovcacheError):
    """The id is in use, with other contents."""


class Unavailable(IovcacheError, ConnectionError):
    """Try again later: there is no connection, a source is down, or all memory is pinned."""


class ResourceExhausted(IovcacheError):
    """The request is too large for the memory, or exceeds a quota."""


class FailedPrecondition(IovcacheError):
    """The state does not allow it: a lease has ended, a session is unknown, a table is closed."""


class Stale(FailedPrecondition):
    """The service has evicted the object: its memory may hold another one."""


class ForkedProcess(FailedPrecondition):
    """The client belongs to the parent of this forked process: connect again in the child."""


class Unauthenticated(IovcacheError, PermissionError):
    """The service requires a token or certificate, or does not accept this one."""


class PermissionDenied(IovcacheError, PermissionError):
    """The role of the token does not allow the call."""


class DeadlineExceeded(IovcacheError, TimeoutError):
    """The call did not finish in time."""


class Internal(IovcacheError):
    """A bug of the service, or of this package."""


class ObjectsInUse(UserWarning):
    """A table was closed while its objects are in use: its memory is released with the last one."""


def invalid(message: str) -> InvalidArgument:
    """The error for an argument that this package refuses itself."""
    return InvalidArgument(f"[IOV-7014] {message}", "IOV-7014")
