"""Columns that depend on a key: runs beside the timestamps, also out of DataFrames."""

from __future__ import annotations

import json

import numpy
import pandas
import polars
import pyarrow as pa
import pyarrow.flight as flight
import pytest
from by_hand import OPTIONS
from conftest import Service, run

import iovcache

#: path, from, until, created, bytes, run in the metadata
VERSIONS = [
    ("GLO/Config/GRPECS", 0, 1000, 1, b"ecs 1", "1"),
    ("GLO/Config/GRPECS", 0, 1000, 2, b"ecs 2", "2"),
    ("GLO/Calib/Old", 0, 1000, 1, b"old", None),
    ("GLO/Calib/New", 0, 500, 1, b"new early", None),
    ("GLO/Calib/New", 500, 1000, 1, b"new late", None),
]
COLUMNS = {
    "ecs": {"path": "GLO/Config/GRPECS", "key": "run", "as": "metadata:runNumber"},
    "vertex": {
        "path": [{"from": 1, "until": 1, "path": "GLO/Calib/Old"}, {"path": "GLO/Calib/New"}],
        "key": "run",
        "uniform": True,
    },
}
TIMES = [10, 600, 20, 700, 800]
RUNS = [1, 2, 1, 2, None]
EXPECTED = {
    "ecs": [b"ecs 1", b"ecs 2", b"ecs 1", b"ecs 2", None],
    "vertex": [b"old", b"new late", b"old", b"new late", None],
}


