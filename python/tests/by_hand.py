"""The protocol beside pyarrow: the attach socket, cells of forty bytes, and gRPC's own statuses."""

from __future__ import annotations

import json
import mmap
import socket
import struct

import grpc
import pyarrow as pa
import pyarrow.flight as flight

HEADER = struct.Struct("<QQqqHHB3x")
OPTIONS = [("grpc.default_authority", "localhost")]


class ByHand:
    """An independent implementation of the interface, written from its documentation."""

    def __init__(self, service, consumer="by-hand"):
        self.attach = socket.socket(socket.AF_UNIX)
        self.attach.settimeout(30)
        self.attach.connect(service.ready["attach"])
        self.say({"hello": 1, "consumer": consumer})
        self.lines = b""
        self.descriptors = []
        self.maps = {}
        self.session = self.hear()["session"]
        self.flight = flight.connect(service.unix, generic_options=OPTIONS)
        self.channel = grpc.insecure_channel(service.tcp[len("grpc://") :])

    def say(self, message):
        self.attach.sendall(json.dumps(message).encode() + b"\n")

    def hear(self):
        while b"\n" not in self.lines:
            data, descriptors, _, _ = socket.recv_fds(self.attach, 65536, 253)
            assert data, "the service hung up"
            self.lines += data
            self.descriptors += descriptors
        line, _, self.lines = self.lines.partition(b"\n")
        message = json.loads(line)
        for segment in message["segments"]:
            key, fd = (segment["kind"], segment["id"]), self.descriptors.pop(0)
            self.maps[key] = mmap.mmap(fd, segment["size"], prot=mmap.PROT_READ)
        return message

    def resolve(self, cell):
        size, generation, handle, shared, region, number, managed = HEADER.unpack(cell)
        assert (shared, cell[37:]) == (-1, b"\0\0\0")
        if managed:
            assert (managed, region, handle % 16) == (1, 0, 0)
            key, payload = ("segment", number), handle + 16
        else:
            assert number == 0
            key, payload = ("region", region), handle
        while key not in self.maps:
            self.hear()
        block = memoryview(self.maps[key])[payload - 64 :]
        assert struct.unpack_from("<QQ", block) == (generation, size)
        # FairMQ's own header precedes the payload.
        assert struct.unpack_from("<4HQ", block, 48) == (2, 0, 8, 1, 0)
        return bytes(block[64 : 64 + size])

    def get(self, request):
        return self.flight.do_get(flight.Ticket(json.dumps(request))).read_all()

    def act(self, name, body):
        (result,) = self.flight.do_action(flight.Action(name, body))
        return result.body.to_pybytes()

    def ask(self, name, **body):
        """Calls an action with a JSON body; returns the parsed answer."""
        return json.loads(self.act(name, json.dumps(body).encode()))

    def pinned(self):
        return self.ask("status")["memory"]["pinned_bytes"]

    def put(self, timeframe, times, about, timeout=None):
        """DoPut of a table or an array of timestamps; returns the metadata of the PutResult."""
        table = times if isinstance(times, pa.Table) else pa.table({"timestamp": times})
        descriptor = flight.FlightDescriptor.for_path("timeframe", str(timeframe))
        options = flight.FlightCallOptions(timeout=timeout)
        writer, reader = self.flight.do_put(descriptor, table.schema, options)
        with writer:
            first, *rest = table.to_batches() or [pa.RecordBatch.from_pylist([], table.schema)]
            writer.write_with_metadata(first, json.dumps(about).encode())
            for batch in rest:
                writer.write_batch(batch)
            writer.done_writing()
            answer = reader.read()
        return json.loads(answer.to_pybytes())

    def status_of(self, request, timeout=60):
        """The gRPC status and message of a DoGet."""
        return self.call("DoGet", field(1, json.dumps(request).encode()), timeout)[0]

    def messages(self, request):
        """The bytes of each message of a DoGet."""
        status, messages = self.call("DoGet", field(1, json.dumps(request).encode()), 60)
        assert status[0] == "OK", status
        return messages

    def call(self, method, message, timeout=60):
        """A call in bytes: its status and message, and the messages received."""
        stream = self.channel.unary_stream(f"/arrow.flight.protocol.FlightService/{method}")
        messages = []
        call = stream(message, timeout=timeout)
        try:
            messages.extend(call)
            return ("OK", ""), messages
        except grpc.RpcError as error:
            return (error.code().name, error.details()), messages

    def close(self):
        self.channel.close()
        self.flight.close()
        self.attach.close()


def field(number, data):
    """Bytes as a field of a protobuf message."""
    length, varint = len(data), b""
    while length > 127:
        varint += bytes([length & 127 | 128])
        length >>= 7
    return bytes([number << 3 | 2]) + varint + bytes([length]) + data


def fields(data):
    """The fields of a protobuf message: bytes of those with a length, raw bytes of doubles."""
    found, place = {}, 0

    def varint():
        nonlocal place
        value = shift = 0
        while True:
            byte = data[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < len(data):
        key = varint()
        if key & 7 == 1:
            found[key >> 3] = data[place : place + 8]
            place += 8
        elif key & 7 == 2:
            length = varint()
            found[key >> 3] = data[place : place + length]
            place += length
        else:
            found[key >> 3] = varint()
    return found
