from __future__ import annotations

import functools
import io
import re
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wiseft_dist import storage
from wiseft_dist.config import DataConfig
from wiseft_dist.data.loader import EvaluationStream
from wiseft_dist.data.manifest import LABEL_FIELDS, index_shards
from wiseft_dist.data.pack import EncodedSample, write_split, write_vocabulary
from wiseft_dist.data.shards import read_shard
from wiseft_dist.data.transforms import Preprocess, evaluation_transform
from wiseft_dist.data.vocabulary import load_vocabulary
from wiseft_dist.errors import RunError, UserError


class WithRanges(SimpleHTTPRequestHandler):
    """The standard library's file server, taught ``Range: bytes=FIRST-LAST``."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted is None or not path.is_file():
            return super().do_GET()
        content = path.read_bytes()
        first, last = int(wanted[1]), min(int(wanted[2]), len(content) - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        self.wfile.write(content[first : last + 1])


class WithoutRanges(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def serve(folder: Path, handler: type[SimpleHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """13 samples in shards 0 to 2 under ``data/train``, with a vocabulary."""
    samples = []
    for number in range(13):
        stream = io.BytesIO()
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(stream, "png")
        samples.append(EncodedSample(stream.getvalue(), "png", number % 3))
    write_split(samples, tmp_path / "data" / "train", samples_per_shard=5)
    write_vocabulary(tmp_path / "data", classnames=["a", "b", "c"], templates=["a {c}"])
    return tmp_path / "data"


@pytest.fixture
def url(dataset: Path) -> Iterator[str]:
    yield from serve(dataset, WithRanges)


def test_a_folder_is_its_shards_in_numeric_order(tmp_path):
    for name in ("10.tar", "9.tar", "0.tar", "notes.txt"):
        (tmp_path / name).touch()
    for pattern in (str(tmp_path), f"{tmp_path}/", f"file://{tmp_path}", f"{tmp_path}/*.tar"):
        assert [Path(shard).name for shard in storage.expand_shards(pattern)] == ["0.tar", "9.tar", "10.tar"]


def test_a_brace_range_keeps_its_leading_zeros(tmp_path):
    for name in ("0008.tar", "0009.tar", "0010.tar"):
        (tmp_path / name).touch()
    shards = storage.expand_shards(f"{tmp_path}/{{0008..0010}}.tar")
    assert shards == [f"{tmp_path}/{name}.tar" for name in ("0008", "0009", "0010")]


def test_a_brace_list_of_folders_is_all_their_shards(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.tar").touch()
    assert storage.expand_shards(f"{tmp_path}/{{a,b}}") == [f"{tmp_path}/a/0.tar", f"{tmp_path}/b/0.tar"]


def test_remote_brace_ranges_are_expanded_without_asking_the_store():
    shards = storage.expand_shards("s3://bucket/in1k/{0000..0146}.tar")
    assert (len(shards), shards[0], shards[-1]) == (147, "s3://bucket/in1k/0000.tar", "s3://bucket/in1k/0146.tar")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{tmp}/{{0..1}}.tar", r"0\.tar: this shard does not exist"),
        ("{tmp}", "no shard"),
        ("{tmp}/*.tar", "no shard"),
        ("{tmp}/nowhere", "nowhere: this shard does not exist"),
        ("{tmp}/{{0..3.tar", "this brace range has no end"),
        ("s3://bucket/*.tar", "globs are not expanded on a remote store"),
    ],
)
def test_a_pattern_without_shards_is_refused(tmp_path, pattern, message):
    with pytest.raises(UserError, match=message):
        storage.expand_shards(pattern.format(tmp=tmp_path))


def test_paths_are_made_absolute_and_urls_are_left_alone(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("a/b") == storage.absolute(f"file://{tmp_path}/a/b") == f"{tmp_path}/a/b"
    for url in ("s3://bucket/a", "https://host/a", "hf-hub:org/model"):
        assert storage.absolute(url) == url


@pytest.mark.parametrize("pattern", ["{}/train", "{}/train/", "{}/train/{{0..2}}.tar"])
def test_shards_on_a_web_server_hold_the_samples_that_they_hold_on_disk(dataset, url, pattern):
    remote = index_shards(pattern.format(url), target=LABEL_FIELDS, held_out_fraction=0.3)
    local = index_shards(str(dataset / "train"), target=LABEL_FIELDS, held_out_fraction=0.3)
    assert remote.content_digest == local.content_digest
    for there, here in zip(remote.shards, local.shards, strict=True):
        assert [(s.key, s.fields) for s in read_shard(there)] == [(s.key, s.fields) for s in read_shard(here)]


def test_the_vocabulary_is_found_on_a_web_server(url):
    assert load_vocabulary(DataConfig(train=f"{url}/train")).classnames == ("a", "b", "c")


def test_decoding_processes_read_from_a_web_server_after_their_parent_did(dataset, url):
    transform = evaluation_transform(Preprocess(8, (0.5,) * 3, (0.5,) * 3))
    images = {}
    for place, num_workers in ((f"{url}/train", 2), (str(dataset / "train"), 0)):
        stream = EvaluationStream(index_shards(place, target=LABEL_FIELDS), transform)
        batches = stream.batches(1, num_workers=num_workers)
        images[place] = {batch.keys[0]: batch.images for batch in batches}
    remote, local = images.values()
    assert len(local) == 13
    assert remote.keys() == local.keys()
    assert all(torch.equal(remote[key], local[key]) for key in local)


def test_a_missing_object_is_refused_by_its_url(url):
    with pytest.raises(UserError, match=f"{url}/train/3.tar: cannot be read: .*not found"):
        index_shards(f"{url}/train/{{0..3}}.tar", target=LABEL_FIELDS)
    with pytest.raises(UserError, match=f"{url}/nothing/nshards.txt: cannot be read"):
        storage.expand_shards(f"{url}/nothing")


def test_exists_answers_for_files_and_objects(dataset, url):
    for place in (str(dataset), url):
        assert storage.exists(f"{place}/classnames.txt")
        assert not storage.exists(f"{place}/nothing.txt")


def test_an_nshards_file_that_is_no_number_is_refused(dataset, url):
    (dataset / "train" / "nshards.txt").write_text("three")
    with pytest.raises(UserError, match=r"nshards\.txt: holds 'three', not the number of shards"):
        storage.expand_shards(f"{url}/train")


def test_a_shard_that_vanishes_after_indexing_is_named(dataset, url):
    manifest = index_shards(f"{url}/train", target=LABEL_FIELDS)
    (dataset / "train" / "1.tar").unlink()
    with pytest.raises(RunError, match=f"{url}/train/1.tar"):
        list(read_shard(manifest.shards[1]))


def test_a_server_that_does_not_serve_ranges_is_refused_in_a_sentence(dataset):
    for url in serve(dataset, WithoutRanges):
        with pytest.raises(UserError, match=rf"{url}/train/\d\.tar: cannot be read: .*Range request not supported"):
            index_shards(f"{url}/train/{{0..2}}.tar", target=LABEL_FIELDS)


def test_a_remote_reader_seeks_as_a_file_does(dataset, url):
    content = (dataset / "train" / "0.tar").read_bytes()
    with storage.open_bytes(f"{url}/train/0.tar") as remote:
        assert remote.read(10) == content[:10]
        assert remote.seek(512) == remote.tell() == 512
        assert remote.read() == content[512:]
        assert remote.seek(-5, 2) == len(content) - 5
        assert remote.read(100) == content[-5:]
