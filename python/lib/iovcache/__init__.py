"""Condition objects in shared memory, as Arrow tables.

    >>> import iovcache
    >>> with iovcache.connect("grpc+unix:///run/iovcache/flight.sock") as client:  # doctest: +SKIP
    ...     with client.table({"vdrift": "TPC/Calib/VDriftTgl"}, timestamps=[1000]) as table:
    ...         bytes(table["vdrift"][0])
"""

from ._client import Client, ColumnSpec, connect
from ._errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    ForkedProcess,
    Internal,
    InvalidArgument,
    IovcacheError,
    NotFound,
    ObjectsInUse,
    PermissionDenied,
    ResourceExhausted,
    Stale,
    Unauthenticated,
    Unavailable,
)
from ._header import MetaHeader
from ._native import Attachment, Column, Object, Path
from ._native import __version__ as __version__
from ._table import Table
from ._times import NaiveTimestamps

__all__ = [
    "AlreadyExists",
    "Attachment",
    "Client",
    "Column",
    "ColumnSpec",
    "DeadlineExceeded",
    "FailedPrecondition",
    "ForkedProcess",
    "Internal",
    "InvalidArgument",
    "IovcacheError",
    "MetaHeader",
    "NaiveTimestamps",
    "NotFound",
    "Object",
    "ObjectsInUse",
    "Path",
    "PermissionDenied",
    "ResourceExhausted",
    "Stale",
    "Table",
    "Unauthenticated",
    "Unavailable",
    "connect",
]
