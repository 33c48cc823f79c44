"""Parts of remote objects: the right bytes, and hardly more of them than are asked for."""

import random
from pathlib import Path

import pytest
from fault_proxy import FaultProxy

from wiseft_dist import storage
from wiseft_dist.errors import UserError
from wiseft_dist.storage.ranges import BLOCK

CONTENT = random.Random(0).randbytes(5 * BLOCK + 77)


@pytest.fixture
def url(served: Path, web: str) -> str:
    (served / "a.bin").write_bytes(CONTENT)
    return f"{web}/a.bin"


def test_any_range_is_read(url: str):
    source, draw = storage.stat(url), random.Random(1)
    for start, stop in [(0, 0), (0, 1), (len(CONTENT) - 1, len(CONTENT)), (0, len(CONTENT))] + [
        sorted(draw.choices(range(len(CONTENT)), k=2)) for _ in range(20)
    ]:
        out = bytearray(stop - start)
        storage.read_range(source, start, memoryview(out))
        assert out == CONTENT[start:stop]


def test_a_range_behind_the_end_is_refused(url: str):
    with pytest.raises(UserError, match=r"a\.bin: has 327,757 bytes, but bytes 327,700 to 327,800 are asked for"):
        storage.read_range(storage.stat(url), 327_700, memoryview(bytearray(100)))


def test_a_range_goes_on_where_a_connection_broke(url: str):
    host, name = url.rsplit("/", 1)
    with FaultProxy(host, faults=2, kinds=["reset", "truncated"]) as proxy:
        out = bytearray(3 * BLOCK)
        storage.read_range(storage.stat(f"{proxy.url}/{name}"), 1000, memoryview(out))
        assert out == CONTENT[1000 : 1000 + 3 * BLOCK]
        firsts = [request.range[0] for request in proxy.requests if request.range]
        assert proxy.num_faults == 2 and firsts == sorted(set(firsts)), "bytes were asked for twice"


def test_a_reader_seeks_and_reads_as_a_file_does(url: str, served: Path):
    draw = random.Random(2)
    with storage.open_ranged(storage.stat(url)) as remote, (served / "a.bin").open("rb") as local:
        for _ in range(200):
            where = draw.choice([(draw.randrange(len(CONTENT) + 50), 0), (draw.randrange(-40, 40), 1), (-99, 2)])
            if where[1] != 1 or local.tell() + where[0] >= 0:
                assert remote.seek(*where) == local.seek(*where)
            size = draw.choice([0, 1, 30, BLOCK, 3 * BLOCK])
            assert remote.read(size) == local.read(size)
            assert remote.tell() == local.tell()
        assert (remote.seek(7), remote.read()) == (7, CONTENT[7:])


def test_a_reader_fetches_each_block_that_it_looks_at_once(url: str):
    host, name = url.rsplit("/", 1)
    with FaultProxy(host) as proxy, storage.open_ranged(storage.stat(f"{proxy.url}/{name}")) as reader:
        for position in (10, BLOCK - 5, 20, 3 * BLOCK, 3 * BLOCK + 9, 0):
            reader.seek(position)
            reader.read(4)
        sent = [request.sent for request in proxy.requests if request.method == "GET"]
        assert sent == [BLOCK, BLOCK]
