from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import tarfile
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import rank_features
import torch
from rank_features import CHUNK_SAMPLES, CHUNKS, computed_alone, source_of
from tiny_finetune import CLASSNAMES, NUM_SAMPLES, write_shards
from tiny_zero_shot import write_tiny_zero_shot

from wiseft_dist.data.batch import Batch, class_label
from wiseft_dist.data.evaluation import EvaluationStream
from wiseft_dist.data.manifest import index_shards
from wiseft_dist.data.receipt import Account
from wiseft_dist.data.tar import LABEL_FIELDS
from wiseft_dist.data.transforms import evaluation_transform, normalize
from wiseft_dist.errors import RunError
from wiseft_dist.finetune.features.compute import FeatureSource
from wiseft_dist.finetune.features.stream import FeatureStream
from wiseft_dist.models.classifier import read_classifier

NOT_KILLED = 10 * NUM_SAMPLES
POSITIONS = np.arange(NUM_SAMPLES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """theta_0, shards and their manifest; a fifth is held out."""
    write_tiny_zero_shot(tmp_path / "zero_shot")
    shards = write_shards(tmp_path / "shards")
    index_shards(str(shards), target=LABEL_FIELDS, held_out_fraction=0.2).save(tmp_path / "train.json")
    return tmp_path


def start(folder: Path, *, world_size: int = 1, decodes: int = NOT_KILLED) -> list[int]:
    """Exit codes of real processes that compute the features together."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [
        subprocess.Popen([sys.executable, rank_features.__file__, *map(str, (folder, rank, world_size, port, decodes))])
        for rank in range(world_size)
    ]
    return [rank.wait(timeout=120) for rank in ranks]


def decoded(folder: Path, rank: int = 0) -> int:
    return int((folder / f"decoded_{rank}").read_text())


def chunk_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "features").rglob("*.safetensors")}


def damage_picture(shard: Path, number: int) -> None:
    """Overwrite the ``number``-th picture of a shard with zeros."""
    with tarfile.open(shard) as tar:
        offset = [member.offset_data for member in tar if member.name.endswith(".png")][number]
    content = bytearray(shard.read_bytes())
    content[offset : offset + 60] = bytes(60)
    shard.write_bytes(content)


def with_damaged(folder: Path, *places: tuple[int, int]) -> FeatureSource:
    for shard, number in places:
        damage_picture(folder / "shards" / f"{shard}.tar", number)
    index_shards(str(folder / "shards"), target=LABEL_FIELDS, held_out_fraction=0.2).save(folder / "train.json")
    return source_of(folder)


@torch.no_grad()
@pytest.mark.parametrize("workers", [0, 2])
def test_features_are_those_of_the_classifier_for_every_sample(folder: Path, workers: int) -> None:
    source = source_of(folder)
    features, labels, keys = computed_alone(source, folder / "features", workers=workers).gather(POSITIONS)
    classifier = read_classifier(folder / "zero_shot").eval()
    stream = EvaluationStream(source.manifest, evaluation_transform(source.preprocess, "fast"), target=class_label)
    for batch in stream.batches(1, num_workers=0):
        (position,) = batch.positions
        expected = classifier.features(normalize(batch.images, source.preprocess, torch.float32))[0]
        torch.testing.assert_close(features[position], expected, rtol=0, atol=1e-6)
        assert (labels[position], keys[position]) == (batch.targets[0], batch.keys[0])
    assert len(set(keys)) == NUM_SAMPLES and features.dtype == torch.float32 and labels.dtype == torch.int64


def test_features_are_gathered_in_any_order(folder: Path) -> None:
    features = computed_alone(source_of(folder), folder / "features")
    everything, labels, keys = features.gather(POSITIONS)
    chosen = np.array([39, 0, 17, 8, 7, 17])
    picked = features.gather(chosen)
    assert torch.equal(picked[0], everything[chosen]) and torch.equal(picked[1], labels[chosen])
    assert picked[2] == tuple(keys[index] for index in chosen)


def test_features_are_computed_once(folder: Path) -> None:
    before = computed_alone(source_of(folder), folder / "features").gather(POSITIONS)
    shutil.rmtree(folder / "shards")
    after = computed_alone(source_of(folder), folder / "features").gather(POSITIONS)
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1]) and before[2] == after[2]


def test_other_features_have_another_key(folder: Path) -> None:
    source = source_of(folder)
    other_model = write_tiny_zero_shot(folder / "other", seed=1)
    other_data = index_shards(str(folder / "shards" / "[0-2].tar"), target=LABEL_FIELDS)
    changes = [
        {"zero_shot": other_model},
        {"manifest": other_data},
        {"mode": "exact"},
        {"dtype": torch.bfloat16},
        {"chunk_samples": 9},
    ]
    keys = {replace(source, **change).key for change in changes}
    assert len(keys | {source.key}) == len(changes) + 1
    held_out = replace(source.manifest, held_out_fraction=0.5)
    assert replace(source, manifest=held_out).key == source.key


@pytest.mark.parametrize(
    "decodes", [CHUNK_SAMPLES + 1, *(pytest.param(each, marks=pytest.mark.matrix) for each in (3, NUM_SAMPLES - 1))]
)
def test_a_computation_that_was_killed_goes_on_with_the_chunks_that_are_missing(folder: Path, decodes: int) -> None:
    assert start(folder, decodes=decodes) == [-signal.SIGKILL]
    finished = decodes // CHUNK_SAMPLES
    before = chunk_files(folder)
    assert len(before) == finished

    assert start(folder) == [0]
    assert decoded(folder) == NUM_SAMPLES - finished * CHUNK_SAMPLES
    after = chunk_files(folder)
    assert len(after) == CHUNKS and before.items() <= after.items()
    undisturbed = computed_alone(source_of(folder), folder / "elsewhere").gather(POSITIONS)
    found = computed_alone(source_of(folder), folder / "features").gather(POSITIONS)
    torch.testing.assert_close(found[0], undisturbed[0], rtol=0, atol=1e-6)
    assert torch.equal(found[1], undisturbed[1]) and found[2] == undisturbed[2]


def test_two_ranks_share_the_work(folder: Path) -> None:
    assert start(folder, world_size=2) == [0, 0]
    assert [decoded(folder, rank) for rank in range(2)] == [3 * CHUNK_SAMPLES, 2 * CHUNK_SAMPLES]
    found = computed_alone(source_of(folder), folder / "features").gather(POSITIONS)
    alone = computed_alone(source_of(folder), folder / "elsewhere").gather(POSITIONS)
    torch.testing.assert_close(found[0], alone[0], rtol=0, atol=1e-6)
    assert found[2] == alone[2]


@pytest.mark.parametrize("kind", ["a byte", "the end", "everything"])
def test_a_damaged_chunk_is_computed_again(folder: Path, kind: str) -> None:
    computed_alone(source_of(folder), folder / "features")
    whole = chunk_files(folder)
    path = sorted((folder / "features").rglob("*.safetensors"))[2]
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes({"a byte": content, "the end": content[:-100], "everything": b""}[kind])
    assert start(folder) == [0]
    assert decoded(folder) == CHUNK_SAMPLES
    assert chunk_files(folder).keys() == whole.keys()
    computed_alone(source_of(folder), folder / "features")


def test_too_many_damaged_pictures_stop_the_computation_and_are_named(folder: Path) -> None:
    source = with_damaged(folder, (0, 4), (3, 9))
    with pytest.raises(RunError, match=r"3\.tar: sample 's0000039' does not decode.*2 skipped so far, 1 may be"):
        computed_alone(source, folder / "features", max_bad=1)
    features = computed_alone(source, folder / "features", max_bad=2)
    assert {position: entry.key for position, entry in features.bad.items()} == {4: "s0000004", 39: "s0000039"}


def test_a_folder_that_cannot_be_written_is_answered_in_a_sentence(folder: Path) -> None:
    (folder / "features").write_text("not a folder")
    with pytest.raises(RunError, match=r"features cannot be written: .*finetune\.features"):
        computed_alone(source_of(folder), folder / "features")


def feature_stream(folder: Path, *, max_bad: int = 0) -> FeatureStream:
    source = source_of(folder)
    features = computed_alone(source, folder / "features", max_bad=max_bad)
    return FeatureStream(features, source.manifest, seed=3, global_batch_size=8)


def session(stream: FeatureStream, *, first_step: int, steps: int, world_size: int = 1) -> list[Batch]:
    """The batches of all ranks."""
    ranks = [stream.batches(first_step=first_step, rank=rank, world_size=world_size) for rank in range(world_size)]
    return [batch for rank in ranks for batch in islice(rank, steps)]


def keys_by_position(batches: list[Batch]) -> dict[int, str]:
    pairs = [pair for batch in batches for pair in zip(batch.positions.tolist(), batch.keys, strict=True)]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def test_a_batch_of_features_has_labels_and_keys(folder: Path) -> None:
    stream = feature_stream(folder)
    everything, _, keys = stream.features.gather(POSITIONS)
    (batch,) = session(stream, first_step=3, steps=1)
    assert batch.images.shape == (8, 16) and batch.positions.tolist() == list(range(24, 32))
    assert torch.equal(batch.images, everything[[keys.index(key) for key in batch.keys]])
    assert batch.targets.tolist() == [int(key[1:]) % len(CLASSNAMES) for key in batch.keys]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_an_epoch_of_features_holds_every_training_sample_once_and_no_held_out_one(
    folder: Path, world_size: int
) -> None:
    stream = feature_stream(folder)
    num_training = stream.manifest.num_training
    assert 0 < num_training < NUM_SAMPLES
    keys = keys_by_position(session(stream, first_step=0, steps=num_training, world_size=world_size))  # eight epochs
    assert keys == keys_by_position(session(stream, first_step=0, steps=num_training))
    held_out = {key for batch in stream.held_out().batches(3) for key in batch.keys}
    epochs = [[keys[epoch * num_training + place] for place in range(num_training)] for epoch in range(8)]
    for epoch in epochs:
        assert set(epoch) | held_out == {f"s{number:07d}" for number in range(NUM_SAMPLES)}
        assert len(set(epoch)) == num_training and held_out.isdisjoint(epoch)
    assert len(set(map(tuple, epochs))) == 8


def test_the_world_size_may_change_in_the_middle_of_an_epoch(folder: Path) -> None:
    stream = feature_stream(folder)
    batches = session(stream, first_step=0, steps=1, world_size=2)
    batches += session(stream, first_step=1, steps=2, world_size=4)
    batches += session(stream, first_step=3, steps=5)
    assert keys_by_position(batches) == keys_by_position(session(stream, first_step=0, steps=8))


def test_another_good_sample_stands_in_for_a_damaged_one_and_the_epoch_is_accounted_for(folder: Path) -> None:
    source = with_damaged(folder, *((0, number) for number in range(10)))
    trained = [int(place) for place in source.manifest.training_samples(0)]
    stream = feature_stream(folder, max_bad=10)
    num_training = stream.manifest.num_training
    batches = session(stream, first_step=0, steps=num_training, world_size=2)  # eight epochs
    bad = {f"s{number:07d}" for number in range(10)}
    times = Counter(key for batch in batches for key in batch.keys)
    assert bad.isdisjoint(times) and sum(times.values()) == 8 * num_training

    account = Account(num_training, max_bad=10, first_position=0)
    for batch in batches:
        account.add(batch.positions, batch.bad)
        assert {entry.position for entry in batch.bad} <= set(batch.positions.tolist())
    for epoch in range(8):
        receipt = account.close(epoch, [account.share(epoch)])
        assert {entry.key for entry in receipt.bad} == {f"s{number:07d}" for number in trained}


def test_held_out_features_are_read_once_each_by_any_number_of_readers(folder: Path) -> None:
    with_damaged(folder, *((0, number) for number in range(10)))
    held_out = feature_stream(folder, max_bad=10).held_out()
    assert held_out.num_samples == source_of(folder).manifest.num_held_out > 4
    for world_size in (1, 3):
        batches = [
            batch for rank in range(world_size) for batch in held_out.batches(2, rank=rank, world_size=world_size)
        ]
        bad = [entry for batch in batches for entry in batch.bad]
        positions = [position for batch in batches for position in batch.positions.tolist()]
        assert sorted(positions + [entry.position for entry in bad]) == list(range(held_out.num_samples))
        assert {entry.key for entry in bad} == {f"s{place:07d}" for place in source_of(folder).manifest.held_out(0)}
        for batch in batches:
            assert batch.targets.tolist() == [int(key[1:]) % len(CLASSNAMES) for key in batch.keys]
            assert len(batch.images) == len(batch.keys) == len(batch)


def test_a_training_set_without_a_good_picture_is_refused(folder: Path) -> None:
    with_damaged(folder, *((shard, number) for shard in range(4) for number in range(10)))
    stream = feature_stream(folder, max_bad=NUM_SAMPLES)
    with pytest.raises(RunError, match="nor does any other training sample"):
        next(stream.batches(first_step=0, rank=0, world_size=1))
