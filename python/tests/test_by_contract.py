"""A client without this package: pyarrow, the attach socket, and cells of forty bytes."""

import json
import struct
import time

import pyarrow as pa
import pyarrow.flight as flight
import pytest
from by_hand import ByHand, field, fields
from conftest import right, until

DRIFT = "TPC/Calib/VDrift"


@pytest.fixture
def by_hand(service):
    client = ByHand(service)
    yield client
    client.close()


def test_cells_resolve_to_the_right_bytes(by_hand, service):
    times = [1000, 2999, 3000, 5000, 7000, 8999]
    request = {"columns": {"drift": DRIFT}, "timestamps": times, "session": by_hand.session}
    for encoding in ("dictionary", "plain"):
        table = by_hand.get({**request, "encoding": encoding, "timestamps_column": True})
        assert table["timestamp"].to_pylist() == times
        cells = table["drift"].to_pylist()
        assert [by_hand.resolve(cell) for cell in cells] == [right(DRIFT, at) for at in times]
        metadata = table.schema.metadata
        assert metadata[b"iovcache.attach"].decode() == service.ready["attach"]
        assert metadata[b"iovcache.epoch"].decode() == service.ready["epoch"]
        assert b"iovcache.lease" in metadata and b"iovcache.version" in metadata
        assert table.schema.field("drift").metadata[b"url"] == DRIFT.encode()
        assert not table.schema.field("drift").nullable


def test_the_cells_struct_and_o2_say_the_same_as_the_bytes(by_hand):
    request = {"columns": {"drift": DRIFT}, "timestamps": [1000, None], "encoding": "plain"}
    request["session"] = by_hand.session
    size, generation, handle, _, _, number, _ = struct.unpack(
        "<QQqqHHB3x", by_hand.get(request)["drift"][0].as_py()
    )
    one, null = by_hand.get({**request, "cell": "struct"})["drift"].to_pylist()
    assert (one["size"], one["hint"], one["handle"]) == (size, generation, handle)
    assert null is None
    table = by_hand.get({**request, "cell": "o2"})
    assert table["drift"].to_pylist() == [[handle, number, size], None]
    assert by_hand.get({**request, "cell": "payload"})["drift"].to_pylist() == [b"drift 1", None]


def test_flight_info_schema_and_the_ticket(by_hand):
    request = {"columns": {"drift": DRIFT}, "timestamps": [1000, 3000]}
    descriptor = flight.FlightDescriptor.for_command(json.dumps(request))
    info = by_hand.flight.get_flight_info(descriptor)
    assert info.total_records == 2
    assert info.schema.names == ["drift"]
    assert by_hand.flight.get_schema(descriptor).schema.names == ["drift"]
    endpoint = info.endpoints[0]
    table = by_hand.flight.do_get(endpoint.ticket).read_all()
    assert table.num_rows == 2
    assert endpoint.expiration_time is not None
    renewed = flight.FlightEndpoint.deserialize(
        by_hand.act("RenewFlightEndpoint", field(1, endpoint.serialize()))
    )
    assert renewed.expiration_time.value >= endpoint.expiration_time.value
    # CancelFlightInfoResult with status CANCELLED.
    assert by_hand.act("CancelFlightInfo", field(1, info.serialize())) == b"\x08\x01"
    with pytest.raises(Exception, match="IOV-5002"):
        by_hand.flight.do_get(endpoint.ticket).read_all()
    # Shorthand: the request itself is a valid ticket.
    by_hand.get(request)
    shorthand = flight.FlightEndpoint(json.dumps(request), [])
    info = flight.FlightInfo(table.schema, descriptor, [shorthand], 2, -1)
    assert by_hand.act("CancelFlightInfo", field(1, info.serialize())) == b"\x08\x01"


