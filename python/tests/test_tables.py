"""Times, cells, encodings and views in all combinations of the interface; pyarrow alone."""

import hashlib
import itertools
import json
import struct
import uuid

import pyarrow as pa
import pyarrow.flight as flight
import pytest
from by_hand import HEADER, ByHand, fields
from conftest import VERSIONS, Service, put, right, run

DRIFT, NOISE = "TPC/Calib/VDrift", "TPC/Calib/Noise"
ENCODINGS = ["dictionary", "run_end", "plain"]
CELLS = ["binary", "struct", "o2", "payload"]
ALL = list(itertools.product(ENCODINGS, CELLS))
FIELDS = ["size", "hint", "handle", "shared", "region_id", "segment_id", "managed"]


def never_null(**types):
    return [pa.field(name, type_, nullable=False) for name, type_ in types.items()]


CELL_TYPES = {
    "binary": pa.binary(40),
    "struct": pa.struct(
        never_null(
            size=pa.uint64(),
            hint=pa.uint64(),
            handle=pa.int64(),
            shared=pa.int64(),
            region_id=pa.uint16(),
            segment_id=pa.uint16(),
            managed=pa.uint8(),
        )
    ),
    "o2": pa.list_(pa.field("item", pa.int64(), nullable=False), 3),
    "payload": pa.large_binary(),
}


def column_type(encoding, cell):
    cell = CELL_TYPES[cell]
    if encoding == "plain":
        return cell
    return pa.dictionary(pa.int32(), cell) if encoding == "dictionary" else (pa.int32(), cell)


def values(column):
    """Each row's cell, decoded by hand from any encoding."""
    rows = []
    for chunk in column.chunks:
        if pa.types.is_dictionary(chunk.type):
            dictionary = chunk.dictionary.to_pylist()
            keys = chunk.indices.to_pylist()
            rows += [None if key is None else dictionary[key] for key in keys]
        else:
            rows += chunk.to_pylist()
    return rows


@pytest.fixture
def by_hand(service):
    client = ByHand(service)
    yield client
    client.close()


def bytes_of(client, cell, value, headers):
    """The object's bytes for any kind of cell."""
    if value is None or cell == "payload":
        return value
    if cell == "struct":
        value = HEADER.pack(*(value[name] for name in FIELDS))
    elif cell == "o2":
        value = headers[tuple(value)]
    return client.resolve(value)


@pytest.mark.parametrize("nulls", [False, True], ids=["whole", "nulls"])
@pytest.mark.parametrize("encoding, cell", ALL)
def test_each_encoding_of_each_cell_has_its_type_and_its_bytes(by_hand, encoding, cell, nulls):
    times = [1000, 1000, 3000, 7000, 8999, 1000] + ([None, 2000] if nulls else [])
    request = {
        "columns": {"z": DRIFT, "a": NOISE},
        "timestamps": times,
        "session": by_hand.session,
    }
    binary = by_hand.get({**request, "encoding": "plain"})
    headers = {}
    for value in itertools.chain(*(binary[name].to_pylist() for name in "za")):
        if value is not None:
            size, _, handle, _, _, segment, _ = HEADER.unpack(value)
            headers[handle, segment, size] = value
    table = by_hand.get({**request, "encoding": encoding, "cell": cell, "timestamps_column": True})
    assert table.schema.names == ["timestamp", "z", "a"], "in the order asked"
    assert table.schema.field("timestamp").type == pa.int64()
    assert table.schema.field("timestamp").nullable == nulls
    assert table["timestamp"].to_pylist() == times
    for name, path in (("z", DRIFT), ("a", NOISE)):
        field = table.schema.field(name)
        expected = column_type(encoding, cell)
        if encoding == "run_end":
            assert (field.type.run_end_type, field.type.value_type) == expected
        else:
            assert field.type == expected
        assert field.nullable == nulls
        assert field.metadata[b"url"] == path.encode()
        extension = field.metadata.get(b"ARROW:extension:name")
        assert extension == (b"iovcache.metaheader" if cell in ("binary", "struct") else None)
        got = [bytes_of(by_hand, cell, value, headers) for value in values(table[name])]
        assert got == [None if at is None else right(path, at) for at in times]


