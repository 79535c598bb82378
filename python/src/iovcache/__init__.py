"""Condition objects in shared memory, as Arrow tables.

    >>> import iovcache
    >>> with iovcache.connect("grpc+unix:///run/iovcache/flight.sock") as client:  # doctest: +SKIP
    ...     with client.table({"vdrift": "TPC/Calib/VDriftTgl"}, timestamps=[1000]) as table:
    ...         bytes(table["vdrift"][0])
"""

from ._attach import Attachment
from ._client import Client, connect
from ._errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    IovcacheError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Stale,
    Unauthenticated,
    Unavailable,
)
from ._resolver import MetaHeader, Resolver
from ._table import Column, Table

__all__ = [
    "AlreadyExists",
    "Attachment",
    "Client",
    "Column",
    "DeadlineExceeded",
    "FailedPrecondition",
    "Internal",
    "InvalidArgument",
    "IovcacheError",
    "MetaHeader",
    "NotFound",
    "PermissionDenied",
    "ResourceExhausted",
    "Resolver",
    "Stale",
    "Table",
    "Unauthenticated",
    "Unavailable",
    "connect",
]

__version__ = "0.1.0"
