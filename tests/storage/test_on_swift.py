"""Reading, listing and writing on a real S3 store: OpenStack Swift."""

from __future__ import annotations

import concurrent.futures
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import swift_store
from fault_proxy import FaultProxy
from swift_store import SwiftStore

from wiseft_dist import storage
from wiseft_dist.errors import RunError, UserError

pytestmark = pytest.mark.swift
NAMES = ("a/0.tar", "a/9.tar", "a/10.tar", "a/notes.txt", "a/deeper/0.tar", "b/0.tar", "b/1.tar")


@pytest.fixture
def bucket(swift: SwiftStore, monkeypatch: pytest.MonkeyPatch) -> str:
    """The bucket's URL, with the environment that reaches it."""
    use(monkeypatch, swift.endpoint)
    monkeypatch.setenv("WISEFT_STORE_TIMEOUT", "5")
    return "s3://bucket"


@pytest.fixture
def filled(bucket: str) -> str:
    for name in NAMES:
        storage.write_text(f"{bucket}/listing/{name}", name)
    return f"{bucket}/listing"


@pytest.fixture
def shard(bucket: str) -> Iterator[tuple[str, bytes]]:
    """An object of 24 MB, uploaded in parts, and its bytes."""
    content = random.Random(0).randbytes(24_000_000)
    storage.write_bytes(f"{bucket}/large/0.tar", content)
    yield f"{bucket}/large/0.tar", content


def use(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    for name, value in swift_store.environment(endpoint).items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a", ["a/0.tar", "a/9.tar", "a/10.tar"]),
        ("a/", ["a/0.tar", "a/9.tar", "a/10.tar"]),
        ("a/*.tar", ["a/0.tar", "a/9.tar", "a/10.tar"]),
        ("a/?.tar", ["a/0.tar", "a/9.tar"]),
        ("?/*.tar", ["a/0.tar", "a/9.tar", "a/10.tar", "b/0.tar", "b/1.tar"]),
        ("{a,b}", ["a/0.tar", "a/9.tar", "a/10.tar", "b/0.tar", "b/1.tar"]),
        ("{a,b}/0.tar", ["a/0.tar", "b/0.tar"]),
        ("a/{9..10}.tar", ["a/9.tar", "a/10.tar"]),
    ],
)
def test_folders_globs_and_ranges_are_found_with_their_sizes(filled, pattern, names):
    shards = storage.list_shards(f"{filled}/{pattern}")
    assert [shard.url for shard in shards] == [f"{filled}/{name}" for name in names]
    assert [shard.num_bytes for shard in shards] == [len(name) for name in names]
    assert shards == [storage.stat(shard.url) for shard in shards]
    assert storage.expand_shards(f"{filled}/{pattern}") == [shard.url for shard in shards]


def test_a_listing_is_one_request_however_many_shards_are_named(filled, swift, monkeypatch):
    with FaultProxy(swift.endpoint) as proxy:
        use(monkeypatch, proxy.url)
        assert len(storage.list_shards(f"{filled}/a/{{9..10}}.tar")) == 2
        assert [request.method for request in proxy.requests] == ["GET"]


def test_a_listing_of_three_pages_is_complete(bucket):
    assert swift_store.LISTING_PAGE == 50
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: storage.write_bytes(f"{bucket}/pages/{n}.tar", b""), range(130)))
    shards = storage.list_shards(f"{bucket}/pages")
    assert [shard.url for shard in shards] == [f"{bucket}/pages/{n}.tar" for n in range(130)]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("a/{0..2}.tar", r"a/1\.tar: this shard does not exist; 2 of 3 are missing \(1\.tar, 2\.tar\)"),
        ("a/{0..9}.tar", r"8 of 10 are missing \(1\.tar, 2\.tar, 3\.tar, \.\.\.\)"),
        ("a/7.tar", r"a/7\.tar: this shard does not exist\.$"),
        ("nothing", "no shard"),
        ("a/x*.tar", "no shard"),
    ],
)
def test_shards_that_are_not_there_are_counted_and_named(filled, pattern, message):
    with pytest.raises(UserError, match=message):
        storage.list_shards(f"{filled}/{pattern}")


def test_a_bucket_that_is_not_there_is_refused(bucket):
    with pytest.raises(UserError, match=r"s3://nowhere/a: cannot be read: the store answered 404 Not Found, NoSuchBuc"):
        storage.list_shards("s3://nowhere/a")


