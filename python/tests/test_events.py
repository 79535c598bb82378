"""Waits of asyncio: for descriptors, without a thread for each."""

import asyncio
import contextlib
import http.server
import os
import subprocess
import sys
import threading
import time

import pytest
from conftest import put, until

import iovcache
from iovcache import aio

DRIFT = "TPC/Calib/VDrift"
#: More than the threads of asyncio's default executor.
WAITS = 60


@pytest.fixture
def gated(start):
    """A service over a CCDB that sends the bytes of its objects once the gate is open."""
    gate = threading.Event()

    class Ccdb(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            body = self.path.startswith("/download/")
            if not body and not self.path.startswith("/G/P"):
                self.send_error(404)
                return
            name = self.path.rsplit("-", 1)[1] if body else self.path.split("/")[2]
            number = int(name, 16) if body else int(name[1:-1])
            if body:
                gate.wait(60)
            data = f"object {number}".encode()
            self.send_response(200 if body else 303)
            version = f"5d4ca9d8-9a1e-11ef-8000-{number:012x}"
            self.send_header("ETag", f'"{version}"')
            self.send_header("Valid-From", "0")
            self.send_header("Valid-Until", "1000")
            self.send_header("Created", "1")
            if not body:
                self.send_header("Location", f"/download/{version}")
            self.send_header("Content-Length", str(len(data) if body else 0))
            self.end_headers()
            with contextlib.suppress(BrokenPipeError):
                self.wfile.write(data if body else b"")

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ccdb)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield start(source=f"http://127.0.0.1:{server.server_port}"), gate
    gate.set()
    server.shutdown()
    server.server_close()


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def test_timeframes_that_are_loaded_are_awaited_without_a_thread_for_each(gated):
    service, gate = gated

    async def main():
        async with await aio.connect(service.unix, consumer="a") as client:
            # The first request opens the session, so that timeframes are published.
            with pytest.raises(iovcache.NotFound):
                await client.timeframe(10_000, consumer="a")
            for number in range(WAITS):
                columns = {"d": f"G/P{number % 4}x"}
                await client.put_timeframe(number, [5], columns=columns, consumers=["a"])
            threads, before = threading.active_count(), descriptors()
            waits = [
                asyncio.ensure_future(client.timeframe(number, consumer="a"))
                for number in range(WAITS)
            ]
            await asyncio.sleep(0.5)
            assert not any(wait.done() for wait in waits)
            assert descriptors() >= before + WAITS
            # The waits leave the threads to other calls.
            status = await asyncio.wait_for(client.status(), 20)
            assert len(status["timeframes"]) == WAITS
            assert threading.active_count() <= threads + 8
            # One that is cancelled closes its descriptor.
            waits.pop().cancel()
            used = time.process_time()
            await asyncio.sleep(1.0)
            assert time.process_time() - used < 0.2, "CPU time of an idle wait"
            gate.set()
            for number, wait in enumerate(waits):
                async with await asyncio.wait_for(wait, 60) as table:
                    assert bytes(table["d"][0]) == f"object {number % 4}".encode()
            left = [one["timeframe"] for one in (await client.status())["timeframes"]]
            assert left == [WAITS - 1]
            until("the descriptors are closed", lambda: descriptors() <= before + 8)

    asyncio.run(main())


def test_the_wait_for_a_timeframe_ends_at_its_limit(gated):
    service, _ = gated

    async def main():
        async with await aio.connect(service.unix, consumer="a") as client:
            with pytest.raises(iovcache.NotFound):
                await client.timeframe(10_000, consumer="a")
            await client.put_timeframe(1, [5], columns={"d": "G/P0x"}, consumers=["a"])
            began = time.monotonic()
            with pytest.raises(iovcache.DeadlineExceeded):
                await client.timeframe(1, consumer="a", wait_ms=300)
            assert 0.25 < time.monotonic() - began < 20

    asyncio.run(main())


def test_the_end_of_the_service_ends_the_wait_for_a_timeframe(gated):
    service, _ = gated

    async def main():
        async with await aio.connect(service.unix, consumer="a", patience=1) as client:
            with pytest.raises(iovcache.NotFound):
                await client.timeframe(10_000, consumer="a")
            await client.put_timeframe(1, [5], columns={"d": "G/P0x"}, consumers=["a"])
            wait = asyncio.ensure_future(client.timeframe(1, consumer="a", wait_ms=4_000))
            await asyncio.sleep(0.3)
            service.kill()
            with pytest.raises(iovcache.Unavailable):
                await asyncio.wait_for(wait, 60)

    asyncio.run(main())


