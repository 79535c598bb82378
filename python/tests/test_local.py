"""Look-ups by path and time: from shared memory where the object lies there."""

import gc
import multiprocessing
import shutil
import subprocess
import sys
import threading
import time
import warnings

import pytest
from conftest import put, right, until

import iovcache

DRIFT = "TPC/Calib/VDrift"
NOISE = "TPC/Calib/Noise"


@pytest.fixture
def client(service):
    with iovcache.connect(service.unix) as connected:
        yield connected


def published(path, at):
    """The object once it is found without a call; the first request has the path published."""
    found = path.at(at)
    assert found is not None
    until(f"{path.path} in shared memory", lambda: path.try_at(at) is not None)
    return path.try_at(at)


def test_an_object_is_found_without_a_call_once_it_was_requested(client):
    path = client.path(DRIFT)
    assert path.path == DRIFT and DRIFT in repr(path)
    found = published(path, 4000)
    assert isinstance(found, iovcache.Object)
    assert bytes(found) == right(DRIFT, 4000) == b"drift 2"
    assert (found.path, found.rows, found.validity) == (DRIFT, (0, 1), (3000, 5000))
    assert memoryview(found).readonly and len(found) == 7


def test_both_ways_give_the_same_object(client):
    local = published(client.path(DRIFT), 4000)
    with client.table({"d": DRIFT}, timestamps=[4000]) as table:
        asked = table["d"][0]
        assert local == asked and hash(local) == hash(asked)
        for field in ("id", "validity", "created", "metadata", "path"):
            assert getattr(local, field) == getattr(asked, field), field


@pytest.mark.parametrize("at", [1000, 2999, 3000, 4999, 5000, 7000, 7001, 8999])
def test_borders_are_those_of_the_service(client, at):
    path = client.path(DRIFT)
    assert bytes(path.at(at)) == right(DRIFT, at)
    assert bytes(published(path, at)) == right(DRIFT, at)
    assert bytes(client.get(DRIFT, at)) == right(DRIFT, at)


def test_where_nothing_is_valid_get_raises_and_path_at_is_none(client):
    published(client.path(DRIFT), 1000)
    for at in (999, 9000, -(2**63), 2**63 - 1):
        assert client.path(DRIFT).at(at) is None
        assert client.path(DRIFT).try_at(at) is None
        with pytest.raises(iovcache.NotFound, match="IOV-"):
            client.get(DRIFT, at)
    with pytest.raises(iovcache.NotFound, match="VDrifd"):
        client.get("TPC/Calib/VDrifd", 4000)


def test_times_are_those_of_every_call(client):
    import datetime

    import numpy as np

    path = client.path(DRIFT)
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
    for at in (
        4000,
        np.int32(4000),
        np.datetime64(4000, "ms"),
        epoch + datetime.timedelta(seconds=4),
        "1970-01-01T00:00:04Z",
        "1970-01-01T01:00:04+01",
        "19700101T000004,0Z",
    ):
        assert bytes(client.get(DRIFT, at)) == b"drift 2", at
        assert bytes(path.at(at)) == b"drift 2", at
    for wrong in (True, None, 4000.0, 2**63, datetime.datetime(1970, 1, 1)):
        for call in (path.at, path.try_at, lambda at: client.get(DRIFT, at)):
            with pytest.raises(iovcache.InvalidArgument):
                call(wrong)


@pytest.mark.parametrize("path", ["", "a//b", "A/123", "../x", "A/B\ud800", 5, None])
def test_a_text_that_is_no_path_is_refused(client, path):
    for call in (client.path, lambda path: client.get(path, 4000)):
        with pytest.raises((iovcache.InvalidArgument, UnicodeEncodeError)):
            call(path)


def test_many_keys_come_in_their_order(client):
    keys = [(DRIFT, 4000), (NOISE, 4000), (DRIFT, 1500), (DRIFT, 9500), (NOISE, 1), (DRIFT, 4000)]
    for _ in range(3):
        found = client.get_many(keys)
        expected = [None if at == 9500 else right(path, at) for path, at in keys]
        assert [None if one is None else bytes(one) for one in found] == expected
    assert client.get_many(iter(keys[:1]))[0] == b"drift 2"
    assert client.get_many([]) == []
    with pytest.raises(iovcache.InvalidArgument):
        client.get_many([(DRIFT, "no time")])
    with pytest.raises((TypeError, ValueError)):
        client.get_many([DRIFT])


