from __future__ import annotations

import json
import os
import random
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from wiseft_dist.data.manifest import Manifest, Shard, index_shards
from wiseft_dist.data.shards import read_shard
from wiseft_dist.data.tar import CAPTION_FIELDS, LABEL_FIELDS, members, split_name
from wiseft_dist.errors import UserError


def index(path: Path, **settings) -> Manifest:
    return index_shards(str(path), **{"target": LABEL_FIELDS, **settings})


def refused(path: Path, *parts: str, target=LABEL_FIELDS) -> None:
    with pytest.raises(UserError) as caught:
        index(path, target=target)
    for part in parts:
        assert part in str(caught.value)


def test_a_manifest_counts_samples_and_finds_the_largest_label(make_shards):
    manifest = index(make_shards(23))
    assert [shard.num_samples for shard in manifest.shards] == [5, 5, 5, 5, 3]
    assert (manifest.num_samples, manifest.num_held_out, manifest.num_training) == (23, 0, 23)
    assert manifest.max_label == 2


def test_shards_come_in_numeric_order(make_shards):
    manifest = index(make_shards(12, samples_per_shard=1))
    assert [Path(shard.url).name for shard in manifest.shards] == [f"{i}.tar" for i in range(12)]


def test_a_manifest_read_back_is_the_same(manifest, tmp_path):
    manifest.save(tmp_path / "manifest.json")
    assert Manifest.load(tmp_path / "manifest.json") == manifest
    assert Manifest.load(tmp_path / "manifest.json").content_digest == manifest.content_digest


def test_training_samples_are_those_not_held_out(manifest):
    for number, shard in enumerate(manifest.shards):
        held_out, trained = manifest.held_out(number), manifest.training_samples(number)
        assert sorted([*held_out, *trained]) == list(range(shard.num_samples))
        assert (len(held_out), len(trained)) == (manifest.held_out_counts[number], manifest.training_counts[number])
        assert trained.dtype == held_out.dtype == np.int64
    assert 0 < manifest.num_held_out == manifest.held_out_counts.sum()
    assert manifest.num_training == manifest.training_counts.sum() == 23 - manifest.num_held_out


def test_the_same_shards_at_another_place_have_the_same_held_out_samples(make_shards):
    here, there = (index(make_shards(40, name=name), held_out_fraction=0.4) for name in "ab")
    assert here.content_digest == there.content_digest
    for number in range(len(here.shards)):
        assert here.held_out(number).tolist() == there.held_out(number).tolist()


def test_the_content_digest_follows_the_samples_and_not_their_place(make_shards):
    here, there, fewer = (index(make_shards(n, name=name)) for n, name in ((9, "a"), (9, "b"), (8, "c")))
    assert here.content_digest == there.content_digest != fewer.content_digest


def test_captions_can_be_the_target_and_then_need_no_label(write_tar):
    shard = write_tar("0.tar", [("a.png", b"x"), ("a.txt", b"a picture")])
    manifest = index(shard, target=CAPTION_FIELDS)
    assert (manifest.num_samples, manifest.max_label) == (1, -1)


def test_files_that_belong_to_no_sample_are_passed_over_by_index_and_reader_alike(write_tar):
    files = [("README", b"x"), ("._a.png", b"x"), ("__meta__", b"x"), ("dir/A.b.PNG", b"x"), ("dir/A.cls", b"1\n")]
    shard = write_tar("0.tar", [*files, ("dir/A.png", b"x")])
    manifest = index(shard)
    (sample,) = read_shard(manifest.shards[0])
    assert sample.key == "dir/A"
    assert set(sample.fields) == {"b.png", "cls", "png"}


@pytest.mark.parametrize(
    ("name", "parts"),
    [("s1.jpg", ("s1", "jpg")), ("a.b/s1.seg.PNG", ("a.b/s1", "seg.png")), ("README", (None, "")), (".x", (None, "x"))],
)
def test_names_are_split_at_the_first_dot_of_the_file_name(name, parts):
    assert split_name(name) == parts


@pytest.mark.parametrize("end", [0, 300, 512, 1100, 2048, -1024, -5000])
def test_a_truncated_shard_is_refused(make_shards, end):
    shard = make_shards(5) / "0.tar"
    shard.write_bytes(shard.read_bytes().rstrip(b"\0")[:end])
    refused(shard, "0.tar", "again")


def test_a_shard_cut_between_two_samples_is_refused(write_tar):
    shard = write_tar("0.tar", [(f"{key}.{field}", b"1") for key in "ab" for field in ("png", "cls")])
    shard.write_bytes(shard.read_bytes()[: 2 * 1024])
    refused(shard, "0.tar", "without its end block")


