"""The disk tier through kill -9, with the source gone; and policies of single paths."""

from __future__ import annotations

import json
import pathlib
import random
import shutil
import subprocess
import time

import pytest

import iovcache
from conftest import PATIENCE, Service, program, put, right, until

PATHS = {"drift": "TPC/Calib/VDrift", "noise": "TPC/Calib/Noise"}


def sources(service: Service) -> dict:
    command = [program(), "status", "--json", "--server", service.tcp]
    done = subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
    return {source["url"].split(":")[0]: source for source in json.loads(done.stdout)["sources"]}


def test_after_kill_9_and_with_the_source_gone_the_disk_serves_the_right_versions_marked_stale(
    repository: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    source = tmp_path / "repository"
    shutil.copytree(repository, source)
    disk = tmp_path / "disk"
    times = [1000, 2999, 3000, 4999, 5000, 6999, 7000, 7001, 8999]
    service = Service(tmp_path, source, "--disk", str(disk), "--disk-size", "64MiB")
    with iovcache.connect(service.unix) as client:
        with client.table(PATHS, timestamps=times) as table:
            assert bytes(table["drift"][2]) == right(PATHS["drift"], 3000)
    time.sleep(0.3)  # answers are written 20 ms later
    service.kill()

    service = Service(tmp_path, source, "--disk", str(disk), "--disk-size", "64MiB")
    try:
        shutil.move(source, tmp_path / "gone")
        with iovcache.connect(service.unix) as client:
            with client.table(PATHS, timestamps=times) as table:
                for name, path in PATHS.items():
                    for row, at in enumerate(times):
                        assert bytes(table[name][row]) == right(path, at), (name, at)
                objects = table.objects.to_pylist()
                assert {row["cache"] for row in objects} == {"stale"}
            # A version that was never requested stays unknown.
            with pytest.raises(iovcache.Unavailable):
                client.table({"other": "Never/Asked"}, timestamps=[1])
        assert sources(service)["file"]["state"] == "down"
        # The source is back, with a new version, which wins.
        shutil.move(tmp_path / "gone", source)
        put(source, ("TPC/Calib/VDrift", 1000, 9000, 99, b"newest"), tmp_path)
        with iovcache.connect(service.unix) as client:

            def seen() -> bool:
                with client.table(PATHS, timestamps=[2000]) as table:
                    try:
                        fresh = table.objects.to_pylist()[0]["cache"] != "stale"
                    except iovcache.FailedPrecondition:  # it came just now, behind the table
                        return False
                    return fresh and bytes(table["drift"][0]) == b"newest"

            until("the source again", seen)
    finally:
        service.stop()


def test_killed_at_any_moment_the_disk_never_gives_anything_wrong(tmp_path: pathlib.Path) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    source = tmp_path / "repository"
    data = {n: chance.randbytes(50_000 + n) for n in range(30)}
    for n, content in data.items():
        put(source, ("Many/Objects", n * 10, n * 10 + 10, n, content), tmp_path)
    disk = tmp_path / "disk"
    limits = ("--disk", str(disk), "--disk-size", "1MiB")
    for _ in range(6):
        service = Service(tmp_path, source, *limits)
        with iovcache.connect(service.unix) as client:
            for _ in range(chance.randrange(1, 12)):
                n = chance.randrange(30)
                with client.table({"c": "Many/Objects"}, timestamps=[n * 10 + 5]) as table:
                    assert bytes(table["c"][0]) == data[n], seed
        service.kill()
        assert sum(file.stat().st_size for file in disk.rglob("*") if file.is_file()) <= 2**20
    # Once more, with everything, and with the source gone: an answer is right, or an error.
    service = Service(tmp_path, source, *limits)
    shutil.move(source, tmp_path / "gone")
    came = 0
    try:
        with iovcache.connect(service.unix) as client:
            for n in range(30):
                try:
                    with client.table({"c": "Many/Objects"}, timestamps=[n * 10 + 5]) as table:
                        assert bytes(table["c"][0]) == data[n], seed
                        came += 1
                except iovcache.Unavailable:
                    pass
    finally:
        service.stop()
    assert 0 < came < 30, seed


def test_single_paths_have_policies_of_their_own(
    repository: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    default = tmp_path / "default.bin"
    default.write_bytes(b"by default")
    config = tmp_path / "service.toml"
    config.write_text(
        f"""
        [[path]]
        path = "TPC/Calib/VDrift"
        missing = "optional"
        [[path]]
        path = "TPC/Calib/Noise"
        missing = "required"
        [[path]]
        path = "With/Default"
        default = "{default}"
        timeout = "5s"
        refresh = "100ms"
        """
    )
    service = Service(tmp_path, repository, "--config", str(config))
    try:
        with iovcache.connect(service.unix) as client:
            columns = {"drift": PATHS["drift"], "with": "With/Default"}
            with client.table(columns, timestamps=[500, 2000]) as table:
                assert table["drift"][0] is None
                assert bytes(table["drift"][1]) == b"drift 1"
                assert bytes(table["with"][0]) == b"by default"
                schema = table.arrow.schema
                assert schema.field("drift").nullable and not schema.field("with").nullable
            with pytest.raises(iovcache.NotFound, match="noise"):
                client.table({"noise": PATHS["noise"]}, timestamps=[-5], missing="null")
            with pytest.raises(iovcache.NotFound, match="Else/Where"):
                client.table({"x": "Else/Where", "drift": PATHS["drift"]}, timestamps=[500])
    finally:
        service.stop()
    config.write_text('[[path]]\npath = "A"\nmissing = "maybe"\n')
    command = [program(), "config", "check", str(config)]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE)
    assert done.returncode == 2 and b"maybe" in done.stderr
