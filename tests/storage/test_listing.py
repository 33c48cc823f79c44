"""Shards on disk and on a web server; those in buckets are in test_on_swift.py."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from fault_proxy import FaultProxy
from file_server import WithRanges, serve

from wiseft_dist import storage
from wiseft_dist.errors import UserError


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)


def test_a_folder_is_its_shards_in_numeric_order(tmp_path):
    make(tmp_path, "10.tar", "9.tar", "0.tar", "notes.txt")
    for pattern in (str(tmp_path), f"{tmp_path}/", f"file://{tmp_path}", f"{tmp_path}/*.tar"):
        shards = storage.list_shards(pattern)
        assert [Path(shard.url).name for shard in shards] == ["0.tar", "9.tar", "10.tar"]
        assert [shard.num_bytes for shard in shards] == [5, 5, 6]
        assert [int(shard.version) for shard in shards] == [Path(shard.url).stat().st_mtime_ns for shard in shards]
        assert storage.expand_shards(pattern) == [shard.url for shard in shards]


def test_a_brace_range_keeps_its_leading_zeros(tmp_path):
    make(tmp_path, "0008.tar", "0009.tar", "0010.tar")
    shards = storage.expand_shards(f"{tmp_path}/{{0008..0010}}.tar")
    assert shards == [f"{tmp_path}/{name}.tar" for name in ("0008", "0009", "0010")]


def test_a_brace_list_of_folders_is_all_their_shards(tmp_path):
    make(tmp_path, "a/0.tar", "b/0.tar")
    assert storage.expand_shards(f"{tmp_path}/{{a,b}}") == [f"{tmp_path}/a/0.tar", f"{tmp_path}/b/0.tar"]


def test_a_shard_named_twice_is_one_shard(tmp_path):
    make(tmp_path, "0.tar", "1.tar")
    assert len(storage.list_shards(f"{tmp_path}/{{0.tar,*.tar,1.tar}}")) == 2


def test_names_of_a_remote_brace_range_need_no_store():
    shards = storage.expand_shards("s3://bucket/in1k/{0000..0146}.tar")
    assert (len(shards), shards[0], shards[-1]) == (147, "s3://bucket/in1k/0000.tar", "s3://bucket/in1k/0146.tar")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{tmp}/{{0..1}}.tar", r"0\.tar: this shard does not exist; 2 of 2 are missing \(0\.tar, 1\.tar\)"),
        ("{tmp}", "no shard"),
        ("{tmp}/*.tar", "no shard"),
        ("{tmp}/nowhere", "nowhere: this shard does not exist"),
        ("{tmp}/{{0..3.tar", "this brace range has no end"),
        ("s3://buck*/0.tar", "the name of a bucket cannot be a glob"),
        ("http://host/*.tar", "a web server has no listing"),
    ],
)
def test_a_pattern_without_shards_is_refused(tmp_path, pattern, message):
    for attempt in (storage.expand_shards, storage.list_shards):
        with pytest.raises(UserError, match=message):
            attempt(pattern.format(tmp=tmp_path))


def test_a_folder_on_a_web_server_is_read_by_its_number_of_shards(served, web):
    make(served, "0.tar", "1.tar", "nshards.txt")
    (served / "nshards.txt").write_text("2\n")
    shards = storage.list_shards(web)
    assert [(shard.url, shard.num_bytes) for shard in shards] == [(f"{web}/0.tar", 5), (f"{web}/1.tar", 5)]
    (served / "nshards.txt").write_text("three")
    with pytest.raises(UserError, match=r"nshards\.txt: holds 'three', not the number of shards"):
        storage.list_shards(web)
    with pytest.raises(UserError, match=rf"{web}/nothing/nshards\.txt: cannot be read"):
        storage.expand_shards(f"{web}/nothing")


def test_a_web_server_is_asked_for_many_shards_at_a_time(served, web):
    make(served, *(f"{number}.tar" for number in range(60)))
    with FaultProxy(web, faults=5, kinds=["503"], methods=["HEAD"]) as proxy:
        assert len(storage.list_shards(f"{proxy.url}/{{0..59}}.tar")) == 60
        assert {request.method for request in proxy.requests} == {"HEAD"}
    with pytest.raises(UserError, match=r"/60\.tar: this shard does not exist; 40 of 100 are missing \(60\.tar, 61"):
        storage.list_shards(f"{web}/{{0..99}}.tar")


def test_a_hundred_thousand_names_take_no_minutes():
    started = time.monotonic()
    assert len(storage.expand_shards("s3://bucket/{000000..099999}.tar")) == 100_000
    assert time.monotonic() - started < 120


def test_named_shards_of_a_bucket_that_may_not_be_listed_are_asked_for_one_by_one(served, monkeypatch):
    make(served, "bucket/0.tar", "bucket/1.tar")

    class Unlisted(WithRanges):
        def do_GET(self) -> None:
            if "list-type" in self.path:
                return self.send_error(403)
            return super().do_GET()

    with serve(served, Unlisted) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
        assert [shard.num_bytes for shard in storage.list_shards("s3://bucket/{0..1}.tar")] == [12, 12]
        with pytest.raises(UserError, match="access denied"):
            storage.list_shards("s3://bucket/*.tar")
