"""Runs the Python walks of the README as printed there."""

import os
import re

import pyarrow as pa
from conftest import ROOT, put


def blocks(section, page="README.md"):
    """The Python code of a section; an indented block continues the block before."""
    text = (ROOT / page).read_text()
    text = text.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return "".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))


def test_the_walks_run_as_they_are_written(start, tmp_path, capsys):
    repository = tmp_path / "walk"
    path = "TPC/Calib/VDriftTgl"
    put(repository, (path, 1000, 9000, 1, b"drift 1\n"), tmp_path)
    put(repository, (path, 3000, 5000, 2, b"drift 2\n"), tmp_path)
    service = start(source=repository)
    folder = os.path.dirname(service.ready["attach"])

    def walk(section, names):
        exec(blocks(section).replace("/tmp/iov/", f"{folder}/"), names)
        return capsys.readouterr().out

    told = walk("Five minutes: from Python", {})
    assert "b'drift 2\\n'" in told and "0 1 b'drift 1\\n'" in told
    names = {"pa": pa, "timeframes": [(1, [1000, 3000]), (2, [5000])]}
    told = walk("Five minutes: from pyarrow alone", names)
    assert told == "b'drift 1\\n'\nb'drift 2\\n'\n"
    walk("Five minutes: inside a workflow", names)
    assert names["table"].data.num_rows == 1
    names["writer"].done_writing()


def test_the_notebook_of_the_documentation_runs(start, tmp_path, capsys):
    repository = tmp_path / "walk"
    path = "TPC/Calib/VDriftTgl"
    put(repository, (path, 1000, 9000, 1, b"drift 1\n"), tmp_path)
    put(repository, (path, 3000, 5000, 2, b"drift 2\n"), tmp_path)
    service = start(source=repository)
    folder = os.path.dirname(service.ready["attach"])
    code = blocks("A notebook", "docs/python.md").replace("/tmp/iov/", f"{folder}/")
    for _ in range(2):  # a notebook is run again
        exec(code, {})
    told = capsys.readouterr().out
    assert "(3000, 5000) 8 b'drift 2\\n'" in told and "1000 2990 b'drift'" in told
    assert "(800, 8) b'drift 1\\n'" in told
