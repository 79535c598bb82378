"""An object is a pin: its buffer stays unchanged when its table and client are closed."""

import gc
import hashlib
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
from conftest import put, right, until

import iovcache

DRIFT = "TPC/Calib/VDrift"
NOISE = "TPC/Calib/Noise"
MIB = 1 << 20


@pytest.fixture
def client(service):
    with iovcache.connect(service.unix) as connected:
        yield connected


@pytest.fixture
def small(start, tmp_path):
    """A service with memory for three of its eight objects."""
    folder = tmp_path / "objects"
    for number in range(8):
        put(folder, (f"A/N{number}", 0, 100, 1, bytes([65 + number]) * (4 * MIB)), tmp_path)
    return start("--memory", "16MiB", "--segment", "16MiB", source=folder)


def pinned(client):
    return client.status()["memory"]["pinned_bytes"]


def evict(client, but, times=1):
    """Loads all other objects, one after the other: each evicts another."""
    for _ in range(times):
        for number in range(8):
            if number != but:
                with client.table({"v": f"A/N{number}"}, timestamps=[5], wait_ms=5000) as table:
                    assert bytes(table["v"][0][:1]) == bytes([65 + number])


KINDS = {
    "object": lambda object_: object_,
    "memoryview": memoryview,
    "slice": lambda object_: object_[MIB:],
    "numpy": lambda object_: object_.numpy(),
    "numpy of another type": lambda object_: np.frombuffer(object_, ">u8"),
    "memoryview of numpy": lambda object_: memoryview(object_.numpy()),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", ["binary", "struct", "o2"])
def test_a_view_stays_what_it_is_while_its_memory_is_wanted(small, kind, cell):
    with iovcache.connect(small.unix) as client:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", iovcache.ObjectsInUse)
            with client.table({"v": "A/N2"}, timestamps=[5], cell=cell) as table:
                view = KINDS[kind](table["v"][0])
            del table
        digest = hashlib.sha256(view).digest()
        evict(client, but=2, times=2)
        gc.collect()
        assert hashlib.sha256(view).digest() == digest
        assert client.status()["evictions"] > 4 and pinned(client) >= 4 * MIB
        del view
        until("the last view to go", lambda: pinned(client) == 0)


def test_a_view_outlives_table_client_and_session(small):
    client = iovcache.connect(small.unix)
    view = np.frombuffer(client.table({"v": "A/N1"}, timestamps=[5])["v"][0], "u1")
    client.close()
    del client
    gc.collect()
    with iovcache.connect(small.unix) as other:
        evict(other, but=1)
        assert (view == 66).all()
        del view
        until("the pin to go", lambda: pinned(other) == 0)


def test_a_table_closed_under_its_views_says_so_once(client):
    from iovcache import _table

    _table._warned.clear()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        kept = []
        for _ in range(3):
            with client.table({"v": NOISE}, timestamps=[1]) as table:
                kept.append(table["v"][0])
    assert [one.category for one in told] == [iovcache.ObjectsInUse]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with client.table({"v": NOISE}, timestamps=[1]) as table:
            assert table["v"][0] == kept[0]


def test_objects_are_bytes_like_and_read_only(client):
    with client.table({"v": DRIFT, "n": NOISE}, timestamps=[1000, 3000, 7000]) as table:
        first, second, empty = table["v"]
        assert isinstance(first, iovcache.Object) and first is table["v"][0]
        assert (len(first), bytes(first), first.tobytes()) == (7, b"drift 1", b"drift 1")
        assert first == b"drift 1" and first == bytearray(b"drift 1") and first != second
        assert first == memoryview(b"drift 1") and not first == 7
        assert hash(first) == hash(b"drift 1") and {first: 1}[b"drift 1"] == 1
        assert first[0] == ord("d") and first[-1] == ord("1") and bytes(first[1:3]) == b"ri"
        assert list(first[:3]) == list(b"dri") and b"".join([first, second]) == b"drift 1drift 2"
        assert not empty and bytes(empty) == b"" and empty.numpy().size == 0
        assert memoryview(first).readonly and first.readonly and first.nbytes == 7
        for write in (
            lambda: memoryview(first).__setitem__(0, 1),
            lambda: first.numpy().__setitem__(0, 1),
            lambda: (b"x" * 7 and open("/dev/zero", "rb").readinto(first)),
        ):
            with pytest.raises((TypeError, ValueError, BufferError)):
                write()
        assert first.hex() == b"drift 1".hex() and "drift" in first._repr_html_()
        assert repr(first) == f"<iovcache.Object {DRIFT} of 7 bytes>"
        with pytest.raises(TypeError, match="objects come from tables"):
            iovcache.Object(None)
        rows = {row["row_start"]: row for row in table.objects.to_pylist() if row["column"] == "v"}
        assert second.id == rows[1]["object_id"] and second.validity == (3000, 5000)
        assert (second.created, second.path, second.rows) == (2, DRIFT, (1, 2))
        assert isinstance(second.metadata, dict)
        assert pickle.loads(pickle.dumps(second)) == b"drift 2"


def test_columns_are_sequences(client):
    times = [1000, 3000, 3001, None, 7000]
    with client.table({"v": DRIFT}, timestamps=times) as table:
        column = table["v"]
        expected = [None if at is None else right(DRIFT, at) for at in times]
        shown = [None if one is None else bytes(one) for one in column]
        assert shown == expected and len(column) == 5 and column.path == DRIFT
        for index in range(-5, 5):
            assert column[index] == expected[index]
            assert (column.header(index) is None) == (expected[index] is None)
        assert column[np.int64(-1)] == expected[-1] and column[np.uint8(1)] == expected[1]
        for cut in (slice(None), slice(1, 3), slice(None, None, -2), slice(-2, None), slice(9, 3)):
            assert column[cut] == expected[cut]
        assert column.take(np.array([4, 0, -1])) == [expected[4], expected[0], expected[4]]
        for wrong in (5, -6):
            for call in (column.__getitem__, column.header, lambda row: column.take([row])):
                with pytest.raises(IndexError, match="5 rows"):
                    call(wrong)
        with pytest.raises(TypeError):
            column["v"]
        assert b"drift 2" in column and b"drift 3" not in column and None in column
        assert [(a, b) for a, b, _ in column.runs()] == [(0, 1), (1, 3), (3, 4), (4, 5)]
        assert "v" in table and list(table) == ["v"]
    with client.table({"v": DRIFT}, timestamps=[1000, 1001, 3000]) as table:
        rows = table["v"].numpy()
        assert rows.shape == (3, 7) and rows.tobytes() == b"drift 1drift 1drift 2"
        assert table["v"].numpy("S7").tolist() == [[b"drift 1"], [b"drift 1"], [b"drift 2"]]
        assert bytes(table["v"][0][:5]) == b"drift"
    with client.table({"v": DRIFT}, timestamps=[1000, 7000]) as table:
        with pytest.raises(iovcache.InvalidArgument, match="7 and 0 bytes"):
            table["v"].numpy()
    for times, dtype, shape in (([7000, 7000], "u1", (2, 0)), ([], "u1", (0, 0)), ([3], "S7", (1, 1))):
        path = DRIFT if dtype == "u1" else NOISE
        with client.table({"v": path}, timestamps=times) as table:
            if dtype == "u1":
                assert table["v"].numpy(dtype).shape == shape
            else:
                with pytest.raises(ValueError):
                    table["v"].numpy(dtype)
    with client.table({"v": NOISE}, timestamps=[1, 2, 3]) as table:
        rows = table["v"].numpy(">u4")
        assert rows.dtype == ">u4" and rows.shape == (3, 25_000) and rows.flags.writeable
        assert (rows == np.frombuffer(b"nnnn", ">u4")[0]).all()


def test_one_object_by_path_and_time(client, service):
    found = client.get(DRIFT, at=3000)
    assert found == b"drift 2" and found.validity == (3000, 5000)
    assert client.get(DRIFT, at="1970-01-01T00:00:01Z") == b"drift 1"
    with pytest.raises(iovcache.NotFound):
        client.get(DRIFT)
    with iovcache.connect(service.tcp, remote=True) as remote:
        assert remote.get(DRIFT, at=np.int64(3000)) == b"drift 2"


def test_thirty_clients_and_a_thousand_tables_that_are_forgotten_leave_nothing(service):
    def counts(watch):
        gc.collect()
        status = watch.status()
        threads = len(os.listdir("/proc/self/task"))
        files = len(os.listdir("/proc/self/fd"))
        return len(status["sessions"]), threads, files, pinned(watch)

    def cell():
        client = iovcache.connect(service.unix)
        return bytes(client.table({"v": DRIFT, "n": NOISE}, timestamps=[1000, 3000])["v"][0])

    with iovcache.connect(service.tcp, remote=True) as watch:
        cell()
        until("the first to go", lambda: not watch.status()["sessions"])
        before = counts(watch)
        for _ in range(30):
            cell()
        near = lambda: all(b <= a + 2 for a, b in zip(before[:3], counts(watch)[:3]))  # noqa: E731
        until("sessions, threads and descriptors to go", near)
        with iovcache.connect(service.unix) as client:
            for _ in range(1000):
                client.table({"n": NOISE}, timestamps=[1])["n"][0]
            until("the pins to go", lambda: pinned(watch) == 0)


def test_clients_and_tables_are_not_pickled(client):
    with client.table({"v": DRIFT}, timestamps=[1000]) as table:
        for one, why in ((client, "iovcache.connect"), (table, "bytes")):
            with pytest.raises(TypeError, match=why):
                pickle.dumps(one)


def in_child(call):
    """The result of a call in a forked child."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, repr(call()).encode())
        except BaseException as error:
            os.write(write, type(error).__name__.encode())
        finally:
            os._exit(0)
    os.close(write)
    told = b""
    while part := os.read(read, 4096):
        told += part
    os.close(read)
    os.waitpid(child, 0)
    return told.decode()


def test_a_forked_child_uses_and_ends_nothing_of_its_parent(start):
    service = start()
    client = iovcache.connect(service.unix, consumer="parent")
    table = client.table({"v": DRIFT}, timestamps=[1000, 3000])
    held = table["v"][0]
    assert in_child(lambda: bytes(table["v"][1])) == "b'drift 2'"
    assert in_child(lambda: bytes(held)) == "b'drift 1'"
    assert in_child(lambda: client.status()) == "ForkedProcess"
    assert in_child(lambda: client.table({"v": DRIFT}, timestamps=[1])) == "ForkedProcess"
    assert in_child(lambda: table.objects) == "ForkedProcess"

    def leave():
        table.close()
        with client:
            pass
        del globals()["unused"]

    globals()["unused"] = None
    assert in_child(leave) == "None"

    def anew():
        with iovcache.connect(service.unix, consumer="child") as own:
            return bytes(own.get(DRIFT, at=3000))

    assert in_child(anew) == "b'drift 2'"
    assert [one["consumer"] for one in client.status()["sessions"]] == ["parent"]
    assert pinned(client) > 0 and held == b"drift 1"
    table.close()
    client.close()


FORKS_AT_ONCE = """
import os, sys, time, iovcache
client = iovcache.connect(sys.argv[1], consumer="forking")
table = client.table({"v": sys.argv[2]}, timestamps=[1000])
child = os.fork()
if child == 0:
    time.sleep(600)
    os._exit(0)
print(child, flush=True)
time.sleep(60)
"""


def test_a_session_ends_with_its_process_however_early_that_forked_a_child(start):
    service = start()
    # Each time the threads of the client are somewhere else when the process forks.
    for _ in range(12):
        command = [sys.executable, "-c", FORKS_AT_ONCE, service.unix, DRIFT]
        parent = subprocess.Popen(command, stdout=subprocess.PIPE)
        child = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
        parent.stdout.close()
        try:
            with iovcache.connect(service.tcp) as client:
                until("the end of the session", lambda: not client.status()["sessions"])
        finally:
            os.kill(child, signal.SIGKILL)


READS = {
    "bytes": lambda table, held: bytes(held),
    "a view": lambda table, held: memoryview(held),
    "==": lambda table, held: held == b"C",
    "hash": lambda table, held: hash(held),
    "numpy": lambda table, held: held.numpy(),
    "the whole column": lambda table, held: table["v"].numpy(),
}


@pytest.mark.parametrize("kind", READS)
def test_a_forked_child_is_told_that_what_its_parent_released_is_gone(small, kind):
    client = iovcache.connect(small.unix)
    table = client.table({"v": "A/N2"}, timestamps=[5])
    held = table["v"][0]
    read, released = os.pipe()

    def late():
        os.read(read, 1)
        return READS[kind](table, held)

    def release():
        nonlocal held
        held = None
        table.close()
        evict(client, but=2, times=2)
        os.write(released, b".")

    parent = threading.Timer(0.5, release)
    parent.start()
    assert in_child(late) == "Stale"
    parent.join()
    client.close()


def reads(url, at):
    with iovcache.connect(url) as client:
        return bytes(client.get(DRIFT, at=at))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_pools_of_processes_have_clients_of_their_own(service, method):
    with iovcache.connect(service.unix) as client:
        client.get(DRIFT, at=1000)
        with multiprocessing.get_context(method).Pool(2) as pool:
            told = pool.starmap(reads, [(service.unix, at) for at in (1000, 3000, 5000)])
    assert told == [right(DRIFT, at) for at in (1000, 3000, 5000)]


@pytest.mark.parametrize(
    "call",
    [
        "iovcache.connect(url)",
        "client.status()",
        "client.table({'v': 'TPC/Calib/Noise'}, timestamps=[1])",
        "client.put_timeframe(1, [1], columns={'v': 'TPC/Calib/Noise'}, consumers=['x'])",
    ],
)
def test_ctrl_c_ends_a_call_within_half_a_second(start, call):
    service = start()
    code = f"""
import sys, iovcache
url = {service.unix!r}
client = iovcache.connect(url)
client.get({DRIFT!r}, at=1000)
print('ready', flush=True)
sys.stdin.readline()
try:
    print('go', flush=True)
    {call}
except KeyboardInterrupt:
    print('interrupted', flush=True)
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    child = subprocess.Popen([sys.executable, "-c", code], **pipes)
    assert child.stdout.readline() == b"ready\n"
    service.pause()
    try:
        child.stdin.write(b"\n")
        child.stdin.flush()
        assert child.stdout.readline() == b"go\n"
        time.sleep(0.3)
        began = time.monotonic()
        child.send_signal(signal.SIGINT)
        assert child.stdout.readline() == b"interrupted\n"
        assert time.monotonic() - began < 0.5
        assert child.wait(10) == 0
    finally:
        service.process.send_signal(signal.SIGCONT)
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()


def test_threads_share_a_client(client):
    wrong = []

    def work(seed):
        for step in range(30):
            at = 1000 + (seed * 977 + step * 331) % 6000
            if client.get(DRIFT, at=at) != right(DRIFT, at):
                wrong.append(at)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_asyncio_has_the_same_calls(service):
    import asyncio

    from iovcache import aio

    async def walk():
        async with await aio.connect(service.unix) as client:
            tables = [client.table({"v": DRIFT}, timestamps=[at]) for at in (1000, 3000, 5000)]
            got = [bytes(table["v"][0]) for table in await asyncio.gather(*tables)]
            columns = {"v": DRIFT}
            await client.put_timeframe(91, [1000], columns=columns, consumers=["aio"])
            async with await client.timeframe(91, consumer="aio") as table:
                got.append(bytes(table["v"][0]))
            got.append(bytes(await client.get(DRIFT, at=3000)))
            assert not (await client.status())["timeframes"]
            with pytest.raises(TypeError, match="colour"):
                await client.table({"v": DRIFT}, timestamps=[1], colour="red")
            return got

    assert asyncio.run(walk()) == [b"drift 1", b"drift 2", b"drift 1", b"drift 1", b"drift 2"]


def test_asyncio_has_every_member_of_client_and_table():
    from iovcache import aio

    public = lambda kind: {name for name in dir(kind) if not name.startswith("_")}  # noqa: E731
    assert public(iovcache.Client) <= public(aio.AsyncClient)
    assert public(iovcache.Table) <= public(aio.AsyncTable)


def test_a_program_that_ends_without_closing_anything_ends(service):
    code = f"""
import iovcache
client = iovcache.connect({service.unix!r})
table = client.table({{'v': {DRIFT!r}}}, timestamps=[1000])
view = memoryview(table['v'][0])
"""
    done = subprocess.run([sys.executable, "-X", "dev", "-c", code], capture_output=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, b"")


def test_large_objects_from_afar_come_by_chunks(start, tmp_path):
    big = os.urandom(MIB) * 70
    folder = tmp_path / "large"
    put(folder, ("Big/Map", 0, 50, 1, big), tmp_path)
    put(folder, ("Big/Map", 20, 30, 2, b"small"), tmp_path)
    service = start("--memory", "256MiB", "--segment", "128MiB", source=folder)
    with iovcache.connect(service.tcp, remote=True) as client:
        with client.table({"m": "Big/Map"}, timestamps=[5, 25, None, 40]) as table:
            objects = table["m"][:]
            assert objects[0] == big and objects[1] == b"small" and objects[2] is None
            assert objects[3] == big and table.arrow.num_rows == 4
            assert table.arrow["m"].null_count == 1 or table.arrow["m"][2].as_py() is None
        with pytest.raises(iovcache.ResourceExhausted, match="chunks"):
            client.table({"m": "Big/Map"}, timestamps=[5], cell="payload")
        until("the leases to go", lambda: pinned(client) == 0)


def test_the_wheel_brings_the_program():
    program = os.environ.get("IOVCACHE_WHEEL_PROGRAM")
    if not program:
        pytest.skip("not installed from a wheel")
    done = subprocess.run([program, "--version"], capture_output=True, timeout=30)
    assert done.returncode == 0 and done.stdout.startswith(b"iovcache ")
