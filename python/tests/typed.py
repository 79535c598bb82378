"""A user's program for the type checker: `test_types.py` checks it, and it is never run."""

import datetime
from typing import Dict, List, Optional, Tuple

import iovcache
from iovcache import aio


def walk(url: str) -> List[bytes]:
    with iovcache.connect(url, consumer="typed", patience=5) as client:
        columns: Dict[str, str] = {"v": "TPC/Calib/VDrift"}
        now = datetime.datetime.now(datetime.timezone.utc)
        with client.table(columns, timestamps=[1000, now], missing="null") as table:
            first: Optional[iovcache.Object] = table["v"][0]
            runs: List[Tuple[int, int, Optional[iovcache.Object]]] = list(table["v"].runs())
            assert first is not None and len(runs) < 3
            view: memoryview = memoryview(first)
            return [bytes(first), bytes(view), first.tobytes(), first.id.encode()]


def wrong(client: iovcache.Client) -> None:
    client.table({"v": "A/B"}, timestamps=[1], encoding="runend")  # expected: reportArgumentType
    client.table({"v": "A/B"}, timestamps=[1], colour="red")  # expected: reportCallIssue


async def asynchronous(url: str) -> bytes:
    async with await aio.connect(url) as client:
        async with await client.table({"v": "TPC/Calib/VDrift"}, timestamps=[1000]) as table:
            found = table["v"][0]
            return b"" if found is None else bytes(found)


async def wrong_asynchronous(client: aio.AsyncClient) -> None:
    await client.table({"v": "A/B"}, timestamps=[1], colour="red")  # expected: reportCallIssue
    await client.get("A/B", at=1, wait_ms="long")  # expected: reportArgumentType
