"""The program from a shell: its output streams and its exit status."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request

import pyarrow as pa
import pytest
from by_hand import ByHand
from conftest import PATIENCE, program, put, right, run

DRIFT, NOISE = "TPC/Calib/VDrift", "TPC/Calib/Noise"


@pytest.fixture
def server(service):
    return ["--server", service.unix]


def test_each_command_explains_itself_and_says_its_version():
    text = run("--help").stdout.decode()
    commands = "serve put import table cat ls timeline status demo config completions man"
    for command in commands.split():
        assert f"\n  {command} " in text
        assert b"Usage: iovcache " + command.encode() in run(command, "--help").stdout
    assert run("--version").stdout.startswith(b"iovcache ")
    assert b".TH" in run("man").stdout
    for shell in ("bash", "zsh", "fish"):
        assert b"iovcache" in run("completions", shell).stdout


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["paint"],
        ["serve", "--colour"],
        ["serve"],
        ["serve", "--source", "ftp://x"],
        ["serve", "--source", "memory:", "--memory", "much"],
        ["serve", "--source", "memory:", "--region", "/no/id"],
        ["serve", "--source", "memory:", "--region", "99999=/file"],
        ["serve", "--source", "memory:", "--fairmq-segment", "3"],
        ["serve", "--source", "memory:", "--fairmq-shmid", "0badcafe"],
        ["serve", "--source", "memory:", "--fairmq-shmid", "../x", "--fairmq-segment", "3"],
        ["serve", "--source", "memory:", "--slow-after", "1 year"],
        ["put", "--repository", "x", "a/b"],
        ["put", "--repository", "x", "1/2", "/dev/null", "--from", "0"],
        ["put", "--repository", "x", "a/b", "/dev/null", "--from", "9", "--until", "9"],
        ["put", "--repository", "x", "a/b", "/dev/null", "--from", "0", "--meta", "k"],
        ["table", "--column", "x=A/B"],
        ["table", "--column", "x", "--at", "1"],
        ["table", "--column", "x=A/B", "--at", "noon"],
        ["table", "--column", "x=A/B", "--at", "1", "--range", "1:2:1"],
        ["table", "--column", "x=A/B", "--range", "1"],
        ["cat", "A/B"],
        ["completions", "cmd"],
    ],
)
def test_wrong_usage_is_status_2_and_says_so_on_stderr(arguments, tmp_path):
    done = subprocess.run(
        [program(), *arguments], capture_output=True, timeout=PATIENCE, cwd=tmp_path
    )
    assert done.returncode == 2, (arguments, done.stderr)
    assert done.stdout == b"" and done.stderr.strip(), arguments
    assert os.listdir(tmp_path) in ([], ["x"])


def test_a_server_that_is_not_there_is_status_4(tmp_path):
    for url in ("grpc://127.0.0.1:1", f"grpc+unix://{tmp_path}/flight.sock"):
        server = ["--server", url]
        for command in (
            ["ls"],
            ["status"],
            ["cat", DRIFT, "--at", "1"],
            ["timeline", DRIFT],
            ["table", "--column", f"x={DRIFT}", "--at", "1"],
        ):
            done = run(*command, *server, status=4)
            assert done.stdout == b"" and b"iovcache: [IOV-" in done.stderr
    run("ls", "--server", "http//nonsense", status=2)


def test_an_object_that_is_not_found_is_status_3(server, tmp_path):
    run("cat", DRIFT, "--at", "999", *server, status=3)
    run("cat", "No/Such", "--at", "1", *server, status=3)
    done = run("table", "--column", f"x={DRIFT}", "--at", "1,2", *server, status=3)
    assert b"[IOV-2010]" in done.stderr
    run("table", "--timeframe", "12345", *server, status=3)
    run("timeline", "No/Such", *server, status=3)
    run("import", "--repository", tmp_path / "r", tmp_path / "none.csv", status=3)
    run("put", "--repository", tmp_path / "r", "a/b", tmp_path / "none", "--from=0", status=3)


@pytest.mark.parametrize("remote", [[], ["--remote"]])
def test_cat_writes_the_bytes_and_nothing_else(service, remote):
    for server in (service.unix, service.tcp):
        for at in (1000, 3000, 7000):
            done = run("cat", DRIFT, "--at", str(at), "--server", server, *remote)
            assert (done.stdout, done.stderr) == (right(DRIFT, at), b"")
        noise = run("cat", NOISE, "--at", "5", "--server", server, *remote)
        assert noise.stdout == right(NOISE, 5)


def test_table_prints_csv_json_and_arrow(server, tmp_path):
    columns = ["--column", f"z={DRIFT}", "--column", f"a={NOISE}"]
    times = [1000, 3000, 7000]
    at = ["--at", ",".join(map(str, times))]
    text = run("table", *columns, *at, *server).stdout.decode()
    assert "timestamp" in text and text.count("\n") == 3 + 4
    done = run("table", *columns, *at, *server, "--cell", "payload", "--output", "json")
    rows = json.loads(done.stdout)
    assert [row["timestamp"] for row in rows] == times
    assert [bytes.fromhex(row["z"]) for row in rows] == [right(DRIFT, one) for one in times]
    done = run("table", *columns, *at, *server, "--output", "csv")
    rows = list(csv.DictReader(io.StringIO(done.stdout.decode())))
    assert [row["timestamp"] for row in rows] == ["1000", "3000", "7000"]
    assert list(rows[0]) == ["timestamp", "z", "a"]
    for encoding in ("dictionary", "run_end", "plain"):
        for cell in ("binary", "struct", "o2", "payload"):
            more = ["--encoding", encoding, "--cell", cell, "--output", "arrow"]
            done = run("table", *columns, *at, *server, *more)
            table = pa.ipc.open_stream(done.stdout).read_all()
            assert (table.num_rows, table.schema.names) == (3, ["z", "a"])
            if (encoding, cell) == ("plain", "payload"):
                assert table["z"].to_pylist() == [right(DRIFT, one) for one in times]


def test_table_takes_its_times_from_files_ranges_and_timeframes(server, tmp_path, service):
    column = ["--column", f"z={DRIFT}", "--cell", "payload", "--output", "json", *server]

    def times(*when):
        rows = json.loads(run("table", *column, *when).stdout)
        return [(row["timestamp"], row["z"] and bytes.fromhex(row["z"])) for row in rows]

    expected = [(1000, b"drift 1"), (None, None), (3000, b"drift 2")]
    (tmp_path / "times.txt").write_text("1000\n\n3000\n")
    assert times("--timestamps", tmp_path / "times.txt") == expected
    micros = pa.array([1_000_000, None, 3_000_000], pa.timestamp("us", "UTC"))
    table = pa.table({"timestamp": micros})
    with pa.ipc.new_file(tmp_path / "times.arrow", table.schema) as writer:
        writer.write_table(table)
    assert times("--timestamps", tmp_path / "times.arrow") == expected
    with pa.ipc.new_stream(tmp_path / "times.arrows", table.schema) as writer:
        writer.write_table(table)
    assert times("--timestamps", tmp_path / "times.arrows") == expected
    assert times("--range", "1000:4000:2000") == [expected[0], expected[2]]
    negative = ["table", *column, "--at=-5,1000", "--missing-as-null"]
    assert [row["z"] is None for row in json.loads(run(*negative).stdout)] == [True, False]
    client = ByHand(service)
    client.put(777, [1000, 3000], {"columns": {"z": DRIFT}, "consumers": ["shell"]})
    more = ["--timeframe", "777", "--consumer", "shell", "--cell", "payload", "--output", "json"]
    rows = json.loads(run("table", *more, *server).stdout)
    assert [bytes.fromhex(row["z"]) for row in rows] == [b"drift 1", b"drift 2"]
    client.ask("drop_timeframe", timeframe=777)
    client.close()
    (tmp_path / "times.txt").write_text("1000\nnoon\n")
    done = run("table", *column, "--timestamps", tmp_path / "times.txt", status=2)
    assert b"line 2" in done.stderr and b"noon" in done.stderr


def test_views_and_a_lock_file_repeat_what_was_seen(start, repository, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(repository, own)
    service = start(source=own)
    request = ["table", "--column", f"z={DRIFT}", "--range", "1000:9000:500"]
    request += ["--server", service.unix]
    lock = run(*request, "--view", "objects", "--output", "json").stdout
    (tmp_path / "lock.json").write_bytes(lock)
    before = run(*request, "--cell", "payload", "--output", "json").stdout
    put(own, (DRIFT, 0, 9000, 99, b"newer"), tmp_path)
    deadline = time.monotonic() + PATIENCE
    while run(*request, "--cell", "payload", "--output", "json").stdout == before:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    locked = [*request, "--lock", tmp_path / "lock.json", "--cell", "payload", "--output", "json"]
    assert run(*locked).stdout == before
    then = [*request, "--not-after", "3", "--cell", "payload", "--output", "json"]
    assert run(*then).stdout == before
    spans = ["table", "--column", f"z={DRIFT}", "--range", "0:10000", "--view", "intervals"]
    rows = json.loads(run(*spans, "--server", service.unix, "--output", "json").stdout)
    assert [(row["from"], row["until"]) for row in rows] == [(0, 9000)]


def test_ls_timeline_and_status_speak_json(server):
    lines = [json.loads(line) for line in run("ls", "--json", *server).stdout.splitlines()]
    assert lines == [{"path": NOISE, "objects": 1}, {"path": DRIFT, "objects": 3}]
    assert NOISE in run("ls", NOISE, *server).stdout.decode()
    nothing = run("ls", "No/Such", *server, status=3)
    assert nothing.stdout == b"" and b"No/Such" in nothing.stderr
    told = run("timeline", DRIFT, "--json", *server).stdout
    spans = [json.loads(line) for line in told.splitlines()]
    borders = [(span["from"], span["until"]) for span in spans]
    assert borders == [(1000, 3000), (3000, 5000), (5000, 7000), (7000, 7001), (7001, 9000)]
    picture = run("timeline", DRIFT, *server).stdout.decode()
    assert "1970-01-01T00:00:03Z" in picture and "1970-01-01T00:00:07.001Z" in picture
    picture = run("timeline", DRIFT, "--ms", *server).stdout.decode()
    assert "3000" in picture and "7001" in picture
    status = json.loads(run("status", "--json", *server).stdout)
    assert status["memory"]["total_bytes"] == 64 << 20
    assert b"memory" in run("status", *server).stdout


def test_status_is_told_again_and_again(service):
    command = [program(), "status", "--watch", "--json", "--server", service.unix]
    watching = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        for _ in range(2):
            assert json.loads(watching.stdout.readline())["version"]
    finally:
        watching.terminate()
        watching.wait(PATIENCE)
        watching.stdout.close()


def test_put_and_import_say_what_they_did(tmp_path):
    (tmp_path / "file").write_bytes(b"bytes")
    command = ["put", "--repository", tmp_path / "r", "A/B", tmp_path / "file", "--from=-5"]
    command += ["--until=10", "--created=7", "--meta", "k=v", "--meta", "l=w"]
    first = json.loads(run(*command, "--json").stdout)
    assert (first["path"], first["valid_from"], first["valid_until"]) == ("A/B", -5, 10)
    assert (first["created"], first["size"], first["new"]) == (7, 5, True)
    assert first["metadata"]["k"] == "v"
    again = run(*command)
    assert again.stdout.decode().strip() == first["id"]
    assert json.loads(run(*command, "--json").stdout)["new"] is False
    folder = tmp_path / "r" / "A" / "B" / "-5"
    assert (folder / first["id"]).read_bytes() == b"bytes"
    assert (folder / f"{first['id']}.properties").exists()


def test_the_ready_line_is_one_line_of_json_and_all_else_is_on_stderr(start, tmp_path):
    service = start("--http", "127.0.0.1:0", "--log", "info", name="ready")
    ready = service.ready
    assert set(ready) >= {"ready", "flight", "attach", "http", "epoch", "pid"}
    assert ready["ready"] is True and ready["pid"] == service.process.pid
    tcp, unix = ready["flight"]
    assert tcp.startswith("grpc://127.0.0.1:") and unix.startswith("grpc+unix:///")
    assert ready["attach"] == str(tmp_path / "ready" / "s" / "attach.sock")
    assert unix == f"grpc+unix://{tmp_path}/ready/s/flight.sock"
    for page, word in (("metrics", b"iovcache_"), ("healthz", b""), ("readyz", b"")):
        with urllib.request.urlopen(f"{ready['http']}/{page}", timeout=30) as answer:
            assert answer.status == 200 and word in answer.read()
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(PATIENCE) == 0
    assert service.process.stdout.read() == b""


def test_a_second_service_in_one_folder_names_the_process_of_the_first(service):
    folder = os.path.dirname(service.ready["attach"])
    done = run("serve", "--source", "memory:", "--socket", folder, "--listen=127.0.0.1:0", status=1)
    assert done.stdout == b"" and str(service.ready["pid"]).encode() in done.stderr


def test_config_is_checked_and_shown(tmp_path):
    file = tmp_path / "iovcache.toml"
    file.write_text('memory = "1GiB"\nlisten = "127.0.0.1:0"\n[[source]]\nurl = "memory:"\n')
    run("config", "check", file)
    assert b"1GiB" in run("config", "show", file).stdout
    file.write_text('colour = "red"\n')
    done = run("config", "check", file, status=2)
    assert b"colour" in done.stderr
    run("config", "check", tmp_path / "none.toml", status=3)


def test_a_command_whose_reader_goes_away_is_content(server):
    command = f"{program()} ls --server {server[1]} | head -c 1"
    bash = ["bash", "-o", "pipefail", "-c", command]
    done = subprocess.run(bash, capture_output=True, timeout=PATIENCE)
    assert done.returncode == 0 and done.stderr == b""
