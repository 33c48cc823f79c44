"""Every way in which a store breaks an answer, alone, on a real connection."""

from __future__ import annotations

import multiprocessing
import random
import time
from pathlib import Path

import pytest
from fault_proxy import KINDS, FaultProxy
from file_server import WithoutRanges, serve
from swift_store import free_port

from wiseft_dist import storage
from wiseft_dist.errors import RunError, UserError

KILOBYTES = 300
CONTENT = random.Random(0).randbytes(KILOBYTES * 1000)


@pytest.fixture
def shard(served: Path) -> Path:
    path = served / "0.tar"
    path.write_bytes(CONTENT)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_that_breaks_is_made_whole(shard, web, kind):
    with FaultProxy(web, faults=2, kinds=[kind], stall=2) as proxy:
        assert storage.read_bytes(f"{proxy.url}/0.tar") == CONTENT
        assert proxy.count == {kind: 2}


@pytest.mark.parametrize("kind", ["truncated", "short", "stall", "reset"])
def test_reading_goes_on_at_the_first_byte_that_is_missing(shard, web, kind):
    with FaultProxy(web, faults=1, kinds=[kind], stall=2) as proxy:
        assert storage.read_bytes(f"{proxy.url}/0.tar") == CONTENT
        broken, resumed = (request for request in proxy.requests if request.method == "GET")
    assert broken.range == (0, len(CONTENT) - 1)
    assert broken.sent == len(CONTENT) // 2
    assert resumed.range == (broken.sent, len(CONTENT) - 1)


def test_tries_without_a_new_byte_are_counted_and_named(shard, web):
    expected = storage.stat(f"{web}/0.tar")
    with FaultProxy(web, faults=1000, kinds=["503"]) as proxy:
        url = f"{proxy.url}/0.tar"
        expected = storage.StoredObject(url, expected.num_bytes, expected.version)
        with (
            pytest.raises(RunError, match=rf"{url}: gave up at byte 0 after 3 tries: the store answered 503"),
            storage.open_bytes(url, expected=expected) as stream,
        ):
            stream.read()
        assert len(proxy.requests) == 3


def test_a_fault_after_progress_does_not_count_as_another_try(shard, web):
    with FaultProxy(web, faults=8, kinds=["truncated"]) as proxy:
        assert storage.read_bytes(f"{proxy.url}/0.tar") == CONTENT
        assert proxy.num_faults == 8


def test_a_store_that_is_gone_is_named_with_byte_and_tries():
    url = f"http://127.0.0.1:{free_port()}"
    expected = storage.StoredObject(f"{url}/0.tar", 5000, "")
    with (
        pytest.raises(RunError, match=rf"{url}/0\.tar: gave up at byte 1,000 after 3 tries: "),
        storage.open_bytes(f"{url}/0.tar", start=1000, expected=expected) as stream,
    ):
        stream.read()
    with pytest.raises(RunError, match=rf"{url}/0\.tar: gave up after 3 tries: "):
        storage.stat(f"{url}/0.tar")


def test_one_try_means_no_second_request(shard, web, monkeypatch):
    monkeypatch.setenv("WISEFT_STORE_TRIES", "1")
    with FaultProxy(web, faults=9, kinds=["500"], methods=["HEAD"]) as proxy:
        with pytest.raises(RunError, match="gave up after 1 try"):
            storage.exists(f"{proxy.url}/0.tar")
        assert len(proxy.requests) == 1


def test_a_missing_object_is_not_asked_for_twice(served, web):
    with FaultProxy(web) as proxy:
        with pytest.raises(UserError, match=rf"{proxy.url}/0\.tar: cannot be read: not found"):
            storage.read_bytes(f"{proxy.url}/0.tar")
        assert len(proxy.requests) == 1
        assert not storage.exists(f"{proxy.url}/0.tar")


@pytest.mark.parametrize("change", [CONTENT[:-1], bytes(len(CONTENT))], ids=["shorter", "same_size"])
def test_an_object_replaced_in_mid_read_is_refused(shard, served, web, change):
    shard.write_bytes(CONTENT * 10)
    url = f"{web}/0.tar"
    with (
        pytest.raises(UserError, match=rf"{url}: was replaced since it was listed"),
        storage.open_bytes(url) as stream,
    ):
        shard.write_bytes(change * 10)
        stream.read()


def test_an_object_that_is_not_the_listed_one_is_refused_without_etags_too(shard, served):
    with serve(served, WithoutRanges) as url:
        listed = storage.stat(f"{url}/0.tar")
        shard.write_bytes(CONTENT[:-1])
        with pytest.raises(UserError, match="was replaced since it was listed: it has 299,999 bytes and had 300,000"):
            storage.download(f"{url}/0.tar", served / "copy", expected=listed)
    assert not list(served.glob("copy*"))