def test_a_file_that_is_no_tar_is_refused(tmp_path):
    (tmp_path / "0.tar").write_bytes(b"<html>not found</html>" * 100)
    refused(tmp_path, "0.tar", "not a readable tar file")


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        ({"a.png": b"x"}, ("'a'", "no target (.cls)")),
        ({"a.cls": b"1"}, ("'a'", "no image (.jpg, .jpeg, .png, .webp)")),
        ({"a.png": b"x", "a.cls": b"dog"}, ("a.cls", "b'dog'", "not a class number")),
        ({"a.png": b"x", "a.cls": b"-1"}, ("a.cls", "not a class number")),
        ({"a.png": b"x", "b.png": b"x", "a.cls": b"1", "b.cls": b"1"}, ("'a'", "not next to each other")),
        ({"a.png": b"x", "a.cls": b"1", "a.CLS": b"2"}, ("'a'", "two files .cls")),
    ],
)
def test_a_sample_that_cannot_be_used_is_refused_by_shard_and_key(write_tar, files, parts):
    refused(write_tar("7.tar", list(files.items())), "7.tar", *parts)


def test_a_shard_missing_from_a_brace_range_is_refused(make_shards):
    folder = make_shards(10)
    with pytest.raises(UserError, match=r"2\.tar: this shard does not exist"):
        index_shards(f"{folder}/{{0..2}}.tar", target=LABEL_FIELDS)


def test_an_empty_folder_is_refused(tmp_path):
    refused(tmp_path, str(tmp_path), "no shard")


def test_a_label_with_more_digits_than_a_number_can_have_is_refused(write_tar):
    refused(write_tar("0.tar", [("a.png", b"x"), ("a.cls", b"1" * 5000)]), "0.tar", "a.cls", "not a class number")


def test_shards_without_a_sample_are_refused(write_tar):
    refused(write_tar("0.tar", [("README", b"x")]), "hold no sample")


