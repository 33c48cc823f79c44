"""Whole epochs read through a store that breaks half of its answers: not a sample lost, doubled or changed."""

from __future__ import annotations

import io
import itertools
import multiprocessing.forkserver
import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import swift_store
import torch
from fault_proxy import KINDS, FaultProxy
from file_server import serve
from PIL import Image

from wiseft_dist import storage
from wiseft_dist.config import AugmentConfig
from wiseft_dist.data.batch import Batch, class_label
from wiseft_dist.data.evaluation import EvaluationStream
from wiseft_dist.data.manifest import Manifest, index_shards
from wiseft_dist.data.pack import EncodedSample, write_split
from wiseft_dist.data.receipt import Account
from wiseft_dist.data.stream import TrainStream, sample_order
from wiseft_dist.data.tar import LABEL_FIELDS
from wiseft_dist.data.transforms import Preprocess, evaluation_transform, training_transform
from wiseft_dist.errors import RunError

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
PREPROCESS = Preprocess(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
BATCH, LANES, BLOCK = 32, 16, 16
MOST_EPOCHS = 8
FOR_EVER = 10**9


@dataclass(frozen=True)
class Copies:
    """The same shards twice: as local files, and behind a proxy that is well-behaved until `faults_left` is set."""

    local: str
    remote: str
    proxy: FaultProxy


@pytest.fixture(scope="module")
def made_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """29 MB of noise in 8 shards."""
    folder = tmp_path_factory.mktemp("made") / "shards"
    samples = (EncodedSample(noise(i), "png", i % 3, f"picture {i}") for i in range(240))
    write_split(samples, folder, samples_per_shard=30)
    return folder


def noise(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A silence of half a second is a stall, in decoding processes too (their server keeps its environment)."""
    monkeypatch.setenv("WISEFT_STORE_TIMEOUT", "0.5")
    monkeypatch.setenv("WISEFT_STORE_TRIES", "12")
    multiprocessing.forkserver._forkserver._stop()
    yield
    multiprocessing.forkserver._forkserver._stop()


@pytest.fixture(params=["web server"])
def store(request, made_shards, short_patience, monkeypatch) -> Iterator[Copies]:
    local = made_shards
    if request.param == "Swift" and "WISEFT_TEST_DATA" in os.environ:
        local = Path(os.environ["WISEFT_TEST_DATA"], "data", "pacs", "photo", "train")
    with ExitStack() as stack:
        if request.param == "web server":
            proxy = stack.enter_context(faulty(stack.enter_context(serve(local))))
            yield Copies(str(local), proxy.url, proxy)
            return
        swift = request.getfixturevalue("swift")
        for name, value in swift_store.environment(swift.endpoint).items():
            monkeypatch.setenv(name, value)
        remote = "s3://bucket/faulty"
        if not storage.exists(f"{remote}/nshards.txt"):
            storage.upload_folder(local, remote, last="nshards.txt")
        proxy = stack.enter_context(faulty(swift.endpoint))
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield Copies(str(local), remote, proxy)


def faulty(upstream: str) -> FaultProxy:
    return FaultProxy(upstream, probability=0.5, seed=3, stall=1, methods=("GET", "HEAD"))


def index(pattern: str) -> Manifest:
    return index_shards(pattern, target=LABEL_FIELDS, trust_counts=False)


def train_stream(pattern: str, *, lanes: int = LANES) -> TrainStream:
    manifest = index(pattern)
    order = sample_order(manifest, seed=1, lanes=lanes, block_samples=BLOCK)
    augment = AugmentConfig(crop_scale=(0.5, 1.0), horizontal_flip=0.5)
    return TrainStream(manifest, order, training_transform(PREPROCESS, augment), class_label, BATCH)


def epochs(stream: TrainStream, num_workers: int) -> Iterator[list[Batch]]:
    """Epoch after epoch, cut at its exact end; each has the receipt of a whole one."""
    num_samples = stream.manifest.num_training
    account = Account(num_samples, max_bad=0, first_position=0)
    current: list[Batch] = []
    batches = stream.batches(first_step=0, rank=0, world_size=1, num_workers=num_workers)
    for batch in batches:
        account.add(batch.positions, batch.bad)
        epoch = int(batch.positions[0]) // num_samples
        is_now = batch.positions // num_samples == epoch
        current.append(rows(batch, is_now))
        if (int(batch.positions[-1]) + 1) // num_samples > epoch:
            assert str(account.close(epoch, [account.share(epoch)])).endswith(f"{num_samples} of {num_samples} seen")
            yield current
            current = [] if is_now.all() else [rows(batch, ~is_now)]


def rows(batch: Batch, chosen: np.ndarray) -> Batch:
    keys = tuple(itertools.compress(batch.keys, chosen))
    picked = torch.from_numpy(chosen)
    return Batch(batch.images[picked], batch.targets[picked], keys, batch.positions[chosen], batch.bad)


def assert_same(batches: list[Batch], others: list[Batch]) -> None:
    assert [batch.keys for batch in batches] == [batch.keys for batch in others]
    for batch, other in zip(batches, others, strict=True):
        assert np.array_equal(batch.positions, other.positions)
        assert torch.equal(batch.images, other.images)
        assert torch.equal(batch.targets, other.targets)


@pytest.mark.parametrize(
    ("store", "num_faults"),
    [pytest.param("web server", 40, marks=pytest.mark.matrix), pytest.param("Swift", 200, marks=pytest.mark.swift)],
    indirect=["store"],
)
def test_hundreds_of_faults_neither_lose_nor_double_nor_change_a_training_sample(store, num_faults):
    """At least one epoch decoded by the reading process and one by two others, then more until there were enough."""
    local, remote = train_stream(store.local), train_stream(store.remote)
    store.proxy.faults_left = FOR_EVER
    for num_workers, wanted in ((0, num_faults // 2), (2, num_faults)):
        pairs = zip(epochs(remote, num_workers), epochs(local, 0), strict=True)
        for read, expected in islice(pairs, MOST_EPOCHS):
            assert_same(read, expected)
            keys = [key for batch in read for key in batch.keys]
            assert len(keys) == len(set(keys)) == local.manifest.num_training
            if store.proxy.num_faults >= wanted:
                break
    assert store.proxy.num_faults >= num_faults
    assert num_faults < 100 or set(store.proxy.count) == set(KINDS)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_through_faults_sees_every_sample_once(store, num_workers):
    local, remote = (
        EvaluationStream(index(pattern), evaluation_transform(PREPROCESS)) for pattern in (store.local, store.remote)
    )
    store.proxy.faults_left = FOR_EVER
    read = sorted(remote.batches(BATCH, num_workers=num_workers), key=lambda batch: int(batch.positions[0]))
    expected = list(local.batches(BATCH, num_workers=0))
    assert store.proxy.num_faults > 0
    assert [key for batch in read for key in batch.keys] == [key for batch in expected for key in batch.keys]
    assert torch.equal(torch.cat([batch.images for batch in read]), torch.cat([batch.images for batch in expected]))
    assert torch.equal(torch.cat([batch.targets for batch in read]), torch.cat([batch.targets for batch in expected]))


def test_a_manifest_made_through_faults_is_the_one_of_the_files(store):
    store.proxy.faults_left = FOR_EVER
    remote, local = index(store.remote), index(store.local)
    assert store.proxy.num_faults > 0
    assert remote.content_digest == local.content_digest
    for there, here in zip(remote.shards, local.shards, strict=True):
        assert there.url == store.remote + here.url.removeprefix(store.local)
        assert (there.num_samples, there.num_bytes, there.marks) == (here.num_samples, here.num_bytes, here.marks)
        assert there.max_label == here.max_label


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_store_that_dies_in_mid_epoch_ends_training_with_a_sentence(store, num_workers, monkeypatch):
    monkeypatch.setenv("WISEFT_STORE_TRIES", "3")
    stream = train_stream(store.remote, lanes=2)
    batches = stream.batches(first_step=0, rank=0, world_size=1, num_workers=num_workers)
    num_read = len(next(batches))
    store.proxy._kinds, store.proxy._probability, store.proxy.faults_left = ("503",), 1.0, FOR_EVER
    died = time.monotonic()
    with pytest.raises(RunError) as caught:
        for batch in batches:
            num_read += len(batch)
    assert num_read < stream.manifest.num_training
    assert time.monotonic() - died < 200  # its own patience is of minutes
    sentence = (
        rf"{re.escape(store.remote)}/\d+\.tar: gave up at byte [\d,]+ after 3 tries: the store answered 503[^\n]*"
    )
    assert re.fullmatch(sentence, str(caught.value))