CONFIGURED = """
[tables.runs]
ecs = { path = "GLO/Config/GRPECS", key = "run", as = "metadata:runNumber" }
vertex = { path = [{ from = 1, until = 1, path = "GLO/Calib/Old" }, { path = "GLO/Calib/New" }], key = "run", uniform = true }
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    for path, start, until, created, data, number in VERSIONS:
        file = folder / "object"
        file.write_bytes(data)
        times = [f"--from={start}", f"--until={until}", f"--created={created}"]
        more = ["--meta", f"runNumber={number}"] if number else []
        run("put", "--repository", str(folder / "data"), path, str(file), *times, *more)
    (folder / "iovcache.toml").write_text(CONFIGURED)
    config = ["--config", str(folder / "iovcache.toml")]
    service = Service(tmp_path_factory.mktemp("service"), folder / "data", *config)
    yield service
    service.stop()


@pytest.fixture(scope="module")
def client(service):
    with iovcache.connect(service.unix) as client:
        yield client


def cells(table):
    return {
        name: [None if cell is None else bytes(cell) for cell in table[name]] for name in EXPECTED
    }


def frames():
    data = {"timestamp": TIMES, "run": RUNS}
    return {
        "pyarrow": pa.table(data),
        "batch": pa.table(data).to_batches()[0],
        "pandas": pandas.DataFrame({**data, "run": pandas.array(RUNS, dtype="Int64")}),
        "polars": polars.DataFrame(data),
        "by type": pa.table({"at": pa.array(TIMES, pa.timestamp("ms")), "run": RUNS}),
    }


@pytest.mark.parametrize(
    "runs",
    [
        RUNS,
        pa.array(RUNS, pa.int32()),
        pa.array(RUNS, pa.uint64()).dictionary_encode(),
        pandas.array(RUNS, dtype="Int64"),
        polars.Series(RUNS),
    ],
    ids=["list", "int32", "dictionary", "pandas", "polars"],
)
def test_keys_stand_beside_the_timestamps(client, runs):
    with client.table(COLUMNS, timestamps=TIMES, keys={"run": runs}) as table:
        assert cells(table) == EXPECTED
        objects = table.objects.to_pylist()
        assert {row["key"] for row in objects} == {"1", "2"}
        with client.table(COLUMNS, timestamps=TIMES, keys={"run": runs}, lock=objects) as again:
            assert cells(again) == EXPECTED


@pytest.mark.parametrize("name", list(frames()))
def test_a_data_frame_has_both(client, name):
    frame = frames()[name]
    with client.table(COLUMNS, timestamps=frame) as table:
        assert cells(table) == EXPECTED
    with client.table(COLUMNS, timestamps=frame, keys=["run"]) as table:
        assert cells(table) == EXPECTED


def test_a_timeframe_has_keys(client):
    for number, (times, keys) in enumerate([(TIMES, {"run": RUNS}), (frames()["polars"], None)]):
        answer = client.put_timeframe(
            number, times, columns=COLUMNS, consumers=["tracker"], keys=keys
        )
        assert answer["rows"] == len(TIMES)
        with client.timeframe(number, consumer="tracker") as table:
            assert cells(table) == EXPECTED


def test_a_numpy_column_of_strings_is_a_key(client):
    column = {"path": "GLO/Config/GRPECS", "key": "period", "as": "metadata:runNumber"}
    keys = {"period": numpy.array(["2", "1"])}
    with client.table({"ecs": column}, timestamps=[1, 2], keys=keys) as table:
        assert [bytes(cell) for cell in table["ecs"]] == [b"ecs 2", b"ecs 1"]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"run": [1.5, 2.0]}, "expected integers or strings"),
        ({"run": [True, False]}, "bool"),
        ({"run": [1, "a"]}, "integers or strings"),
        ({"run": 5}, "integers or strings"),
        ({"run": "12"}, "one value per timestamp"),
        ({"run": [2**63, 1]}, "no i64|integers or strings"),
        (["run"], "no DataFrame"),
        ({"run": [1]}, "1 values for 2 timestamps"),
        ({"fill": [1, 2]}, "IOV-1040"),
        ({"run": [1, 2], "fill": [1, 2]}, "IOV-1041"),
    ],
)
def test_a_value_that_is_no_key_is_an_error(client, keys, said):
    with pytest.raises(iovcache.InvalidArgument, match=said):
        client.table({"ecs": COLUMNS["ecs"]}, timestamps=[1, 2], keys=keys)


def test_a_frame_without_the_key_is_told(client):
    with pytest.raises(iovcache.InvalidArgument, match="no column 'run'"):
        client.table(COLUMNS, timestamps=pa.table({"timestamp": TIMES}))
    with pytest.raises(iovcache.InvalidArgument, match="which of its columns"):
        client.table(COLUMNS, timestamps=pa.table({"a": TIMES, "b": TIMES, "run": RUNS}))


@pytest.fixture(scope="module")
def by_flight(service):
    with flight.connect(service.unix, generic_options=OPTIONS) as client:
        yield client


def batches():
    """Equal rows in each layout that Arrow has for them."""
    times = pa.array(TIMES, pa.int64())
    micros = pa.array([at * 1000 for at in TIMES], pa.timestamp("us"))
    runs = {
        "int8": pa.array(RUNS, pa.int8()),
        "uint16": pa.array(RUNS, pa.uint16()),
        "int64": pa.array(RUNS, pa.int64()),
        "dictionary": pa.array(RUNS, pa.uint32()).dictionary_encode(),
        "string": pa.array([None if run is None else str(run) for run in RUNS]),
        "run-end": pa.RunEndEncodedArray.from_arrays(
            pa.array(range(1, 6), pa.int32()), pa.array(RUNS, pa.int32())
        ),
    }
    for name, values in runs.items():
        yield name, pa.record_batch({"run": values, "timestamp": times})
    yield "two numbers", pa.record_batch({"run": runs["int64"], "at": times})
    yield "more columns", pa.record_batch(
        {"fTimestamp": micros, "orbit": times, "run": runs["int64"]}
    )


def columns_of(name):
    # Paths by range need integers.
    return {"ecs": COLUMNS["ecs"]} if name == "string" else COLUMNS


def payloads(table, name):
    return {column: table[column].to_pylist() for column in columns_of(name)}


@pytest.mark.parametrize(("name", "batch"), list(batches()), ids=[name for name, _ in batches()])
def test_a_further_column_of_each_batch_is_the_key(by_flight, name, batch):
    expected = {column: EXPECTED[column] for column in columns_of(name)}
    template = {"columns": columns_of(name), "cell": "payload"}
    descriptor = flight.FlightDescriptor.for_command(json.dumps(template))
    writer, reader = by_flight.do_exchange(descriptor)
    with writer:
        writer.begin(batch.schema)
        for timeframe in (1, 2):
            about = json.dumps({"timeframe": timeframe}).encode()
            writer.write_with_metadata(batch, about)
            assert payloads(reader.read_chunk().data, name) == expected
        writer.done_writing()
    timeframe = 1000 + [other for other, _ in batches()].index(name)
    descriptor = flight.FlightDescriptor.for_path("timeframe", str(timeframe))
    writer, results = by_flight.do_put(descriptor, batch.schema)
    with writer:
        about = {"columns": columns_of(name), "consumers": ["tracker"]}
        writer.write_with_metadata(batch, json.dumps(about).encode())
        writer.done_writing()
        answer = json.loads(results.read().to_pybytes())
    assert answer["rows"] == len(TIMES)
    ticket = {"timeframe": timeframe, "consumer": "tracker", "cell": "payload"}
    table = by_flight.do_get(flight.Ticket(json.dumps(ticket))).read_all()
    assert payloads(table, name) == expected
    action = flight.Action("drop_timeframe", json.dumps({"timeframe": timeframe}).encode())
    list(by_flight.do_action(action))


def test_a_configured_table_has_keys(by_flight):
    request = {"table": "runs", "timestamps": TIMES, "cell": "payload"}
    with pytest.raises(pa.ArrowInvalid, match="IOV-1040.*\"run\""):
        by_flight.do_get(flight.Ticket(json.dumps(request))).read_all()
    request["keys"] = {"run": RUNS}
    table = by_flight.do_get(flight.Ticket(json.dumps(request))).read_all()
    assert payloads(table, "") == EXPECTED
    info = by_flight.get_flight_info(flight.FlightDescriptor.for_command(json.dumps(request)))
    assert info.total_records == len(TIMES)
    urls = [field.metadata[b"url"] for field in info.schema]
    assert urls == [b"GLO/Config/GRPECS", b"1-1=GLO/Calib/Old;GLO/Calib/New"]
    ticket = info.endpoints[0].ticket
    assert payloads(by_flight.do_get(ticket).read_all(), "") == EXPECTED


def test_a_batch_without_the_key_is_refused(by_flight):
    batch = pa.record_batch({"timestamp": pa.array(TIMES, pa.int64())})
    template = {"columns": COLUMNS, "cell": "payload"}
    descriptor = flight.FlightDescriptor.for_command(json.dumps(template))
    writer, reader = by_flight.do_exchange(descriptor)
    with pytest.raises((flight.FlightError, pa.ArrowInvalid), match="IOV-1040"):
        writer.begin(batch.schema)
        writer.write_with_metadata(batch, json.dumps({"timeframe": 1}).encode())
        reader.read_chunk()


def test_the_command_line_has_keys_and_runs(service, tmp_path):
    table = ["table", "--server", service.unix, "--output", "json", "--cell", "payload"]
    columns = [f"--column={name}={json.dumps(column)}" for name, column in COLUMNS.items()]
    at = "--at=" + ",".join(map(str, TIMES))
    listed = ",".join("" if run is None else str(run) for run in RUNS)
    file = tmp_path / "runs.txt"
    file.write_text("".join(f"{'' if run is None else run}\n" for run in RUNS))
    answers = [
        run(*table, *columns, at, f"--key=run={value}").stdout for value in (listed, file)
    ]
    arrow = tmp_path / "rows.arrow"
    rows = pa.table({"at": pa.array(TIMES, pa.timestamp("ms")), "run": RUNS})
    with pa.ipc.new_file(str(arrow), rows.schema) as writer:
        writer.write_table(rows)
    answers.append(run(*table, *columns, "--timestamps", arrow, "--key=run").stdout)
    answers.append(run(*table, "--table=runs", "--timestamps", arrow, "--key=run").stdout)
    for answer in answers:
        got = json.loads(answer)
        assert [row["timestamp"] for row in got] == TIMES
        for name, expected in EXPECTED.items():
            assert [row[name] for row in got] == [
                None if cell is None else cell.hex() for cell in expected
            ]
    one = json.loads(run(*table, *columns, "--at=10,600", "--key=run=2").stdout)
    assert [bytes.fromhex(row["vertex"]) for row in one] == [b"new early", b"new early"]
    run(*table, *columns, at, "--key=run=1,2", status=2)
    run(*table, *columns, "--range=0:9:1", "--key=run=1", status=2)
    run(*table, *columns, at, status=2)
    run(*table, "--column=ecs=GLO/Config/GRPECS", "--run=77:5", status=3)


def test_a_data_frame_without_keys_is_refused(client):
    frame = pandas.DataFrame({"timestamp": TIMES})
    with pytest.raises(iovcache.InvalidArgument, match="column"):
        client.table({"a": "A/B"}, timestamps=frame)
    with pytest.raises(iovcache.InvalidArgument, match="column"):
        client.put_timeframe(77, frame, columns={"a": "A/B"}, consumers=["c"])
