"""Every call of the interface with pyarrow alone, and gRPC's own statuses."""

import http.server
import json
import threading
import time
import uuid

import pyarrow as pa
import pyarrow.flight as flight
import pytest
from by_hand import ByHand, field, fields
from conftest import VERSIONS, put, right, until

DRIFT, NOISE = "TPC/Calib/VDrift", "TPC/Calib/Noise"
TIMES = [1000, 3000, 7000]
COLUMNS = {"drift": DRIFT, "noise": NOISE}


@pytest.fixture
def by_hand(service):
    client = ByHand(service)
    yield client
    client.close()


@pytest.fixture
def alone(start):
    """A client of a service that no other client uses."""
    client = ByHand(start())
    yield client
    client.close()


def fresh():
    return uuid.uuid4().int >> 65


def descriptor(request):
    return flight.FlightDescriptor.for_command(json.dumps(request))


def test_a_timeframe_from_its_registration_to_its_end(alone):
    columns = {"columns": COLUMNS, "consumers": ["a", "b"]}
    answer = alone.put(42, TIMES, columns)
    assert set(answer) == {"timeframe", "rows", "objects", "state"}
    assert (answer["timeframe"], answer["rows"], answer["objects"]) == (42, 3, 4)
    assert answer["state"] in ("loading", "ready")

    def state():
        (timeframe,) = alone.ask("status")["timeframes"]
        return timeframe

    until("it to be ready", lambda: state()["state"] == "ready")
    assert state() == {
        "timeframe": 42,
        "state": "ready",
        "rows": 3,
        "objects": 4,
        "bytes": state()["bytes"],
        "consumers": {"a": "waiting", "b": "waiting"},
    }
    assert state()["bytes"] >= 100_000
    # Identical content gets the same answer; other content is refused with ALREADY_EXISTS.
    assert alone.put(42, TIMES, columns) == {**answer, "state": "ready"}
    others = [
        (TIMES[:2], columns),
        (TIMES, {**columns, "columns": {"drift": DRIFT}}),
        (TIMES, {**columns, "consumers": ["a"]}),
    ]
    for times, about in others:
        with pytest.raises(Exception, match=r"\[IOV-5013\]") as caught:
            alone.put(42, times, about)
        assert not isinstance(caught.value, pa.ArrowInvalid)
    request = {"timeframe": 42, "session": alone.session, "encoding": "plain"}
    table = alone.get({**request, "consumer": "a"})
    assert table.schema.names == ["drift", "noise"], "those that it was registered with"
    assert table.schema.metadata[b"iovcache.timeframe"] == b"42"
    assert [alone.resolve(cell) for cell in table["drift"].to_pylist()] == [
        right(DRIFT, at) for at in TIMES
    ]
    assert state()["state"] == "ready"
    assert state()["consumers"] == {"a": "delivered", "b": "waiting"}
    alone.get({**request, "consumer": "b"})
    assert state()["state"] == "delivered"
    assert alone.ask("consumed", timeframe=42, consumer="a") == {"dropped": [], "in_flight": 1}
    assert state()["consumers"] == {"a": "consumed", "b": "delivered"}
    # A repeated report is accepted; a request for the table afterwards is an error.
    assert alone.ask("consumed", timeframe=42, consumer="a") == {"dropped": [], "in_flight": 1}
    assert alone.status_of({**request, "consumer": "a"})[0] == "FAILED_PRECONDITION"
    # An unexpected consumer gets an error that lists the expected ones.
    status, message = alone.status_of({**request, "consumer": "stranger"})
    assert status == "NOT_FOUND" and "stranger" in message and "a, b" in message
    assert alone.pinned() > 100_000
    assert alone.ask("consumed", timeframe=42, consumer="b") == {"dropped": [42], "in_flight": 0}
    assert alone.ask("status")["timeframes"] == []
    until("all to be let go", lambda: alone.pinned() == 0)
    assert alone.status_of({**request, "consumer": "b"})[0] == "NOT_FOUND"
    # The id is free again, for any other content.
    assert alone.put(42, [5000], {"columns": {"noise": NOISE}, "consumers": ["c"]})["rows"] == 1
    assert alone.ask("drop_timeframe", timeframe=42) == {"dropped": [42], "in_flight": 0}


