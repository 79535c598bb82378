"""The client, which requests tables from a service."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Dict, List, Optional, Tuple, Type, Union

from . import _keys, _times
from ._errors import InvalidArgument, NotFound, invalid
from ._frames import arrow_table
from ._native import NativeClient, Object, Path
from ._table import Table
from ._times import Time, count, integer, moment, seconds

if sys.version_info >= (3, 11):
    from typing import Literal, NotRequired, TypedDict
else:  # only the names are needed at run time
    from typing import Literal, TypedDict

    NotRequired = Optional


class PathRange(TypedDict, total=False):
    """A path for a range of a key's values; both bounds are inclusive."""

    path: str


class ColumnSpec(TypedDict, total=False):
    """A column with more conditions than its path."""

    path: Union[str, Sequence[Mapping[str, Union[str, int]]]]
    metadata: Mapping[str, str]
    key: str
    #: ``as`` is a keyword of Python: use a plain dict for columns with that field.
    uniform: bool


ColumnLike = Union[str, ColumnSpec, Mapping[str, Any]]
Columns = Mapping[str, ColumnLike]
Encoding = Literal["run_end", "dictionary", "plain"]
CellKind = Literal["binary", "struct", "o2", "payload"]
Missing = Literal["error", "null"]


def connect(
    url: str,
    *,
    consumer: Optional[str] = None,
    token: Optional[str] = None,
    remote: bool = False,
    always_request: bool = False,
    patience: float = 60.0,
    tls_root_certs: Optional[bytes] = None,
    cert_chain: Optional[bytes] = None,
    private_key: Optional[bytes] = None,
    insecure: bool = False,
) -> Client:
    """Connects to ``grpc://host:port``, ``grpc+tls://host:port`` or
    ``grpc+unix:///path/flight.sock``.

    Args:
        url: the address of the service.
        consumer: the name of this process; default: ``python-`` and its process id.
        token: the token, if the service requires one; default: ``IOVCACHE_TOKEN``.
        remote: never attach to shared memory: objects come over the wire, even on the same node.
        always_request: request every table from the service, also where all of its objects lie in
            shared memory; then the service's log has each table.
        patience: seconds for which a call waits for a service that restarts. For a table its
            ``wait_ms`` counts instead.
        tls_root_certs: certificates (PEM) of the authorities trusted for the service's
            certificate; default: those of the system.
        cert_chain: the certificate of this client (PEM).
        private_key: the key of that certificate (PEM).
        insecure: send the token even over plain TCP to another node, where others can read it.

    Raises:
        Unavailable: the service cannot be reached.
        Unauthenticated: the service requires a token, or this one is not valid.
        InvalidArgument: the address is invalid, or the token would be sent unencrypted.
    """
    options = {
        "consumer": consumer or f"python-{os.getpid()}",
        "token": token if token is not None else os.environ.get("IOVCACHE_TOKEN"),
        "remote": bool(remote),
        "always_request": bool(always_request),
        "patience_s": seconds(patience, "patience"),
        "insecure": bool(insecure),
        "tls_root_certs": tls_root_certs,
        "cert_chain": cert_chain,
        "private_key": private_key,
    }
    return Client(NativeClient.connect(os.fspath(url), options), url, float(patience))


