"""Faults of disks, stores and files."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from commands import Command
from fault_proxy import FaultProxy
from fault_world import begin_at
from file_server import serve
from safetensors.torch import save_file
from scene import Scene
from waiting import wait_until

from wiseft_dist.run import newest_checkpoint
from wiseft_dist.weights.sources import open_weights

DISK_BYTES = 400 * 2**20
MANY = 10**9
NUM_REFUSED = 4
"""Requests that a store refuses before it recovers; fewer than are made of one object until a job gives up."""


def on_a_small_disk(scene: Scene) -> None:
    """The run directory is a file system of its own."""
    path = scene.run.path
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(path)], capture_output=True, text=True
    )
    if made.returncode:
        sentence = f"no file system of its own can be mounted for the run: {made.stderr.strip()}"
        pytest.fail(sentence) if os.environ.get("CI") else pytest.skip(sentence)
    scene.cleaning.callback(subprocess.run, ["umount", "--lazy", str(path)], check=True)


def fill_disk(scene: Scene) -> None:
    status = os.statvfs(scene.run.path)
    with (scene.run.path / "filler").open("wb") as filler:
        os.posix_fallocate(filler.fileno(), 0, status.f_bavail * status.f_frsize)
    scene.go_on()


def free_disk(scene: Scene) -> None:
    (scene.run.path / "filler").unlink()


def in_a_store(scene: Scene) -> None:
    """What the stage reads lies behind a web server: the pictures or, for merging, another fine-tuned model."""
    served = scene.folder / "served"
    if scene.stage == "merge":
        served.mkdir()
        with open_weights(scene.undisturbed.ensemble(0.5)) as weights:
            save_file({name: weights.tensor(name) for name in weights}, served / "other.safetensors")
    else:
        shutil.copytree(scene.world.data, served)
    proxy = scene.cleaning.enter_context(FaultProxy(scene.cleaning.enter_context(serve(served)), kinds=("503",)))
    scene.store = proxy
    if scene.stage == "merge":
        _merge_with(scene, f"{proxy.url}/other.safetensors")
    else:
        scene.rewrite_config(str(scene.world.data), proxy.url)


def _merge_with(scene: Scene, other: str) -> None:
    """Make the run's ensembles a soup with another model, and the undisturbed run one that does the same."""
    config = yaml.safe_load(scene.run.config_file.read_text())
    config["merge"] |= {"method": "uniform_soup", "models": [other]}
    scene.run.config_file.write_text(yaml.safe_dump(config))
    twin = begin_at("merge", scene.undisturbed, scene.folder / "undisturbed")
    twin.config_file.write_text(yaml.safe_dump(config | {"output": str(twin.path)}))
    said = Command(scene.cluster, twin.config_file).end()
    assert said.code == 0, said.text
    scene.undisturbed = twin


def refuse_for_a_while(scene: Scene) -> None:
    store = _refusing(scene)
    scene.go_on()
    wait_until(lambda: store.num_faults >= NUM_REFUSED, every=0.02)
    store.faults_left = 0


def refuse_for_too_long(scene: Scene) -> None:
    """Until the job has given up."""
    store = _refusing(scene)
    scene.go_on()
    assert scene.command is not None
    scene.command.end()
    store.faults_left = 0


def _refusing(scene: Scene) -> FaultProxy:
    assert scene.store is not None
    scene.store.faults_left = MANY
    return scene.store


def delete_a_shard(scene: Scene) -> None:
    """One that is still to be read: of pictures or, in a merge, of the fine-tuned model."""
    if scene.stage == "merge":
        checkpoint = newest_checkpoint(scene.run)
        assert checkpoint is not None
        scene.hide(max(checkpoint.glob("*optim_states.pt")))
        scene.damaged = checkpoint
    else:
        folder, name = ("train", "3.tar") if scene.stage == "finetune" else ("photo", "2.tar")
        scene.hide(scene.world.data / folder / name)
    scene.go_on()


def put_back(scene: Scene) -> None:
    scene.unhide()


def corrupt_newest_checkpoint(scene: Scene) -> None:
    """Of its largest file one bit in the middle."""
    checkpoint = newest_checkpoint(scene.run)
    assert checkpoint is not None
    _flip_a_bit(max(checkpoint.glob("*optim_states.pt"), key=lambda file: file.stat().st_size))
    scene.damaged = checkpoint


def corrupt_a_cell(scene: Scene) -> None:
    """A committed part's predictions, but not its footer."""
    scene.damaged = max(scene.run.cells.rglob("part-*.parquet"), key=lambda file: file.stat().st_mtime_ns)
    _flip_a_bit(scene.damaged, at=100)


def delete_damaged(scene: Scene) -> None:
    assert scene.damaged is not None
    shutil.rmtree(scene.damaged) if scene.damaged.is_dir() else scene.damaged.unlink()


def _flip_a_bit(file: Path, at: int | None = None) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2 if at is None else at] ^= 1
    status = file.stat()
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