@pytest.mark.parametrize("encoding, cell", ALL)
def test_missing_objects_are_null_where_the_request_says_so(by_hand, encoding, cell):
    request = {"columns": {"drift": DRIFT}, "timestamps": [999, 1000, 9000], "encoding": encoding}
    request |= {"cell": cell, "session": by_hand.session}
    status, message = by_hand.status_of(request)
    assert status == "NOT_FOUND" and message.startswith("[IOV-2010] ")
    assert '"drift"' in message and "999" in message and "9000" in message
    table = by_hand.get({**request, "missing": "null"})
    assert table.schema.field("drift").nullable
    assert [value is None for value in values(table["drift"])] == [True, False, True]
    # The cell is null, whatever bytes it holds.
    type_ = table.schema.field("drift").type
    type_ = type_.value_type if encoding != "plain" else type_
    if cell == "struct":
        assert not any(type_.field(place).nullable for place in range(7))
    if cell == "o2":
        assert not type_.value_field.nullable


def test_every_column_without_an_object_is_named_with_its_first_and_last_time(by_hand):
    columns = {"drift": DRIFT, "noise": NOISE, "none": "No/Such/Path"}
    times = [5000, 9500, -3, 9001, 998]
    status, message = by_hand.status_of({"columns": columns, "timestamps": times})
    assert status == "NOT_FOUND"
    for column, first, last in (("drift", -3, 9500), ("noise", -3, 9500), ("none", -3, 9500)):
        (part,) = [part for part in message.split(";") if f'"{column}"' in part]
        assert str(first) in part and str(last) in part
    status, message = by_hand.status_of({"columns": columns, "timestamps": [5000]})
    assert '"none"' in message and '"drift"' not in message and '"noise"' not in message


@pytest.mark.parametrize("encoding, cell", ALL)
def test_the_schema_has_the_metadata_that_a_request_asks_for(by_hand, encoding, cell):
    keys = {"outputRoute": "ATIM/GLOGRP/0", "outputBinding": "GRPs", "sourceTable": "Timestamps"}
    request = {"columns": {"fDrift": DRIFT}, "timestamps": [1000], "encoding": encoding}
    request |= {"cell": cell, "session": by_hand.session}
    metadata = by_hand.get({**request, "schema_metadata": keys}).schema.metadata
    assert {key: metadata[key.encode()].decode() for key in keys} == keys
    assert metadata[b"iovcache.version"]
    assert b"outputRoute" not in by_hand.get(request).schema.metadata
    for wrong in ({"iovcache.lease": "x"}, {"ARROW:x": "y"}, {"": "x"}, {"k" * 257: "v"}):
        status, message = by_hand.status_of({**request, "schema_metadata": wrong})
        assert status == "INVALID_ARGUMENT" and "schema_metadata" in message
    status, message = by_hand.status_of({**request, "schema_metadata": {"k": "v" * 65536}})
    assert status == "INVALID_ARGUMENT" and "65536" in message


def test_no_timestamps_give_an_empty_table_with_the_whole_schema(by_hand):
    for encoding, cell in ALL:
        request = {"columns": {"drift": DRIFT}, "timestamps": [], "encoding": encoding}
        table = by_hand.get({**request, "cell": cell})
        assert (table.num_rows, table.schema.names) == (0, ["drift"])
    objects = by_hand.get({"columns": {"drift": DRIFT}, "timestamps": [], "view": "objects"})
    assert objects.num_rows == 0 and "object_id" in objects.schema.names