def test_more_objects_than_slots_are_held_all_the_same(client):
    path = client.path(DRIFT)
    published(path, 4000)
    held = client.get_many([(DRIFT, 1000 + n % 8000) for n in range(5000)])
    assert all(bytes(one) == right(DRIFT, 1000 + n % 8000) for n, one in enumerate(held))
    del held
    gc.collect()
    assert until("free slots", lambda: path.try_at(4000)) == b"drift 2"


def test_an_object_stays_as_it_is_while_others_are_evicted(start, tmp_path, repository):
    own = tmp_path / "own-repository"
    shutil.copytree(repository, own)
    service = start("--memory", "4MiB", "--segment", "1MiB", source=own)
    with iovcache.connect(service.unix) as client:
        kept = published(client.path(NOISE), 5)
        view = memoryview(kept)
        del kept
        for n in range(60):
            path = f"Big/N{n}"
            put(own, (path, 0, 9000, 1, bytes([n]) * 300_000), tmp_path)
        for _ in range(2):
            for n in range(60):
                assert bytes(client.get(f"Big/N{n}", 5)) == bytes([n]) * 300_000
        assert client.status()["evictions"] > 0
        assert bytes(view) == right(NOISE, 5)


def test_a_newer_version_is_seen_within_the_refresh_time(start, tmp_path, repository):
    own = tmp_path / "copy"
    put(own, ("A/B", 0, 9000, 1, b"old"), tmp_path)
    service = start("--refresh", "200ms", source=own)
    with iovcache.connect(service.unix) as client:
        path = client.path("A/B")
        before = published(path, 5)
        created, metadata = before.created, before.metadata
        put(own, ("A/B", 0, 9000, 2, b"new"), tmp_path)
        until("the newer version", lambda: bytes(path.at(5)) == b"new")
        until("it in shared memory", lambda: path.try_at(5) == b"new")
        assert bytes(before) == b"old" and before.created == created == 1
        assert before.metadata == metadata
        late = client.get("A/B", 5)
        put(own, ("A/B", 0, 9000, 3, b"newest"), tmp_path)
        until("the newest version", lambda: bytes(path.at(5)) == b"newest")
        with pytest.raises(iovcache.FailedPrecondition, match="IOV-7012"):
            late.created  # noqa: B018


def test_a_wait_ends_with_the_next_version(start, tmp_path):
    own = tmp_path / "copy"
    put(own, ("A/B", 0, 9000, 1, b"old"), tmp_path)
    service = start("--refresh", "200ms", source=own)
    with iovcache.connect(service.unix) as client:
        path = client.path("A/B")
        found = published(path, 5)
        assert path.changed(5, None) is True
        began = time.monotonic()
        assert path.changed(5, found, timeout=0.2) is False
        assert path.changed(5, found.id, 0) is False
        assert 0.2 <= time.monotonic() - began < 5
        later = threading.Timer(0.3, put, (own, ("A/B", 0, 9000, 2, b"new"), tmp_path))
        later.start()
        assert path.changed(5, found, timeout=30) is True
        later.join()
        assert bytes(path.at(5)) == b"new" and bytes(found) == b"old"
        # A change before the wait counts too, and what nothing was valid for counts as well.
        assert path.changed(5, found, timeout=30) is True
        assert path.changed(9500, None, timeout=0.1) is False
        for wrong in (7, b"id", "no id"):
            with pytest.raises(iovcache.InvalidArgument):
                path.changed(5, wrong)
        with pytest.raises(iovcache.InvalidArgument):
            path.changed(5, found, timeout=-1)


def test_a_wait_is_ended_by_a_signal(service):
    code = f"""if True:
        import iovcache, os, signal, threading
        with iovcache.connect({service.unix!r}) as client:
            path = client.path({DRIFT!r})
            found = path.at(4000)
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
            try:
                path.changed(4000, found)
            except KeyboardInterrupt:
                print("interrupted")
    """
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.stdout == b"interrupted\n", done.stderr.decode()
    assert time.monotonic() - began < 10


def test_limits_and_metadata_are_asked_of_the_service(client):
    published(client.path(DRIFT), 4000)
    assert bytes(client.get(DRIFT, 4000, not_after=1)) == b"drift 1"
    with pytest.raises(iovcache.NotFound):
        client.get(DRIFT, 4000, metadata={"no": "such"})


