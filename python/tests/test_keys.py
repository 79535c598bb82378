"""Columns that depend on a key: runs beside the timestamps, also out of DataFrames."""

from __future__ import annotations

import numpy
import pandas
import polars
import pyarrow as pa
import pytest
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


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    for path, start, until, created, data, number in VERSIONS:
        file = folder / "object"
        file.write_bytes(data)
        times = [f"--from={start}", f"--until={until}", f"--created={created}"]
        more = ["--meta", f"runNumber={number}"] if number else []
        run("put", "--repository", str(folder / "data"), path, str(file), *times, *more)
    service = Service(tmp_path_factory.mktemp("service"), folder / "data")
    with iovcache.connect(service.unix) as client:
        yield client
    service.stop()


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
        ({"fill": [1, 2]}, "IOV-1080"),
        ({"run": [1, 2], "fill": [1, 2]}, "IOV-1081"),
    ],
)
def test_what_is_no_key_is_told(client, keys, said):
    with pytest.raises(iovcache.InvalidArgument, match=said):
        client.table({"ecs": COLUMNS["ecs"]}, timestamps=[1, 2], keys=keys)


def test_a_frame_without_the_key_is_told(client):
    with pytest.raises(iovcache.InvalidArgument, match="no column 'run'"):
        client.table(COLUMNS, timestamps=pa.table({"timestamp": TIMES}))
    with pytest.raises(iovcache.InvalidArgument, match="which of its columns"):
        client.table(COLUMNS, timestamps=pa.table({"a": TIMES, "b": TIMES, "run": RUNS}))