@pytest.mark.parametrize("num_samples", [1, 15, 16, 17, 33, 100])
def test_marks_are_the_bytes_at_which_every_kth_sample_begins(write_tar, num_samples):
    long_name = "folder/" * 30  # needs an extended header of its own before each file's
    names = [f"{long_name}{n:03}.{field}" for n in range(num_samples) for field in ("png", "cls")]
    path = write_tar("0.tar", [(name, b"1") for name in names])
    (shard,) = index(path).shards
    assert shard.mark_step == -(-num_samples // 16)
    assert len(shard.marks) == -(-num_samples // shard.mark_step) <= 16
    for number, mark in enumerate(shard.marks):
        with path.open("rb") as stream:
            stream.seek(mark)
            first = next(members(stream, mark))
        assert first.name == f"{long_name}{number * shard.mark_step:03}.png"
        assert first.header == mark


def mend_unseen(path: Path) -> None:
    """Damage a file in a way that shows only to who reads it: its size and time stay."""
    status = path.stat()
    path.write_bytes(b"x" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_changed_shard_is_read_again_and_no_other(make_shards):
    folder = make_shards(23)
    before = index(folder)
    for number in (0, 1, 3, 4):
        mend_unseen(folder / f"{number}.tar")
    (folder / "2.tar").write_bytes((make_shards(7, samples_per_shard=7, name="other") / "0.tar").read_bytes())
    after = index(folder, known=before)
    assert [shard.num_samples for shard in after.shards] == [5, 5, 7, 5, 3]
    assert [a == b for a, b in zip(after.shards, before.shards, strict=True)] == [True, True, False, True, True]
    refused(folder, "not a readable tar file")


def test_added_and_removed_shards_are_noticed_and_the_others_not_read(make_shards):
    folder = make_shards(23)
    before = index(folder)
    mend_unseen(folder / "1.tar")
    (folder / "0.tar").rename(folder / "9.tar")
    after = index(folder, known=before)
    assert [Path(shard.url).name for shard in after.shards] == ["1.tar", "2.tar", "3.tar", "4.tar", "9.tar"]
    assert after.num_samples == 23


def test_another_held_out_fraction_needs_no_reading(make_shards):
    folder = make_shards(100)
    before = index(folder, held_out_fraction=0.1)
    for shard in folder.glob("*.tar"):
        mend_unseen(shard)
    after = index(folder, held_out_fraction=0.4, known=before)
    assert after.num_held_out > before.num_held_out
    for number in range(len(after.shards)):
        assert set(before.held_out(number)) <= set(after.held_out(number))


def test_a_key_in_two_shards_is_refused_where_keys_must_be_unique(make_shards):
    folder = make_shards(10)
    (folder / "2.tar").write_bytes((folder / "0.tar").read_bytes())
    assert index(folder).num_samples == 15
    with pytest.raises(UserError, match=r"2\.tar: sample 's0000000' is also in .*0\.tar"):
        index(folder, unique_keys=True)


def test_a_repeated_key_in_a_shard_added_later_is_refused_too(make_shards):
    folder = make_shards(10)
    before = index(folder, unique_keys=True)
    assert index(folder, unique_keys=True, known=before) == before
    (folder / "2.tar").write_bytes((folder / "1.tar").read_bytes())
    with pytest.raises(UserError, match=r"2\.tar: sample 's0000005' is also in .*1\.tar"):
        index(folder, unique_keys=True, known=before)


@pytest.fixture
def written(make_shards, tmp_path):
    """A manifest file and the folder that it is about."""
    folder = make_shards(23)
    index(folder).save(tmp_path / "manifest.json")
    return tmp_path / "manifest.json", folder


def test_a_written_manifest_stands_for_its_shards(written):
    file, folder = written
    expected = index(folder, held_out_fraction=0.3)
    for number in range(1, 5):
        mend_unseen(folder / f"{number}.tar")
    assert index(file, held_out_fraction=0.3) == expected


def test_a_written_manifest_for_another_target_is_refused(written):
    file, folder = written
    (folder / "0.tar").write_bytes((folder / "0.tar").read_bytes().replace(b".cls", b".abc"))
    refused(file, "0.tar")


def test_a_written_manifest_whose_shards_are_gone_or_changed_names_three_and_counts_all(written):
    file, folder = written
    (folder / "0.tar").unlink()
    for number in (1, 2, 4):
        (folder / f"{number}.tar").write_bytes(b"")
    refused(file, f"{file}: 4 of its 5 shards are not as they were", "0.tar (missing)", "1.tar (another size)", ", ...")
    with pytest.raises(UserError) as caught:
        index(file)
    assert "4.tar" not in str(caught.value)


def test_a_shard_that_a_written_manifest_does_not_name_is_left_alone(written, make_shards):
    file, folder = written
    (folder / "9.tar").write_bytes(b"")
    assert index(file).num_samples == 23


@pytest.mark.parametrize("end", [0, 1, 100, -1])
def test_a_torn_manifest_is_refused(written, end):
    file, _ = written
    file.write_bytes(file.read_bytes()[:end])
    refused(file, f"{file}: not a manifest of shards", "wiseft shards index")


def change(saved: dict, column: str, value: object) -> dict:
    saved["columns"][column][1] = value
    return saved


@pytest.mark.parametrize(
    "spoil",
    [
        lambda saved: [],
        lambda saved: {"0.tar": 12},
        lambda saved: saved | {"format": "another"},
        lambda saved: saved | {"source": None},
        lambda saved: saved | {"held_out_fraction": 1.5},
        lambda saved: saved | {"columns": {}},
        lambda saved: saved | {"columns": saved["columns"] | {"url": []}},
        lambda saved: saved | {"columns": saved["columns"] | {"url": ["0.tar"]}},
        lambda saved: change(saved, "num_samples", -1),
        lambda saved: change(saved, "num_samples", "5"),
        lambda saved: change(saved, "num_bytes", True),
        lambda saved: change(saved, "version", None),
        lambda saved: change(saved, "marks", [1.5]),
        lambda saved: change(saved, "mark_step", 0),
    ],
)
def test_a_file_that_is_no_manifest_is_refused(written, spoil):
    file, _ = written
    file.write_text(json.dumps(spoil(json.loads(file.read_text()))))
    refused(file, f"{file}: not a manifest of shards")


def made_up(num_shards: int) -> Manifest:
    """A dataset of a size at which nothing may be slow."""
    random.seed(0)
    shards = []
    for number in range(num_shards):
        num_samples = random.randint(900, 1100)
        step = -(-num_samples // 16)
        marks = tuple(range(0, num_samples * 110_000, step * 110_000))
        url, version = f"s3://bucket/dataset/{number:06}.tar", f"{number:032x}"
        shards.append(Shard(url, num_samples, num_samples * 110_000, version, 999, f"{number:016x}", marks, step))
    return Manifest("s3://bucket/dataset", tuple(shards), 0.02)


def test_a_hundred_thousand_shards_are_saved_loaded_and_counted_in_no_minutes(tmp_path):
    manifest = made_up(100_000)
    start = time.process_time()
    manifest.save(tmp_path / "manifest.json")
    loaded = Manifest.load(tmp_path / "manifest.json")
    numbers = loaded.num_samples, loaded.num_training, loaded.num_held_out, loaded.max_label
    assert loaded.training_counts.shape == (100_000,)
    assert len(loaded.content_digest) == 16
    assert len(loaded.training_samples(99_999)) == loaded.training_counts[99_999]
    seconds = time.process_time() - start
    assert loaded == manifest
    assert numbers == (manifest.num_samples, manifest.num_training, manifest.num_held_out, 999)
    assert abs(numbers[2] / numbers[0] - 0.02) < 1e-4
    assert seconds < 120, seconds


def test_loading_a_manifest_takes_little_memory(tmp_path):
    made_up(10_000).save(tmp_path / "manifest.json")
    tracemalloc.start()
    assert Manifest.load(tmp_path / "manifest.json").num_training
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50e6, peak  # ten times as many shards: below 500 MB