def test_a_client_from_afar_gets_the_same(service):
    with iovcache.connect(service.tcp, remote=True) as client:
        assert bytes(client.get(DRIFT, 4000)) == b"drift 2"
        assert bytes(client.path(DRIFT).at(4000)) == b"drift 2"
        found = client.get_many([(DRIFT, 4000), (DRIFT, 9500), (NOISE, 5)])
        assert [None if one is None else bytes(one) for one in found] == [
            b"drift 2",
            None,
            right(NOISE, 5),
        ]


def test_without_a_local_plane_the_service_is_asked(start):
    service = start("--no-local")
    with iovcache.connect(service.unix) as client:
        assert bytes(client.get(DRIFT, 4000)) == b"drift 2"
        assert client.path(DRIFT).try_at(4000) is None


def test_a_service_that_comes_back_is_found_again(start):
    service = start()
    with iovcache.connect(service.unix) as client:
        path = client.path(DRIFT)
        kept = published(path, 4000)
        service.kill()
        again = start()
        assert again.unix == service.unix
        assert bytes(client.get(DRIFT, 4000)) == b"drift 2"
        until("the path in its shared memory", lambda: path.at(4000) and path.try_at(4000))
        assert bytes(kept) == b"drift 2"


def test_a_closed_client_looks_nothing_up(service):
    client = iovcache.connect(service.unix)
    found = published(client.path(DRIFT), 4000)
    client.close()
    for call in (lambda: client.get(DRIFT, 4000), lambda: client.path(DRIFT)):
        with pytest.raises(iovcache.FailedPrecondition):
            call()
    assert bytes(found) == b"drift 2"


def test_clients_that_look_up_leave_no_session_behind(service):
    with iovcache.connect(service.unix) as observer:
        before = len(observer.status()["sessions"])
        for _ in range(5):
            with iovcache.connect(service.unix) as client:
                published(client.path(DRIFT), 4000)
        gc.collect()
        until("ended sessions", lambda: len(observer.status()["sessions"]) <= before)


def child(client, found, queue):
    try:
        client.get(DRIFT, 4000)
        queue.put("no error")
    except iovcache.ForkedProcess:
        queue.put(bytes(found))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_cannot_look_up_and_leaves_the_pin_alone(service):
    with iovcache.connect(service.unix) as client:
        path = client.path(DRIFT)
        found = published(path, 4000)
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        process = context.Process(target=child, args=(client, found, queue))
        process.start()
        assert queue.get(timeout=60) == b"drift 2"
        process.join(60)
        assert process.exitcode == 0
        assert bytes(found) == b"drift 2"
        assert bytes(published(path, 4000)) == b"drift 2"


