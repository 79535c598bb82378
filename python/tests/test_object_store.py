"""Repositories in an object store, behind a real S3 server; and `iovcache copy`."""

from __future__ import annotations

import json
import os
import pathlib
import random
import signal
import subprocess
import time

import boto3
import pytest
from moto.server import ThreadedMotoServer

import iovcache
from conftest import PATIENCE, VERSIONS, Service, program, put, right, until

BUCKET = "conditions"


class Store:
    """An S3 server on its own port, with one bucket."""

    def __init__(self) -> None:
        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self.server.start()
        host, port = self.server.get_host_and_port()
        self.endpoint = f"http://{host}:{port}"
        self.environment = {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "very-secret",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
        }
        self.s3 = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id="key",
            aws_secret_access_key="very-secret",
        )
        self.s3.create_bucket(Bucket=BUCKET)

    def keys(self, prefix: str) -> list[str]:
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return sorted(entry["Key"] for page in pages for entry in page.get("Contents", []))


@pytest.fixture(scope="module")
def store():
    running = Store()
    yield running
    running.server.stop()


def run(store: Store, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, **store.environment}
    command = [program(), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, timeout=PATIENCE)


def copy(store: Store, *arguments: str) -> dict:
    done = run(store, "copy", "--json", *arguments)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def test_a_repository_copied_into_a_bucket_answers_as_the_folder_does(
    store: Store, repository: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    bucket = f"s3://{BUCKET}/first"
    copied = copy(store, f"file://{repository}", bucket)
    assert copied["new"] == len(VERSIONS) and copied["unchanged"] == 0 and not copied["failed"]
    assert copied["bytes"] == sum(len(version[4]) for version in VERSIONS)
    # Two files per version, in CCDB's layout; beside them the index.
    keys = store.keys("first/")
    index = [key for key in keys if key.startswith("first/.iovcache~/")]
    assert "first/.iovcache~/current" in index and len(index) == 2
    keys = [key for key in keys if key not in index]
    assert len(keys) == 2 * len(VERSIONS)
    assert all(key.split("/")[-2].lstrip("-").isdigit() for key in keys)
    # A second copy has nothing to do.
    assert copy(store, f"file://{repository}", bucket)["unchanged"] == len(VERSIONS)

    service = Service(tmp_path, bucket, environment=store.environment)
    try:
        times = [random.randrange(1000, 9000) for _ in range(500)]
        times += [1000, 2999, 3000, 4999, 5000, 7000, 7001, 8999]
        with iovcache.connect(service.unix) as client:
            paths = {"drift": "TPC/Calib/VDrift", "noise": "TPC/Calib/Noise"}
            with client.table(paths, timestamps=times) as table:
                for name, path in paths.items():
                    for row, at in enumerate(times):
                        assert bytes(table[name][row]) == right(path, at), (name, at)
            # A version that is put while the service runs is seen within the refresh time.
            added = ("TPC/Calib/VDrift", 1000, 9000, 99, b"newest")
            put(tmp_path / "more", added, tmp_path)
            copy(store, f"file://{tmp_path}/more", bucket)

            def seen() -> bool:
                with client.table(paths, timestamps=[2000]) as table:
                    return bytes(table["drift"][0]) == b"newest"

            until("the new version", seen)
        listed = run(store, "ls", "--server", service.tcp)
        assert b"TPC/Calib/VDrift" in listed.stdout
        status = run(store, "status", "--json", "--server", service.tcp)
        assert json.loads(status.stdout)["sources"][0]["url"] == bucket
        assert b"very-secret" not in status.stdout + status.stderr
    finally:
        service.stop()


def test_back_from_a_bucket_into_a_folder_only_what_is_selected(
    store: Store, repository: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    bucket = f"s3://{BUCKET}/second"
    copy(store, f"file://{repository}", bucket)
    folder = f"file://{tmp_path}/part"
    copied = copy(store, bucket, folder, "--path", "TPC/Calib/VDrift", "--range", "6000:7000")
    assert copied["new"] == 1
    copied = copy(store, bucket, folder, "--path", "TPC", "--not-after", "1")
    assert (copied["new"], copied["unchanged"]) == (1, 1)


def test_a_lock_file_makes_a_snapshot_of_what_a_run_needs(
    store: Store, repository: pathlib.Path, service: Service, tmp_path: pathlib.Path
) -> None:
    columns = ["--column", "drift=TPC/Calib/VDrift", "--column", "noise=TPC/Calib/Noise"]
    asked = ["table", "--server", service.tcp, *columns, "--at", "2000,4000"]
    objects = run(store, *asked, "--view", "objects", "--output", "json")
    assert objects.returncode == 0, objects.stderr.decode()
    lock = tmp_path / "run.lock"
    lock.write_bytes(objects.stdout)
    folder = tmp_path / "snapshot"
    copied = copy(store, f"file://{repository}", f"file://{folder}", "--lock", str(lock))
    assert copied["new"] == 3  # two drifts, one noise
    offline = Service(tmp_path / "offline", folder)
    try:
        asked[2] = offline.tcp
        again = run(store, *asked, "--view", "objects", "--output", "json")
        ids = [row["object_id"] for row in json.loads(objects.stdout)]
        assert [row["object_id"] for row in json.loads(again.stdout)] == ids
    finally:
        offline.stop()


def test_a_killed_copy_is_resumed_and_leaves_no_half_version(
    store: Store, tmp_path: pathlib.Path
) -> None:
    many = tmp_path / "many"
    data = random.Random(7).randbytes(300_000)
    for n in range(40):
        put(many, ("Many/Objects", n * 10, n * 10 + 10, n, data[n:]), tmp_path)
    bucket = f"s3://{BUCKET}/third"
    environment = {**os.environ, **store.environment}
    command = [program(), "copy", f"file://{many}", bucket, "--parallel", "1"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    until("some versions", lambda: len(store.keys("third/")) > 6)
    process.send_signal(signal.SIGKILL)
    process.wait(PATIENCE)
    time.sleep(0.1)
    before = [key for key in store.keys("third/") if not key.endswith(".properties")]
    assert 0 < len(before) < 40
    copied = copy(store, f"file://{many}", bucket)
    assert copied["unchanged"] >= len(before)
    assert copied["new"] + copied["unchanged"] == 40
    back = tmp_path / "back"
    assert copy(store, bucket, f"file://{back}")["new"] == 40
    # Versions lie in folders whose names are numbers; the index of the repository does not.
    files = [file for file in back.rglob("*") if file.is_file() and file.parent.name.isdigit()]
    blobs = [file for file in files if file.suffix != ".properties"]
    assert sorted(len(file.read_bytes()) for file in blobs) == sorted(300_000 - n for n in range(40))


def test_bytes_that_are_not_what_the_properties_say_are_refused_and_the_rest_is_served(
    store: Store, repository: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    bucket = f"s3://{BUCKET}/fourth"
    copy(store, f"file://{repository}", bucket)
    noise = [key for key in store.keys("fourth/TPC/Calib/Noise/") if "." not in key.split("/")[-1]]
    store.s3.put_object(Bucket=BUCKET, Key=noise[0], Body=b"m" * 100_000)
    service = Service(tmp_path, bucket, environment=store.environment)
    try:
        with iovcache.connect(service.unix) as client:
            with pytest.raises(iovcache.Unavailable, match="MD5"):
                client.table({"noise": "TPC/Calib/Noise"}, timestamps=[1])
            with client.table({"drift": "TPC/Calib/VDrift"}, timestamps=[2000]) as table:
                assert bytes(table["drift"][0]) == b"drift 1"
    finally:
        service.stop()


def test_a_bucket_that_is_not_there_is_unavailable_and_a_wrong_destination_is_refused(
    store: Store, repository: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    service = Service(tmp_path, "s3://no-such-bucket/x", environment=store.environment)
    try:
        with iovcache.connect(service.unix) as client:
            with pytest.raises(iovcache.Unavailable):
                client.table({"drift": "TPC/Calib/VDrift"}, timestamps=[1])
    finally:
        service.stop()
    done = run(store, "copy", f"file://{repository}", "http://127.0.0.1:1")
    assert done.returncode == 2 and b"cannot hold a copy" in done.stderr
    done = run(store, "copy", f"file://{repository}", "s3://key:hidden@bucket/x")
    assert done.returncode == 2 and b"hidden" not in done.stderr