def test_the_view_objects_has_one_row_for_each_run_that_is_not_null(by_hand):
    times = [1000, None, 3000, 3001, None, None, 7000]
    request = {"columns": {"drift": DRIFT, "noise": NOISE}, "timestamps": times}
    table = by_hand.get({**request, "view": "objects", "session": by_hand.session})
    map_ = table.schema.field("metadata").type
    assert table.schema.remove_metadata() == pa.schema(
        never_null(
            column=pa.string(),
            path=pa.string(),
            row_start=pa.int64(),
            row_end=pa.int64(),
            object_id=pa.string(),
            valid_from=pa.int64(),
            valid_until=pa.int64(),
            created=pa.int64(),
            size=pa.uint64(),
            generation=pa.uint64(),
            cache=pa.string(),
            metadata=map_,
        )
    )
    assert (map_.key_type, map_.item_type) == (pa.string(), pa.string())
    rows = [row for row in table.to_pylist() if row["column"] == "drift"]
    assert [(row["row_start"], row["row_end"]) for row in rows] == [(0, 1), (2, 4), (6, 7)]
    assert [(row["valid_from"], row["valid_until"]) for row in rows] == [
        (1000, 9000),
        (3000, 5000),
        (7000, 7001),
    ]
    assert [row["size"] for row in rows] == [7, 7, 0]
    cells = by_hand.get({**request, "encoding": "plain", "session": by_hand.session})
    headers = [HEADER.unpack(cells["drift"][row].as_py()) for row in (0, 2, 6)]
    assert [row["generation"] for row in rows] == [header[1] for header in headers]
    for row in table.to_pylist():
        assert str(uuid.UUID(row["object_id"])) == row["object_id"]
        assert row["cache"] in ("hit", "loaded", "stale")


@pytest.mark.parametrize("cell", CELLS)
def test_the_view_intervals_has_one_row_for_each_effective_span(by_hand, cell):
    request = {"columns": {"drift": DRIFT}, "view": "intervals", "cell": cell}
    request |= {"range": {"from": 2000, "until": 7001}, "session": by_hand.session}
    table = by_hand.get(request)
    names = ["column", "path", "from", "until", "object_id", "cell"]
    assert table.schema.names == names
    types = [pa.string(), pa.string(), pa.int64(), pa.int64(), pa.string(), CELL_TYPES[cell]]
    assert table.schema.types == types
    spans = list(zip(table["from"].to_pylist(), table["until"].to_pylist()))
    assert spans == [(2000, 3000), (3000, 5000), (5000, 7000), (7000, 7001)]
    if cell == "payload":
        assert table["cell"].to_pylist() == [right(DRIFT, start) for start, _ in spans]
    assert by_hand.get({**request, "range": {"from": -9, "until": 0}}).num_rows == 0
    step = {**request, "range": {"from": 0, "until": 9, "step": 1}}
    assert by_hand.status_of(step)[0] == "INVALID_ARGUMENT"


def test_the_view_chunks_has_pieces_of_at_most_a_mebibyte(start, tmp_path):
    big = bytes(range(256)) * (70 << 12)  # 70 MiB: more than a cell can have
    repository = tmp_path / "repository"
    put(repository, ("Big/Object", 0, 10, 1, big), tmp_path)
    put(repository, ("Big/Empty", 0, 10, 1, b""), tmp_path)
    client = ByHand(start("--memory", "160MiB", "--segment", "160MiB", source=repository))
    request = {"columns": {"x": "Big/Object"}, "timestamps": [5]}
    for encoding in ENCODINGS:
        status, message = client.status_of({**request, "cell": "payload", "encoding": encoding})
        assert (status, "chunks" in message) == ("RESOURCE_EXHAUSTED", True), (status, message)
    table = client.get({**request, "view": "chunks"})
    assert table.schema.names == ["offset", "bytes"]
    assert table.schema.types == [pa.int64(), pa.binary()]
    place = 0
    for offset, piece in zip(table["offset"].to_pylist(), table["bytes"].to_pylist()):
        assert offset == place and 0 < len(piece) <= 1 << 20
        assert piece == big[place : place + len(piece)]
        place += len(piece)
    assert place == len(big)
    assert client.get({**request, "columns": {"x": "Big/Empty"}, "view": "chunks"}).num_rows == 0
    for wrong in ({"timestamps": [5, 6]}, {"timestamps": []}, {"timestamps": [None]}):
        assert client.status_of({**request, **wrong, "view": "chunks"})[0] == "INVALID_ARGUMENT"
    two = {"x": "Big/Object", "y": "Big/Empty"}
    wrong = {**request, "columns": two, "view": "chunks"}
    assert client.status_of(wrong)[0] == "INVALID_ARGUMENT"
    client.close()