class Client:
    """A connection to a service, made by :func:`connect`. Threads may share it.

    A forked child cannot use the client of its parent, whose calls raise :class:`ForkedProcess`
    there. It can connect a client of its own.
    """

    def __init__(self, native: NativeClient, url: str, patience: float = 60.0) -> None:
        self._native = native
        self._patience = patience
        #: The address of the service.
        self.url = url

    def close(self) -> None:
        """Closes the connection. The session ends with the last table and object of this client."""
        self._native.close()

    @property
    def closed(self) -> bool:
        """Whether the client is closed."""
        return self._native.closed

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()

    def table(
        self,
        columns: Union[Columns, str, None] = None,
        *,
        timestamps: Any = None,
        range: Union[Tuple[Time, Time, int], Mapping[str, Time], None] = None,  # noqa: A002
        timeframe: Optional[int] = None,
        consumer: Optional[str] = None,
        keys: Union[Mapping[str, Any], Sequence[str], None] = None,
        encoding: Encoding = "run_end",
        cell: Optional[CellKind] = None,
        missing: Optional[Missing] = None,
        timestamps_column: Optional[bool] = None,
        schema_metadata: Optional[Mapping[str, str]] = None,
        not_after: Optional[Time] = None,
        not_before: Optional[Time] = None,
        lock: Any = None,
        wait_ms: Optional[int] = None,
        session: Optional[str] = None,
    ) -> Table:
        """Requests a table. Its objects are pinned until the table is closed.

        Args:
            columns: ``{"name": "path"}`` or ``{"name": {"path": …, "metadata": {…}}}``, or the
                name of a table in the service's configuration.
            timestamps: a column of times, one per row: any iterable of integers (milliseconds since
                the Unix epoch), None or datetimes, or an array of numpy, pandas, Polars or pyarrow.
                Or a DataFrame or Arrow table with the times (``timestamp``, ``fTimestamp``, or its
                only column of times) and the keys.
            range: (from, until, step in milliseconds), or ``{"from": …, "until": …, "step": …}``, or
                ``{"run": 544123, "step": 1000}`` for the time of a run.
            timeframe: id of a registered timeframe: use its timestamps and, without ``columns``,
                its columns.
            consumer: the consumer that reads the timeframe.
            keys: ``{"run": […]}``: for each key in the columns, one value per timestamp, integers
                or strings. Or names of columns of the DataFrame (default: the keys in the columns).
            encoding: the encoding of ``table.arrow``.
            cell: the kind of cells; default: MetaHeaders if this client is attached, else the
                bytes.
            missing: ``"null"``: null cells instead of an error where nothing is valid.
            timestamps_column: prepend the timestamps as column ``timestamp``.
            schema_metadata: keys and values (strings) for the metadata of ``table.arrow.schema``,
                such as AliceO2's ``outputRoute``.
            not_after: only versions created at or before this time.
            not_before: only versions created at or after this time.
            lock: ``objects`` of an earlier table, also as a DataFrame or a list of rows: use exactly
                these versions.
            wait_ms: time limit of the service in milliseconds, including its source.
            session: the session that pins the objects; default: the session of this client.

        Raises:
            NotFound: nothing is valid for some timestamps; the message names each column.
            IovcacheError: any other error, as one of its subclasses.
        """
        fields: Dict[str, Any] = {"encoding": encoding}
        plain = {
            "cell": cell,
            "missing": missing,
            "session": session,
            "consumer": consumer,
            "timestamps_column": None if timestamps_column is None else bool(timestamps_column),
            "schema_metadata": None
            if schema_metadata is None
            else _mapping(schema_metadata, "schema_metadata", "{key: value}"),
        }
        fields.update((name, value) for name, value in plain.items() if value is not None)
        for name, at in (("not_after", not_after), ("not_before", not_before)):
            if at is not None:
                fields[name] = moment(at, name)
        if wait_ms is not None:
            fields["wait_ms"] = count(wait_ms, "wait_ms")
        if timeframe is not None:
            fields["timeframe"] = count(timeframe, "timeframe")
        if range is not None:
            fields["range"] = _range(range)
        timestamps, values = _keys.split(timestamps, keys, columns)
        if values:
            fields["keys"] = {name: array.to_pylist() for name, array in values.items()}
        if lock is not None:
            fields["lock"] = _rows(lock)
        if isinstance(columns, str):
            fields["table"] = columns
            columns = None
        times = None if timestamps is None else _times.column(timestamps)
        return Table(self._native.table(_columns(columns), _json(fields), times))

    def get(
        self,
        path: str,
        at: Time = "now",
        *,
        metadata: Optional[Mapping[str, str]] = None,
        not_after: Optional[Time] = None,
        not_before: Optional[Time] = None,
        wait_ms: Optional[int] = None,
    ) -> Object:
        """The object of a path at a time. It is pinned while it, or a view of it, is in use.

        On the node of the service it is looked up in shared memory, without a call: that takes less
        than a microsecond. The service is asked if the object is not there, or if one of
        ``metadata``, ``not_after``, ``not_before`` and ``wait_ms`` is given.

        Raises:
            NotFound: no version is valid at that time.
        """
        if metadata is None and not_after is None and not_before is None and wait_ms is None:
            found = self._native.get(path, at)
            if found is not None:
                return found
        column: ColumnLike = path if metadata is None else {"path": path, "metadata": metadata}
        table = self.table(
            {"object": column},
            timestamps=[moment(at, "at")],
            not_after=not_after,
            not_before=not_before,
            wait_ms=wait_ms,
        )
        found = table["object"][0]
        if found is None:
            raise NotFound(f"[IOV-2010] {path}: nothing is valid at {at!r}", "IOV-2010")
        return found

    def get_many(self, keys: Iterable[Tuple[str, Time]]) -> List[Optional[Object]]:
        """The objects of many (path, time) pairs, in their order; None where nothing is valid.

        As :meth:`get`; objects that are not in shared memory are requested together, with one
        request per path.
        """
        return self._native.get_many(keys)

    def path(self, path: str) -> Path:
        """The handle of a path, for many look-ups: ``client.path("A/B").at(time)``.

        Raises:
            InvalidArgument: it is no object path.
        """
        return self._native.path(path)

    def put_timeframe(
        self,
        timeframe: int,
        timestamps: Any,
        *,
        columns: Optional[Columns] = None,
        table: Optional[str] = None,
        consumers: Iterable[str] = (),
        keys: Union[Mapping[str, Any], Sequence[str], None] = None,
    ) -> Dict[str, Any]:
        """Registers a timeframe. Its objects are loaded, and kept until all consumers reported it.

        Args:
            timeframe: its id.
            timestamps: as for :meth:`table`.
            columns: its columns; or ``table``, the name of a table in the service's configuration.
            consumers: names of the consumers that will read it.
            keys: as for :meth:`table`.

        Returns:
            ``{"timeframe", "rows", "objects", "state"}``
        """
        about: Dict[str, Any] = {"consumers": _names(consumers, "consumers")}
        if columns is not None:
            about["columns"] = _mapping(columns, "columns", _OWN_COLUMNS)
        if table is not None:
            about["table"] = table
        timestamps, values = _keys.split(timestamps, keys, columns)
        times = _times.column(timestamps)
        number = count(timeframe, "timeframe")
        answer = self._native.register(number, times, list(values.items()), _json(about))
        return dict(json.loads(answer))

    def timeframe(
        self,
        timeframe: int,
        *,
        consumer: str,
        columns: Optional[Columns] = None,
        encoding: Encoding = "run_end",
        cell: Optional[CellKind] = None,
        missing: Optional[Missing] = None,
        timestamps_column: Optional[bool] = None,
        schema_metadata: Optional[Mapping[str, str]] = None,
        not_after: Optional[Time] = None,
        not_before: Optional[Time] = None,
        lock: Any = None,
        wait_ms: Optional[int] = None,
    ) -> Table:
        """The table of a timeframe. The end of its ``with`` block reports it as consumed.

        On the node of the service the table is taken from shared memory where it lies there, and
        awaited there while its objects are loaded; else it is requested. If the block raises, nothing
        is reported, so that the consumer can request it again.
        """
        table = self.table(
            columns,
            timeframe=timeframe,
            consumer=consumer,
            encoding=encoding,
            cell=cell,
            missing=missing,
            timestamps_column=timestamps_column,
            schema_metadata=schema_metadata,
            not_after=not_after,
            not_before=not_before,
            lock=lock,
            wait_ms=wait_ms,
        )
        native = table._native
        return Table(native, lambda: self._native.report_consumed(native))

    def consumed(self, timeframe: int, *, consumer: str) -> Dict[str, Any]:
        """Reports that a consumer has consumed a timeframe."""
        number = count(timeframe, "timeframe")
        return self._act("consumed", {"timeframe": number, "consumer": consumer})

    def oldest_possible(self, timeframe: int, *, consumer: str) -> Dict[str, Any]:
        """Reports that a consumer has consumed all timeframes with ids below ``timeframe``."""
        number = count(timeframe, "timeframe")
        return self._act("consumed", {"consumer": consumer, "oldest_possible": number})

    def prefetch(
        self,
        columns: Columns,
        *,
        range: Union[Tuple[Time, Time], Mapping[str, Time]],  # noqa: A002
    ) -> Dict[str, Any]:
        """Loads all objects that are valid in a range of time in advance."""
        about = {"columns": _mapping(columns, "columns", _OWN_COLUMNS)}
        return self._act("prefetch", {**about, "range": _range(range, ("from", "until"))})

    def invalidate(self, path: str) -> Dict[str, Any]:
        """Makes the service ask the source of a path again."""
        return self._act("invalidate", {"path": path})

    def drop_timeframe(self, timeframe: int) -> Dict[str, Any]:
        """Drops a timeframe, even if consumers have not consumed it."""
        return self._act("drop_timeframe", {"timeframe": count(timeframe, "timeframe")})

    def status(self) -> Dict[str, Any]:
        """A snapshot of the whole service."""
        return self._act("status", {})

    def segments(self) -> Dict[str, Any]:
        """The segments of the service's shared memory."""
        return self._act("segments", {})

    def paths(self, prefix: str = "") -> Dict[str, int]:
        """The paths at or below a prefix, each with its number of versions."""
        return dict(self._native.paths(prefix))

    def _act(self, name: str, body: Mapping[str, Any]) -> Dict[str, Any]:
        return dict(json.loads(self._native.act(name, _json(body))))

    def __repr__(self) -> str:
        return f"<iovcache.Client of {self.url}{', closed' if self.closed else ''}>"

    def __reduce__(self) -> Any:
        raise TypeError(
            "a client cannot be pickled: its connection is of this process; call iovcache.connect in "
            "the other process"
        )


