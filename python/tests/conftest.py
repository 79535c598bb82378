"""The real service, in a separate process, over a small repository."""

from __future__ import annotations

import json
import os
import pathlib
import select
import signal
import socket
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATIENCE = 60.0

#: path, from, until, created, bytes
VERSIONS = [
    ("TPC/Calib/VDrift", 1000, 9000, 1, b"drift 1"),
    ("TPC/Calib/VDrift", 3000, 5000, 2, b"drift 2"),
    ("TPC/Calib/VDrift", 7000, 7001, 3, b""),
    ("TPC/Calib/Noise", 0, 9000, 1, b"n" * 100_000),
]


def right(path: str, at: int) -> bytes:
    """The valid bytes at a time, by a linear scan of all versions."""
    valid = [v for v in VERSIONS if v[0] == path and v[1] <= at < v[2]]
    return max(valid, key=lambda v: (v[3], v[1]))[4]


def program() -> str:
    return os.environ.get("IOVCACHE_BIN", str(ROOT / "target/debug/iovcache"))


def put(repository: pathlib.Path, version: tuple, folder: pathlib.Path, *more: str) -> None:
    path, start, until, created, data = version
    file = folder / "object"
    file.write_bytes(data)
    times = [f"--from={start}", f"--until={until}", f"--created={created}"]
    run("put", "--repository", str(repository), path, str(file), *times, *more)


def run(*arguments: str, status: int = 0) -> subprocess.CompletedProcess:
    """Runs a command to its end, which must return this status."""
    command = [program(), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE)
    assert done.returncode == status, f"{command}: {done.returncode}, {done.stderr.decode()}"
    return done


class Service:
    """A service that ends with the test."""

    def __init__(
        self,
        folder: pathlib.Path,
        source: pathlib.Path | str,
        *arguments: str,
        environment: dict[str, str] | None = None,
    ) -> None:
        url = source if isinstance(source, str) else f"file://{source}"
        command = [program(), "serve", "--source", url, "--refresh", "200ms"]
        command += ["--socket", str(folder / "s"), "--listen", "127.0.0.1:0"]
        command += ["--memory", "64MiB", "--segment", "16MiB", *arguments]
        environment = {**os.environ, **(environment or {})}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        line = self.process.stdout.readline() if readable else b""
        if not line:
            self.stop()
            raise AssertionError("the service does not start")
        self.ready = json.loads(line)
        self.tcp, self.unix = self.ready["flight"]

    def pause(self) -> None:
        """Stops all of its threads until SIGCONT. Under load a thread may run on for a while."""
        self.process.send_signal(signal.SIGSTOP)
        tasks = pathlib.Path(f"/proc/{self.process.pid}/task")
        state = lambda task: (task / "stat").read_text().rsplit(")", 1)[1].split()[0]  # noqa: E731
        until("all threads to stop", lambda: all(state(task) == "T" for task in tasks.iterdir()))

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def until(what: str, condition) -> object:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"in vain waited for: {what}")


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The repository that all tests share; a test that puts objects uses a copy."""
    folder = tmp_path_factory.mktemp("data")
    for version in VERSIONS:
        put(folder / "repository", version, folder)
    return folder / "repository"


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, repository: pathlib.Path):
    running = Service(tmp_path_factory.mktemp("service"), repository)
    yield running
    running.stop()


@pytest.fixture
def start(tmp_path: pathlib.Path, repository: pathlib.Path):
    """Starts services for one test."""
    running = []

    def one(*arguments: str, name: str = "own", source: pathlib.Path = repository) -> Service:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        running.append(Service(folder, source, *arguments))
        return running[-1]

    yield one
    for service in running:
        service.stop()


@pytest.fixture
def hung(start):
    """A service over a source that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        yield start(source=f"http://127.0.0.1:{listener.getsockname()[1]}")
