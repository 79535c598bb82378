"""The package against the real service."""

import datetime
import shutil
import threading

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from conftest import put, right, until

import iovcache

DRIFT = "TPC/Calib/VDrift"
NOISE = "TPC/Calib/Noise"
TIMES = [1000, 2999, 3000, 4999, 5000, 7000, 7001, 8999]


@pytest.fixture(params=["unix", "tcp", "remote"])
def client(request, service):
    url = service.unix if request.param == "unix" else service.tcp
    with iovcache.connect(url, remote=request.param == "remote") as connected:
        yield connected


@pytest.mark.parametrize("encoding", ["run_end", "dictionary", "plain"])
def test_every_row_has_the_bytes_of_the_version_created_last(client, encoding):
    columns = {"drift": DRIFT, "noise": NOISE}
    with client.table(columns, timestamps=TIMES, encoding=encoding) as table:
        assert len(table) == len(TIMES) and table.column_names == ["drift", "noise"]
        for row, at in enumerate(TIMES):
            assert bytes(table["drift"][row]) == right(DRIFT, at)
            assert table["noise"][row] == right(NOISE, at)
        assert table["drift"][-1] == right(DRIFT, TIMES[-1])
        for row in (len(TIMES), -len(TIMES) - 1, 2**63, 2**70, -(2**70)):
            for call in (table["drift"].__getitem__, table["drift"].header):
                with pytest.raises(IndexError, match=str(row)):
                    call(row)
            with pytest.raises(IndexError, match=str(row)):
                table["drift"].take([0, row])
        for row in ("0", 1.5, None):
            with pytest.raises(TypeError):
                table["drift"][row]
        assert table["drift"][np.int8(-1)] == table["drift"][-1]
        assert [bytes(view) for view in table["drift"][2:8:3]] == [b"drift 2", b""]
        with pytest.raises(KeyError, match="noise"):
            table["nosie"]


def test_runs_tile_the_rows(client):
    with client.table({"drift": DRIFT}, timestamps=TIMES) as table:
        runs = list(table["drift"].runs())
        assert [(start, end) for start, end, _ in runs] == [(0, 2), (2, 4), (4, 5), (5, 6), (6, 8)]
        assert [bytes(view) for view in table["drift"]] == [right(DRIFT, at) for at in TIMES]


def test_views_are_read_only_and_without_a_copy(service):
    with iovcache.connect(service.unix) as client:
        with client.table({"noise": NOISE}, timestamps=[1, 2]) as table:
            view = table["noise"][0]
            assert view.readonly
            again = table["noise"][1]
            first = np.frombuffer(view, np.uint8).__array_interface__["data"][0]
            assert first == np.frombuffer(again, np.uint8).__array_interface__["data"][0]


def test_a_null_timestamp_gives_a_null_cell(client):
    with client.table({"drift": DRIFT}, timestamps=[1000, None, 3000]) as table:
        assert table["drift"][1] is None
        assert table.arrow.schema.field("drift").nullable


def test_where_nothing_is_valid_is_said_or_null(client):
    with pytest.raises(iovcache.NotFound, match=r"drift.*999") as caught:
        client.table({"drift": DRIFT, "noise": NOISE}, timestamps=[999, 1000])
    assert caught.value.code == "IOV-2010"
    with client.table({"drift": DRIFT}, timestamps=[999, 1000], missing="null") as table:
        assert table["drift"][0] is None and table["drift"][1] == b"drift 1"


def test_the_objects_say_which_version_served_which_rows(client):
    with client.table({"drift": DRIFT}, timestamps=TIMES) as table:
        rows = table.objects.to_pylist()
    assert [(row["row_start"], row["row_end"]) for row in rows] == [
        (0, 2),
        (2, 4),
        (4, 5),
        (5, 6),
        (6, 8),
    ]
    assert [row["created"] for row in rows] == [1, 2, 1, 3, 1]
    assert rows[0]["path"] == DRIFT and rows[0]["size"] == 7


@pytest.mark.parametrize(
    "timestamps",
    [
        np.array([1000, 3000]),
        np.array([1000, 3000], dtype="datetime64[ms]"),
        pd.Series([1000, 3000]),
        pd.to_datetime([1_000_999_999, 3_000_000_000], unit="ns"),
        pa.array([1000, 3000], pa.uint64()),
        pa.array([1, 3], pa.timestamp("s")),
        pa.array([1_000_999, 3_000_000], pa.timestamp("us", "UTC")),
        pa.array([1000, 3000]).dictionary_encode(),
        pa.chunked_array([[1000], [3000]]),
        (1000, 3000),
    ],
    ids=lambda value: type(value).__name__,
)
def test_timestamps_come_in_every_kind(service, timestamps):
    with iovcache.connect(service.unix) as client:
        with client.table({"drift": DRIFT}, timestamps=timestamps) as table:
            assert [bytes(view) for view in table["drift"]] == [b"drift 1", b"drift 2"]