def test_wrong_credentials_are_a_sentence_without_the_secret(filled, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    for attempt in (storage.list_shards, storage.read_bytes, storage.exists, lambda url: storage.write_bytes(url, b"")):
        with pytest.raises(UserError, match="access denied; check the credentials") as caught:
            attempt(f"{filled}/a/0.tar")
        assert f"{filled}/a" in str(caught.value)
        for secret in ("wrong-secret", "test:tester", "AWS4", "\n"):
            assert secret not in str(caught.value)


def test_a_profile_opens_the_store(filled, monkeypatch, swift, tmp_path):
    for name in swift.environment:
        monkeypatch.delenv(name)
    (tmp_path / "credentials").write_text("[tests]\naws_access_key_id=test:tester\naws_secret_access_key=testing\n")
    (tmp_path / "config").write_text(f"[profile tests]\nregion=us-east-1\nendpoint_url={swift.endpoint}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "tests")
    assert storage.read_text(f"{filled}/a/0.tar") == "a/0.tar"
    monkeypatch.setenv("AWS_PROFILE", "others")
    with pytest.raises(UserError, match=r"AWS_PROFILE=others: neither .* has such a profile"):
        storage.stat(f"{filled}/a/0.tar")


def test_a_large_object_comes_back_byte_for_byte(shard, tmp_path):
    url, content = shard
    listed = storage.list_shards(url)[0]
    assert listed == storage.stat(url)
    assert listed.version.endswith("-3")  # Amazon's mark of an upload in three parts
    assert storage.read_bytes(url) == content
    storage.download(url, tmp_path / "0.tar", expected=listed)
    assert (tmp_path / "0.tar").read_bytes() == content


def test_an_object_of_a_store_that_is_replaced_in_mid_read_is_refused(shard):
    url, content = shard
    with pytest.raises(UserError, match=f"{url}: was replaced since it was listed"), storage.open_bytes(url) as stream:
        stream.read(100)
        storage.write_bytes(url, content[::-1])
        stream.read()


def test_reading_goes_on_when_a_storage_server_is_killed_and_comes_back(shard, swift, monkeypatch):
    url, content = shard
    monkeypatch.setenv("WISEFT_STORE_TRIES", "12")
    with FaultProxy(swift.endpoint) as proxy:
        use(monkeypatch, proxy.url)
        with storage.open_bytes(url) as stream:
            begin = stream.read(100_000)
            swift.kill_server("object")
            revival = threading.Timer(1.0, swift.start_server, ["object"])
            revival.start()
            rest = stream.read()
        revival.join()
        assert {request.status for request in proxy.requests} >= {206, 503}
    assert begin + rest == content


def test_a_store_that_is_down_for_good_is_named_with_byte_and_tries(shard, swift):
    url, content = shard
    listed = storage.stat(url)
    swift.kill_server("object")
    try:
        with (
            pytest.raises(RunError, match=f"{url}: gave up at byte 5,000,000 after 3 tries: the store answered 503"),
            storage.open_bytes(url, start=5_000_000, expected=listed) as stream,
        ):
            stream.read()
    finally:
        swift.start_server("object")
    with storage.open_bytes(url, start=5_000_000, expected=listed) as stream:
        assert stream.read() == content[5_000_000:]


def test_faults_of_every_kind_between_us_and_the_store_change_no_byte(shard, swift, monkeypatch):
    url, content = shard
    monkeypatch.setenv("WISEFT_STORE_TRIES", "10")
    monkeypatch.setenv("WISEFT_STORE_TIMEOUT", "0.5")
    with FaultProxy(swift.endpoint, faults=15, probability=0.7, seed=2, stall=1) as proxy:
        use(monkeypatch, proxy.url)
        assert storage.read_bytes(url) == content
        assert proxy.num_faults >= 5


def test_a_folder_goes_up_whole_and_its_last_file_last(bucket, swift, monkeypatch, tmp_path):
    contents = {
        "model.bin": random.Random(5).randbytes(12_000_000),
        "inner/a.txt": b"a",
        "b.txt": b"",
        "done.json": b"{}",
    }
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with FaultProxy(swift.endpoint, faults=4, kinds=["503"], methods=["PUT", "POST", "HEAD"]) as proxy:
        use(monkeypatch, proxy.url)
        monkeypatch.setenv("WISEFT_STORE_TRIES", "6")
        storage.upload_folder(tmp_path, f"{bucket}/models/x", last="done.json")
        puts = [request.path for request in proxy.requests if request.method == "PUT" and request.status == 200]
    assert puts[-1].endswith("/models/x/done.json")
    assert {name: storage.read_bytes(f"{bucket}/models/x/{name}") for name in contents} == contents


def test_an_upload_that_a_store_refuses_names_the_url(bucket, tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(UserError, match=r"s3://nowhere/x/a: cannot be written: not found .*NoSuchBucket"):
        storage.upload_folder(Path(tmp_path), "s3://nowhere/x", last="a")
