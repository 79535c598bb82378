"""Times of every library are converted exactly, or refused: never another time."""

import datetime

import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pytest

import iovcache
from iovcache import _keys
from iovcache._times import column, moment

DRIFT = "TPC/Calib/VDrift"
#: The length of each unit in attoseconds.
ATTOS = {"as": 1, "fs": 10**3, "ps": 10**6, "ns": 10**9, "us": 10**12, "ms": 10**15, "s": 10**18}
ATTOS |= {unit: s * 10**18 for unit, s in {"m": 60, "h": 3600, "D": 86_400, "W": 604_800}.items()}


def millis(values):
    return list(column(values)) if isinstance(values, list) else column(values).to_pylist()


def forms(at):
    """The conversions of one time of numpy: alone and in columns, in both byte orders."""
    yield "scalar", lambda: moment(at, "at")
    yield "without a dimension", lambda: moment(np.array(at), "at")
    yield "list", lambda: pa.array(column([at])).to_pylist()[0]
    yield "array", lambda: column(np.array([at])).to_pylist()[0]
    swapped = np.array([at]).astype(np.array(at).dtype.newbyteorder("S"))
    yield "other byte order", lambda: column(swapped).to_pylist()[0]


@pytest.mark.parametrize("unit", ATTOS)
@pytest.mark.parametrize("count", [1, 10, 25, 999_999])
def test_every_unit_of_numpy_is_rounded_down_or_refused(unit, count):
    for ticks in (0, 1, -1, 350, -1_999_501, 10**9 + 7, -(10**15), 2**62, -(2**63) + 1, 2**63 - 1):
        exact = ticks * count * ATTOS[unit] // ATTOS["ms"]
        at = np.datetime64(ticks, (unit, count))
        for name, convert in forms(at):
            if -(2**63) <= exact < 2**63:
                assert convert() == exact, (ticks, name)
            else:
                with pytest.raises(iovcache.InvalidArgument, match="IOV-7014.*i64"):
                    convert()


def test_months_and_years_of_numpy_begin_with_their_first_day():
    utc = datetime.timezone.utc
    for text in ("0001-01", "1600-03", "1969-12", "1970-01", "2000-02", "2024-03", "9999-12"):
        year, month = map(int, text.split("-"))
        expected = moment(datetime.datetime(year, month, 1, tzinfo=utc), "at")
        for name, convert in forms(np.datetime64(text, "M")):
            assert convert() == expected, (text, name)
    for name, convert in forms(np.datetime64(17, "7Y")):
        assert convert() == moment("2089-01-01", "at"), name
    # The calendar of numpy, beyond the years of datetime.
    for year in (-200_000, 123_456, 290_000_000):
        at = np.datetime64(year - 1970, "Y")
        assert moment(at, "at") == int(at.astype("M8[ms]").astype(np.int64))
    for at in (np.datetime64(2**62, "Y"), np.datetime64(2**62, "M"), np.datetime64(300 * 10**6, "Y")):
        for _, convert in forms(at):
            with pytest.raises(iovcache.InvalidArgument, match="i64"):
                convert()


def test_a_datetime64_without_a_unit_is_refused():
    at = np.array([5], "i8").view("M8")
    for wrong in (lambda: column(at), lambda: moment(at[0], "at"), lambda: column([at[0]])):
        with pytest.raises(iovcache.InvalidArgument, match="without a unit"):
            wrong()


def test_no_time_is_null_in_a_column_and_refused_alone():
    for none in (np.datetime64("NaT"), np.datetime64("NaT", "25s"), pd.NaT, pd.NA):
        assert column([1000, none]).to_pylist() == [1000, None]
        with pytest.raises(iovcache.InvalidArgument, match="no time"):
            moment(none, "at")
    assert millis(np.array(["NaT", "1970-01-02"], "M8[D]")) == [None, 86_400_000]


@pytest.mark.parametrize("kind", ["i8", ">i8", "u8", "M8[ms]", "M8[10ms]", "O"])
def test_masked_rows_of_numpy_are_null(kind):
    ticks = [100, 400, 300] if kind == "M8[10ms]" else [1000, 4000, 3000]
    masked = np.ma.array(np.array(ticks).astype(kind), mask=[0, 1, 0])
    assert millis(masked) == [1000, None, 3000]
    assert millis(np.ma.array(np.array(ticks).astype(kind))) == [1000, 4000, 3000]
    if kind in ("i8", "u8"):
        assert _keys.column("run", masked).to_pylist() == [1000, None, 3000]


def test_a_masked_row_has_a_null_cell(service):
    with iovcache.connect(service.unix) as client:
        times = np.ma.array([1000, 4000, 3000], mask=[0, 1, 0])
        with client.table({"drift": DRIFT}, timestamps=times) as table:
            cells = [cell and bytes(cell) for cell in table["drift"]]
            assert cells == [b"drift 1", None, b"drift 2"]


def test_integers_of_an_extension_type_are_no_milliseconds():
    periods = pd.period_range("1972-09-27", periods=2, freq="D")
    bools = pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, 0], pa.int8()))
    wrong = [pd.Series(periods), periods, periods.array, pa.array(periods), list(periods), bools]
    wrong += [pa.chunked_array([bools]), pa.DictionaryArray.from_arrays([0, 1], bools)]
    wrong += [pd.Series([True, False]), polars.Series([True, False]), np.array([True, False])]
    for values in wrong:
        with pytest.raises(iovcache.InvalidArgument, match="IOV-7014"):
            column(values)
        with pytest.raises(iovcache.InvalidArgument, match="IOV-7014"):
            _keys.column("run", values)
    assert millis(periods.to_timestamp()) == [86_400_000 * 1000, 86_400_000 * 1001]


class WithoutOffset(datetime.tzinfo):
    def utcoffset(self, _):
        return None


def test_a_datetime_whose_zone_has_no_offset_is_refused():
    at = datetime.datetime(2024, 1, 1, tzinfo=WithoutOffset())
    for convert in (lambda: moment(at, "at"), lambda: column([at])):
        with pytest.raises(iovcache.InvalidArgument, match="no time zone"):
            convert()


def test_times_of_pandas_are_rounded_down_in_all_of_its_range():
    before = pd.Timestamp("1969-12-31T23:59:59.999999999Z")
    for at, expected in ((before, -1), (pd.Timestamp(np.datetime64(2**44, "s"), tz="UTC"), 2**44 * 1000)):
        assert moment(at, "at") == expected
        assert column([at]).to_pylist() == [expected]
    beyond = pd.Timestamp(np.datetime64(2**55, "s"), tz="UTC")
    for convert in (lambda: moment(beyond, "at"), lambda: column([beyond])):
        with pytest.raises(iovcache.InvalidArgument, match="i64"):
            convert()
    with pytest.warns(iovcache.NaiveTimestamps):
        assert column([before.tz_localize(None)]).to_pylist() == [-1]