def test_the_watermark_of_a_consumer_never_goes_back(alone):
    about = {"columns": {"drift": DRIFT}, "consumers": ["a", "b"]}
    for timeframe in (1, 2, 3, 5):
        alone.put(timeframe, TIMES, about)
    # All below 3, for one of two consumers.
    assert alone.ask("consumed", consumer="a", oldest_possible=3) == {"dropped": [], "in_flight": 4}
    assert alone.ask("consumed", consumer="b", oldest_possible=2)["dropped"] == [1]
    assert alone.ask("consumed", consumer="b", oldest_possible=4)["dropped"] == [2]
    assert alone.ask("consumed", consumer="a", oldest_possible=1) == {"dropped": [], "in_flight": 2}
    # A late timeframe counts as consumed for the consumers that reported a later watermark.
    assert alone.put(2, TIMES, {**about, "consumers": ["a"]})["state"] == "consumed"
    assert alone.ask("status")["timeframes"][0]["timeframe"] == 3
    alone.put(0, TIMES, {**about, "consumers": ["a", "new"]})
    (late,) = [one for one in alone.ask("status")["timeframes"] if one["timeframe"] == 0]
    assert late["consumers"] == {"a": "consumed", "new": "waiting"}
    assert alone.ask("consumed", timeframe=0, consumer="new")["dropped"] == [0]
    assert alone.ask("consumed", consumer="a", oldest_possible=9)["dropped"] == [3]
    assert alone.ask("consumed", consumer="b", oldest_possible=9)["dropped"] == [5]
    assert alone.pinned() == 0


def test_a_consumer_is_delivered_by_its_get_and_by_nothing_before(alone):
    alone.put(3, TIMES, {"columns": {"drift": DRIFT}, "consumers": ["a", "b"]})
    request = {"timeframe": 3, "consumer": "a"}

    def state():
        return alone.ask("status")["timeframes"][0]["consumers"]

    poll = alone.channel.unary_unary("/arrow.flight.protocol.FlightService/PollFlightInfo")
    answer = {2: descriptor(request).serialize()}
    while 2 in answer:
        answer = fields(poll(answer[2], timeout=30))
    alone.flight.get_schema(descriptor(request))
    info = alone.flight.get_flight_info(descriptor(request))
    assert state() == {"a": "waiting", "b": "waiting"}
    alone.flight.do_get(info.endpoints[0].ticket).read_all()
    assert state() == {"a": "delivered", "b": "waiting"}
    alone.get({"timeframe": 3, "consumer": "b", "view": "objects"})
    assert state() == {"a": "delivered", "b": "delivered"}
    alone.ask("drop_timeframe", timeframe=3)


def test_a_timeframe_without_named_consumers_waits_for_those_that_ask(alone):
    alone.put(7, TIMES, {"columns": {"drift": DRIFT}})
    alone.get({"timeframe": 7, "consumer": "who comes"})
    assert alone.ask("status")["timeframes"][0]["consumers"] == {"who comes": "delivered"}
    # A read without a consumer name changes nothing.
    alone.get({"timeframe": 7})
    assert alone.ask("consumed", timeframe=7, consumer="who comes")["dropped"] == [7]


def test_a_timeframe_keeps_the_versions_that_held_when_it_was_registered(start, tmp_path):
    repository = tmp_path / "repository"
    for version in VERSIONS:
        put(repository, version, tmp_path)
    client = ByHand(start(source=repository))
    client.put(1, [1000], {"columns": {"drift": DRIFT}, "consumers": ["a"]})
    put(repository, (DRIFT, 0, 9000, 99, b"newer"), tmp_path)
    plain = {"encoding": "plain", "cell": "payload"}

    def now():
        request = {"columns": {"drift": DRIFT}, "timestamps": [1000], **plain}
        return client.get(request)["drift"].to_pylist() == [b"newer"]

    until("the new version to be seen", now)
    request = {"timeframe": 1, "consumer": "a", **plain}
    assert client.get(request)["drift"].to_pylist() == [b"drift 1"]
    # Other columns can be requested for its timestamps.
    other = {**request, "columns": {"noise": NOISE}}
    assert client.get(other)["noise"].to_pylist() == [b"n" * 100_000]
    client.close()


