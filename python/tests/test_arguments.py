"""Arguments of every kind are taken, or refused with InvalidArgument: no error is of another type."""

import asyncio
import warnings

import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pytest
from conftest import put, right, until

import iovcache
from iovcache import aio

DRIFT = "TPC/Calib/VDrift"
COLUMNS = {"drift": DRIFT}
KEYED = {"drift": {"path": DRIFT, "key": "run"}}


@pytest.fixture
def client(service):
    with iovcache.connect(service.unix) as connected:
        yield connected


class Derived(pd.DataFrame):
    """A DataFrame of the user."""


def frames():
    data = {"t": [1000, 3000], "run": [1, 2]}
    return {
        "pyarrow": pa.table(data),
        "batch": pa.table(data).to_batches()[0],
        "pandas": pd.DataFrame(data),
        "derived": Derived(data),
        "polars": polars.DataFrame(data),
    }


@pytest.mark.parametrize("name", [*frames(), "lazy"])
def test_a_frame_in_the_place_of_timestamps_is_refused_with_the_names_of_its_columns(client, name):
    frame = frames()["polars"].lazy() if name == "lazy" else frames()[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(iovcache.InvalidArgument, match=r"which of its columns\? It has t, run$"):
            client.table(COLUMNS, timestamps=frame)


@pytest.mark.parametrize("name", frames())
def test_a_frame_has_timestamps_and_keys(client, name):
    with client.table(KEYED, timestamps=frames()[name]) as table:
        assert [bytes(cell) for cell in table["drift"]] == [b"drift 1", b"drift 2"]


def test_a_frame_with_two_columns_of_a_name_is_refused(client):
    twice = [
        pd.DataFrame([[1000, 1, 2]], columns=["timestamp", "run", "run"]),
        pa.table([[1000], [1], [2]], names=["timestamp", "run", "run"]),
    ]
    for frame in twice:
        with pytest.raises(iovcache.InvalidArgument, match="more than one column run"):
            client.table(KEYED, timestamps=frame)
    mixed = pd.DataFrame({"timestamp": [1000, 3000], "run": [1, 2], "other": ["a", 5]})
    with pytest.raises(iovcache.InvalidArgument, match="other"):
        client.table(KEYED, timestamps=mixed)


LOCKS = {
    "table": lambda objects: objects,
    "batch": lambda objects: objects.to_batches()[0],
    "rows": lambda objects: objects.to_pylist(),
    "tuple": lambda objects: tuple(objects.to_pylist()),
    "structures": lambda objects: objects.to_struct_array(),
    "pandas": lambda objects: objects.to_pandas(),
    "polars": polars.from_arrow,
    "records": lambda objects: objects.to_pandas().to_dict("records"),
    "dicts": lambda objects: polars.from_arrow(objects).to_dicts(),
}


@pytest.mark.parametrize("kind", LOCKS)
def test_a_lock_comes_as_a_table_a_frame_or_rows(start, tmp_path, kind):
    copy = tmp_path / "copy"
    put(copy, (DRIFT, 0, 2**63 - 1, 1, b"old"), tmp_path, "--meta", "a=b", "--meta", "c=d")
    with iovcache.connect(start(source=copy).unix) as client:
        with client.table(COLUMNS, timestamps=[5, 4000]) as table:
            lock = LOCKS[kind](table.objects)
            metadata = dict(table.objects["metadata"][0].as_py())
            assert metadata["a"] == "b"
        put(copy, (DRIFT, 0, 9000, 2, b"new"), tmp_path)
        until("the new version", lambda: bytes(client.get(DRIFT, 5)) == b"new")
        with client.table(COLUMNS, timestamps=[5, 4000], lock=lock) as again:
            assert [bytes(cell) for cell in again["drift"]] == [b"old", b"old"]


def test_a_lock_without_rows_of_objects_is_refused(client):
    wrong = [5, "lock", {"path": DRIFT}, [5], ["row"], object(), {}, [None], np.array([1, 2])]
    wrong += [[{"metadata": 5}], [{"metadata": [5]}], [{"metadata": [{"key": 1}]}]]
    wrong += [pd.DataFrame({"a": [1]}), polars.DataFrame({"a": [1]}), pd.Series([1]), float("nan")]
    for lock in wrong:
        with pytest.raises(iovcache.InvalidArgument, match="IOV-"):
            client.table(COLUMNS, timestamps=[1000], lock=lock)


def test_other_arguments_that_are_wrong_are_refused(client):
    wrong = [
        lambda: client.table(COLUMNS, timestamps=[1000], keys=5),
        lambda: client.table(COLUMNS, timestamps=[1000], keys=[5]),
        lambda: client.table(COLUMNS, timestamps=[1000], schema_metadata=5),
        lambda: client.table(COLUMNS, timestamps=[1000], schema_metadata="text"),
        lambda: client.table(COLUMNS, timestamps=[1000], wait_ms="5"),
        lambda: client.table(COLUMNS, timestamps=[1000], wait_ms=1.5),
        lambda: client.table(5, timestamps=[1000]),
        lambda: client.table({"drift": {(1, 2): DRIFT}}, timestamps=[1000]),
        lambda: client.table({"drift": float("nan")}, timestamps=[1000]),
        lambda: client.table(COLUMNS, range=5),
        lambda: client.table(COLUMNS, range=(0, 5)),
        lambda: client.table(COLUMNS, range={"from": 0, "until": 5, "step": "1s"}),
        lambda: client.table(COLUMNS, range={"from": None, "until": 5, "step": 1}),
        lambda: client.put_timeframe(1, [1000], columns=DRIFT, consumers=["a"]),
        lambda: client.put_timeframe(1, [1000], columns=5, consumers=["a"]),
        lambda: client.put_timeframe(1, [1000], columns=COLUMNS, consumers="a"),
        lambda: client.put_timeframe(1, [1000], columns=COLUMNS, consumers=5),
        lambda: client.put_timeframe(1, [1000], columns=COLUMNS, consumers=[5]),
        lambda: client.put_timeframe(1, [1000], columns=COLUMNS, keys=5),
        lambda: client.prefetch(DRIFT, range=(0, 5)),
        lambda: client.prefetch(COLUMNS, range=(0,)),
        lambda: client.prefetch(COLUMNS, range=(0, 5, 1)),
        lambda: client.prefetch(COLUMNS, range=5),
        lambda: client.prefetch(COLUMNS, range={"from": 0}),
        lambda: client.get(DRIFT, 1000, metadata=5),
        lambda: client.get_many(5),
        lambda: client.get_many([5]),
        lambda: client.get_many([(DRIFT, 1000, 5)]),
        lambda: client.invalidate(5),
    ]
    for number, call in enumerate(wrong):
        with pytest.raises(iovcache.InvalidArgument, match="IOV-"):
            print(number, call())


def test_the_longest_limit_is_taken(service):
    async def main():
        async with await aio.connect(service.unix) as client:
            await client.put_timeframe(77, [1000], columns=COLUMNS, consumers=["longest"])
            async with await client.timeframe(77, consumer="longest", wait_ms=2**64 - 1) as table:
                return bytes(table["drift"][0])

    assert asyncio.run(main()) == b"drift 1"


@pytest.mark.parametrize("wait_ms", ["5", 1.5, -1, 2**64, True])
def test_asyncio_refuses_the_limits_that_other_calls_refuse(service, wait_ms):
    async def main():
        async with await aio.connect(service.unix) as client:
            await client.timeframe(1, consumer="a", wait_ms=wait_ms)

    with iovcache.connect(service.unix) as client:
        with pytest.raises(iovcache.InvalidArgument, match="wait_ms"):
            client.timeframe(1, consumer="a", wait_ms=wait_ms)
    with pytest.raises(iovcache.InvalidArgument, match="wait_ms"):
        asyncio.run(main())


def test_a_range_takes_times_of_every_kind_by_name_and_by_place(client):
    begin, end = "1970-01-01T00:00:01Z", np.datetime64(5, "s")
    rows = [right(DRIFT, at) for at in range(1000, 5000, 1000)]
    for given in (
        (begin, end, 1000),
        {"from": begin, "until": end, "step": 1000},
        {"from": 1000, "until": "1970-01-01T00:00:05Z", "step": np.int64(1000)},
    ):
        with client.table(COLUMNS, range=given) as table:
            assert [bytes(cell) for cell in table["drift"]] == rows
    for given in ((begin, end), {"from": begin, "until": end}):
        assert client.prefetch(COLUMNS, range=given)["objects"] == 2