def test_batches_are_below_two_mebibytes_and_a_dictionary_crosses_once(by_hand):
    times = [1000 + row % 8000 for row in range(120_000)]
    request = {"columns": {"drift": DRIFT, "noise": NOISE}, "session": by_hand.session}
    request |= {"timestamps": times}
    for encoding, cell in itertools.product(ENCODINGS, ["binary", "struct", "o2"]):
        messages = by_hand.messages({**request, "encoding": encoding, "cell": cell})
        sizes = [len(message) for message in messages]
        assert max(sizes) < 2 << 20, (encoding, cell)
        # Schema and dictionaries have no rows: their message headers name their kind.
        dictionaries = [m for m in messages if header_type(m) == 2]
        assert len(dictionaries) == (2 if encoding == "dictionary" else 0)


def header_type(message):
    """1 schema, 2 dictionary batch, 3 record batch: from the flatbuffer `Message`."""
    header = fields(message)[2]
    (root,) = struct.unpack_from("<I", header, 0)
    (vtable,) = struct.unpack_from("<i", header, root)
    (place,) = struct.unpack_from("<H", header, root - vtable + 6)
    return header[root + place]


def test_a_payload_crosses_once_however_many_rows_it_has(by_hand):
    request = {"columns": {"noise": NOISE}, "timestamps": [5] * 10_000, "cell": "payload"}
    for encoding in ("dictionary", "run_end"):
        sizes = [len(m) for m in by_hand.messages({**request, "encoding": encoding})]
        assert 100_000 < sum(sizes) < 250_000, encoding


def arrays():
    plain = [1000, 2999, None, 3000]
    yield "int64", pa.array(plain, pa.int64())
    yield "uint64", pa.array(plain, pa.uint64())
    for zone in (None, "UTC", "Europe/Zurich", "+05:30"):
        scale = {"s": 1, "ms": 1000, "us": 10**6, "ns": 10**9}
        for unit, count in scale.items():
            at = [1 * count, 3 * count - 1, None, 3 * count]
            if unit == "s":
                at = [1, 2, None, 3]
            yield f"{unit}-{zone}", pa.array(at, pa.timestamp(unit, zone))
    yield "dictionary", pa.array(plain, pa.int64()).dictionary_encode()
    zoned = pa.array([1_000_000, 2_999_999, None, 3_000_000], pa.timestamp("us", "UTC"))
    yield "dictionary-us", zoned.dictionary_encode()
    for ends in (pa.int16(), pa.int32(), pa.int64()):
        runs = pa.array([2, 3, 4], ends), pa.array([1000, None, 3000])
        yield f"run-ends-{ends}", pa.RunEndEncodedArray.from_arrays(*runs)
    yield "no nulls", pa.array([1000, 2999], pa.uint64())


@pytest.mark.parametrize("name, array", list(arrays()), ids=[name for name, _ in arrays()])
def test_timestamps_come_in_every_type_that_arrow_has(by_hand, name, array):
    timeframe = uuid.uuid4().int >> 65
    consumer = f"times-{timeframe}"
    about = {"columns": {"drift": DRIFT}, "consumers": [consumer]}
    table = pa.table({"fTimestamp": array, "orbit": pa.array(range(len(array)), pa.int64())})
    answer = by_hand.put(timeframe, table, about)
    assert (answer["timeframe"], answer["rows"]) == (timeframe, len(array))
    request = {"timeframe": timeframe, "consumer": consumer, "encoding": "plain"}
    got = by_hand.get({**request, "session": by_hand.session, "timestamps_column": True})
    cells = [cell and by_hand.resolve(cell) for cell in got["drift"].to_pylist()]
    expected = [b"drift 1", b"drift 1", None, b"drift 2"]
    if name == "no nulls":
        expected = expected[:2]
    assert cells == expected
    millis = got["timestamp"].to_pylist()
    assert [at is None for at in millis] == [cell is None for cell in expected]
    assert [right(DRIFT, at) for at in millis if at is not None] == [c for c in expected if c]
    by_hand.ask("drop_timeframe", timeframe=timeframe)