def test_values_that_are_no_timestamps_are_refused(service):
    with iovcache.connect(service.unix) as client:
        for wrong in (["noon"], [1.5], [datetime.timedelta(1)], pa.array(["noon"])):
            with pytest.raises(iovcache.InvalidArgument):
                client.table({"drift": DRIFT}, timestamps=wrong)


def test_errors_are_typed(client):
    with pytest.raises(iovcache.InvalidArgument):
        client.table({"drift": "TPC/../x"}, timestamps=[1])
    with pytest.raises(iovcache.NotFound):
        client.table(timeframe=987654)
    with pytest.raises(iovcache.NotFound):
        client.table("no-such-table", timestamps=[1])
    with pytest.raises(iovcache.FailedPrecondition):
        client.table({"drift": DRIFT}, timestamps=[1000], session="nobody")
    with pytest.raises(TypeError, match="colour"):
        client.table({"drift": DRIFT}, timestamps=[1000], colour="red")


def test_a_service_that_is_not_there_is_unavailable(tmp_path):
    with pytest.raises(iovcache.Unavailable):
        iovcache.connect("grpc://127.0.0.1:1")
    with pytest.raises(iovcache.Unavailable):
        iovcache.connect(f"grpc+unix://{tmp_path}/flight.sock")


def test_a_timeframe_lives_until_its_consumers_are_done(client, request):
    # The watermark of a consumer never goes back, so each client here has its own consumers.
    a, b = (f"{name}-{request.node.name}" for name in "ab")
    columns = {"drift": DRIFT}
    answer = client.put_timeframe(42, TIMES, columns=columns, consumers=[a, b])
    assert (answer["timeframe"], answer["rows"], answer["objects"]) == (42, len(TIMES), 3)
    assert client.put_timeframe(42, TIMES, columns=columns, consumers=[a, b])["rows"] == 8
    with pytest.raises(iovcache.AlreadyExists):
        client.put_timeframe(42, TIMES[1:], columns=columns, consumers=[a, b])
    with client.timeframe(42, consumer=a) as table:
        assert bytes(table["drift"][2]) == b"drift 2"
        state = client.status()["timeframes"][0]
        assert state["consumers"] == {a: "delivered", b: "waiting"}
    assert client.status()["timeframes"][0]["consumers"][a] == "consumed"
    with pytest.raises(iovcache.NotFound):
        client.table(timeframe=42, consumer="somebody else")
    assert client.oldest_possible(43, consumer=b)["dropped"] == [42]
    assert client.status()["timeframes"] == []


@pytest.mark.parametrize("most", [2**63, 2**64 - 1])
def test_ids_of_timeframes_have_64_bits(client, request, most):
    consumer = f"most-{request.node.name}"
    for end in (
        lambda: client.consumed(most, consumer=consumer),
        lambda: client.drop_timeframe(most),
    ):
        answer = client.put_timeframe(most, TIMES, columns={"drift": DRIFT}, consumers=[consumer])
        assert answer["timeframe"] == most
        with client.table(timeframe=np.uint64(most)) as table:
            assert bytes(table["drift"][2]) == b"drift 2"
        assert end()["dropped"] == [most]
    client.put_timeframe(most, TIMES, columns={"drift": DRIFT}, consumers=[consumer])
    with client.timeframe(most, consumer=consumer) as table:
        assert len(table) == len(TIMES)
    assert client.oldest_possible(most, consumer=consumer) == {"dropped": [], "in_flight": 0}
    for wrong in (-1, 2**64, 1.5, True, "5", None):
        for call in (
            lambda: client.put_timeframe(wrong, TIMES, columns={"drift": DRIFT}),
            lambda: client.timeframe(wrong, consumer=consumer),
            lambda: client.consumed(wrong, consumer=consumer),
            lambda: client.oldest_possible(wrong, consumer=consumer),
            lambda: client.drop_timeframe(wrong),
        ):
            with pytest.raises(iovcache.InvalidArgument, match="timeframe"):
                call()


def test_after_it_is_closed_a_table_gives_nothing_and_holds_nothing(start):
    service = start()
    with iovcache.connect(service.unix) as client:
        table = client.table({"noise": NOISE}, timestamps=[1])
        assert client.status()["memory"]["pinned_bytes"] > 0
        table.close()
        with pytest.raises(iovcache.FailedPrecondition):
            table["noise"][0]
        until("its objects to go", lambda: client.status()["memory"]["pinned_bytes"] == 0)


def test_a_session_ends_with_its_client(start):
    service = start()
    with iovcache.connect(service.tcp, remote=True) as observer:
        client = iovcache.connect(service.unix, consumer="short-lived")
        table = client.table({"noise": NOISE}, timestamps=[1])
        sessions = observer.status()["sessions"]
        assert [session["consumer"] for session in sessions] == ["short-lived"]
        assert sessions[0]["pinned_bytes"] > 100_000
        # Its table is still in use.
        client.close()
        assert bytes(table["noise"][0][:3]) == b"nnn"
        assert len(observer.status()["sessions"]) == 1
        del table
        until("the session to end", lambda: not observer.status()["sessions"])
        assert observer.status()["memory"]["pinned_bytes"] == 0