def test_a_registration_that_is_none_is_refused(by_hand):
    good = {"columns": {"drift": DRIFT}, "consumers": ["a"]}
    wrong = [
        {**good, "colour": 1},
        {"consumers": ["a"]},
        {**good, "table": "x"},
        {**good, "consumers": ["a", "a"]},
        {**good, "consumers": [""]},
        {**good, "columns": {}},
    ]
    for about in wrong:
        with pytest.raises(pa.ArrowInvalid, match=r"\[IOV-100\d\]"):
            by_hand.put(fresh(), TIMES, about)
    with pytest.raises(KeyError, match=r"\[IOV-2011\]"):
        by_hand.put(fresh(), TIMES, {"table": "no such table"})
    for path in (["timeframe"], ["timeframe", "x"], ["timeframe", "-1"], ["else", "1"]):
        target = flight.FlightDescriptor.for_path(*path)
        table = pa.table({"timestamp": TIMES})
        with pytest.raises(pa.ArrowInvalid, match=r"\[IOV-100\d\]"):
            writer, _ = by_hand.flight.do_put(target, table.schema)
            with writer:
                writer.write_with_metadata(table.to_batches()[0], json.dumps(good).encode())
    # Without the message that names the columns.
    target = flight.FlightDescriptor.for_path("timeframe", str(fresh()))
    with pytest.raises(pa.ArrowInvalid, match=r"\[IOV-1001\].*app_metadata"):
        writer, _ = by_hand.flight.do_put(target, table.schema)
        with writer:
            writer.write_table(table)


def test_many_batches_are_one_timeframe_and_none_is_one_without_rows(by_hand):
    about = {"columns": {"drift": DRIFT}, "consumers": [f"me-{fresh()}"]}
    timeframe = fresh()
    table = pa.concat_tables([pa.table({"timestamp": [at]}) for at in TIMES])
    assert by_hand.put(timeframe, table, about)["rows"] == 3
    got = by_hand.get({"timeframe": timeframe, "cell": "payload", "encoding": "plain"})
    assert got["drift"].to_pylist() == [right(DRIFT, at) for at in TIMES]
    by_hand.ask("drop_timeframe", timeframe=timeframe)
    timeframe = fresh()
    empty = pa.record_batch({"timestamp": pa.array([], pa.int64())})
    answer = by_hand.put(timeframe, pa.Table.from_batches([empty]), about)
    assert (answer["rows"], answer["objects"]) == (0, 0)
    assert by_hand.get({"timeframe": timeframe}).num_rows == 0
    by_hand.ask("drop_timeframe", timeframe=timeframe)


def test_registrations_beyond_the_limit_wait_in_order_and_by_the_clients_deadline(start):
    client = ByHand(start("--max-timeframes", "2"))
    about = {"columns": {"drift": DRIFT}, "consumers": ["a"]}
    client.put(1, TIMES, about)
    client.put(2, TIMES, about)
    # A timeframe that is already in flight needs no place.
    assert client.put(1, TIMES, about, timeout=30)["rows"] == 3
    began = time.monotonic()
    # The service gives up a moment before the client does, and names the reason if it is fast
    # enough.
    with pytest.raises((flight.FlightUnavailableError, flight.FlightTimedOutError)):
        client.put(3, TIMES, about, timeout=0.5)
    assert 0.3 < time.monotonic() - began < 20
    came, others = [], []

    def register(timeframe):
        client.put(timeframe, TIMES, about, timeout=50)
        came.append(timeframe)

    for timeframe in (10, 11, 12):
        others.append(threading.Thread(target=register, args=(timeframe,)))
        others[-1].start()
        time.sleep(0.2)
    assert came == [], "they wait"
    for done, next_ in ((1, 10), (2, 11), (10, 12)):
        client.ask("consumed", timeframe=done, consumer="a")
        until(f"{next_} to come", lambda: next_ in came)
    assert came == [10, 11, 12]
    for thread in others:
        thread.join(50)
    assert len(client.ask("status")["timeframes"]) == 2
    client.close()


@pytest.fixture
def tight(start, tmp_path):
    """A service with room for three of these objects and a little more."""
    repository = tmp_path / "tight"
    for number in range(8):
        put(repository, (f"Big/Object{number}", 0, 10, 1, bytes([number]) * (1 << 20)), tmp_path)
    client = ByHand(start("--memory", "4MiB", "--segment", "4MiB", source=repository))
    yield client
    client.close()


