"""The resolver on a real segment of the real layout: nothing that is forged gets through."""

import mmap
import os
import random
import struct

import pytest

import iovcache
from iovcache import MetaHeader, Resolver

SIZE = 1 << 16
PAYLOAD = b"payload of the block"


@pytest.fixture
def segment():
    fd = os.memfd_create("segment")
    os.ftruncate(fd, SIZE)
    with mmap.mmap(fd, SIZE) as memory:
        memory[256:264] = b"IOVCACHE"
        memory[4096:4112] = struct.pack("<QQ", 77, len(PAYLOAD))
        memory[4160 : 4160 + len(PAYLOAD)] = PAYLOAD
        resolver = Resolver()
        resolver.add("segment", 3, SIZE, fd)
        yield resolver, memory
    os.close(fd)


RIGHT = MetaHeader(len(PAYLOAD), 77, 4144, -1, 0, 3, 1)


def test_a_right_header_gives_the_bytes_read_only(segment):
    resolver, _ = segment
    view = resolver.resolve(RIGHT)
    assert bytes(view) == PAYLOAD and view.readonly
    assert bytes(resolver.resolve(RIGHT.to_bytes())) == PAYLOAD


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"segment_id": 4}, iovcache.FailedPrecondition),
        ({"managed": 0}, iovcache.FailedPrecondition),
        ({"managed": 2}, iovcache.InvalidArgument),
        ({"handle": 4145}, iovcache.InvalidArgument),
        ({"handle": 4128}, iovcache.InvalidArgument),
        ({"handle": -16}, iovcache.InvalidArgument),
        ({"handle": (1 << 63) - 16}, iovcache.InvalidArgument),
        ({"size": (1 << 64) - 1}, iovcache.InvalidArgument),
        ({"size": 5}, iovcache.InvalidArgument),
        ({"hint": 78}, iovcache.Stale),
        ({"hint": 0}, iovcache.Stale),
    ],
)
def test_each_field_is_checked(segment, change, error):
    resolver, _ = segment
    with pytest.raises(error):
        resolver.resolve(RIGHT._replace(**change))


def test_a_block_that_is_given_up_is_stale(segment):
    resolver, memory = segment
    memory[4096:4104] = bytes(8)
    with pytest.raises(iovcache.Stale):
        resolver.resolve(RIGHT)


def test_only_forty_bytes_are_a_header(segment):
    resolver, _ = segment
    for length in (0, 39, 41):
        with pytest.raises(iovcache.InvalidArgument):
            resolver.resolve(bytes(length))


def test_forged_headers_give_the_block_or_an_error(segment):
    resolver, _ = segment
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    for _ in range(20_000):
        data = bytearray(RIGHT.to_bytes())
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(40)] = rng.randrange(256)
        try:
            assert bytes(resolver.resolve(bytes(data))) == PAYLOAD, seed
        except iovcache.IovcacheError:
            pass
