from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_run import command, wiseft

from wiseft_dist.data.manifest import index_shards
from wiseft_dist.data.shards import read_shard
from wiseft_dist.data.tar import LABEL_FIELDS

CLASSES = ("cat", "dog", "owl")


def write_pictures(folder: Path, each: int, *, pixels: int = 16) -> Path:
    """Class folders with pictures of noise."""
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for index in range(each):
            noise = np.random.default_rng(1000 * number + index).integers(0, 256, (pixels, pixels, 3), dtype=np.uint8)
            stream = io.BytesIO()
            Image.fromarray(noise).save(stream, "png", compress_level=0)
            (folder / name / f"{index}.png").write_bytes(stream.getvalue())
    return folder


def fingerprints(folder: Path) -> dict[str, str]:
    """Every file that is meant to be seen, by its hash."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_class_folders_become_shards_that_hold_the_same_bytes(tmp_path):
    source = write_pictures(tmp_path / "pictures", 7)
    done = wiseft("shards", "pack", source, tmp_path / "out", "--samples-per-shard", 4, "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert "21 samples of 3 classes in 6 shards" in done.stdout
    assert (tmp_path / "out/classnames.txt").read_text().split() == list(CLASSES)
    manifest = index_shards(str(tmp_path / "out/train"), target=LABEL_FIELDS, trust_counts=False)
    packed = [sample for shard in manifest.shards for sample in read_shard(shard)]
    assert [sample.key for sample in packed] == [f"s{number:07d}" for number in range(21)]
    assert sorted((int(s.fields["cls"]), s.fields["png"]) for s in packed) == sorted(
        (CLASSES.index(path.parent.name), path.read_bytes()) for path in source.rglob("*.png")
    )


def test_the_same_command_again_writes_nothing_and_another_one_is_refused(tmp_path):
    source = write_pictures(tmp_path / "pictures", 3)
    arguments = ("shards", "pack", source, tmp_path / "out", "--samples-per-shard", 4)
    assert wiseft(*arguments).returncode == 0
    before = fingerprints(tmp_path / "out")
    assert "(0 written now)" in wiseft(*arguments).stdout
    refused = wiseft(*arguments, "--seed", 1)
    assert refused.returncode == 2, refused.stderr
    assert "Traceback" not in refused.stderr
    assert fingerprints(tmp_path / "out") == before


def test_two_ways_to_cut_are_refused(tmp_path):
    both = wiseft("shards", "pack", tmp_path, tmp_path / "out", "--samples-per-shard", 4, "--shard-mb", 1)
    assert both.returncode == 2
    assert "either --samples-per-shard or --shard-mb" in both.stderr


@pytest.mark.parametrize("whole_group", [True, False])
def test_a_killed_command_ends_with_the_bytes_of_an_undisturbed_one(tmp_path, whole_group):
    source = write_pictures(tmp_path / "pictures", 40, pixels=256)
    arguments = ("shards", "pack", source, "{out}", "--samples-per-shard", 4, "--workers", 2)

    def of(name: str) -> list[object]:
        return [tmp_path / name if argument == "{out}" else argument for argument in arguments]

    assert wiseft(*of("undisturbed")).returncode == 0
    process = subprocess.Popen(command(*of("killed")), start_new_session=True, stdout=subprocess.DEVNULL)
    split = tmp_path / "killed" / "train"
    deadline = time.monotonic() + 60
    while not list(split.glob("*.tar")) and time.monotonic() < deadline:
        time.sleep(0.002)
    kill = os.killpg if whole_group else os.kill
    kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.5)
    assert list(split.glob("*.tar"))
    assert not (split / "nshards.txt").exists(), "it was finished before it was killed"
    again = wiseft(*of("killed"))
    assert again.returncode == 0, again.stderr
    assert fingerprints(tmp_path / "killed") == fingerprints(tmp_path / "undisturbed")