def test_a_client_survives_a_restart_and_old_cells_are_stale(start):
    service = start()
    client = iovcache.connect(service.unix)
    old = client.table({"drift": DRIFT}, timestamps=[1000])
    header, view = old["drift"].header(0), old["drift"][0]
    service.kill()
    # The call's time limit passes before the service is up.
    with pytest.raises(iovcache.Unavailable):
        client.table({"drift": DRIFT}, timestamps=[1000], wait_ms=200)
    assert bytes(view) == b"drift 1"
    successor = threading.Timer(0.3, start)
    successor.start()
    # The service is not up yet: each of the calls waits by itself.
    client.put_timeframe(1, [1000], columns={"drift": DRIFT}, consumers=["x"])
    table = client.table({"drift": DRIFT}, timestamps=[1000])
    successor.join()
    assert bytes(table["drift"][0]) == b"drift 1"
    assert bytes(view) == b"drift 1"
    successor = iovcache.Attachment(table.arrow.schema.metadata[b"iovcache.attach"].decode(), "me")
    assert successor.read(table["drift"].header(0).to_bytes()) == b"drift 1"
    with pytest.raises(iovcache.FailedPrecondition):
        successor.read(header.to_bytes())
    successor.close()
    assert client.paths()[DRIFT] == 3
    client.close()


def test_paths_and_prefetch_and_invalidate(client):
    assert client.paths() == {DRIFT: 3, NOISE: 1}
    assert client.paths("TPC/Calib/Noise") == {NOISE: 1}
    assert client.paths("TPC/Cal") == {}
    assert client.prefetch({"drift": DRIFT}, range=(0, 10_000))["objects"] == 3
    assert client.invalidate(DRIFT)["invalidated"] == DRIFT
    assert client.segments()["epoch"] == client.status()["epoch"]


def test_a_version_stored_while_the_service_runs_is_seen(start, repository, tmp_path):
    own = tmp_path / "repository"
    shutil.copytree(repository, own)
    service = start(source=own)
    with iovcache.connect(service.unix) as client:
        path = "New/Path"
        client.put_timeframe(7, [5], columns={"drift": DRIFT}, consumers=["x"])
        with pytest.raises(iovcache.NotFound):
            client.table({"x": path}, timestamps=[5])
        put(own, (path, 0, 10, 1, b"fresh"), tmp_path)

        def seen():
            try:
                return client.table({"x": path}, timestamps=[5])
            except iovcache.NotFound:
                return None

        assert until("the new version", seen)["x"][0] == b"fresh"


def test_many_timestamps_stay_here_and_the_rows_are_the_same(service):
    # Many rows with few distinct milliseconds, as in a timeframe.
    times = [at for at in range(1000, 9000) for _ in range(4)]
    with iovcache.connect(service.unix) as client:
        columns = {"drift": DRIFT, "noise": NOISE}
        with client.table(columns, timestamps=times) as table:
            assert len(table) == len(times) and table.column_names == ["drift", "noise"]
            for start, end, view in table["drift"].runs():
                assert {bytes(view)} == {right(DRIFT, at) for at in times[start:end]}
            assert len(list(table["noise"].runs())) == 1
            made = table.arrow
            assert len(table.objects) == 6
            # An object that is still in use would keep them all.
            del view
        kinds = [pa.array(times), pa.array(times, pa.timestamp("ms")), np.array(times)]
        for kind in kinds:
            with client.table(columns, timestamps=kind) as table:
                assert table.arrow.equals(made)
        until("all let go", lambda: client.status()["memory"]["pinned_bytes"] == 0)


def test_where_the_spans_alone_do_not_tell_the_timestamps_are_sent(service):
    with iovcache.connect(service.unix) as client:
        # A version that is valid for one millisecond, which no timestamp falls into.
        times = [at for at in range(5000, 9000, 2) if at != 7000 for _ in range(20)]
        with client.table({"drift": DRIFT}, timestamps=times) as table:
            assert [(a, b) for a, b, _ in table["drift"].runs()] == [(0, len(times))]
        # Not in order, and with nulls.
        mixed = [*reversed(range(1000, 3000))] * 12 + [None]
        with client.table({"drift": DRIFT}, timestamps=mixed) as table:
            assert table["drift"][0] == right(DRIFT, 2999) and table["drift"][-1] is None
        with pytest.raises(iovcache.NotFound, match=r"999.*999"):
            client.table({"drift": DRIFT}, timestamps=[999] * 20_000 + [1000])
        times = [0] * 20_000 + [1000]
        with client.table({"drift": DRIFT}, timestamps=times, missing="null") as table:
            assert table["drift"][19_999] is None and table["drift"][20_000] == b"drift 1"
