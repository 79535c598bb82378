"""The package's types: complete, clean, and an editor reports wrong options as errors."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from conftest import ROOT

pytest.importorskip("pyright")


def pyright(*arguments):
    command = [sys.executable, "-m", "pyright", "--outputjson", *arguments]
    # To check completeness pyright uses the first Python on the path.
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    done = subprocess.run(
        command, capture_output=True, timeout=300, cwd=ROOT / "python", env=environment
    )
    return json.loads(done.stdout)


def test_the_package_is_clean_and_wrong_options_are_found():
    told = pyright("--pythonpath", sys.executable, "-p", str(ROOT / "python"))
    found = [
        (one["file"].rsplit("/", 1)[-1], one["range"]["start"]["line"], one.get("rule"))
        for one in told["generalDiagnostics"]
    ]
    lines = (ROOT / "python/tests/typed.py").read_text().splitlines()
    expected = [
        ("typed.py", number, line.split("# expected: ")[1])
        for number, line in enumerate(lines)
        if "# expected: " in line
    ]
    assert found == expected, json.dumps(told["generalDiagnostics"], indent=1)


def test_every_public_symbol_has_a_type():
    told = pyright("--pythonpath", sys.executable, "--verifytypes", "iovcache", "--ignoreexternal")
    assert told["typeCompleteness"]["completenessScore"] == 1
