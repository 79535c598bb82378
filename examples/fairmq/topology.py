#!/usr/bin/env python3
"""Runs source -> condition cache -> three consumers of different speed -> sink, kills and restarts
devices at random, and checks every byte that a consumer read.

    topology.py --programs FOLDER [--place region] [--kills 30] [--stops 3] [--seed N] [--columns 3]

FOLDER has the programs source, condition_cache, consumer and sink (see CMakeLists.txt). The objects are
in a repository that this script writes; the digests that the consumers tell of the objects in shared
memory are compared with those of its files. Prints one line of JSON; exit code 0: no wrong byte, and
every device made progress after its last kill.

Each device gets a segment number that the session never had, each time it is started: what a killed
device had allocated in its segment stays allocated until the session ends, and FairMQ's lock of that
segment's heap stays locked if it was killed while it allocated.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

SPAN_MS = 1000
CONSUMER_PAUSES_MS = (0, 3, 12)
FNV_START, FNV_PRIME = 0xCBF29CE484222325, 0x100000001B3


def digest(data: bytes) -> int:
    """FNV-1a, 64 bits, as in consumer.cpp."""
    value = FNV_START
    for byte in data:
        value = ((value ^ byte) * FNV_PRIME) & 0xFFFFFFFFFFFFFFFF
    return value


def write_repository(folder: Path, columns: int, versions: int, seed: int) -> dict:
    """Writes objects in the layout of CCDB's local server; returns digests by column and version."""
    chance, digests = random.Random(seed), {}
    for column in range(columns):
        for version in range(versions):
            data = chance.randbytes(chance.choice((0, 1, 700, 3000, 9000)) + version)
            digests[column, version] = digest(data)
            start, identity = version * SPAN_MS, uuid.UUID(bytes=chance.randbytes(16), version=4)
            place = folder / f"Example/C{column}/{start}"
            place.mkdir(parents=True)
            (place / str(identity)).write_bytes(data)
            (place / f"{identity}.properties").write_text(
                f"CreateTime={version + 1}\nValidUntil={start + SPAN_MS}\nFile-Size={len(data)}\n"
                f"Content-MD5={hashlib.md5(data).hexdigest()}\n")
    return digests


class Topology:
    """The devices of one session."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments, self.folder = arguments, folder
        self.session = f"topology-{uuid.uuid4().hex[:12]}"
        self.devices: dict = {}
        self.starts: dict = {}
        self.log = open(folder / "devices.log", "ab")

    def address(self, name: str) -> str:
        return f"ipc://{self.folder}/{name}"

    def channel(self, name: str, kind: str, method: str, *addresses: str) -> list:
        text = f"name={name},type={kind},method={method}"
        text += "".join(f",address={self.address(address)}" for address in addresses)
        return ["--channel-config", text]

    def command(self, name: str) -> list:
        columns, versions = self.arguments.columns, self.arguments.versions
        if name == "source":
            return ["--state", self.folder / "state", "--range", versions * SPAN_MS,
                    *self.channel("timestamps", "push", "connect", "timestamps")]
        if name == "sink":
            return ["--consumers", len(CONSUMER_PAUSES_MS), "--output", self.folder / "results.txt",
                    *self.channel("results", "pull", "bind", "results"),
                    *self.channel("feedback", "push", "connect", "feedback")]
        if name == "condition_cache":
            tables = [f"tables-{number}" for number in range(len(CONSUMER_PAUSES_MS))]
            paths = ",".join(f"c{column}=Example/C{column}" for column in range(columns))
            return ["--source", f"file://{self.folder}/repository", "--columns", paths,
                    "--memory-mib", 1, "--place", self.arguments.place,
                    *self.channel("timestamps", "pull", "bind", "timestamps"),
                    *self.channel("tables", "push", "bind", *tables),
                    *self.channel("feedback", "pull", "bind", "feedback")]
        number = int(name.rpartition("-")[2])
        return ["--number", number, "--pause", CONSUMER_PAUSES_MS[number],
                *self.channel("tables", "pull", "connect", f"tables-{number}"),
                *self.channel("results", "push", "connect", "results")]

    def start(self, name: str) -> None:
        self.starts[name] = self.starts.get(name, 0) + 1
        program = Path(self.arguments.programs) / name.partition("-")[0]
        common = ["--id", f"{name}-{self.starts[name]}", "--session", self.session, "--transport",
                  "shmem", "--control", "static", "--shm-segment-size", self.arguments.segment_kib << 10,
                  "--shm-segment-id", sum(self.starts.values()), "--shm-monitor",
                  "false", "--shm-no-cleanup", "true", "--severity", "error", "--color", "false"]
        command = [program, *common, *self.command(name)]
        self.devices[name] = subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL,
                                              stdout=self.log, stderr=self.log)

    def end(self, name: str, how: signal.Signals) -> None:
        device = self.devices.pop(name)
        device.send_signal(how)
        try:
            device.wait(20)
        except subprocess.TimeoutExpired:
            device.kill()
            device.wait()

    def names(self) -> list:
        consumers = [f"consumer-{number}" for number in range(len(CONSUMER_PAUSES_MS))]
        return ["sink", *consumers, "condition_cache", "source"]

    def close(self) -> None:
        for name in reversed(list(self.devices)):
            self.devices[name].kill()
            self.devices[name].wait()
        self.log.close()
        # FairMQ names its files by user and session; the stand-in by the session.
        user = f"{os.geteuid()}{self.session}".encode()
        for part in (hashlib.sha256(user).hexdigest()[:8], self.session):
            for file in Path("/dev/shm").glob(f"fmq_{part}_*"):
                file.unlink(missing_ok=True)


def results(folder: Path) -> list:
    """The sink's lines: timeslice, consumer, columns, rows of (timestamp, digests)."""
    file = folder / "results.txt"
    lines = []
    for line in file.read_text().splitlines() if file.exists() else []:
        words = [int(word) for word in line.split()]
        timeslice, consumer, columns, rest = words[0], words[1], words[2], words[3:]
        # The last line of a killed sink may be cut.
        if columns and len(rest) % (columns + 1) == 0:
            rows = [rest[place:place + columns + 1] for place in range(0, len(rest), columns + 1)]
            lines.append((timeslice, consumer, rows))
    return lines