#: Expected columns where the name of a table has an argument of its own.
_OWN_COLUMNS = "{name: path}"


def _json(value: object) -> str:
    try:
        return json.dumps(value, default=_other)
    except InvalidArgument:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise invalid(f"the request has a value that JSON does not have: {error}") from error


def _other(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset, Sequence)):
        return list(value)
    return integer(value, "a value of the request")


def _mapping(value: Any, what: str, expected: str) -> Dict[str, Any]:
    if not isinstance(value, Mapping):
        raise invalid(f"{what} is {value!r}; expected {expected}")
    return dict(value)


def _names(value: Any, what: str) -> List[Any]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise invalid(f"{what} is {value!r}; expected a list of names")
    return list(value)


def _columns(columns: Any) -> List[Tuple[str, str]]:
    if columns is None:
        return []
    given = _mapping(columns, "columns", f"{_OWN_COLUMNS} or the name of a table")
    return [(str(name), _json(column)) for name, column in given.items()]


def _range(given: Any, names: Tuple[str, ...] = ("from", "until", "step")) -> Dict[str, int]:
    if not isinstance(given, Mapping):
        bounds = list(given) if isinstance(given, Iterable) else []
        if len(bounds) != len(names):
            raise invalid(f"range is {given!r}; expected ({', '.join(names)})")
        given = dict(zip(names, bounds))
    return {str(name): _bound(str(name), value) for name, value in given.items()}