def test_intervals_and_chunks_and_locks(by_hand):
    range_ = {"from": 0, "until": 10_000}
    request = {"columns": {"drift": DRIFT}, "range": range_, "view": "intervals"}
    spans = by_hand.get({**request, "session": by_hand.session}).to_pylist()
    assert [(span["from"], span["until"]) for span in spans] == [
        (1000, 3000),
        (3000, 5000),
        (5000, 7000),
        (7000, 7001),
        (7001, 9000),
    ]
    assert [by_hand.resolve(span["cell"]) for span in spans] == [
        right(DRIFT, span["from"]) for span in spans
    ]
    chunks = {"columns": {"n": "TPC/Calib/Noise"}, "timestamps": [5], "view": "chunks"}
    assert b"".join(by_hand.get(chunks)["bytes"].to_pylist()) == b"n" * 100_000
    one = {"columns": {"drift": DRIFT}, "timestamps": [1000]}
    lock = by_hand.get({**one, "view": "objects"}).to_pylist()
    for row in lock:
        row["metadata"] = dict(row["metadata"])
    # At 4000 another version wins, unless the request is limited to the locked ones.
    locked = {**one, "timestamps": [4000], "lock": lock, "session": by_hand.session}
    assert by_hand.resolve(by_hand.get(locked)["drift"][0].as_py()) == b"drift 1"


def test_unknown_fields_are_refused_by_name(by_hand):
    request = {"columns": {"drift": DRIFT}, "timestamps": [1000], "colour": "red"}
    with pytest.raises(Exception, match=r"IOV-1001.*colour"):
        by_hand.get(request)


@pytest.mark.parametrize("encoding", ["dictionary", "plain"])
def test_an_exchange_answers_each_batch_and_its_end_lets_all_go(start, encoding):
    by_hand = ByHand(start())
    template = {"columns": {"drift": DRIFT}, "encoding": encoding, "session": by_hand.session}
    descriptor = flight.FlightDescriptor.for_command(json.dumps(template))
    schema = pa.schema([("timestamp", pa.int64())])
    writer, reader = by_hand.flight.do_exchange(descriptor)
    before = by_hand.pinned()
    with writer:
        writer.begin(schema)
        times = {7: [1000, 3000], 8: [7000, None], 9: [8999]}
        for timeframe, rows in times.items():
            batch = pa.record_batch([pa.array(rows, pa.int64())], schema=schema)
            writer.write_with_metadata(batch, json.dumps({"timeframe": timeframe}).encode())
            chunk = reader.read_chunk()
            about = json.loads(chunk.app_metadata.to_pybytes())
            assert about["timeframe"] == timeframe and about["lease"]
            cells = chunk.data["drift"].to_pylist()
            expected = [None if at is None else right(DRIFT, at) for at in rows]
            assert [None if c is None else by_hand.resolve(c) for c in cells] == expected
        held = by_hand.pinned()
        assert held > before
        writer.write_metadata(json.dumps({"consumed": [7]}).encode())
        writer.write_metadata(json.dumps({"oldest_possible": 9}).encode())
        until("the consumed ones to be let go", lambda: by_hand.pinned() < held)
        writer.done_writing()
        with pytest.raises(StopIteration):
            reader.read_chunk()
    until("all to be let go", lambda: by_hand.pinned() == before)
    by_hand.close()


def test_a_poll_tells_progress_until_all_is_there(start):
    service = start(name="poll")
    client = ByHand(service)
    # pyarrow has no PollFlightInfo, so the call is made in bytes.
    poll = client.channel.unary_unary("/arrow.flight.protocol.FlightService/PollFlightInfo")
    request = {"columns": {"n": "TPC/Calib/Noise"}, "timestamps": [5]}
    descriptor = flight.FlightDescriptor.for_command(json.dumps(request)).serialize()
    for _ in range(200):
        answer = fields(poll(descriptor, timeout=30))
        info = flight.FlightInfo.deserialize(answer[1])
        progress = struct.unpack("<d", answer[3])[0]
        assert 0 <= progress <= 1
        if 2 not in answer:
            break
        descriptor = answer[2]
        time.sleep(0.01)
    assert progress == 1.0
    about = json.loads(info.app_metadata)
    assert about["objects"] == about["objects_loaded"] == 1 and about["bytes"] == 100_000
    table = client.flight.do_get(info.endpoints[0].ticket).read_all()
    assert table.num_rows == 1
    client.close()
