"""uproot opens objects that are ROOT files, in the line that the README has."""

import io
import re

import numpy as np
import pytest
from conftest import ROOT, put

import iovcache

uproot = pytest.importorskip("uproot")

PATH = "MCH/QC/Async"


def root_file(file, run):
    """A ROOT file with a histogram and a tree, different for each run."""
    with uproot.recreate(file) as written:
        values = np.random.default_rng(run).normal(size=1000)
        written["hClusters"] = np.histogram(values, bins=20, range=(-3, 3))
        written["clusters"] = {"charge": values, "run": np.full(1000, run)}
    return file.read_bytes()


@pytest.fixture
def files(start, tmp_path):
    """A service with the files of two runs, and the bytes of both."""
    folder = tmp_path / "files"
    written = [root_file(tmp_path / f"{run}.root", run) for run in (559544, 559545)]
    for number, data in enumerate(written):
        put(folder, (PATH, number * 1000, number * 1000 + 1000, 1, data), tmp_path)
    return start(source=folder), written


def documented():
    """The expression of the README that opens an object."""
    (found,) = re.findall(r"`(uproot\.open\(.*\))`", (ROOT / "python/README.md").read_text())
    return compile(found, "README.md", "eval")


def test_uproot_opens_an_object_in_the_documented_line(files):
    service, written = files
    with iovcache.connect(service.unix) as client:
        objects = [client.get(PATH, at=1500)]
        with client.table({"file": PATH}, timestamps=[500, 1500]) as table:
            objects += [table["file"][1], *table["file"]]
            runs = [559545, 559545, 559544, 559545]
            for run, object in zip(runs, objects):
                assert object == written[run - 559544]
                with eval(documented(), {"io": io, "uproot": uproot, "object": object}) as root:
                    assert (root["clusters"]["run"].array(library="np") == run).all()
                    expected = np.random.default_rng(run).normal(size=1000)
                    assert (root["clusters"]["charge"].array(library="np") == expected).all()
                    counts, _ = np.histogram(expected, bins=20, range=(-3, 3))
                    assert (root["hClusters"].values() == counts).all()