def test_threads_share_a_path(client):
    path = client.path(DRIFT)
    published(path, 4000)
    wrong = []

    def look_up(start):
        for n in range(2000):
            at = 1000 + (start + n) % 8000
            found = path.at(at)
            if found is None or bytes(found) != right(DRIFT, at):
                wrong.append(at)

    threads = [threading.Thread(target=look_up, args=(n * 1000,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_dropped_objects_free_their_slots(client):
    path = client.path(DRIFT)
    published(path, 4000)
    found = 0
    for _ in range(40_000):
        found += path.try_at(4000) is not None
    # More than the 15,360 slots of a session.
    assert found > 20_000


def local_table(client, columns, timestamps, **options):
    """The table once it is taken from shared memory; the first request has its paths published."""
    found = []

    def taken():
        table = client.table(columns, timestamps=timestamps, **options)
        if table.local:
            found.append(table)
        return table.local

    until("the table in shared memory", taken)
    return found[0]


def test_a_table_is_taken_from_shared_memory_once_its_objects_lie_there(client, service):
    columns, times = {"d": DRIFT, "n": NOISE}, [1000, 2999, 3000, 4999, 5000]
    with iovcache.connect(service.unix, always_request=True) as other:
        with local_table(client, columns, times) as table, other.table(
            columns, timestamps=times
        ) as asked:
            assert table.local and not asked.local
            assert table.lease is None and asked.lease is not None
            assert table.epoch == asked.epoch is not None
            assert table.arrow.equals(asked.arrow)
            assert [bytes(one) for one in table["d"]] == [right(DRIFT, at) for at in times]
            assert table.objects.drop_columns(["cache"]) == asked.objects.drop_columns(["cache"])
            one, same = table["d"][2], asked["d"][2]
            assert (one.id, one.validity, one.metadata) == (same.id, same.validity, same.metadata)


def test_an_object_of_a_local_table_is_its_pin(client):
    def slots():
        return sum(session.get("slots", 0) for session in client.status()["sessions"])

    before = slots()
    table = local_table(client, {"d": DRIFT}, [1000, 4000])
    one = table["d"][1]
    assert slots() > before
    with warnings.catch_warnings():
        # Said once per process.
        warnings.simplefilter("ignore", iovcache.ObjectsInUse)
        table.close()
    assert bytes(one) == right(DRIFT, 4000)
    del one, table
    gc.collect()
    until("the slots to be free", lambda: slots() == before)


def test_a_forked_child_reads_no_local_table_of_its_parent_once_it_may_be_gone(client):
    table = local_table(client, {"d": DRIFT}, [4000])
    context = multiprocessing.get_context("fork")
    read, write = context.Pipe(duplex=False)

    def child():
        try:
            client.table({"d": DRIFT}, timestamps=[4000])
            write.send("a table")
        except iovcache.ForkedProcess:
            write.send(bytes(table["d"][0]))

    process = context.Process(target=child)
    process.start()
    assert read.recv() == right(DRIFT, 4000), "it is in memory, and its cells are checked"
    process.join()
    assert bytes(table["d"][0]) == right(DRIFT, 4000)


@pytest.fixture
def alone(start):
    """The client of a service without timeframes of other tests."""
    with iovcache.connect(start().unix) as connected:
        yield connected


def timeframe(client, number, consumer):
    """A timeframe from shared memory; the first one of a consumer is requested."""
    client.put_timeframe(10_000, [4000], columns={"d": DRIFT}, consumers=[consumer])
    with client.timeframe(10_000, consumer=consumer):
        pass
    times = [4000, None, 1000]
    client.put_timeframe(
        number, times, columns={"d": DRIFT, "n": NOISE}, consumers=[consumer, "other"]
    )
    return client.timeframe(number, consumer=consumer)


def test_a_timeframe_is_taken_from_shared_memory_and_reported(alone):
    client = alone
    with timeframe(client, 1, "tracker") as table:
        assert table.local and table.lease is None and len(table) == 3
        assert bytes(table["d"][0]) == b"drift 2" and table["d"][1] is None
        assert table.arrow.num_rows == 3 and table.objects.num_rows > 0
        state = client.status()["timeframes"][0]
        assert state["consumers"] == {"tracker": "delivered", "other": "waiting"}
    assert client.status()["timeframes"][0]["consumers"]["tracker"] == "consumed"
    with pytest.raises(iovcache.FailedPrecondition):
        client.timeframe(1, consumer="tracker")
    with pytest.raises(RuntimeError):
        with timeframe(client, 2, "tracker"):
            raise RuntimeError
    assert client.status()["timeframes"][1]["consumers"]["tracker"] == "delivered"


def test_an_object_of_a_local_timeframe_is_its_pin_though_the_timeframe_is_consumed(alone):
    client = alone
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", iovcache.ObjectsInUse)
        with timeframe(client, 1, "tracker") as table:
            held = table["d"][0]
    client.consumed(1, consumer="other")
    assert client.status()["timeframes"] == []
    assert client.status()["memory"]["pinned_bytes"] > 0
    assert bytes(held) == b"drift 2"
    del held, table
    gc.collect()
    until("its objects to go", lambda: client.status()["memory"]["pinned_bytes"] == 0)


def test_a_forked_child_has_no_part_in_a_local_timeframe(alone):
    client = alone
    table = timeframe(client, 1, "tracker")
    reader, writer = multiprocessing.Pipe(duplex=False)

    def child():
        try:
            client.timeframe(1, consumer="tracker")
        except iovcache.ForkedProcess:
            writer.send((bytes(table["d"][0]), "ForkedProcess"))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    assert reader.poll(20) and reader.recv() == (b"drift 2", "ForkedProcess")
    process.join()
    assert bytes(table["d"][0]) == b"drift 2"
    with table:
        pass
    assert client.status()["timeframes"][0]["consumers"]["tracker"] == "consumed"


def test_the_calls_for_asyncio_take_timeframes_from_shared_memory(start):
    import asyncio

    from iovcache import aio

    async def main():
        async with await aio.connect(start().unix) as client:
            for number in (1, 2):
                await client.put_timeframe(number, [4000], columns={"d": DRIFT}, consumers=["a"])
                async with await client.timeframe(number, consumer="a") as table:
                    local = table.local
                    assert bytes(table["d"][0]) == b"drift 2"
            assert local
            assert (await client.status())["timeframes"] == []

    asyncio.run(main())
