from __future__ import annotations

import os
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from wiseft_dist.data.evaluation import EvaluationStream
from wiseft_dist.data.manifest import index_shards
from wiseft_dist.data.shards import read_shard
from wiseft_dist.data.tar import LABEL_FIELDS
from wiseft_dist.data.transforms import Preprocess, evaluation_transform
from wiseft_dist.errors import RunError

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
PREPROCESS = Preprocess(12, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.mark.parametrize("num_workers", [0, 1, 3, 30])
@pytest.mark.parametrize("held_out", [False, True])
def test_evaluation_reads_every_sample_exactly_once(manifest, num_workers, held_out):
    stream = EvaluationStream(manifest, evaluation_transform(PREPROCESS), held_out)
    keys = [key for batch in stream.batches(4, num_workers=num_workers) for key in batch.keys]
    numbers = [5 * index + place for index in range(len(manifest.shards)) for place in manifest.held_out(index)]
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
def test_a_damaged_shard_stops_evaluation_with_one_sentence(manifest, num_workers):
    Path(manifest.shards[2].url).write_bytes(b"")
    stream = EvaluationStream(manifest, evaluation_transform(PREPROCESS))
    with pytest.raises(RunError, match=r"2\.tar") as caught:
        list(stream.batches(4, num_workers=num_workers))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("world_size", "num_workers"), [(2, 0), (3, 2), (40, 0)])
def test_any_number_of_readers_shares_the_samples_without_padding(manifest, world_size, num_workers):
    stream = EvaluationStream(manifest, evaluation_transform(PREPROCESS))
    shares = []
    for rank in range(world_size):
        batches = stream.batches(4, num_workers=num_workers, rank=rank, world_size=world_size)
        shares.append([key for batch in batches for key in batch.keys])
    assert [key for share in shares for key in sorted(share)] == [f"s{number:07d}" for number in range(23)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_damaged_samples_are_left_out_and_named_up_to_the_limit(manifest, num_workers):
    url = Path(manifest.shards[0].url)
    before = url.stat()
    content = bytearray(url.read_bytes())
    for _ in range(2):
        at = content.index(b"\x89PNG")
        content[at : at + 60] = bytes(60)
    url.write_bytes(content)
    os.utime(url, ns=(before.st_atime_ns, before.st_mtime_ns))
    stream = EvaluationStream(manifest, evaluation_transform(PREPROCESS), max_bad=2)
    batches = list(stream.batches(4, num_workers=num_workers))
    assert sorted(key for batch in batches for key in batch.keys) == [f"s{number:07d}" for number in range(2, 23)]
    assert sorted(entry.key for batch in batches for entry in batch.bad) == ["s0000000", "s0000001"]
    with pytest.raises(RunError, match=r"0\.tar: sample 's000000[01]' does not decode.*2 skipped so far, 1 may be"):
        list(replace(stream, max_bad=1).batches(4, num_workers=num_workers))


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
