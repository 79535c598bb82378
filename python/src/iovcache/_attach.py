"""The attach socket: a session with a service on this node, and its segments."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from typing import Any, Dict, List, Optional

from ._errors import FailedPrecondition, IovcacheError, Unavailable, refused
from ._resolver import MetaHeader, Resolver

_MAX_DESCRIPTORS = 253
_WELCOME_LIMIT = 10.0
_SEGMENT_LIMIT = 2.0


class Attachment:
    """A session: it lives as long as this, and all that is held for it."""

    def __init__(self, path: str, consumer: str, token: Optional[str] = None) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._buffer = b""
        self._descriptors: List[int] = []
        self._changed = threading.Condition()
        self._over: Optional[str] = None
        self.resolver = Resolver()
        try:
            self._socket.settimeout(_WELCOME_LIMIT)
            self._socket.connect(path)
            hello: Dict[str, Any] = {"hello": 1, "consumer": consumer}
            if token is not None:
                hello["token"] = token
            self._send(hello)
            welcome = self._line()
            if welcome is None:
                raise Unavailable(f"{path}: the service hung up", "IOV-4061")
            if "error" in welcome:
                raise refused(welcome)
            self._take(welcome)
            self._socket.settimeout(None)
        except OSError as error:
            self._end()
            if isinstance(error, IovcacheError):
                raise
            raise Unavailable(f"cannot attach to {path}: {error}") from error
        except BaseException:
            self._end()
            raise
        self.session: str = welcome["session"]
        self.epoch: str = welcome["epoch"]
        self._thread = threading.Thread(target=self._listen, name="iovcache-attach", daemon=True)
        self._thread.start()

    @property
    def over(self) -> Optional[str]:
        """Why the session is over; ``None`` as long as it is not."""
        return self._over

    def resolve(self, header: MetaHeader) -> memoryview:
        """The object's bytes; waits a moment for a segment that is just being announced."""
        if not self.resolver.knows(header):
            self._await(header)
        return self.resolver.resolve(header)

    def _await(self, header: MetaHeader) -> None:
        kind, number = header.place
        try:
            self._send({"need": {"kind": kind, "id": number}})
        except OSError:
            return
        deadline = time.monotonic() + _SEGMENT_LIMIT
        with self._changed:
            while not self.resolver.knows(header) and self._over is None:
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    return

    def close(self) -> None:
        """Ends the session. Views stay readable, but what they show may change."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._thread.join(timeout=_SEGMENT_LIMIT)
        self._end()

    def _end(self) -> None:
        self._socket.close()
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _send(self, message: Dict[str, Any]) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def _line(self) -> Optional[Dict[str, Any]]:
        """The next line; ``None`` when the service hangs up."""
        while b"\n" not in self._buffer:
            data, descriptors, flags, _ = socket.recv_fds(self._socket, 65536, _MAX_DESCRIPTORS)
            self._descriptors.extend(descriptors)
            if flags & socket.MSG_CTRUNC:
                raise FailedPrecondition("descriptors were lost: too many open files", "IOV-4063")
            if not data:
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return dict(json.loads(line))

    def _take(self, announcement: Dict[str, Any]) -> None:
        for segment in announcement["segments"]:
            if not self._descriptors:
                raise FailedPrecondition("a segment came without its descriptor", "IOV-4064")
            fd = self._descriptors.pop(0)
            try:
                self.resolver.add(segment["kind"], segment["id"], segment["size"], fd)
            finally:
                os.close(fd)
        with self._changed:
            self._changed.notify_all()

    def _listen(self) -> None:
        why = "the service hung up"
        try:
            while True:
                line = self._line()
                if line is None:
                    break
                if "error" not in line:  # else one of our lines was wrong
                    self._take(line)
        except Exception as error:  # whatever it is, the session cannot go on
            why = str(error)
        with self._changed:
            self._over = why
            self._changed.notify_all()
