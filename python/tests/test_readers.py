"""Which library reads which encoding: tests of the table in the documentation."""

import io
import re

import duckdb
import polars
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from conftest import ROOT

import iovcache

DRIFT = "TPC/Calib/VDrift"
TIMES = [1000, 1001, 3000]


def by_parquet(table):
    file = io.BytesIO()
    parquet.write_table(pa.table(table), file)
    return parquet.read_table(file)["v"].to_pylist()


def by_duckdb(rows):
    return [row[0] for row in duckdb.sql("select v from rows").fetchall()]


READERS = {
    "polars": lambda table: polars.from_arrow(table)["v"].to_list(),
    "duckdb": by_duckdb,
    "pandas": lambda table: table.to_pandas()["v"].tolist(),
    "parquet": by_parquet,
}


def documented():
    text = (ROOT / "docs/python.md").read_text()
    lines = re.findall(r"^\| (\w+) \| (\w+) \| (.*) \|$", text, re.MULTILINE)
    header, *rows = [(encoding, cell, rest.split(" | ")) for encoding, cell, rest in lines]
    assert header[2] == list(READERS)
    return {(encoding, cell): dict(zip(READERS, rest)) for encoding, cell, rest in rows}


def cells(values, cell):
    return [list(value) for value in values] if cell == "o2" else list(values)


@pytest.mark.parametrize("cell", ["binary", "struct", "o2", "payload"])
@pytest.mark.parametrize("encoding", ["dictionary", "run_end", "plain"])
def test_the_documented_readers_read(service, encoding, cell):
    columns = {"v": DRIFT}
    with iovcache.connect(service.unix) as client:
        with client.table(columns, timestamps=TIMES, encoding="plain", cell=cell) as plain:
            expected = plain.arrow["v"].to_pylist()
        with client.table(columns, timestamps=TIMES, encoding=encoding, cell=cell) as table:
            found = {}
            for name, read in READERS.items():
                try:
                    right = cells(read(table.arrow), cell) == expected
                    found[name] = "yes" if right else "wrong"
                except Exception:
                    found[name] = "no"
            assert found == documented()[encoding, cell]
            # All libraries read the table itself.
            assert cells(polars.DataFrame(table)["v"].to_list(), cell) == expected
            assert cells(table.to_polars()["v"].to_list(), cell) == expected
            assert cells(table.to_pandas()["v"].tolist(), cell) == expected
            assert cells(by_duckdb(table), cell) == expected
            assert cells(by_parquet(table), cell) == expected


@pytest.mark.parametrize("encoding", ["dictionary", "run_end", "plain"])
def test_a_table_for_other_libraries_keeps_its_metadata(service, encoding):
    about = {"outputRoute": "ATIM/GLOGRP/0"}
    options = {"encoding": encoding, "schema_metadata": about, "timestamps_column": True}
    with iovcache.connect(service.unix) as client:
        with client.table({"v": DRIFT}, timestamps=[1000, None, 3000], **options) as table:
            made = pa.table(table)
            file = io.BytesIO()
            parquet.write_table(made, file)
            for read in (made, parquet.read_table(file)):
                assert read.schema.names == ["timestamp", "v"]
                assert read.schema.metadata == table.arrow.schema.metadata
                assert read.schema.metadata[b"outputRoute"] == b"ATIM/GLOGRP/0"
                field, original = read.schema.field("v"), table.arrow.schema.field("v")
                # Files of Parquet number their fields.
                known = {k: v for k, v in field.metadata.items() if k != b"PARQUET:field_id"}
                assert known == original.metadata
                assert known[b"url"] == DRIFT.encode()
                assert field.type == pa.binary(40) and field.nullable
            assert table.to_polars()["v"].dtype == polars.Binary