def big(*numbers):
    return {f"x{number}": f"Big/Object{number}" for number in numbers}


def test_a_timeframe_that_can_never_fit_is_refused_at_once_with_its_size(tight):
    began = time.monotonic()
    status, message = tight.status_of({"columns": big(*range(8)), "timestamps": [5]})
    assert status == "RESOURCE_EXHAUSTED" and message.startswith("[IOV-4011] ")
    numbers = [int(word) for word in message.split() if word.isdigit()]
    assert any(8 << 20 <= number < 9 << 20 for number in numbers), message
    with pytest.raises(pa.ArrowInvalid, match=r"\[IOV-4011\]"):
        tight.put(1, [5], {"columns": big(*range(8)), "consumers": ["a"]})
    assert time.monotonic() - began < 20
    assert tight.pinned() == 0 and tight.ask("status")["timeframes"] == []


def test_when_all_memory_is_pinned_one_waits_by_its_deadline_and_nothing_deadlocks(tight):
    session = {"session": tight.session, "timestamps": [5]}
    held = [tight.get({**session, "columns": big(number)}) for number in range(3)]
    leases = [table.schema.metadata[b"iovcache.lease"].decode() for table in held]
    request = {"columns": big(3), "timestamps": [5]}
    status, message = tight.status_of({**request, "wait_ms": 300})
    assert status == "UNAVAILABLE" and message.startswith("[IOV-4010] ")
    began = time.monotonic()
    status, _ = tight.status_of(request, timeout=0.5)
    assert status in ("UNAVAILABLE", "DEADLINE_EXCEEDED") and time.monotonic() - began < 20
    # Resident objects can still be requested; waiting requests proceed when a pin is released.
    assert tight.status_of({**session, "columns": big(1)})[0] == "OK"
    came = []

    def ask(number):
        came.append(tight.status_of({**session, "columns": big(number)}))

    waiting = [threading.Thread(target=ask, args=(number,)) for number in (3, 4)]
    for thread in waiting:
        thread.start()
    time.sleep(0.3)
    assert came == []
    for lease in leases[:2]:
        tight.ask("release", lease=lease)
    # Object 1 was requested twice: its second lease ends with the session.
    until("at least one to come", lambda: came)
    tight.attach.close()
    for thread in waiting:
        thread.join(50)
    assert sorted(status for status, _ in came)[-1] == "OK" and len(came) == 2


def test_a_timeframe_for_which_memory_is_short_waits_and_does_not_pass_earlier_ones(tight):
    tight.put(1, [5], {"columns": big(0, 1), "consumers": ["a"]})
    came, waiting = [], []
    for timeframe, numbers in ((2, (2, 3)), (3, (4,))):

        def register(timeframe=timeframe, numbers=numbers):
            about = {"columns": big(*numbers), "consumers": ["a"]}
            tight.put(timeframe, [5], about, timeout=50)
            came.append(timeframe)

        waiting.append(threading.Thread(target=register))
        waiting[-1].start()
        time.sleep(0.3)
    # The second request would fit, but it has to wait for the first.
    assert came == []
    assert [one["timeframe"] for one in tight.ask("status")["timeframes"]] == [1]
    tight.ask("consumed", timeframe=1, consumer="a")
    for thread in waiting:
        thread.join(50)
    assert sorted(came) == [2, 3]
    states = lambda: {one["state"] for one in tight.ask("status")["timeframes"]}
    until("both to be ready", lambda: states() == {"ready"})


def test_a_table_goes_out_only_when_all_of_its_objects_are_there_and_pinned(tight):
    tight.put(1, [5], {"columns": big(0, 1), "consumers": ["a"]})
    until("it to be ready", lambda: tight.ask("status")["timeframes"][0]["state"] == "ready")
    pinned = tight.pinned()
    assert pinned >= 2 << 20
    # Two more do not fit together: neither is kept while the request waits.
    status, _ = tight.status_of({"columns": big(2, 3), "timestamps": [5], "wait_ms": 300})
    assert status == "UNAVAILABLE"
    until("what it had to be let go", lambda: tight.pinned() == pinned)


