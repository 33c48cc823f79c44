from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from wiseft_dist.data.manifest import CAPTION_FIELDS, LABEL_FIELDS, Manifest, index_shards, split_name
from wiseft_dist.data.shards import read_shard
from wiseft_dist.errors import UserError


def write_tar(path: Path, files: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


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


def held_out_keys(manifest: Manifest) -> set[str]:
    return {sample.key for shard in manifest.shards for sample in read_shard(shard) if sample.index in shard.held_out}


def test_who_is_held_out_depends_on_the_key_alone(make_shards):
    few = index(make_shards(100, name="few"), held_out_fraction=0.3)
    many = index(make_shards(130, samples_per_shard=7, name="many"), held_out_fraction=0.3)
    assert 10 < few.num_held_out < 50
    assert held_out_keys(few) == {key for key in held_out_keys(many) if int(key[1:]) < 100}


def test_a_larger_fraction_holds_out_more_of_the_same(make_shards):
    folder = make_shards(100)
    assert held_out_keys(index(folder, held_out_fraction=0.1)) < held_out_keys(index(folder, held_out_fraction=0.4))


def test_training_samples_are_those_not_held_out(manifest):
    for number, shard in enumerate(manifest.shards):
        assert sorted([*manifest.training_samples(number), *shard.held_out]) == list(range(shard.num_samples))


def test_the_content_digest_follows_the_samples_and_not_their_place(make_shards):
    here, there, fewer = (index(make_shards(n, name=name)) for n, name in ((9, "a"), (9, "b"), (8, "c")))
    assert here.content_digest == there.content_digest != fewer.content_digest


def test_captions_can_be_the_target_and_then_need_no_label(tmp_path):
    shard = write_tar(tmp_path / "0.tar", [("a.png", b"x"), ("a.txt", b"a picture")])
    manifest = index(shard, target=CAPTION_FIELDS)
    assert (manifest.num_samples, manifest.max_label) == (1, -1)


def test_files_that_belong_to_no_sample_are_passed_over_by_index_and_reader_alike(tmp_path):
    files = [("README", b"x"), ("._a.png", b"x"), ("__meta__", b"x"), ("dir/A.b.PNG", b"x"), ("dir/A.cls", b"1\n")]
    shard = write_tar(tmp_path / "0.tar", [*files, ("dir/A.png", b"x")])
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


def test_a_shard_cut_between_two_samples_is_refused(tmp_path):
    shard = write_tar(tmp_path / "0.tar", [(f"{key}.{field}", b"1") for key in "ab" for field in ("png", "cls")])
    shard.write_bytes(shard.read_bytes()[: 2 * 1024])
    refused(shard, "0.tar", "ends before its tar archive does")


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
def test_a_sample_that_cannot_be_used_is_refused_by_shard_and_key(tmp_path, files, parts):
    refused(write_tar(tmp_path / "7.tar", list(files.items())), "7.tar", *parts)


def test_a_shard_missing_from_a_brace_range_is_refused(make_shards):
    folder = make_shards(10)
    with pytest.raises(UserError, match=r"2\.tar: this shard does not exist"):
        index_shards(f"{folder}/{{0..2}}.tar", target=LABEL_FIELDS)


def test_an_empty_folder_is_refused(tmp_path):
    refused(tmp_path, str(tmp_path), "no shard")
