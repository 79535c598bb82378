"""The Python blocks of the README and of the book run as they are written."""

import os
import re
import subprocess
import sys

from conftest import PATIENCE, ROOT, put


def blocks(section, page="README.md"):
    """The Python blocks of a section."""
    text = (ROOT / page).read_text()
    text = text.split(f"\n## {section}\n")[1].split("\n## ")[0]
    found = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert found, f"{page}: {section} has no Python"
    return found


def sections(page="README.md"):
    """The sections of a page that have Python."""
    parts = (ROOT / page).read_text().split("\n## ")[1:]
    return [part.split("\n")[0] for part in parts if "```python\n" in part]


def pasted(code, service):
    """Runs code in a new interpreter and gives its output; only the folder of sockets differs."""
    folder = os.path.dirname(service.ready["attach"])
    done = subprocess.run(
        [sys.executable, "-c", code.replace("/tmp/iov/", f"{folder}/")],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, f"{code}\n{done.stdout}{done.stderr}"
    return done.stdout


def served(start, tmp_path):
    """The service of the walk with a folder."""
    repository = tmp_path / "walk"
    path = "TPC/Calib/VDriftTgl"
    put(repository, (path, 1000, 9000, 1, b"drift 1\n"), tmp_path)
    put(repository, (path, 3000, 5000, 2, b"drift 2\n"), tmp_path)
    return start(source=repository)


def test_each_python_block_of_the_readme_runs_alone_as_it_is_written(start, tmp_path):
    service = served(start, tmp_path)
    printed = {}
    for section in sections():
        printed[section] = [pasted(block, service) for block in blocks(section)]
    table, timeframe = printed.pop("Five minutes: from Python")
    assert "b'drift 2\\n'" in table and "0 1 b'drift 1\\n'" in table
    assert timeframe == "b'drift 1\\n'\n"
    assert printed.pop("Five minutes: from pyarrow alone") == ["b'drift 1\\n'\nb'drift 2\\n'\n"]
    workflow = "1 b'drift 1\\n'\n1 b'drift 2\\n'\n2 b'drift 1\\n'\n"
    assert printed.pop("Five minutes: inside a workflow") == [workflow]
    assert not printed, f"say here what these print: {list(printed)}"


def test_the_notebook_of_the_documentation_runs_and_runs_again(start, tmp_path):
    service = served(start, tmp_path)
    code = "".join(blocks("A notebook", "docs/python.md"))
    once = pasted(code, service)
    assert "(3000, 5000) 8 b'drift 2\\n'" in once and "1000 2990 b'drift'" in once
    assert "(800, 8) b'drift 1\\n'" in once
    # All cells again in the same kernel, its client closed or still open and replaced.
    left_open = code.replace("client.close()", "")
    assert left_open != code
    assert pasted(left_open * 2 + code, service) == once * 3


def test_the_blocks_about_look_ups_run_as_they_are_written(start, tmp_path):
    service = served(start, tmp_path)
    page = "docs/local.md"
    printed = {
        section: [pasted(block, service) for block in blocks(section, page)]
        for section in sections(page)
    }
    found = "b'drift 2\\n'\n8 None\n[b'drift 1\\n', b'drift 2\\n']\n"
    assert printed.pop("Python") == [found]
    assert printed.pop("Waiting for a change") == ["False\n"]
    assert not printed