def test_a_consumer_that_dies_comes_back_under_its_name_and_goes_on(start):
    service = start()
    alone = ByHand(service)
    about = {"columns": {"drift": DRIFT, "noise": NOISE}, "consumers": ["tracker", "other"]}
    alone.put(1, TIMES, about)
    first = ByHand(service, "tracker")
    # A session that reads without a consumer name is the consumer that it attached as.
    first.get({"timeframe": 1, "session": first.session})
    sessions = {one["consumer"]: one for one in alone.ask("status")["sessions"]}
    assert sessions["tracker"]["pinned_bytes"] > 100_000
    assert set(sessions["tracker"]) == {"number", "consumer", "pid", "uid", "pinned_bytes"}
    first.close()

    def gone():
        return all(one["consumer"] != "tracker" for one in alone.ask("status")["sessions"])

    until("its session to end", gone)
    status, message = alone.status_of({"timeframe": 1, "session": first.session})
    assert status == "FAILED_PRECONDITION" and message.startswith("[IOV-5001] ")
    # The timeframe still waits for the consumer, and its objects are resident.
    (timeframe,) = alone.ask("status")["timeframes"]
    assert timeframe["consumers"]["tracker"] != "consumed"
    second = ByHand(service, "tracker")
    table = second.get({"timeframe": 1, "session": second.session, "encoding": "plain"})
    assert [second.resolve(cell) for cell in table["drift"].to_pylist()] == [
        right(DRIFT, at) for at in TIMES
    ]
    second.ask("consumed", timeframe=1, consumer="tracker")
    assert second.ask("consumed", timeframe=1, consumer="other")["dropped"] == [1]
    second.close()
    until("all to be let go", lambda: alone.pinned() == 0)
    alone.close()


def test_a_request_without_a_session_has_a_lease_with_a_time_limit(alone):
    request = {"columns": {"noise": NOISE}, "timestamps": [5]}
    table = alone.get(request)
    lease = table.schema.metadata[b"iovcache.lease"].decode()
    assert alone.pinned() > 100_000
    assert alone.ask("release", lease=lease) == {"released": lease}
    assert alone.pinned() == 0
    with pytest.raises(pa.ArrowInvalid, match=r"\[IOV-5002\]"):
        alone.ask("release", lease=lease)
    # GetFlightInfo loads nothing, and states until when its ticket is valid.
    info = alone.flight.get_flight_info(descriptor(request))
    assert (info.total_records, alone.pinned()) == (1, 0)
    (endpoint,) = info.endpoints
    left = endpoint.expiration_time.as_py().timestamp() - time.time()
    assert 30 < left <= 61
    # A request with a session needs no time limit.
    info = alone.flight.get_flight_info(descriptor({**request, "session": alone.session}))
    assert info.endpoints[0].expiration_time is None
    assert info.endpoints[0].locations == []


def test_the_schema_is_known_before_anything_is_loaded(alone):
    request = {"columns": COLUMNS, "timestamps": TIMES}
    for more in ({}, {"encoding": "run_end"}, {"cell": "o2"}, {"view": "objects"}):
        told = alone.flight.get_schema(descriptor({**request, **more})).schema
        assert alone.ask("status")["loads"] == 0
        assert b"iovcache.attach" in told.metadata
        info = alone.flight.get_flight_info(descriptor({**request, **more}))
        assert info.schema.remove_metadata() == told.remove_metadata()
    for more in ({}, {"encoding": "run_end"}, {"cell": "o2"}, {"view": "objects"}):
        told = alone.flight.get_schema(descriptor({**request, **more})).schema
        got = alone.get({**request, **more}).schema
        assert got.remove_metadata() == told.remove_metadata()
    wrong = descriptor({**request, "timestamps": "noon"})
    with pytest.raises(pa.ArrowInvalid, match=r"\[IOV-1001\]"):
        alone.flight.get_schema(wrong)


