from __future__ import annotations

import os
import tarfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from wiseft_dist.config import AugmentConfig
from wiseft_dist.data.batch import ClassLabel, class_label
from wiseft_dist.data.evaluation import EvaluationStream
from wiseft_dist.data.stream import TrainStream, sample_order
from wiseft_dist.data.transforms import Preprocess, evaluation_transform, training_transform
from wiseft_dist.errors import RunError

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
PREPROCESS = Preprocess(12, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture
def train(manifest):
    """Batches of 8 over 4 lanes."""
    order = sample_order(manifest, seed=1, lanes=4, block_samples=3)
    augment = AugmentConfig(crop_scale=(0.5, 1.0), horizontal_flip=0.5)
    return TrainStream(manifest, order, training_transform(PREPROCESS, augment), class_label, 8)


def take(stream, num_steps, *, first_step=0, rank=0, world_size=1, num_workers=0):
    batches = stream.batches(first_step=first_step, rank=rank, world_size=world_size, num_workers=num_workers)
    return list(islice(batches, num_steps))


def assert_same(batches, others):
    assert [batch.keys for batch in batches] == [batch.keys for batch in others]
    for batch, other in zip(batches, others, strict=True):
        assert torch.equal(batch.images, other.images)
        assert torch.equal(batch.targets, other.targets)


def test_a_training_batch_is_uint8_pixels_and_int64_labels(train):
    (batch,) = take(train, 1)
    assert batch.images.shape == (8, 12, 12, 3)
    assert batch.images.dtype == torch.uint8
    assert batch.targets.dtype == torch.int64
    assert [int(key[1:]) % 3 for key in batch.keys] == batch.targets.tolist()


@pytest.mark.parametrize("num_workers", [1, 3, 9])
def test_the_number_of_workers_does_not_change_the_batches(train, num_workers):
    assert_same(take(train, 6, num_workers=num_workers), take(train, 6))


def test_resuming_gives_the_batches_that_would_have_come(train):
    undisturbed = take(train, 9)
    for first_step in range(1, 9):
        assert_same(take(train, 9 - first_step, first_step=first_step), undisturbed[first_step:])


def test_resuming_with_workers_gives_the_batches_that_would_have_come(train):
    assert_same(take(train, 4, first_step=3, num_workers=2), take(train, 7)[3:])


@pytest.mark.parametrize("world_size", [2, 4])
def test_every_world_size_sees_the_same_global_batches(train, world_size):
    shares = [take(train, 6, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step, whole in enumerate(take(train, 6)):
        parts = [share[step] for share in shares]
        for rank, part in enumerate(parts):
            assert part.keys == whole.keys[rank::world_size]
            assert torch.equal(part.images, whole.images[rank::world_size])


def test_an_epoch_of_batches_holds_every_training_sample_once_and_no_held_out_one(train):
    evaluation = EvaluationStream(train.manifest, evaluation_transform(PREPROCESS), held_out=True)
    held_out = {key for batch in evaluation.batches(4, num_workers=0) for key in batch.keys}
    num_training = train.manifest.num_training
    keys = [key for batch in take(train, num_training) for key in batch.keys]  # eight epochs
    assert held_out
    assert held_out.isdisjoint(keys)
    for epoch in range(8):
        assert len(set(keys[epoch * num_training : (epoch + 1) * num_training])) == num_training


def test_a_sample_looks_different_in_another_epoch(train):
    seen = {}
    for batch in take(train, 6):
        for key, image in zip(batch.keys, batch.images, strict=True):
            seen.setdefault(key, []).append(image)
    twice = [images for images in seen.values() if len(images) > 1]
    assert twice
    assert any(not torch.equal(images[0], images[1]) for images in twice)


def test_a_batch_splits_into_consecutive_parts(train):
    (batch,) = take(train, 1)
    parts = list(batch.split(3))
    assert [len(part) for part in parts] == [3, 3, 2]
    assert tuple(key for part in parts for key in part.keys) == batch.keys
    assert torch.equal(torch.cat([part.images for part in parts]), batch.images)


def test_an_epoch_that_three_sessions_of_different_sizes_share_holds_every_sample_once(train):
    sessions, step = [], 0
    for world_size, num_steps in ((2, 1), (4, 2), (1, 10)):
        for rank in range(world_size):
            sessions += take(train, num_steps, first_step=step, rank=rank, world_size=world_size, num_workers=rank % 2)
        step += num_steps
    keys = {int(position): key for batch in sessions for position, key in zip(batch.positions, batch.keys, strict=True)}
    num_training = train.manifest.num_training
    assert len(keys) == sum(map(len, sessions)) == 13 * 8
    assert len({keys[position] for position in range(num_training)}) == num_training


def test_every_sample_stands_at_its_position(train):
    (batch,) = take(train, 1, first_step=3)
    assert batch.positions.tolist() == list(range(24, 32))


def test_a_lane_keeps_no_more_than_a_block_in_memory(train, monkeypatch):
    """One sample is read for each that is given, once the first block was filled."""
    read = []
    read_lane = TrainStream._read_lane

    def counted(self, *place):
        for sample in read_lane(self, *place):
            read.append(sample)
            yield sample

    monkeypatch.setattr(TrainStream, "_read_lane", counted)
    for given, _ in enumerate(islice(train.lane_samples(1, 0), 30), start=1):
        assert 0 <= len(read) - given <= train.order.block_samples


def damage(url: str, key: str) -> None:
    """Overwrite the picture of a sample with zeros."""
    with tarfile.open(url) as tar:
        member = tar.getmember(f"{key}.png")
    content = bytearray(Path(url).read_bytes())
    content[member.offset_data : member.offset_data + 60] = bytes(60)
    stat = Path(url).stat()
    Path(url).write_bytes(content)
    os.utime(url, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the same file still, as far as the manifest can tell


@pytest.mark.parametrize("num_workers", [0, 2, 3])
def test_a_damaged_sample_is_named_and_another_stands_in_for_it_whoever_decodes(train, num_workers):
    undisturbed = take(train, 6)
    key = undisturbed[2].keys[3]
    shard = next(shard for shard in train.manifest.shards if f"{key}.png".encode() in Path(shard.url).read_bytes())
    damage(shard.url, key)
    batches = take(train, 6, num_workers=num_workers)
    (bad,) = batches[2].bad
    assert (bad.position, bad.key, bad.shard) == (2 * 8 + 3, key, shard.url)
    assert f"{shard.url}: sample {key!r} does not decode" in str(bad)
    assert batches[2].keys[3] == undisturbed[2].keys[7]  # the lane's next sample, four lanes on
    assert_same(take(train, 4, first_step=2, num_workers=1), batches[2:])
    for batch, before in zip(batches, undisturbed, strict=True):
        assert [now for now, was in zip(batch.keys, before.keys, strict=True) if was != key] == [
            was for was in before.keys if was != key
        ]


def test_a_label_outside_of_the_class_list_stops_with_its_sample(train):
    stream = TrainStream(train.manifest, train.order, train.transform, ClassLabel(2), 8)
    with pytest.raises(RunError, match=r"sample 's\d+' has label 2, but the class list has 2 names \(0 to 1\)"):
        take(stream, 3)


def test_training_stops_at_a_damaged_shard_in_a_sentence(train):
    Path(train.manifest.shards[2].url).write_bytes(b"")
    for num_workers in (0, 2):
        with pytest.raises(RunError, match=r"2\.tar") as caught:
            take(train, 20, num_workers=num_workers)
        assert "\n" not in str(caught.value)


def test_shares_of_a_batch_are_woven_by_position(train):
    (whole,) = take(train, 1)
    (woven,) = take(train, 1, num_workers=3)
    assert np.array_equal(whole.positions, woven.positions)
    assert torch.equal(whole.targets, woven.targets)