def _bound(name: str, value: Any) -> int:
    if name in ("from", "until"):
        return moment(value, f"range {name}")
    expected = "milliseconds" if name == "step" else "an integer"
    return integer(value, f"range {name}", expected=expected)


def _rows(lock: Any) -> List[Dict[str, Any]]:
    """The rows of an objects view."""
    table = arrow_table(lock, "lock")
    rows: Any = lock if table is None else table
    if hasattr(rows, "to_pylist"):
        rows = rows.to_pylist()
    if isinstance(rows, (str, Mapping)) or not isinstance(rows, Iterable):
        raise invalid(f"lock is {lock!r}; expected the objects of a table")
    return [_lock_row(row) for row in rows]


def _lock_row(row: Any) -> Dict[str, Any]:
    row = _mapping(row, "a row of lock", "a row of the objects of a table")
    metadata = row.get("metadata")
    if metadata is not None and not isinstance(metadata, Mapping):
        try:
            row["metadata"] = dict(_entry(entry) for entry in metadata)
        except (TypeError, ValueError, KeyError) as error:
            raise invalid(f"lock has the metadata {metadata!r}; expected a map") from error
    return row


def _entry(entry: Any) -> Tuple[Any, Any]:
    """An entry of a map: a pair, or a structure in libraries without maps."""
    if isinstance(entry, Mapping):
        return entry["key"], entry["value"]
    key, value = entry
    return key, value