def test_flights_are_paths_with_their_counts_and_timeframes(alone):
    alone.put(9, TIMES, {"columns": COLUMNS, "consumers": ["a"]})
    flights = list(alone.flight.list_flights())
    listed = {tuple(part.decode() for part in one.descriptor.path): one for one in flights}
    assert set(listed) == {(DRIFT,), (NOISE,), ("timeframe", "9")}
    assert (listed[DRIFT,].total_records, listed[NOISE,].total_records) == (3, 1)
    assert json.loads(listed[DRIFT,].app_metadata) == {"path": DRIFT, "objects": 3}
    assert listed["timeframe", "9"].total_records == 3
    below = list(alone.flight.list_flights(b"TPC/Calib/Noise"))
    assert [one.descriptor.path for one in below] == [[NOISE.encode()]]
    assert list(alone.flight.list_flights(b"No/Such")) == []
    # The descriptor of a timeframe leads to its table.
    info = alone.flight.get_flight_info(flight.FlightDescriptor.for_path("timeframe", "9"))
    assert info.total_records == 3 and info.schema.names == ["drift", "noise"]
    assert alone.flight.do_get(info.endpoints[0].ticket).read_all().num_rows == 3


def test_status_is_as_it_is_drawn(alone, service):
    alone.get({"columns": COLUMNS, "timestamps": TIMES, "session": alone.session})
    alone.get({"columns": COLUMNS, "timestamps": TIMES, "session": alone.session})
    status = alone.ask("status")
    assert set(status) >= {
        "version",
        "epoch",
        "pid",
        "uptime_ms",
        "memory",
        "objects",
        "hits",
        "loads",
        "waits",
        "evictions",
        "stale",
        "timeframes",
        "sessions",
        "sources",
    }
    memory = status["memory"]
    names = ["total_bytes", "used_bytes", "pinned_bytes", "free_bytes", "largest_free_bytes"]
    assert sorted(memory) == sorted(names)
    assert memory["total_bytes"] == 64 << 20
    assert 0 < memory["pinned_bytes"] <= memory["used_bytes"] <= memory["total_bytes"]
    assert 0 < memory["largest_free_bytes"] <= memory["free_bytes"]
    assert (status["objects"], status["loads"], status["evictions"]) == (4, 4, 0)
    assert status["hits"] >= 4
    (source,) = status["sources"]
    assert set(source) == {"url", "state", "requests", "failures"} and source["state"] == "up"
    assert {one.type for one in alone.flight.list_actions()} >= {
        "consumed",
        "prefetch",
        "invalidate",
        "drop_timeframe",
        "segments",
        "status",
        "release",
        "CancelFlightInfo",
        "RenewFlightEndpoint",
    }
    for name in ("status", "segments"):
        with pytest.raises(pa.ArrowInvalid, match=r"\[IOV-1001\].*colour"):
            alone.ask(name, colour=1)
    with pytest.raises(pa.ArrowInvalid, match=r"\[IOV-1001\].*paint"):
        alone.ask("paint")
    segments = alone.ask("segments")
    assert segments["epoch"] == status["epoch"]
    assert all(set(one) == {"kind", "id", "size"} for one in segments["segments"])


def test_a_prefetched_object_is_a_hit_and_an_invalidated_path_is_looked_up_anew(alone):
    assert alone.ask("prefetch", columns={"drift": DRIFT}, range={"from": 0, "until": 9000}) == {
        "objects": 3
    }
    status = alone.ask("status")
    assert (status["loads"], status["objects"], alone.pinned()) == (3, 3, 0)
    rows = alone.get({"columns": {"drift": DRIFT}, "timestamps": TIMES, "view": "objects"})
    assert set(rows["cache"].to_pylist()) == {"hit"}
    assert alone.ask("invalidate", path=DRIFT) == {"invalidated": DRIFT}


def test_the_status_of_each_error(by_hand):
    request = {"columns": {"drift": DRIFT}, "timestamps": [1000]}
    wrong = [
        ({**request, "encoding": "zip"}, "INVALID_ARGUMENT"),
        ({**request, "cell": "json"}, "INVALID_ARGUMENT"),
        ({**request, "view": "rows!"}, "INVALID_ARGUMENT"),
        ({**request, "missing": "zero"}, "INVALID_ARGUMENT"),
        ({**request, "wait_ms": -1}, "INVALID_ARGUMENT"),
        ({**request, "timeframe": 1}, "INVALID_ARGUMENT"),
        ({"columns": {"drift": DRIFT}}, "INVALID_ARGUMENT"),
        ({"timestamps": [1]}, "INVALID_ARGUMENT"),
        ({**request, "table": "x"}, "INVALID_ARGUMENT"),
        ({**request, "consumer": ""}, "INVALID_ARGUMENT"),
        (
            {"columns": {"timestamp": DRIFT}, "timestamps": [1], "timestamps_column": True},
            "INVALID_ARGUMENT",
        ),
        ({"table": "no such", "timestamps": [1]}, "NOT_FOUND"),
        ({"timeframe": fresh()}, "NOT_FOUND"),
        ({**request, "timestamps": [0]}, "NOT_FOUND"),
        ({**request, "session": "nobody's"}, "FAILED_PRECONDITION"),
    ]
    for body, expected in wrong:
        status, message = by_hand.status_of(body)
        assert status == expected and message[:5] == "[IOV-" and message[9:11] == "] ", body
    for ticket in (b"", b"no json", b"[]", b"\xff\xfe", b'{"iovcache_ticket":1}'):
        (status, message), _ = by_hand.call("DoGet", field(1, ticket))
        assert (status, message[:5]) == ("INVALID_ARGUMENT", "[IOV-"), ticket