def test_a_value_that_is_no_timestamp_is_refused_with_column_got_and_expected(by_hand):
    about = {"columns": {"drift": DRIFT}}
    wrong = {
        "text": pa.table({"timestamp": ["noon"]}),
        "float": pa.table({"timestamp": [1.5]}),
        "date": pa.table({"timestamp": pa.array([1], pa.date32())}),
        "too late": pa.table({"timestamp": pa.array([2**63], pa.uint64())}),
        "too far": pa.table({"timestamp": pa.array([2**62], pa.timestamp("s"))}),
        "two": pa.table({"a": [1], "b": [2]}),
        "none": pa.table({"name": ["x"]}),
    }
    for name, table in wrong.items():
        with pytest.raises(pa.ArrowInvalid, match=r"\[IOV-10\d\d\]") as caught:
            by_hand.put(77, table, about)
        assert "expected" in str(caught.value) or "i64" in str(caught.value), name
    assert by_hand.ask("status")["timeframes"] == []


def test_the_ends_of_time_are_times(by_hand):
    ends = [-(2**63), 2**63 - 1, 0, -1]
    request = {"columns": {"noise": NOISE}, "timestamps": ends, "missing": "null"}
    table = by_hand.get({**request, "encoding": "plain", "timestamps_column": True})
    assert table["timestamp"].to_pylist() == ends
    assert [cell is None for cell in table["noise"].to_pylist()] == [True, True, False, True]
    for wrong in (2**63, -(2**63) - 1, 1.5, "1000", True, [1]):
        status, message = by_hand.status_of({**request, "timestamps": [wrong]})
        assert (status, message[:10]) == ("INVALID_ARGUMENT", "[IOV-1001]"), wrong


@pytest.fixture(scope="module")
def ties(tmp_path_factory):
    """Overlapping versions that were created in the same millisecond."""
    folder = tmp_path_factory.mktemp("ties")
    for version in (
        ("Tie/From", 0, 100, 5, b"earlier from"),
        ("Tie/From", 10, 50, 5, b"later from"),
        ("Tie/Late", 0, 100, 5, b"created first"),
        ("Tie/Late", 0, 100, 6, b"created last"),
    ):
        put(folder / "repository", version, folder)
    for number, data in ((1, b"smaller"), (2, b"greater")):
        id_ = f"0000000{number}-0000-4000-8000-000000000000"
        put(folder / "repository", ("Tie/Id", 0, 100, 5, data), folder, "--id", id_)
    service = Service(folder, folder / "repository")
    client = ByHand(service)
    yield client
    client.close()
    service.stop()


def payload(client, path, at, **more):
    request = {"columns": {"x": path}, "timestamps": [at], "cell": "payload", **more}
    return client.get({**request, "encoding": "plain"})["x"][0].as_py()


def test_of_versions_created_at_once_the_later_from_wins_then_the_greater_id(ties):
    assert payload(ties, "Tie/From", 9) == b"earlier from"
    assert payload(ties, "Tie/From", 10) == payload(ties, "Tie/From", 49) == b"later from"
    assert payload(ties, "Tie/From", 50) == b"earlier from"
    assert payload(ties, "Tie/Id", 5) == b"greater"
    assert payload(ties, "Tie/Late", 5) == b"created last"


def test_creation_limits_are_inclusive_and_make_the_past_repeatable(ties, start, by_hand):
    assert payload(ties, "Tie/Late", 5, not_after=6) == b"created last"
    assert payload(ties, "Tie/Late", 5, not_after=5) == b"created first"
    assert payload(ties, "Tie/Late", 5, not_before=5, not_after=5) == b"created first"
    assert payload(ties, "Tie/Late", 5, not_before=6) == b"created last"
    assert payload(ties, "Tie/Late", 5, not_before=7, missing="null") is None
    assert payload(ties, "Tie/Late", 5, not_after=4, missing="null") is None
    # A request can narrow the limits the service was started with, never widen them.
    client = ByHand(start("--not-after", "2", "--not-before", "2"))
    for limits in ({}, {"not_after": 99}, {"not_before": 0}, {"not_before": 0, "not_after": 99}):
        assert payload(client, DRIFT, 3500, **limits) == b"drift 2"
        assert payload(client, DRIFT, 1500, missing="null", **limits) is None
    assert payload(client, DRIFT, 3500, not_after=1, missing="null") is None
    client.close()


