"""Single cells against the real segments: no forged cell resolves."""

import random

import pytest

import iovcache
from iovcache import MetaHeader

NOISE = "TPC/Calib/Noise"
PAYLOAD = b"n" * 100_000


@pytest.fixture
def cell(service):
    """An attachment, and the header of a pinned object."""
    with iovcache.connect(service.unix) as client:
        with client.table({"noise": NOISE}, timestamps=[1]) as table:
            with iovcache.Attachment(service.ready["attach"], "cells") as attachment:
                yield attachment, table["noise"].header(0)


def test_a_right_header_gives_a_copy_of_the_bytes(cell):
    attachment, header = cell
    assert attachment.read(header.to_bytes()) == PAYLOAD
    assert header == MetaHeader.from_bytes(header.to_bytes())


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"segment_id": 60_000}, iovcache.FailedPrecondition),
        ({"managed": 0}, iovcache.FailedPrecondition),
        ({"managed": 2}, iovcache.InvalidArgument),
        ({"handle": 4145}, iovcache.InvalidArgument),
        ({"handle": -16}, iovcache.InvalidArgument),
        ({"handle": (1 << 63) - 16}, iovcache.InvalidArgument),
        ({"size": (1 << 64) - 1}, iovcache.InvalidArgument),
        ({"size": 5}, iovcache.InvalidArgument),
        ({"hint": 78}, iovcache.Stale),
        ({"hint": 0}, iovcache.Stale),
    ],
)
def test_each_field_is_checked(cell, change, error):
    attachment, header = cell
    with pytest.raises(error, match=r"^\[IOV-40\d\d\] "):
        attachment.read(header._replace(**change).to_bytes())


def test_only_forty_bytes_are_a_header(cell):
    attachment, _ = cell
    for length in (0, 39, 41):
        with pytest.raises(iovcache.InvalidArgument):
            attachment.read(bytes(length))
        with pytest.raises(iovcache.InvalidArgument):
            MetaHeader.from_bytes(bytes(length))


def test_forged_headers_give_the_block_or_an_error(cell):
    attachment, header = cell
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    for _ in range(300):
        data = bytearray(header.to_bytes())
        # Segment numbers stay: an unknown one is requested from the service.
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(32)] = rng.randrange(256)
        try:
            assert attachment.read(bytes(data)) == PAYLOAD, seed
        except iovcache.IovcacheError:
            pass