def test_a_hundred_columns_without_an_object_are_all_named(by_hand):
    columns = {f"column_{number:03}": f"No/Such/Path{number}" for number in range(100)}
    times = [1_730_895_000_000, 1_730_899_000_000]
    status, message = by_hand.status_of({"columns": columns, "timestamps": times})
    assert status == "NOT_FOUND"
    for name in columns:
        (place,) = [message.index(name)]
        rest = message[place : place + 100]
        assert str(times[0]) in rest and str(times[1]) in rest, name


def test_an_exchange_in_its_details(alone):
    template = {"columns": {"drift": DRIFT}, "encoding": "plain", "consumer": "tracker"}
    schema = pa.schema([("timestamp", pa.timestamp("us", "UTC"))])

    def batch(*millis):
        return pa.record_batch([pa.array([at * 1000 for at in millis], schema[0].type)], schema)

    writer, reader = alone.flight.do_exchange(descriptor(template))
    writer.begin(schema)
    # Several timeframes can be requested before the first answer is read; answers come in their
    # order.
    asked = {5: (1000, 3000), 3: (7000,), 4: (8999, 1000)}
    for timeframe, times in asked.items():
        writer.write_with_metadata(batch(*times), json.dumps({"timeframe": timeframe}).encode())
    for timeframe, times in asked.items():
        chunk = reader.read_chunk()
        about = json.loads(chunk.app_metadata.to_pybytes())
        assert about["timeframe"] == timeframe and about["lease"]
        cells = chunk.data["drift"].to_pylist()
        assert [alone.resolve(cell) for cell in cells] == [right(DRIFT, at) for at in times]
    held = alone.pinned()
    # A consumed table is released; the report may come with the timestamps of the next table, too.
    writer.write_with_metadata(batch(), json.dumps({"timeframe": 9, "consumed": [3, 5]}).encode())
    assert reader.read_chunk().data.num_rows == 0
    assert 0 < alone.pinned() <= held
    # Below the stream's watermark a table is sent and released at once.
    writer.write_metadata(json.dumps({"oldest_possible": 9}).encode())
    until("all below to be let go", lambda: alone.pinned() == 0)
    writer.write_metadata(json.dumps({"oldest_possible": 2}).encode())
    writer.write_with_metadata(batch(1000), json.dumps({"timeframe": 8}).encode())
    assert reader.read_chunk().data.num_rows == 1
    until("it to be let go", lambda: alone.pinned() == 0)
    # That watermark is separate from the consumer's watermark for registered timeframes.
    alone.put(1, TIMES, {"columns": {"drift": DRIFT}, "consumers": ["tracker"]})
    assert alone.ask("status")["timeframes"][0]["consumers"] == {"tracker": "waiting"}
    alone.ask("drop_timeframe", timeframe=1)
    writer.write_with_metadata(batch(3000), json.dumps({"timeframe": 12}).encode())
    reader.read_chunk()
    until("it to be held", lambda: alone.pinned() > 0)
    # However the stream ends.
    reader.cancel()
    until("the end to let go", lambda: alone.pinned() == 0)