def test_object_paths_have_a_grammar(by_hand):
    wrong = ["", "/", "a//b", "/a", "a/", ".", "..", "a/../b", "a/./b", "12", "a/34/b", "a b"]
    wrong += ["a\u00e4", "a/" * 10 + "b", "a\0b", "a%2e", "a\\b"]
    for path in wrong:
        status, message = by_hand.status_of({"columns": {"x": path}, "timestamps": [1]})
        assert (status, message[:5]) == ("INVALID_ARGUMENT", "[IOV-"), path
        action = flight.Action("invalidate", json.dumps({"path": path}).encode())
        with pytest.raises(pa.ArrowInvalid, match=r"\[IOV-"):
            list(by_hand.flight.do_action(action))
    for path in ("a", "A-b_c.d/0x/1a", "a/" * 9 + "b", "...", "a..b"):
        status, message = by_hand.status_of({"columns": {"x": path}, "timestamps": [1]})
        assert status == "NOT_FOUND", (path, message)


def test_an_id_that_is_no_uuid_is_derived_from_and_kept(start, tmp_path):
    (tmp_path / "a").write_bytes(b"same")
    md5 = hashlib.md5(b"same").hexdigest()
    own = "5d4ca9d8-9a1e-11ef-8000-c0a80209250c"
    lines = ["path,valid_from_ms,valid_until_ms,created_ms,id,file,size,md5,note"]
    lines += [f"Ids/One,0,10,1,run-7-v2,a,4,{md5},", f"Ids/Two,0,10,1,{own},a,4,{md5},x"]
    lines += [f"Ids/Three,0,10,1,,a,4,{md5},", f"Ids/Four,0,10,1,,a,4,{md5},"]
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    for _ in range(2):
        files = ["--repository", tmp_path / "ids", tmp_path / "manifest.csv"]
        done = run("import", *files, "--json")
    assert json.loads(done.stdout)["unchanged"] == 4, "derived ids are the same each time"
    client = ByHand(start(source=tmp_path / "ids"))
    columns = {name: f"Ids/{name}" for name in ("One", "Two", "Three", "Four")}
    request = {"columns": columns, "timestamps": [5], "view": "objects"}
    rows = {row["column"]: row for row in client.get(request).to_pylist()}
    assert rows["Two"]["object_id"] == own
    assert dict(rows["One"]["metadata"])["source_id"] == "run-7-v2"
    assert uuid.UUID(rows["One"]["object_id"]).version == 5
    assert uuid.UUID(rows["Three"]["object_id"]).version == 5
    assert len({row["object_id"] for row in rows.values()}) == 4, "equal bytes, two ids"
    client.close()


def test_columns_can_ask_for_metadata(start, tmp_path):
    for number, data in ((1, b"run 1"), (2, b"run 2")):
        version = ("GRP/Config", 0, 10, number, data)
        put(tmp_path / "meta", version, tmp_path, "--meta", f"runNumber={number}")
    client = ByHand(start(source=tmp_path / "meta"))

    def of(**metadata):
        column = {"path": "GRP/Config", "metadata": metadata}
        request = {"columns": {"x": column}, "timestamps": [5], "cell": "payload"}
        return client.get({**request, "encoding": "plain", "missing": "null"})["x"][0].as_py()

    assert (of(), of(runNumber="1"), of(runNumber="2")) == (b"run 2", b"run 1", b"run 2")
    assert of(runNumber="3") is None
    client.close()


def test_a_range_with_a_step_has_a_row_for_each(by_hand):
    request = {"columns": {"drift": DRIFT}, "range": {"from": 1000, "until": 8999, "step": 1000}}
    table = by_hand.get({**request, "cell": "payload", "timestamps_column": True})
    times = list(range(1000, 8999, 1000))
    assert table["timestamp"].to_pylist() == times
    assert values(table["drift"]) == [right(DRIFT, at) for at in times]


def test_the_repository_of_these_tests_has_a_border_at_every_kind(by_hand):
    borders = sorted({at for version in VERSIONS for at in version[1:3]})
    times = [at + step for at in borders for step in (-1, 0, 1)]
    for path in (DRIFT, NOISE):
        there = [at for at in times if any(v[0] == path and v[1] <= at < v[2] for v in VERSIONS)]
        request = {"columns": {"x": path}, "timestamps": there[::-1], "cell": "payload"}
        assert values(by_hand.get(request)["x"]) == [right(path, at) for at in there[::-1]]
