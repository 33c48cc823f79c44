"""The shard cache between real processes, on real files and a real web server that counts what it sends."""

from __future__ import annotations

import json
import logging
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from file_server import WithRanges, serve
from waiting import wait_until

from wiseft_dist import storage
from wiseft_dist.config import DataConfig
from wiseft_dist.data.cache import ShardCache, shard_cache
from wiseft_dist.errors import UserError
from wiseft_dist.storage import StoredObject

SIZE = 100_000
ROOMY = 10 * SIZE
PRELUDE = """
import fcntl, json, logging, os, resource, sys, time
from pathlib import Path
from wiseft_dist.data.cache import ShardCache
from wiseft_dist.storage import StoredObject
logging.basicConfig(format="%(message)s")
folder, limit, *shard = json.loads(sys.argv[1])
cache, stored = ShardCache(Path(folder), limit), StoredObject(*shard)
"""


class Counted(WithRanges):
    """A file server that writes down the bytes it was asked for, and can send them slowly."""

    asked: list[str]
    pause = 0.0

    def do_GET(self) -> None:
        self.asked.append(f"{self.path} {self.headers.get('Range', 'all')}")
        time.sleep(self.pause)
        super().do_GET()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(tmp_path / "cache", ROOMY)


def make_shard(source: Path, name: str = "0.tar", size: int = SIZE) -> StoredObject:
    (source / name).write_bytes(os.urandom(size))
    return stat(source / name)


def stat(url: object) -> StoredObject:
    found = storage.stat(str(url))
    assert found is not None
    return found


@contextmanager
def counting(source: Path, pause: float = 0.0) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    with serve(source, type("Server", (Counted,), {"asked": asked, "pause": pause})) as url:
        yield url, asked