def wait_for_progress(topology: Topology, seconds: float) -> bool:
    """Whether each consumer tells of a timeslice later than all those told until now."""
    def latest() -> dict:
        told: dict = {}
        for timeslice, consumer, _ in results(topology.folder):
            told[consumer] = max(told.get(consumer, -1), timeslice)
        return told
    before, until = max(latest().values(), default=-1), time.monotonic() + seconds
    while time.monotonic() < until:
        now = latest()
        if len(now) == len(CONSUMER_PAUSES_MS) and min(now.values()) > before:
            return True
        time.sleep(0.2)
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--programs", required=True)
    parser.add_argument("--place", choices=("segment", "region"), default="segment",
                        help="where the cache keeps its objects")
    parser.add_argument("--segment-kib", type=int, default=4096,
                        help="segment of each device; with 1400 that of the cache is often full")
    parser.add_argument("--kills", type=int, default=30, help="devices killed, one after the other")
    parser.add_argument("--stops", type=int, default=3, help="caches stopped with SIGTERM")
    parser.add_argument("--pause", type=float, default=0.4, help="mean seconds between two of these")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--columns", type=int, default=3)
    parser.add_argument("--versions", type=int, default=120)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    folder = Path(tempfile.mkdtemp(prefix="iovt-"))
    expected = write_repository(folder / "repository", arguments.columns, arguments.versions,
                                arguments.seed)
    topology = Topology(arguments, folder)
    # Ended from outside, it ends its devices too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    kills: dict = {}
    try:
        for name in topology.names():
            topology.start(name)
        moved = wait_for_progress(topology, 30)
        events = ["kill"] * arguments.kills + ["stop"] * arguments.stops
        chance.shuffle(events)
        for event in events:
            time.sleep(chance.expovariate(1 / arguments.pause))
            name = "condition_cache" if event == "stop" else chance.choice(topology.names())
            topology.end(name, signal.SIGTERM if event == "stop" else signal.SIGKILL)
            key = f"{event} {name.partition('-')[0]}"
            kills[key] = kills.get(key, 0) + 1
            time.sleep(chance.random() * 0.1)
            topology.start(name)
        moved = moved and wait_for_progress(topology, 60)
        died = [name for name, device in topology.devices.items() if device.poll() is not None]
    finally:
        topology.close()
    cells, wrong, timeslices = 0, [], set()
    for timeslice, consumer, rows in results(folder):
        timeslices.add(timeslice)
        for at, *digests in rows:
            for column, told in enumerate(digests):
                cells += 1
                if told != expected[column, at // SPAN_MS]:
                    wrong.append([timeslice, consumer, at, column])
    log = (folder / "devices.log").read_text(errors="replace").splitlines()
    passed = moved and not wrong and not died and cells > 0
    print(json.dumps({"passed": passed, "place": arguments.place, "seed": arguments.seed, "cells": cells, "wrong": len(wrong),
                      "timeslices": len(timeslices), "ends": kills, "died": died,
                      "progress": moved, "log_lines": len(log)}))
    if not passed:
        print("\n".join([*map(str, wrong[:10]), *log[-30:]]), file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
