"""The client: asks a service for tables."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import threading
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple, Union
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.flight as flight

from ._again import until_answered
from ._attach import Attachment
from ._errors import FailedPrecondition, InvalidArgument, IovcacheError, Unavailable, translate
from ._held import SHORT_SPAN, Held
from ._table import Table

Columns = Mapping[str, Union[str, Mapping[str, Any]]]

_OPTIONS = frozenset(
    "encoding cell missing timestamps_column not_after not_before lock wait_ms session".split()
)
#: What is done once only cannot be told from what was not done at all.
_ONCE = frozenset(["drop_timeframe", "release"])


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except IovcacheError:
        raise
    except (flight.FlightError, pa.ArrowException, OSError) as error:
        raise translate(error) from error


_CHANNEL = [
    # gRPC's C core would send the path of a Unix socket, which HTTP/2 forbids.
    ("grpc.default_authority", "localhost"),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Who loses a service has it again as soon as it is back: our own pauses count.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


def connect(
    url: str,
    *,
    consumer: Optional[str] = None,
    token: Optional[str] = None,
    remote: bool = False,
    patience: float = 60.0,
    tls_root_certs: Optional[bytes] = None,
    cert_chain: Optional[bytes] = None,
    private_key: Optional[bytes] = None,
    insecure: bool = False,
) -> "Client":
    """Connects to ``grpc://host:port``, ``grpc+tls://host:port`` or
    ``grpc+unix:///path/flight.sock``.

    Args:
        url: where the service is.
        consumer: what this process calls itself.
        token: what lets it in, where the service asks for it; by default what stands in
            ``IOVCACHE_TOKEN``.
        remote: never attach, even on the node: objects come over the wire.
        patience: for how long, in seconds, a call waits for a service that is gone to come back; of
            a table, its own ``wait_ms`` counts.
        tls_root_certs: the authorities that may have signed the service's certificate (PEM); by
            default the system's.
        cert_chain: the certificate by which the service knows us (PEM).
        private_key: its key (PEM).
        insecure: send the token even over plain TCP to another node, where it can be read.

    Raises:
        Unavailable: the service cannot be reached.
        Unauthenticated: the service asks for a token, or does not know this one.
        InvalidArgument: the token would travel in the clear.
    """
    client = Client(
        url,
        consumer=consumer,
        token=token,
        remote=remote,
        patience=patience,
        tls_root_certs=tls_root_certs,
        cert_chain=cert_chain,
        private_key=private_key,
        insecure=insecure,
    )
    try:
        client._act_once("status", {})
    except BaseException:
        client.close()
        raise
    return client


class Client:
    """A connection to a service. Threads may share it."""

    def __init__(
        self,
        url: str,
        *,
        consumer: Optional[str] = None,
        token: Optional[str] = None,
        remote: bool = False,
        patience: float = 60.0,
        tls_root_certs: Optional[bytes] = None,
        cert_chain: Optional[bytes] = None,
        private_key: Optional[bytes] = None,
        insecure: bool = False,
    ) -> None:
        self.url = url
        self._patience = patience
        self._consumer = consumer or f"python-{os.getpid()}"
        self._token = token or os.environ.get("IOVCACHE_TOKEN") or None
        headers = []
        if self._token is not None:
            if _is_overheard(url) and not insecure:
                raise InvalidArgument(
                    "the token is not sent: it would travel in the clear; use grpc+tls://, or "
                    "insecure=True"
                )
            headers.append((b"authorization", b"Bearer " + self._token.encode()))
        self._call = flight.FlightCallOptions(headers=headers)
        self._lock = threading.Lock()
        self._attachment: Optional[Attachment] = None
        self._was_attached = False
        self._remote = remote
        # The Unix socket of a service that was reached over TCP: a session is used over it alone.
        self._near: Optional[flight.FlightClient] = None
        with _translated():
            self._far = flight.connect(
                _location(url),
                tls_root_certs=tls_root_certs,
                cert_chain=cert_chain,
                private_key=private_key,
                generic_options=_CHANNEL,
            )

    @property
    def _flight(self) -> flight.FlightClient:
        """Where requests go: the Unix socket as long as we are attached beside it."""
        near, attachment = self._near, self._attachment
        is_there = near is not None and attachment is not None and attachment.over is None
        return near if is_there else self._far

    def close(self) -> None:
        """Ends the session and the connection."""
        with self._lock:
            attachment, self._attachment = self._attachment, None
        if attachment is not None:
            attachment.close()
        near, self._near = self._near, None
        if near is not None:
            near.close()
        self._far.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def table(
        self,
        columns: Union[Columns, str, None] = None,
        *,
        timestamps: Any = None,
        range: Optional[Tuple[int, int, int]] = None,  # noqa: A002 - the request's own word
        timeframe: Optional[int] = None,
        consumer: Optional[str] = None,
        **options: Any,
    ) -> Table:
        """A table, its objects kept until it is closed.

        Args:
            columns: ``{"name": "path"}`` or ``{"name": {"path": …, "metadata": {…}}}``, or the name
                of a table of the service's configuration.
            timestamps: milliseconds since the Unix epoch (int or None), or an array of pyarrow,
                numpy or pandas, also of type timestamp.
            range: (from, until, step) in milliseconds.
            timeframe: the timestamps, and unless others are given the columns, of a timeframe.
            consumer: who reads the timeframe.
            **options: encoding, cell, missing, timestamps_column, not_after, not_before, lock,
                wait_ms, as the request has them.

        Raises:
            NotFound: nothing is valid for some timestamps, each column named.
            IovcacheError: and the other kinds of it.
        """
        unknown = set(options) - _OPTIONS
        if unknown:
            raise TypeError(f"unknown options: {', '.join(sorted(unknown))}")
        request: Dict[str, Any] = dict(options)
        if isinstance(columns, str):
            request["table"] = columns
        elif columns is not None:
            request["columns"] = dict(columns)
        if range is not None:
            request["range"] = dict(zip(("from", "until", "step"), range))
        if timeframe is not None:
            request["timeframe"] = timeframe
        if consumer is not None:
            request["consumer"] = consumer
        request.setdefault("encoding", "run_end")
        held = None
        if timestamps is not None:
            held = Held.of(request, timestamps)
            if held is None:
                request["timestamps"] = _millis(timestamps)
        wait = request.get("wait_ms")
        patience = self._patience if wait is None else wait / 1000
        return until_answered(patience, lambda left: self._new_table(_within(request, left), held))

    def _new_table(self, request: Dict[str, Any], held: Optional[Held]) -> Table:
        try:
            return self._table(request, held)
        except FailedPrecondition:
            # The service was restarted: its successor knows another session of ours.
            if "session" in request or not self._forget_lost_session():
                raise
            return self._table(request, held)

    def _table(self, request: Dict[str, Any], held: Optional[Held] = None) -> Table:
        if held is not None:
            table = self._joined(request, held)
            if table is not None:
                return table
            request = {**request, "timestamps": held.millis()}
        attachment = None if "session" in request else self._attach(request)
        if attachment is not None:
            request = {**request, "session": attachment.session}
        elif "cell" not in request and "session" not in request:
            request = {**request, "cell": "payload"}
        arrow = self._get(request)
        resolve = attachment.resolve if attachment is not None else None
        return Table(arrow, resolve, self._release, lambda _: self._objects(request, arrow))

    def _joined(self, request: Dict[str, Any], held: Held) -> Optional[Table]:
        """The table with its rows made here; nothing where the service has to make them."""
        spans_request = held.spans_request(request)
        attachment = self._attach(spans_request)
        if attachment is None:
            return None
        session = {"session": attachment.session}
        try:
            spans = self._get({**spans_request, **session})
        except FailedPrecondition as error:
            if error.code != SHORT_SPAN:
                raise
            return None
        arrow = held.join(spans, request.get("missing") == "null")
        if arrow is None:
            self._release_lease(spans.schema.metadata)
            return None

        def objects(_: Table) -> pa.Table:
            return self._objects({**request, **session, "timestamps": held.millis()}, arrow)

        return Table(arrow, attachment.resolve, self._release, objects)

    def _objects(self, request: Dict[str, Any], table: pa.Table) -> pa.Table:
        # The very same request again: its objects are in memory still. What was put since then
        # may win now, so what this says is compared with what the table holds.
        request = {**request, "view": "objects"}
        request.pop("timestamps_column", None)
        objects = self._get(request)
        self._release_lease(objects.schema.metadata)
        if not _describes(objects, table):
            message = "versions were put since the table was made: ask for the table anew"
            raise FailedPrecondition(message)
        return objects

    def _get(self, request: Mapping[str, Any]) -> pa.Table:
        ticket = flight.Ticket(json.dumps(request))
        with _translated():
            return self._flight.do_get(ticket, options=self._call).read_all()

    def _release(self, table: Table) -> None:
        self._release_lease(table.arrow.schema.metadata)

    def _release_lease(self, metadata: Optional[Mapping[bytes, bytes]]) -> None:
        lease = (metadata or {}).get(b"iovcache.lease")
        if lease is not None:
            # If it is over already, or the service gone, there is nothing to release.
            with contextlib.suppress(IovcacheError):
                self._act("release", {"lease": lease.decode()})

    def put_timeframe(
        self,
        timeframe: int,
        timestamps: Any,
        *,
        columns: Optional[Columns] = None,
        table: Optional[str] = None,
        consumers: Sequence[str] = (),
    ) -> Dict[str, Any]:
        """Registers a timeframe; what it needs is loaded, and kept until each consumer is done.

        Returns:
            ``{"timeframe", "rows", "objects", "state"}``
        """
        about: Dict[str, Any] = {"consumers": list(consumers)}
        if columns is not None:
            about["columns"] = dict(columns)
        if table is not None:
            about["table"] = table
        array = _array(timestamps)
        batch = pa.record_batch([array], names=["timestamp"])
        # The same content again has the same answer.
        return until_answered(self._patience, lambda _: self._put(timeframe, batch, about))

    def _put(
        self, timeframe: int, batch: pa.RecordBatch, about: Mapping[str, Any]
    ) -> Dict[str, Any]:
        descriptor = flight.FlightDescriptor.for_path("timeframe", str(timeframe))
        with _translated():
            writer, reader = self._flight.do_put(descriptor, batch.schema, options=self._call)
            with writer:
                # pyarrow can attach metadata to a batch only.
                writer.write_with_metadata(batch, json.dumps(about).encode())
                writer.done_writing()
                result = reader.read()
        if result is None:
            raise translate(pa.ArrowException("the service sent no result"))
        return dict(json.loads(result.to_pybytes()))

    @contextlib.contextmanager
    def timeframe(
        self, timeframe: int, *, consumer: str, columns: Optional[Columns] = None, **options: Any
    ) -> Iterator[Table]:
        """The table of a timeframe; leaving it reports the timeframe as consumed.

        If the body raises, it is not reported: who failed may ask again.
        """
        table = self.table(columns, timeframe=timeframe, consumer=consumer, **options)
        with table:
            yield table
        self.consumed(timeframe, consumer=consumer)

    def consumed(self, timeframe: int, *, consumer: str) -> Dict[str, Any]:
        """Says that a consumer is done with a timeframe."""
        return self._act("consumed", {"timeframe": timeframe, "consumer": consumer})

    def oldest_possible(self, timeframe: int, *, consumer: str) -> Dict[str, Any]:
        """Says that a consumer is done with all timeframes below one."""
        return self._act("consumed", {"consumer": consumer, "oldest_possible": timeframe})

    def prefetch(self, columns: Columns, *, range: Tuple[int, int]) -> Dict[str, Any]:  # noqa: A002
        """Loads what a range of time needs, before it is asked for."""
        bounds = {"from": range[0], "until": range[1]}
        return self._act("prefetch", {"columns": dict(columns), "range": bounds})

    def invalidate(self, path: str) -> Dict[str, Any]:
        """Has the service forget what it knows of a path."""
        return self._act("invalidate", {"path": path})

    def drop_timeframe(self, timeframe: int) -> Dict[str, Any]:
        """Drops a timeframe, whoever still waits for it."""
        return self._act("drop_timeframe", {"timeframe": timeframe})

    def status(self) -> Dict[str, Any]:
        """One picture of the whole service."""
        return self._act("status", {})

    def segments(self) -> Dict[str, Any]:
        """The segments of its shared memory."""
        return self._act("segments", {})

    def paths(self, prefix: str = "") -> Dict[str, int]:
        """The paths at a prefix and below, and how many versions each has."""
        flights = until_answered(self._patience, lambda _: self._list(prefix))
        about = (json.loads(info.app_metadata) for info in flights)
        return {entry["path"]: entry["objects"] for entry in about if "path" in entry}

    def _list(self, prefix: str) -> List[flight.FlightInfo]:
        with _translated():
            return list(self._flight.list_flights(prefix.encode(), options=self._call))

    def _act(self, name: str, body: Mapping[str, Any]) -> Dict[str, Any]:
        if name in _ONCE:
            return self._act_once(name, body)
        return until_answered(self._patience, lambda _: self._act_once(name, body))

    def _act_once(self, name: str, body: Mapping[str, Any]) -> Dict[str, Any]:
        with _translated():
            action = flight.Action(name, json.dumps(body).encode())
            results = list(self._flight.do_action(action, options=self._call))
        return dict(json.loads(results[0].body.to_pybytes()))

    def _attach(self, request: Mapping[str, Any]) -> Optional[Attachment]:
        with self._lock:
            if self._remote:
                return None
            if self._attachment is not None and self._attachment.over is None:
                return self._attachment
            folder = _socket_folder(self.url)
            epoch: Optional[str] = None
            if folder is not None:
                path: Optional[str] = os.path.join(folder, "attach.sock")
            else:
                path, epoch = self._attach_place(request)
                if path is None or not os.path.exists(path):
                    self._remote = True
                    return None
            assert path is not None
            try:
                attachment = Attachment(path, self._consumer, self._token)
                if folder is None and not self._come_near(path, attachment, epoch):
                    attachment.close()
                    self._remote = True
                    return None
                self._attachment = attachment
                self._was_attached = True
            except IovcacheError as error:
                if self._was_attached and isinstance(error, Unavailable):
                    # Who was let in before is so again, by a service that does not end in between.
                    raise Unavailable(str(error)) from error
                if folder is not None:
                    raise
                # Over TCP it is enough that objects come over the wire.
                self._remote = True
                return None
            return self._attachment

    def _attach_place(self, request: Mapping[str, Any]) -> Tuple[Optional[str], Optional[str]]:
        """Where the service says that processes attach, and its epoch."""
        descriptor = flight.FlightDescriptor.for_command(json.dumps(request))
        with _translated():
            schema = self._far.get_schema(descriptor, options=self._call).schema
        said = schema.metadata or {}
        path, epoch = said.get(b"iovcache.attach"), said.get(b"iovcache.epoch")
        return path and path.decode(), epoch and epoch.decode()

    def _come_near(self, path: str, attachment: Attachment, epoch: Optional[str]) -> bool:
        """From now on requests go through the Unix socket beside this attach socket.

        Not if that is the socket of another service than the one that we reach over TCP.
        """
        socket = os.path.join(os.path.dirname(path), "flight.sock")
        if attachment.epoch != epoch or not os.access(socket, os.W_OK):
            return False
        before, self._near = self._near, None
        if before is not None:
            before.close()
        with _translated():
            self._near = flight.connect(f"grpc+unix://{socket}", generic_options=_CHANNEL)
        return True

    def _forget_lost_session(self) -> bool:
        with self._lock:
            attachment = self._attachment
            if attachment is None or attachment.over is None:
                return False
            self._attachment = None
        attachment.close()
        return True


def _within(request: Dict[str, Any], left: Optional[float]) -> Dict[str, Any]:
    """The request with no more time than is left; the first time, as it is."""
    return request if left is None else {**request, "wait_ms": int(left * 1000)}


def _location(url: str) -> str:
    return url if not url.startswith("grpc://") else "grpc+tcp://" + url[len("grpc://") :]


def _is_overheard(url: str) -> bool:
    """Whether what is sent can be read on the way: plain TCP that leaves this node."""
    scheme, _, rest = url.partition("://")
    if scheme not in ("grpc", "grpc+tcp"):
        return False
    host = urlsplit("//" + rest).hostname or ""
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


def _socket_folder(url: str) -> Optional[str]:
    prefix = "grpc+unix://"
    return os.path.dirname(url[len(prefix) :]) if url.startswith(prefix) else None


def _array(timestamps: Any) -> pa.Array:
    """Timestamps of any kind as an Arrow array that the service takes."""
    if isinstance(timestamps, pa.ChunkedArray):
        timestamps = timestamps.combine_chunks()
    if isinstance(timestamps, pa.Array):
        return timestamps
    try:
        if hasattr(timestamps, "__array__") or hasattr(timestamps, "__arrow_array__"):
            return pa.array(timestamps)
        array = pa.array(timestamps)
        # Without any value Arrow cannot tell the type; a float would lose its fraction silently.
        return array.cast(pa.int64()) if pa.types.is_null(array.type) else array
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, OverflowError) as error:
        raise InvalidArgument(f"these are no timestamps in milliseconds: {error}") from error


def _millis(timestamps: Any) -> List[Optional[int]]:
    """Timestamps of any kind as milliseconds; finer ones are floored, as the service does."""
    if isinstance(timestamps, (list, tuple)) and all(
        at is None or type(at) is int for at in timestamps
    ):
        return list(timestamps)
    array = _array(timestamps)
    kind = array.type
    if pa.types.is_run_end_encoded(kind) or pa.types.is_dictionary(kind):
        kind = kind.value_type
    values: Iterable[Any]
    if pa.types.is_timestamp(kind):
        values = (None if at is None else at for at in _integers(array))
        scale, up = {"s": (1, 1000), "ms": (1, 1), "us": (1000, 1), "ns": (1_000_000, 1)}[kind.unit]
        return [None if at is None else at * up // scale for at in values]
    if pa.types.is_integer(kind):
        return array.to_pylist()
    raise InvalidArgument(f"timestamps of type {array.type} are none")


def _integers(array: pa.Array) -> List[Optional[int]]:
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    elif pa.types.is_run_end_encoded(array.type):
        values = _integers(array.values)
        start = 0
        rows: List[Optional[int]] = []
        for end, value in zip(array.run_ends.to_pylist(), values):
            rows.extend([value] * (end - start))
            start = end
        return rows[array.offset : array.offset + len(array)]
    return array.cast(pa.int64()).to_pylist()


def _describes(objects: pa.Table, table: pa.Table) -> bool:
    """Whether the objects are those whose MetaHeaders stand in the table (as far as it has any)."""
    from ._table import _runs  # the runs of a column, however encoded

    generations = {}
    for row in objects.to_pylist():
        generations.setdefault(row["column"], []).append((row["row_start"], row["generation"]))
    for field, column in zip(table.schema, table.columns):
        if not (field.metadata and b"url" in field.metadata):
            continue
        start, seen = 0, []
        for end, cell in _runs(column):
            if isinstance(cell, bytes):
                seen.append((start, int.from_bytes(cell[8:16], "little")))
            elif cell is not None:
                return True
            start = end
        if seen != generations.get(field.name, []):
            return False
    return True