def test_a_message_that_an_exchange_cannot_answer_ends_it_with_the_reason(alone):
    def ask(template, times, about):
        writer, reader = alone.flight.do_exchange(descriptor(template))
        batch = pa.record_batch({"timestamp": pa.array(times)})
        try:
            writer.begin(batch.schema)
            writer.write_with_metadata(batch, json.dumps(about).encode())
            writer.done_writing()
            reader.read_chunk()
        finally:
            try:
                writer.close()
            except Exception:
                pass  # the reason was told to the reader

    good = {"columns": {"drift": DRIFT}}
    with pytest.raises(KeyError, match=r"\[IOV-2010\].*drift"):
        ask(good, [999], {"timeframe": 1})
    with pytest.raises(pa.ArrowInvalid, match=r"\[IOV-1001\].*colour"):
        ask(good, [1000], {"timeframe": 1, "colour": 2})
    with pytest.raises(pa.ArrowInvalid, match=r"\[IOV-10.*timeframe"):
        ask(good, [1000], {})
    with pytest.raises(pa.ArrowInvalid, match=r"\[IOV-1002\].*timestamps"):
        ask({**good, "timestamps": [1]}, [1000], {"timeframe": 1})
    with pytest.raises(pa.ArrowInvalid, match=r"\[IOV-5001\]"):
        ask({**good, "session": "nobody's"}, [1000], {"timeframe": 1})
    with pytest.raises(pa.ArrowInvalid, match=r"\[IOV-101"):
        ask(good, ["noon"], {"timeframe": 1})
    until("nothing to be held", lambda: alone.pinned() == 0)


def test_a_poll_of_a_slow_source_tells_how_far_it_is(start, tmp_path):
    # A CCDB that delays the bytes.
    gate = threading.Event()
    id_ = "5d4ca9d8-9a1e-11ef-8000-c0a80209250c"

    class Ccdb(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            data = b"x" * 1000
            body = self.path.startswith("/download/")
            if body:
                gate.wait(50)
            self.send_response(200 if body else 303)
            self.send_header("ETag", f'"{id_}"')
            self.send_header("Valid-From", "0")
            self.send_header("Valid-Until", "1000")
            self.send_header("Created", "1")
            if not body:
                self.send_header("Location", f"/download/{id_}")
            self.send_header("Content-Length", str(len(data) if body else 0))
            self.end_headers()
            if body:
                self.wfile.write(data)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ccdb)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    client = ByHand(start(source=f"http://127.0.0.1:{server.server_port}"))
    poll = client.channel.unary_unary("/arrow.flight.protocol.FlightService/PollFlightInfo")
    target = descriptor({"columns": {"x": "Slow/One"}, "timestamps": [5, 6]}).serialize()
    answer = fields(poll(target, timeout=30))
    info = flight.FlightInfo.deserialize(answer[1])
    about = json.loads(info.app_metadata)
    assert 2 in answer, "not done"
    assert (about["objects"], about["objects_loaded"], about["done"]) == (1, 0, False)
    assert info.total_records == 2 and info.schema.names == ["x"]
    assert 4 in answer, "expiration_time"
    # A request for the table meanwhile waits for it, up to its own deadline.
    began = time.monotonic()
    status, _ = client.status_of({"columns": {"x": "Slow/One"}, "timestamps": [5]}, timeout=0.5)
    assert status == "DEADLINE_EXCEEDED" and time.monotonic() - began < 20
    request = {"columns": {"x": "Slow/One"}, "timestamps": [5], "wait_ms": 300}
    status, message = client.status_of(request)
    assert status == "DEADLINE_EXCEEDED" and message.startswith("[IOV-5020] ")
    gate.set()

    def done():
        nonlocal answer
        answer = fields(poll(answer[2], timeout=30))
        return 2 not in answer

    until("the poll to be done", done)
    info = flight.FlightInfo.deserialize(answer[1])
    assert json.loads(info.app_metadata)["bytes_loaded"] == 1000
    assert client.flight.do_get(info.endpoints[0].ticket).read_all().num_rows == 2
    client.close()
    server.shutdown()
    server.server_close()


def test_health_and_reflection_are_as_usual(by_hand):
    check = by_hand.channel.unary_unary("/grpc.health.v1.Health/Check")
    for service in (b"", b"arrow.flight.protocol.FlightService"):
        assert check(field(1, service) if service else b"", timeout=30) == b"\x08\x01"
    info = by_hand.channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
    )
    (answer,) = list(info(iter([field(7, b"")]), timeout=30))
    assert b"arrow.flight.protocol.FlightService" in answer and b"grpc.health.v1.Health" in answer
