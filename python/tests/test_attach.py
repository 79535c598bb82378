"""The attach socket, line by line, and the segments behind it."""

import fcntl
import hashlib
import json
import mmap
import os
import resource
import socket
import stat
import struct
import time

import pytest
from by_hand import HEADER, ByHand
from conftest import right, run, until

DRIFT = "TPC/Calib/VDrift"
TIMES = [1000, 3000, 7000]


def attach(service):
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(30)
    connection.connect(service.ready["attach"])
    return connection


def hear(connection):
    data, descriptors, _, _ = socket.recv_fds(connection, 65536, 253)
    return json.loads(data) if data else None, descriptors


def test_the_welcome_has_session_epoch_and_segments(service):
    by_hand = ByHand(service)
    by_hand.get({"columns": {"drift": DRIFT}, "timestamps": TIMES})
    with attach(service) as connection:
        connection.sendall(b'{"hello": 1, "consumer": "me"}\n')
        welcome, descriptors = hear(connection)
        assert set(welcome) == {"session", "epoch", "segments"}
        assert welcome["epoch"] == service.ready["epoch"] and int(welcome["epoch"], 16)
        assert len(descriptors) == len(welcome["segments"]) > 0
        for segment, fd in zip(welcome["segments"], descriptors):
            assert set(segment) == {"kind", "id", "size"} and segment["kind"] == "segment"
            assert os.fstat(fd).st_size == segment["size"]
            head = mmap.mmap(fd, segment["size"], prot=mmap.PROT_READ)
            assert head[:4] == b"\2\0\0\0" and head[256:264] == b"IOVCACHE"
            epoch, number, _, size = struct.unpack_from("<QIIQ", head, 272)
            assert (f"{epoch:016x}", number, size) == (
                welcome["epoch"],
                segment["id"],
                segment["size"],
            )
        # A segment requested again is sent again; one that does not exist is answered without a
        # descriptor.
        need = {"need": {"kind": "segment", "id": welcome["segments"][0]["id"]}}
        connection.sendall(json.dumps(need).encode() + b"\n")
        again, more = hear(connection)
        assert again["segments"] == welcome["segments"][:1] and len(more) == 1
        assert os.fstat(more[0]).st_ino == os.fstat(descriptors[0]).st_ino
        connection.sendall(b'{"need": {"kind": "region", "id": 5}}\n')
        assert hear(connection) == ({**welcome, "segments": []}, [])
    for fd in descriptors + more:
        os.close(fd)
    by_hand.close()


def test_a_consumer_can_neither_write_nor_truncate_a_segment(service):
    by_hand = ByHand(service)
    by_hand.get({"columns": {"drift": DRIFT}, "timestamps": TIMES})
    with attach(service) as connection:
        connection.sendall(b'{"hello": 1, "consumer": "me"}\n')
        welcome, (fd, *_) = hear(connection)
        size = welcome["segments"][0]["size"]
        F_GET_SEALS, SEAL, SHRINK, GROW, FUTURE_WRITE = 1034, 1, 2, 4, 16
        assert fcntl.fcntl(fd, F_GET_SEALS) == SEAL | SHRINK | GROW | FUTURE_WRITE
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
        for one in (fd, again):
            for change in (
                lambda: os.ftruncate(one, 0),
                lambda: os.ftruncate(one, 2 * size),
                lambda: os.pwrite(one, b"x", 5000),
                lambda: mmap.mmap(one, size, prot=mmap.PROT_READ | mmap.PROT_WRITE),
            ):
                with pytest.raises(OSError):
                    change()
        os.close(again)
        os.close(fd)
    by_hand.close()


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"[]\n",
        b"no json\n",
        b'{"hello": 2, "consumer": "me"}\n',
        b'{"hello": 1}\n',
        b'{"hello": 1, "consumer": ""}\n',
        b'{"hello": 1, "consumer": "me", "colour": 1}\n',
        b"\xff\xfe\n",
        b"x" * 100_000,
    ],
)
def test_a_process_that_says_no_hello_gets_an_error_and_is_disconnected(service, line):
    told = b""
    with attach(service) as connection:
        try:
            connection.sendall(line)
            while data := connection.recv(4096):
                told += data
        except (BrokenPipeError, ConnectionResetError):
            pass
    # A line that is too long is not read to its end, so the connection may end without an answer.
    if told or len(line) < 1000:
        assert b"INVALID_ARGUMENT" in told and b"[IOV-" in told and told.count(b"\n") == 1
        assert b"session" not in json.loads(told)
    assert all(one["consumer"] != "me" for one in status(service)["sessions"])


def status(service):
    client = ByHand(service, "observer")
    try:
        return client.ask("status")
    finally:
        client.close()


def test_a_message_that_is_no_need_ends_the_session(service):
    for line in (b'{"need": {}}\n', b'{"need": {"kind": "x", "id": 1}}\n', b'{"give": 1}\n'):
        with attach(service) as connection:
            connection.sendall(b'{"hello": 1, "consumer": "me"}\n')
            _, descriptors = hear(connection)
            connection.sendall(line)
            while connection.recv(4096):
                pass
        assert all(one["consumer"] != "me" for one in status(service)["sessions"]), line
        for fd in descriptors:
            os.close(fd)


