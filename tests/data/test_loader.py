from __future__ import annotations

import tarfile
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch

from wiseft_dist.data.loader import EvaluationStream, TrainStream, class_label, sample_order
from wiseft_dist.data.manifest import LABEL_FIELDS, index_shards
from wiseft_dist.data.shards import read_shard
from wiseft_dist.data.transforms import Preprocess, evaluation_transform, training_transform
from wiseft_dist.errors import RunError

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
PREPROCESS = Preprocess(12, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture
def train(manifest):
    """Batches of 8 over 4 lanes."""
    order = sample_order(manifest, seed=1, lanes=4, block_shards=2)
    return TrainStream(manifest, order, training_transform(PREPROCESS, (0.5, 1.0)), class_label, 8)


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


@pytest.mark.parametrize("num_workers", [0, 1, 3, 30])
@pytest.mark.parametrize("held_out", [False, True])
def test_evaluation_reads_every_sample_exactly_once(manifest, num_workers, held_out):
    stream = EvaluationStream(manifest, evaluation_transform(PREPROCESS), held_out)
    keys = [key for batch in stream.batches(4, num_workers=num_workers) for key in batch.keys]
    numbers = [5 * index + place for index, shard in enumerate(manifest.shards) for place in shard.held_out]
    assert sorted(keys) == [f"s{number:07d}" for number in (numbers if held_out else range(23))]
    assert stream.num_samples == len(keys)


def test_evaluation_labels_and_pixels_belong_to_their_keys(manifest):
    stream = EvaluationStream(manifest, evaluation_transform(PREPROCESS))
    alone = {batch.keys[0]: batch.images[0] for batch in stream.batches(1, num_workers=0)}
    for batch in stream.batches(7, num_workers=2):
        assert [int(key[1:]) % 3 for key in batch.keys] == batch.targets.tolist()
        assert all(torch.equal(alone[key], image) for key, image in zip(batch.keys, batch.images, strict=True))


def test_a_key_that_occurs_in_two_shards_is_an_error(make_shards):
    folder = make_shards(5)
    (folder / "1.tar").write_bytes((folder / "0.tar").read_bytes())
    stream = EvaluationStream(index_shards(str(folder), target=LABEL_FIELDS), evaluation_transform(PREPROCESS))
    with pytest.raises(RunError, match="10 samples with 5 distinct keys"):
        list(stream.batches(4, num_workers=0))


def member_ends(shard: Path) -> list[int]:
    with tarfile.open(shard) as tar:
        return [member.offset_data + -(-member.size // 512) * 512 for member in tar]


def test_a_shard_cut_between_two_files_is_an_error_although_a_tar_stream_ends_silently_there(manifest):
    url = Path(manifest.shards[2].url)
    whole = url.read_bytes()
    stream = EvaluationStream(manifest, evaluation_transform(PREPROCESS))
    for end in member_ends(url)[:-2]:  # the last file is a caption, which evaluation does not need
        url.write_bytes(whole[:end])
        with pytest.raises(RunError, match=r"2\.tar"):
            list(stream.batches(4, num_workers=0))
    url.write_bytes(whole)
    assert sum(map(len, stream.batches(4, num_workers=0))) == 23


@pytest.mark.parametrize("end", [0, 100, 512, 700, 1024, 1500, 3333])
def test_a_shard_cut_anywhere_is_an_error_that_names_it(manifest, end):
    url = Path(manifest.shards[2].url)
    url.write_bytes(url.read_bytes()[:end])
    with pytest.raises(RunError, match=r"2\.tar"):
        list(read_shard(manifest.shards[2]))


def test_a_shard_that_grew_is_an_error(manifest, make_shards):
    larger = make_shards(6, samples_per_shard=6, name="larger") / "0.tar"
    Path(manifest.shards[1].url).write_bytes(larger.read_bytes())
    with pytest.raises(RunError, match=r"1\.tar holds 6 samples, its manifest says 5"):
        list(read_shard(manifest.shards[1]))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_damaged_shard_stops_training_and_evaluation_with_one_sentence(train, num_workers):
    Path(train.manifest.shards[2].url).write_bytes(b"")
    evaluation = EvaluationStream(train.manifest, evaluation_transform(PREPROCESS))
    train_on, evaluate = partial(take, train, 20), partial(evaluation.batches, 4)
    for batches in (train_on, evaluate):
        with pytest.raises(RunError, match=r"2\.tar") as caught:
            list(batches(num_workers=num_workers))
        assert "Traceback" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_picture_that_does_not_decode_is_named_with_its_shard(manifest):
    url = Path(manifest.shards[0].url)
    content = bytearray(url.read_bytes())
    at = content.index(b"\x89PNG")
    content[at : at + 60] = bytes(60)
    url.write_bytes(content)
    with pytest.raises(RunError, match=r"0\.tar: sample 's0000000' does not decode"):
        list(EvaluationStream(manifest, evaluation_transform(PREPROCESS)).batches(4, num_workers=0))


def test_a_part_of_a_shard_is_read_without_its_rest(manifest):
    shard = manifest.shards[0]
    assert [sample.index for sample in read_shard(shard, 1, 3)] == [1, 2]
    gone = replace(shard, url=shard.url.replace("0.tar", "gone.tar"))
    with pytest.raises(RunError, match=r"gone\.tar"):
        list(read_shard(gone))