def process(cache: ShardCache, stored: StoredObject, program: str) -> subprocess.Popen[str]:
    arguments = json.dumps([str(cache.folder), cache.limit_bytes, stored.url, stored.num_bytes, stored.version])
    command = [sys.executable, "-c", PRELUDE + program, arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def read(cache: ShardCache, stored: StoredObject) -> bytes:
    with cache.open(stored) as file:
        return file.read()


def files(cache: ShardCache) -> set[str]:
    """What lies in the cache's folder, without the one lock that stays."""
    return {path.name for path in cache.folder.iterdir()} - {".lock"}


READ = "with cache.open(stored) as file: print(len(file.read()))"


def test_processes_that_want_a_shard_at_once_fetch_it_once(source: Path, cache: ShardCache):
    make_shard(source)
    with counting(source, pause=0.3) as (url, asked):
        stored = stat(f"{url}/0.tar")
        together = "print(flush=True); sys.stdin.readline()\n" + READ
        readers = [process(cache, stored, together) for _ in range(8)]
        for reader in readers:
            assert reader.stdout is not None
            reader.stdout.readline()
        for reader in readers:
            assert reader.stdin is not None
            reader.stdin.close()
        for reader in readers:
            assert (reader.wait(timeout=60), reader.stdout.read(), reader.stderr.read()) == (0, f"{SIZE}\n", "")
        assert len(asked) == 1
    assert files(cache) == {cache.path(stored).name}
    assert cache.path(stored).read_bytes() == (source / "0.tar").read_bytes()


def test_threads_that_want_a_shard_at_once_fetch_it_once(source: Path, cache: ShardCache):
    make_shard(source)
    with counting(source, pause=0.2) as (url, asked):
        stored = stat(f"{url}/0.tar")
        got: list[bytes] = []
        threads = [threading.Thread(target=lambda: got.append(read(cache, stored))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert got == [(source / "0.tar").read_bytes()] * 8
        assert len(asked) == 1


def test_a_process_killed_while_it_fetches_leaves_nothing_that_is_taken_for_a_shard(source: Path, cache: ShardCache):
    make_shard(source)
    with counting(source, pause=3) as (url, asked):
        stored = stat(f"{url}/0.tar")
        victim = process(cache, stored, READ)
        wait_until(lambda: asked and any(".partial" in name for name in files(cache)), every=0.01)
        victim.kill()
        victim.communicate()
        assert not cache.path(stored).exists()
        assert any(".partial" in name for name in files(cache))
        Path(cache.folder / f"{cache.path(stored).name}.partial").write_bytes(os.urandom(SIZE))
        began = time.monotonic()
        assert read(cache, stored) == (source / "0.tar").read_bytes()
        assert time.monotonic() - began > 2  # it was fetched again
    assert files(cache) == {cache.path(stored).name}


def test_what_a_killed_process_left_is_cleared_when_another_shard_is_fetched(source: Path, cache: ShardCache):
    first, second = make_shard(source, "0.tar"), make_shard(source, "1.tar")
    left = cache.path(first)
    cache.folder.mkdir()
    for suffix in (".lock", ".partial", ".partial.7.partial"):
        left.with_name(left.name + suffix).write_text(str(ROOMY))
    assert read(cache, second)
    assert files(cache) == {cache.path(second).name}


def test_the_shards_unused_for_longest_are_thrown_out(source: Path, tmp_path: Path):
    cache = ShardCache(tmp_path / "cache", 3 * SIZE)
    shards = [make_shard(source, f"{number}.tar") for number in range(5)]
    for age, shard in zip((30, 20, 10), shards[:3], strict=True):
        read(cache, shard)
        os.utime(cache.path(shard), (time.time() - age,) * 2)
    read(cache, shards[0])
    read(cache, shards[3])
    assert files(cache) == {cache.path(shards[number]).name for number in (0, 2, 3)}
    read(cache, make_shard(source, "large.tar", 2 * SIZE))
    assert cache.path(shards[2]).exists() is False
    assert sum(path.stat().st_size for path in cache.folder.iterdir()) <= 3 * SIZE


def test_other_peoples_files_in_the_folder_stay(source: Path, tmp_path: Path):
    cache = ShardCache(tmp_path / "cache", SIZE)
    cache.folder.mkdir()
    (cache.folder / "thesis.tar").write_bytes(b"0" * SIZE)
    for name in ("0.tar", "1.tar"):
        last = make_shard(source, name)
        read(cache, last)
    assert files(cache) == {"thesis.tar", cache.path(last).name}


def test_a_shard_stays_readable_when_it_is_thrown_out_in_mid_read(source: Path, tmp_path: Path):
    cache = ShardCache(tmp_path / "cache", SIZE)
    first, second = make_shard(source, "0.tar"), make_shard(source, "1.tar")
    with cache.open(first) as file:
        start = file.read(10)
        read(cache, second)
        assert not cache.path(first).exists()
        assert start + file.read() == (source / "0.tar").read_bytes()


def test_shards_that_others_are_fetching_count_towards_the_limit(source: Path, tmp_path: Path, caplog):
    cache = ShardCache(tmp_path / "cache", SIZE + SIZE // 2)
    make_shard(source)
    second = make_shard(source, "1.tar")
    with counting(source, pause=2) as (url, asked):
        fetching = process(cache, stat(f"{url}/0.tar"), READ)
        wait_until(lambda: asked, every=0.01)
        assert read(cache, second) == (source / "1.tar").read_bytes()
        assert not cache.path(second).exists()
        assert "no room" in caplog.text
        fetching.communicate(timeout=60)
    assert read(cache, second) == (source / "1.tar").read_bytes()
    assert cache.path(second).exists()


def test_a_shard_larger_than_the_cache_is_read_from_its_source_with_one_warning(source: Path, tmp_path: Path, caplog):
    cache = ShardCache(tmp_path / "cache", SIZE - 1)
    stored = make_shard(source)
    for _ in range(3):
        with cache.open(stored) as file:
            file.seek(SIZE // 2)
            assert file.read() == (source / "0.tar").read_bytes()[SIZE // 2 :]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "no room" in record.message
    assert stored.url in record.message
    assert "data.cache_gb" in record.message


def test_a_disk_that_takes_no_more_does_not_stop_the_reading(source: Path, cache: ShardCache):
    make_shard(source)
    limited = "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n" + READ + "\n" + READ
    with counting(source) as (url, _):
        stored = stat(f"{url}/0.tar")
        out, err = process(cache, stored, limited).communicate(timeout=60)
    assert out.split() == [str(SIZE)] * 2, err
    assert err.count("\n") == 1
    assert f"data.cache {cache.folder}: File too large. Shards are read from their source" in err
    assert files(cache) == set()


def test_a_folder_that_cannot_be_made_does_not_stop_the_reading(source: Path, tmp_path: Path, caplog):
    (tmp_path / "file").touch()
    stored = make_shard(source)
    cache = ShardCache(tmp_path / "file" / "cache", ROOMY)
    for _ in range(2):
        assert read(cache, stored) == (source / "0.tar").read_bytes()
    assert [record.message.split(": ")[1][:15] for record in caplog.records] == ["Not a directory"]


def test_processes_that_throw_out_each_others_shards_all_read_the_right_bytes(source: Path, tmp_path: Path):
    cache = ShardCache(tmp_path / "cache", 2 * SIZE)
    shards = [make_shard(source, f"{number}.tar") for number in range(5)]
    program = f"""
import random
from wiseft_dist import storage
shards = {[shard.url for shard in shards]}
right = {{url: Path(url).read_bytes() for url in shards}}
for _ in range(200):
    url = random.choice(shards)
    with cache.open(storage.stat(url)) as file:
        assert file.read() == right[url], url
"""
    readers = [process(cache, shards[0], program) for _ in range(4)]
    for reader in readers:
        _, err = reader.communicate(timeout=60)
        assert reader.returncode == 0, err
        assert all("no room" in line for line in err.splitlines()), err  # while the others fetch into it
    assert files(cache) <= {cache.path(shard).name for shard in shards}
    assert 0 < len(files(cache)) <= 2


@pytest.mark.parametrize("change", [lambda path: path.unlink(), lambda path: os.truncate(path, 10)])
def test_a_file_that_vanished_or_was_cut_is_fetched_again(source: Path, cache: ShardCache, change):
    stored = make_shard(source)
    read(cache, stored)
    change(cache.path(stored))
    assert read(cache, stored) == (source / "0.tar").read_bytes()
    assert cache.path(stored).stat().st_size == SIZE


def test_a_cached_shard_needs_its_source_no_more_and_a_new_version_is_another_shard(source: Path, cache: ShardCache):
    stored = make_shard(source)
    before = read(cache, stored)
    (source / "0.tar").unlink()
    assert read(cache, stored) == before
    changed = make_shard(source)
    assert read(cache, changed) == (source / "0.tar").read_bytes() != before
    assert len(files(cache)) == 2


def test_a_shard_that_is_not_there_or_not_the_indexed_one_is_refused(source: Path, cache: ShardCache):
    stored = make_shard(source)
    for wrong in (replace(stored, num_bytes=SIZE + 1), replace(stored, url=f"{source}/7.tar")):
        with pytest.raises(UserError, match=wrong.url), cache.open(wrong):
            pass
    assert files(cache) == set()


def test_a_shard_fetched_ahead_is_there_when_it_is_opened(source: Path, cache: ShardCache):
    make_shard(source)
    with counting(source) as (url, asked):
        stored = stat(f"{url}/0.tar")
        cache.prefetch(replace(stored, url=f"{url}/missing.tar"))
        cache.prefetch(stored)
        wait_until(cache.path(stored).exists, every=0.01)
        asked.clear()
        assert read(cache, stored) == (source / "0.tar").read_bytes()
        assert asked == []
        with pytest.raises(UserError, match=r"missing\.tar"):
            read(cache, replace(stored, url=f"{url}/missing.tar"))


def test_a_cache_that_has_fetched_ahead_goes_to_other_processes(source: Path, cache: ShardCache):
    stored, other = make_shard(source), make_shard(source, "1.tar")
    cache.prefetch(stored)
    wait_until(cache.path(stored).exists, every=0.01)
    copy = pickle.loads(pickle.dumps(cache))
    assert copy == cache
    assert read(copy, stored) == (source / "0.tar").read_bytes()
    child = os.fork()
    if child == 0:  # the thread stayed with the parent: the child starts its own
        cache.prefetch(other)
        deadline = time.monotonic() + 10
        while not cache.path(other).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        os._exit(0 if cache.path(other).exists() else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_lock_dies_with_its_process_though_its_forked_child_lives(source: Path, cache: ShardCache):
    stored = make_shard(source)
    program = """
from wiseft_dist.data.locks import locked
Path(folder).mkdir()
with locked(cache.path(stored).with_name(cache.path(stored).name + ".lock")):
    child = os.fork()
    if child == 0:
        os.close(1), os.close(2)
        time.sleep(600)
        os._exit(0)
    print(child, flush=True)
    time.sleep(600)
"""
    holder = process(cache, stored, program)
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        holder.kill()
        holder.wait()
        began = time.monotonic()
        assert read(cache, stored)
        assert time.monotonic() - began < 300
    finally:
        os.kill(child, 9)


def test_the_settings_say_where_and_how_large(tmp_path: Path):
    assert shard_cache(DataConfig(train="t")) is None
    assert shard_cache(DataConfig(train="t", cache=str(tmp_path), cache_gb=0.5)) == ShardCache(tmp_path, 500_000_000)