def test_a_server_without_ranges_is_read_from_the_start(shard, served):
    with serve(served, WithoutRanges) as url, FaultProxy(url) as proxy:
        with storage.open_bytes(f"{proxy.url}/0.tar") as stream:
            stream.seek(200_000)
            assert stream.read(1000) == CONTENT[200_000:201_000]
            assert stream.read() == CONTENT[201_000:]
            stream.seek(5)
            assert stream.read(5) == CONTENT[5:10]
        storage.download(f"{proxy.url}/0.tar", served / "copy")
    assert (served / "copy").read_bytes() == CONTENT


@pytest.mark.parametrize("kind", ["reset", "truncated", "stall", "503"])
def test_a_server_without_ranges_may_break_off_too(shard, served, kind):
    shard.write_bytes(CONTENT)
    with serve(served, WithoutRanges) as url, FaultProxy(url, faults=2, kinds=[kind], stall=2) as proxy:
        assert storage.read_bytes(f"{proxy.url}/0.tar") == CONTENT
        assert proxy.num_faults == 2


def test_read_ahead_asks_for_every_byte_once(served, web, monkeypatch):
    monkeypatch.setenv("WISEFT_STORE_TIMEOUT", "20")
    content = random.Random(1).randbytes(20_000_000)
    (served / "0.tar").write_bytes(content)
    with FaultProxy(web) as proxy:
        with storage.open_bytes(f"{proxy.url}/0.tar") as stream:
            pieces = list(iter(lambda: stream.read(700_001), b""))
        ranges = sorted(request.range for request in proxy.requests if request.method == "GET")
    assert b"".join(pieces) == content
    assert [first for first, _ in ranges] == [0, *(last + 1 for _, last in ranges[:-1])]
    assert ranges[-1][1] == len(content) - 1
    assert len(ranges) == 5  # 1, 2, 4 and 8 MiB, and the rest


def test_a_remote_reader_seeks_as_a_file_does(served, web):
    content = random.Random(2).randbytes(5_000_000)
    (served / "0.tar").write_bytes(content)
    draws = random.Random(3)
    with storage.open_bytes(f"{web}/0.tar", start=17) as remote, (served / "0.tar").open("rb") as local:
        local.seek(17)
        for _ in range(60):
            size = draws.choice([0, 1, 512, 100_000, 2_000_000])
            assert remote.read(size) == local.read(size)
            assert remote.tell() == local.tell()
            whence = draws.randrange(3)
            offset = [draws.randrange(5_100_000), draws.randrange(0, 1000), -draws.randrange(5_000_000)][whence]
            assert remote.seek(offset, whence) == local.seek(offset, whence)


def test_an_empty_object_is_no_bytes(served, web):
    (served / "empty").touch()
    assert storage.read_bytes(f"{web}/empty") == b""
    storage.download(f"{web}/empty", served / "copy")
    assert (served / "copy").read_bytes() == b""


def test_a_download_through_faults_is_whole(served, web, monkeypatch):
    content = random.Random(4).randbytes(30_000_000)
    (served / "0.tar").write_bytes(content)
    monkeypatch.setenv("WISEFT_STORE_TRIES", "9")
    monkeypatch.setenv("WISEFT_STORE_TIMEOUT", "20")
    kinds = ["reset", "truncated", "short", "wrong_range", "503"]
    with FaultProxy(web, faults=8, kinds=kinds) as proxy:
        storage.download(f"{proxy.url}/0.tar", served / "copy")
        assert proxy.num_faults == 8
    assert (served / "copy").read_bytes() == content


def test_a_download_that_fails_leaves_nothing(shard, served, web):
    with FaultProxy(web, faults=1000, kinds=["500"]) as proxy, pytest.raises(RunError, match="gave up at byte 0"):
        storage.download(f"{proxy.url}/0.tar", served / "copy")
    assert not list(served.glob("copy*"))


def test_processes_read_from_a_store_that_their_parent_read_from(shard, web):
    url = f"{web}/0.tar"
    assert storage.read_bytes(url) == CONTENT
    assert not storage.fork_is_safe()
    with multiprocessing.get_context("forkserver").Pool(2) as pool:
        assert pool.map(storage.read_bytes, [url] * 4) == [CONTENT] * 4


def test_closing_a_reader_stops_what_is_on_its_way(shard, web, monkeypatch):
    monkeypatch.setenv("WISEFT_STORE_TRIES", "1000")
    started = time.monotonic()
    with FaultProxy(web, faults=100_000, kinds=["503"]) as proxy:
        expected = storage.StoredObject(f"{proxy.url}/0.tar", len(CONTENT), "")
        with storage.open_bytes(f"{proxy.url}/0.tar", expected=expected) as stream:
            stream.raw._request_next()
            time.sleep(0.3)
        time.sleep(0.2)
        asked = len(proxy.requests)
        time.sleep(0.8)
        assert 1 <= len(proxy.requests) <= asked + 1
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(("name", "value"), [("WISEFT_STORE_TRIES", "0"), ("WISEFT_STORE_TIMEOUT", "soon")])
def test_a_patience_that_is_no_number_is_refused(web, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"{name}={value}: must be a number above 0"):
        storage.stat(f"{web}/0.tar")