def test_changes_of_a_path_are_awaited_without_a_thread_for_each(start, repository, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(repository, copy)
    service = start(source=copy)

    async def main():
        async with await aio.connect(service.unix) as client:
            drift = await client.get(DRIFT, at=4000)
            assert not await client.changed(DRIFT, 4000, drift, timeout=0.3)
            waits = [
                asyncio.ensure_future(client.changed(DRIFT, 4000, drift, timeout=60))
                for _ in range(WAITS)
            ]
            await asyncio.sleep(0.5)
            assert not any(wait.done() for wait in waits)
            put(copy, (DRIFT, 0, 9000, 99, b"newest"), tmp_path)
            assert all(await asyncio.wait_for(asyncio.gather(*waits), 60))
            assert bytes(await client.get(DRIFT, at=4000)) == b"newest"
            # A change before the call counts.
            assert await client.changed(DRIFT, 4000, drift)

    asyncio.run(main())


def test_calls_that_are_cancelled_hold_up_no_other_call(hung):
    async def main():
        async with await aio.connect(hung.unix) as client:
            threads = threading.active_count()
            for _ in range(WAITS):
                with pytest.raises(asyncio.TimeoutError):
                    call = client.table({"x": "Q/Slow"}, timestamps=[1000])
                    await asyncio.wait_for(call, 0.02)
            until("the threads to end", lambda: threading.active_count() <= threads)
            # More calls at the same time than have a thread.
            calls = [client.get("Q/Slow", 1000, wait_ms=60_000) for _ in range(5 * WAITS)]
            calls = [asyncio.ensure_future(call) for call in calls]
            await asyncio.sleep(0.5)
            assert threading.active_count() - threads < len(calls)
            for call in calls:
                call.cancel()
            assert (await asyncio.wait_for(client.status(), 20))["pid"] == hung.process.pid
            answers = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(answer, asyncio.CancelledError) for answer in answers)
            began = time.monotonic()
        assert time.monotonic() - began < 20, "closed"

    asyncio.run(main())


@pytest.mark.parametrize("way", ["run", "abandoned"])
def test_a_signal_ends_a_process_that_awaits_a_call(hung, way):
    code = f"""if True:
        import asyncio, os, signal, sys, threading, time
        from iovcache import aio
        async def main():
            client = await aio.connect({hung.unix!r})
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
            await client.table({{"x": "Q/Slow"}}, timestamps=[1000])
        try:
            if {way == "run"}:
                asyncio.run(main())
            else:  # no task is cancelled
                asyncio.new_event_loop().run_until_complete(main())
        except KeyboardInterrupt:
            print("interrupted")
    """
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, b"interrupted\n"), done.stderr.decode()
    assert time.monotonic() - began < 10


def test_a_forked_child_makes_calls_of_its_own(service):
    async def status():
        async with await aio.connect(service.unix) as client:
            return (await client.status())["pid"]

    assert asyncio.run(status()) == service.process.pid
    child = os.fork()
    if child == 0:
        os._exit(asyncio.run(status()) != service.process.pid)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("timeout", [0.5, 0])
def test_the_limit_of_a_wait_for_a_change_includes_the_source(hung, timeout):
    known = [None, "00000000-0000-0000-0000-000000000001"]

    async def main():
        async with await aio.connect(hung.unix) as client:
            for version in known:
                assert not await client.changed("Q/Slow", 1000, version, timeout=timeout)

    with iovcache.connect(hung.unix) as client:
        path = client.path("Q/Slow")
        began = time.monotonic()
        for version in known:
            assert path.changed(1000, version, timeout) is False
        asyncio.run(main())
        assert 4 * timeout <= time.monotonic() - began < 4 * timeout + 5


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), "1", 10**400])
def test_a_limit_that_is_none_is_refused(service, timeout):
    async def main():
        async with await aio.connect(service.unix) as client:
            await client.changed(DRIFT, 4000, None, timeout=timeout)

    with iovcache.connect(service.unix) as client:
        with pytest.raises(iovcache.InvalidArgument, match="timeout"):
            client.path(DRIFT).changed(4000, None, timeout)
    with pytest.raises(iovcache.InvalidArgument, match="timeout"):
        asyncio.run(main())
    with pytest.raises(iovcache.InvalidArgument, match="patience"):
        iovcache.connect(service.unix, patience=timeout)


def test_a_change_is_awaited_by_a_client_that_is_not_attached(start, tmp_path):
    copy = tmp_path / "copy"
    put(copy, (DRIFT, 0, 9000, 1, b"old"), tmp_path)
    service = start(source=copy)

    async def main():
        async with await aio.connect(service.tcp, remote=True) as client:
            old = await client.get(DRIFT, at=4000)
            assert await client.changed(DRIFT, 4000, None)
            assert not await client.changed(DRIFT, 4000, old, timeout=0.3)
            wait = asyncio.ensure_future(client.changed(DRIFT, 4000, old, timeout=60))
            await asyncio.sleep(0.3)
            put(copy, (DRIFT, 0, 9000, 2, b"new"), tmp_path)
            assert await asyncio.wait_for(wait, 60)

    asyncio.run(main())
