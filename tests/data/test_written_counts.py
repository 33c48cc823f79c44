from __future__ import annotations

import json
from pathlib import Path

import pytest

from wiseft_dist.data.manifest import Manifest, index_shards
from wiseft_dist.data.tar import LABEL_FIELDS
from wiseft_dist.errors import UserError

COUNTS = {f"{number}.tar": size for number, size in enumerate([5, 5, 5, 5, 3])}


def index(folder: Path, **settings) -> Manifest:
    return index_shards(str(folder), target=LABEL_FIELDS, **settings)


def write_sizes(folder: Path, counts: dict[str, int]) -> None:
    (folder / "sizes.json").write_text(json.dumps(counts))


def write_stats(folder: Path, counts: dict[str, int]) -> None:
    for name, count in counts.items():
        stats = {"count": count + 2, "successes": count, "failed_to_download": 2}
        (folder / name.replace(".tar", "_stats.json")).write_text(json.dumps(stats))


@pytest.fixture
def unreadable(make_shards):
    """A folder of 5 shards, of which only the first can be read."""
    folder = make_shards(23)
    for number in range(1, 5):
        (folder / f"{number}.tar").write_bytes(b"x" * 2048)
    return folder


@pytest.mark.parametrize("write", [write_sizes, write_stats])
def test_with_written_counts_only_the_first_shard_is_read(unreadable, write):
    write(unreadable, COUNTS)
    manifest = index(unreadable)
    assert [shard.num_samples for shard in manifest.shards] == [5, 5, 5, 5, 3]
    assert [shard.max_label for shard in manifest.shards] == [2, None, None, None, None]
    assert [bool(shard.content_digest) for shard in manifest.shards] == [True, False, False, False, False]
    assert [shard.marks for shard in manifest.shards][1:] == [()] * 4
    assert manifest.max_label == 2


def test_a_manifest_of_trusted_counts_read_back_is_the_same(unreadable, tmp_path):
    write_sizes(unreadable, COUNTS)
    manifest = index(unreadable)
    manifest.save(tmp_path / "manifest.json")
    assert Manifest.load(tmp_path / "manifest.json") == manifest
    assert index(unreadable, known=manifest) == manifest


def test_written_counts_are_not_looked_at_where_they_are_not_trusted(make_shards):
    folder = make_shards(23)
    write_sizes(folder, COUNTS | {"0.tar": 99})
    assert index(folder, trust_counts=False).num_samples == 23


def test_shards_whose_counts_were_trusted_are_read_once_they_are_not(make_shards):
    folder = make_shards(23)
    write_sizes(folder, COUNTS)
    trusted = index(folder)
    read = index(folder, trust_counts=False, known=trusted)
    assert all(shard.content_digest and shard.marks for shard in read.shards)
    assert read == index(folder, trust_counts=False)


@pytest.mark.parametrize("write", [write_sizes, write_stats])
def test_every_shard_is_read_unless_each_has_a_count(unreadable, write):
    write(unreadable, {name: count for name, count in COUNTS.items() if name != "3.tar"})
    with pytest.raises(UserError, match=r"\d\.tar: not a readable tar file"):
        index(unreadable)


@pytest.mark.parametrize(("write", "name"), [(write_sizes, "sizes.json"), (write_stats, "0_stats.json")])
def test_a_count_that_is_not_true_is_refused_with_both_names(make_shards, write, name):
    folder = make_shards(23)
    write(folder, COUNTS | {"0.tar": 7})
    with pytest.raises(UserError, match=rf"{name} says that .*0\.tar holds 7 samples, but it holds 5"):
        index(folder)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"0.tar": "5"}', '{"0.tar": -5}', '{"0.tar": true}'])
def test_a_file_of_counts_with_something_else_in_it_is_refused(make_shards, text):
    folder = make_shards(23)
    (folder / "sizes.json").write_text(text)
    with pytest.raises(UserError, match=r"sizes\.json: .*Write it again"):
        index(folder)


def test_the_layout_of_the_first_shard_is_checked_although_counts_are_trusted(write_tar):
    folder = write_tar("shards/0.tar", [("a.png", b"x"), ("a.txt", b"a picture")]).parent
    write_sizes(folder, {"0.tar": 1})
    with pytest.raises(UserError, match="sample 'a' has no target"):
        index(folder)
