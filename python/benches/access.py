"""Access times of objects in Python, compared with the minimum for the same bytes.

    IOVCACHE_BIN=target/release/iovcache python python/benches/access.py

The table has 100,000 rows of 1,000 objects of 256 bytes. Each line of the output has a time and its
limit, or its ratio to the floor: numpy's own copy, or for a table a bare do_get of pyarrow. With
`--check` the exit status is 1 if a limit is exceeded.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import sys
import tempfile
import time
import uuid

import numpy as np
import pyarrow.flight as flight

import iovcache

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests"))
from conftest import Service  # noqa: E402

OBJECTS, ROWS, BYTES = 1_000, 100_000, 256


def repository(folder: pathlib.Path) -> pathlib.Path:
    """A repository in the layout of CCDB's local server."""
    for number in range(OBJECTS):
        data = number.to_bytes(8, "little") * (BYTES // 8)
        place = folder / "A/B" / str(number * 100)
        place.mkdir(parents=True)
        name = str(uuid.uuid5(uuid.NAMESPACE_OID, str(number)))
        (place / name).write_bytes(data)
        about = {
            "CreateTime": 1,
            "ValidUntil": number * 100 + 100,
            "InitialValidityLimit": number * 100 + 100,
            "OriginalFileName": "object",
            "Content-Type": "application/octet-stream",
            "File-Size": BYTES,
            "Content-MD5": hashlib.md5(data).hexdigest(),
        }
        lines = "\n".join(f"{key}={value}" for key, value in about.items())
        (place / f"{name}.properties").write_text(lines)
    return folder


def best(call, times: int, repeat: int = 5) -> float:
    """Seconds per call: the minimum of several rounds."""
    rounds = []
    for _ in range(repeat):
        began = time.perf_counter()
        for _ in range(times):
            call()
        rounds.append((time.perf_counter() - began) / times)
    return min(rounds)


def access(column) -> dict[str, tuple[float, float]]:
    """Times and limits per row, in nanoseconds."""
    rows = range(ROWS)
    mixed = np.random.default_rng(1).permutation(ROWS).tolist()

    def empty(rows=rows):
        for _ in rows:
            pass

    def index(rows):
        for row in rows:
            column[row]

    def iterate():
        for _ in column:
            pass

    iterate()
    loop = best(empty, 1)
    return {
        "column[i], in order": ((best(lambda: index(rows), 1) - loop) / ROWS * 1e9, 150),
        "column[i], at random": ((best(lambda: index(mixed), 1) - loop) / ROWS * 1e9, 150),
        "iteration": (best(iterate, 1) / ROWS * 1e9, 60),
    }


def bulk(column) -> tuple[float, float]:
    """Seconds for all rows as an array, and for numpy's own copy of the same bytes."""
    objects = np.stack([view.numpy("u8") for _, _, view in column.runs()])
    lengths = np.array([end - start for start, end, _ in column.runs()])
    floor = best(lambda: np.repeat(objects, lengths, axis=0), 3)
    assert (column.numpy("u8") == np.repeat(objects, lengths, axis=0)).all()
    return best(lambda: column.numpy("u8"), 3), floor


def tables(service, client) -> tuple[float, float]:
    """Seconds for a small table with its close, and for a bare do_get of the same request."""
    bare = flight.connect(service.unix, generic_options=[("grpc.default_authority", "localhost")])
    session = iovcache.Attachment(service.ready["attach"], "bare")
    request = {"columns": {"v": "A/B"}, "timestamps": [5], "encoding": "run_end"}
    ticket = flight.Ticket(json.dumps({**request, "session": session.session}))

    def ours():
        with client.table({"v": "A/B"}, timestamps=[5]):
            pass

    def floor():
        bare.do_get(ticket).read_all()

    # Alternating, so that both run under the same load.
    rounds = [(best(ours, 100, 1), best(floor, 100, 1)) for _ in range(10)]
    return min(one for one, _ in rounds), min(other for _, other in rounds)


def main() -> int:
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        service = Service(pathlib.Path(folder), repository(pathlib.Path(folder) / "r"))
        try:
            with iovcache.connect(service.unix) as client:
                with client.table({"v": "A/B"}, timestamps=np.arange(ROWS)) as table:
                    for name, (took, aim) in access(table["v"]).items():
                        missed += took > aim
                        print(f"{name:24} {took:8.0f} ns   aim {aim} ns")
                    took, floor = bulk(table["v"])
                    missed += took > 1.5 * floor
                    ratio = took / floor
                    print(f"{'column.numpy()':24} {took * 1e3:8.2f} ms   {ratio:.2f} x numpy (1.5)")
                took, floor = tables(service, client)
                missed += took > 1.3 * floor
                ratio = took / floor
                print(f"{'table and close':24} {took * 1e6:8.0f} us   {ratio:.2f} x do_get (1.3)")
        finally:
            service.stop()
    return 1 if missed and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
