"""`wiseft shards`, as a person types it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny_run import wiseft

from wiseft_dist.data.manifest import Manifest


@pytest.fixture
def shards(world, tmp_path) -> Path:
    """Eight shards of five samples with three classes, to be changed at will."""
    return Path(shutil.copytree(world.data / "train", tmp_path / "train"))


def spoil(shard: Path, old: bytes, new: bytes) -> None:
    content = shard.read_bytes()
    assert old in content
    assert len(old) == len(new)
    shard.write_bytes(content.replace(old, new))


def refused(*arguments: object) -> str:
    done = wiseft("shards", *arguments)
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert done.stderr.startswith("wiseft: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_index_shows_every_shard_of_a_few_and_the_totals(shards):
    done = wiseft("shards", "index", shards)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1].split() == [f"{shards}/0.tar", "5", f"{(shards / '0.tar').stat().st_size:,}", "2"]
    assert len(lines) == 1 + 8 + 1
    num_bytes = sum(shard.stat().st_size for shard in shards.glob("*.tar"))
    assert lines[-1] == f"8 shards, 40 samples, {num_bytes:,} bytes, largest label 2"


def test_index_shows_the_first_and_the_last_of_many(shards):
    for number in range(8, 30):
        shutil.copy(shards / "0.tar", shards / f"{number}.tar")
    lines = wiseft("shards", "index", shards).stdout.splitlines()
    names = [line.split()[0].rpartition("/")[2] for line in lines[1:-1]]
    assert names == [*(f"{n}.tar" for n in range(6)), "...", *(f"{n}.tar" for n in range(24, 30))]
    assert lines[-1].startswith("30 shards, 150 samples, ")


def test_index_as_json_has_the_same_numbers(shards):
    described = json.loads(wiseft("shards", "index", shards, "--json").stdout)
    assert (described["num_shards"], described["num_samples"], described["max_label"]) == (8, 40, 2)
    assert described["source"] == str(shards)
    assert described["num_bytes"] == sum(shard["num_bytes"] for shard in described["shards"])
    assert described["shards"][3] == {
        "url": f"{shards}/3.tar",
        "num_samples": 5,
        "num_bytes": (shards / "3.tar").stat().st_size,
        "max_label": 2,
        "read": True,
    }


def test_a_written_manifest_stands_for_its_shards_until_they_change(shards, tmp_path):
    manifest = tmp_path / "new" / "train.json"
    assert wiseft("shards", "index", shards, "--output", manifest).returncode == 0
    assert Manifest.load(manifest).num_samples == 40
    again = wiseft("shards", "index", manifest)
    assert again.stdout == wiseft("shards", "index", shards).stdout
    (shards / "2.tar").unlink()
    said = refused("index", manifest)
    assert f"1 of its 8 shards are not as they were: {shards}/2.tar (missing)" in said


def test_trusted_counts_are_told_from_read_ones(shards):
    (shards / "sizes.json").write_text(json.dumps({f"{number}.tar": 5 for number in range(8)}))
    trusting = wiseft("shards", "index", shards).stdout
    assert trusting.count("not read") == 7 + 1
    assert trusting.splitlines()[-1].endswith("; 7 shards not read, their samples as written beside them")
    assert "not read" not in wiseft("shards", "index", shards, "--read").stdout


def test_index_refuses_a_place_where_a_manifest_is_not_known_as_one(shards, tmp_path):
    assert f"--output: {tmp_path}/manifest does not end in .json" in refused(
        "index", shards, "--output", tmp_path / "manifest"
    )


def test_index_refuses_credentials_in_urls(tmp_path):
    assert "carries credentials" in refused("index", "https://user:password@host/shards")
    assert "carries credentials" in refused("index", tmp_path, "--output", "https://host/a.json?sig=abc")


def test_index_names_what_is_wrong(shards, tmp_path):
    assert "sample 's0000000' has no target (.txt)" in refused("index", shards, "--captions")
    assert "no shard (*.tar) there" in refused("index", tmp_path)


def test_verify_of_clean_shards_ends_with_0(shards):
    done = wiseft("shards", "verify", shards, "--num-classes", 3, "--workers", 2)
    assert done.returncode == 0, done.stderr
    num_bytes = sum(shard.stat().st_size for shard in shards.glob("*.tar"))
    assert done.stdout == f"8 shards, 40 samples, {num_bytes:,} bytes: nothing wrong\n"


def test_verify_tells_everything_that_is_wrong_and_ends_with_1(shards):
    (shards / "1.tar").write_bytes((shards / "1.tar").read_bytes()[:1024])
    spoil(shards / "2.tar", b"\x89PNG", b"none")
    shutil.copy(shards / "7.tar", shards / "8.tar")
    (shards.parent / "two.txt").write_text("red\n\ngreen\n")
    done = wiseft("shards", "verify", shards, "--classnames", shards.parent / "two.txt")
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    kinds = {line.split(":")[0]: int(line.split(": ")[1]) for line in lines[:-1] if not line.startswith(" ")}
    labels = sum(n % 3 == 2 for n in [*range(6), *range(10, 40), *range(35, 40)])  # label 5 is before the cut
    assert kinds == {"damaged tar": 1, "undecodable image": 5, "bad label": labels, "duplicate key": 5}
    assert f"  {shards}/1.tar: not a readable tar file" in done.stdout
    assert f"  {shards}/8.tar: sample 's0000035' is also in {shards}/7.tar." in lines
    assert lines[-1].endswith(f": {sum(kinds.values())} problems")


def test_verify_shows_twenty_of_a_kind_and_has_all_in_json(shards):
    for number in range(8):
        spoil(shards / f"{number}.tar", b"\x89PNG", b"none")
    lines = wiseft("shards", "verify", shards).stdout.splitlines()
    assert len([line for line in lines if "does not decode" in line]) == 20
    assert "  and 20 more; --json has all of them" in lines
    done = wiseft("shards", "verify", shards, "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert (told["num_shards"], told["num_samples"], told["is_clean"]) == (8, 40, False)
    assert len(told["problems"]) == 40
    assert told["problems"][7]["kind"] == "undecodable image"
    assert told["problems"][7]["shard"] == f"{shards}/1.tar"
    assert told["problems"][7]["key"] == "s0000007"
    assert "does not decode" in told["problems"][7]["problem"]


def test_verify_refuses_two_numbers_of_classes_and_an_empty_list(shards, tmp_path):
    (tmp_path / "none.txt").write_text("\n")
    said = refused("verify", shards, "--num-classes", 3, "--classnames", tmp_path / "none.txt")
    assert "takes either --num-classes or --classnames, not both" in said
    assert "none.txt holds no line of text" in refused("verify", shards, "--classnames", tmp_path / "none.txt")


def test_shards_alone_says_what_there_is():
    done = wiseft("shards", "--help")
    assert done.returncode == 0
    assert {"index", "verify"} <= set(done.stdout.split())