def test_a_hello_may_come_in_pieces_and_with_the_first_need(service):
    with attach(service) as connection:
        for piece in (b'{"hello"', b": 1, ", b'"consumer": "me"}\n{"need": {"kind":'):
            connection.sendall(piece)
            time.sleep(0.02)
        welcome, descriptors = hear(connection)
        assert welcome["session"]
        connection.sendall(b' "region", "id": 1}}\n')
        assert hear(connection)[0]["segments"] == []
    for fd in descriptors:
        os.close(fd)


def test_each_new_segment_is_announced_and_more_than_253_come_in_parts(start, tmp_path):
    repository = tmp_path / "many"
    lines = ["path,valid_from_ms,valid_until_ms,created_ms,id,file,size,md5,note"]
    for number in range(300):
        data = bytes([number % 251]) * 40_000
        (tmp_path / f"object{number}").write_bytes(data)
        md5 = hashlib.md5(data).hexdigest()
        lines.append(f"Many/Object{number},0,10,1,,object{number},{len(data)},{md5},")
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    run("import", "--repository", repository, tmp_path / "manifest.csv")
    # One object per segment.
    service = start("--segment", "64KiB", "--memory", "32MiB", source=repository)
    client = ByHand(service)
    columns = {f"x{number}": f"Many/Object{number}" for number in range(300)}
    request = {"columns": columns, "timestamps": [5], "session": client.session}
    table = client.get({**request, "encoding": "plain"})
    for number in range(300):
        cell = table[f"x{number}"][0].as_py()
        assert client.resolve(cell) == bytes([number % 251]) * 40_000
    assert len({HEADER.unpack(table[name][0].as_py())[5] for name in columns}) == 300
    # A client that attaches now receives all of them, at most 253 at once.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    late = ByHand(service, "late")
    counts = [len(late.maps)]
    while sum(counts) < 300:
        message = late.hear()
        counts.append(len(message["segments"]))
        assert set(message) == {"session", "epoch", "segments"}
    assert max(counts) <= 253 and sum(counts) == 300
    assert late.resolve(table["x299"][0].as_py()) == bytes([299 % 251]) * 40_000
    late.close()
    client.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_named_segments_are_files_that_others_can_only_read(start, tmp_path):
    folder = tmp_path / "segments"
    service = start("--backing", "shm", "--shm-folder", str(folder), name="named")
    client = ByHand(service)
    request = {"columns": {"drift": DRIFT}, "timestamps": TIMES, "session": client.session}
    table = client.get({**request, "encoding": "plain"})
    cells = table["drift"].to_pylist()
    assert [client.resolve(cell) for cell in cells] == [right(DRIFT, at) for at in TIMES]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    (segment,) = [file for file in folder.iterdir() if file.name != "lock"]
    assert stat.S_IMODE(segment.stat().st_mode) == 0o640
    # By name alone, without the attach socket.
    size, generation, handle, *_ = HEADER.unpack(cells[0])
    data = segment.read_bytes()
    assert struct.unpack_from("<QQ", data, handle - 48) == (generation, size)
    assert data[handle + 16 : handle + 16 + size] == right(DRIFT, TIMES[0])
    # The descriptor received through the socket is open for reading only.
    with attach(service) as connection:
        connection.sendall(b'{"hello": 1, "consumer": "me"}\n')
        _, (fd, *_) = hear(connection)
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        os.close(fd)
    client.close()
    service.stop()
    assert not list(folder.glob("segment-*"))


def test_a_region_of_another_program_holds_the_objects_and_headers_say_so(start, tmp_path):
    region = tmp_path / "fmq_0badcafe_rg_7"
    region.write_bytes(bytes(8 << 20))
    client = ByHand(start("--region", f"7={region}", name="region"))
    request = {"columns": {"drift": DRIFT}, "timestamps": TIMES, "session": client.session}
    cells = client.get({**request, "encoding": "plain"})["drift"].to_pylist()
    for cell, at in zip(cells, TIMES):
        size, generation, handle, shared, number, segment, managed = HEADER.unpack(cell)
        assert (shared, number, segment, managed) == (-1, 7, 0, 0)
        assert client.resolve(cell) == right(DRIFT, at)
        data = region.read_bytes()
        assert data[handle : handle + size] == right(DRIFT, at), "the file itself holds it"
        assert struct.unpack_from("<QQ", data, handle - 64) == (generation, size)
    segments = client.ask("segments")["segments"]
    assert segments == [{"kind": "region", "id": 7, "size": 8 << 20}]
    client.close()


def test_sockets_are_for_the_owner_and_the_folder_is_private(service):
    folder = os.path.dirname(service.ready["attach"])
    assert stat.S_IMODE(os.stat(folder).st_mode) & 0o027 == 0
    for name in ("attach.sock", "flight.sock"):
        mode = os.stat(os.path.join(folder, name)).st_mode
        assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) & 0o007 == 0


def test_a_session_ends_within_a_tenth_of_a_second_of_its_death(start):
    service = start()
    observer = ByHand(service, "observer")
    dying = ByHand(service, "dying")
    dying.get({"columns": {"n": "TPC/Calib/Noise"}, "timestamps": [5], "session": dying.session})
    assert observer.pinned() > 100_000
    dying.attach.close()
    began = time.monotonic()
    until("its pins to go", lambda: observer.pinned() == 0)
    print(f"let go after {(time.monotonic() - began) * 1000:.1f} ms")
    assert [one["consumer"] for one in observer.ask("status")["sessions"]] == ["observer"]
    dying.attach = socket.socket(socket.AF_UNIX)
    dying.close()
    observer.close()
