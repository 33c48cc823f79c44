"""A real training that is killed and resumed: its offline files hold every step once, and nothing of its people."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from mirrored import assert_nobody_left, logged, shown_offline, without_own
from tiny_run import World, command, make_world
from wandb_server import KEY, wandb_server

from wiseft_dist.config import load_config
from wiseft_dist.run import Run, open_run
from wiseft_dist.tracking import read_events
from wiseft_dist.tracking.offline_files import offline_files, records
from wiseft_dist.tracking.wandb_run import wandb_id

USER, PASSWORD = "alice_carroll", "through_the_glass"
STEPS = 120
PATIENCE_SECONDS = 200
PAUSING = """
import sys, time
from wiseft_dist.cli import main
from wiseft_dist.tracking import Tracker
last, metrics = int(sys.argv.pop(1)), Tracker.metrics
def pausing(self, values, **at):
    metrics(self, values, **at)
    if at.get("step") == last:
        time.sleep(3600)
Tracker.metrics = pausing
main()
"""
"""The `wiseft` command; its training stands still once it has told of a step."""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Somebody's home directory, with everything in it."""
    folder = tmp_path / "homes" / USER
    folder.mkdir(parents=True)
    return folder


def environment_of(home: Path) -> dict[str, str]:
    """As a person has it, secrets included."""
    names = ("SLURM", "SUBMITIT", "WANDB")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    return clean | {
        "HOME": str(home),
        "USER": USER,
        "LOGNAME": USER,
        "WANDB_API_KEY": KEY,
        "WANDB_BASE_URL": f"http://{USER}:{PASSWORD}@127.0.0.1:1",
        "OMP_NUM_THREADS": "1",
    }


def make_run(world: World) -> Run:
    """One process, a line of metrics each step, validation of the weights and of their average now and then."""
    tree = yaml.safe_load(world.config.read_text())
    tree["finetune"] |= {"epochs": STEPS / 3.5, "log_every": 1, "ema": {"decay": 0.9}}  # of 28 samples, 8 a step
    tree["finetune"] |= {"checkpoint": {"every_steps": 50, "every_minutes": None}, "validation": {"every_steps": 7}}
    address = f"https://{USER}:{PASSWORD}@example.org/layers?signature={PASSWORD}"  # where a URL is refused, none gets
    tree["merge"]["layers"] = {address: {"alpha": 0.5}}
    tree["wandb"] = {"mode": "offline"}
    tree["launch"]["finetune"] = {"tasks_per_node": 1}
    world.config.write_text(yaml.safe_dump(tree))
    return open_run(load_config(world.config))


def start(run: Run, home: Path, *, pause_at: int | None = None) -> subprocess.Popen[bytes]:
    arguments = command("finetune", run.path)
    if pause_at is not None:
        arguments = [sys.executable, "-c", PAUSING, str(pause_at), *arguments[3:]]
    with log_of(home).open("w") as log:
        return subprocess.Popen(arguments, env=environment_of(home), stdout=log, stderr=log)


def log_of(home: Path) -> Path:
    return home / "finetune.log"


def train_and_kill(run: Run, home: Path, *, step: int) -> None:
    """Kill the stage after a step, when its mirror is at work; mirror and W&B's process go by themselves."""
    num_files = len(offline_files(run, wandb_id(run, "finetune", "")))
    process = start(run, home, pause_at=step)
    try:
        wait(process, home, lambda: max(logged(run), default=0) >= step)
        wait(process, home, lambda: len(offline_files(run, wandb_id(run, "finetune", ""))) > num_files)
    finally:
        process.kill()
        process.wait()
    assert_nobody_left(f"HOME={home}")
    assert max(logged(run)) == step


def wait(process: subprocess.Popen[bytes], home: Path, is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert process.poll() is None and time.monotonic() < deadline, log_of(home).read_text()[-4000:]
        time.sleep(0.01)


def finish(run: Run, home: Path) -> None:
    process = start(run, home)
    assert process.wait(PATIENCE_SECONDS) == 0, log_of(home).read_text()[-4000:]
    assert "W&B" not in log_of(home).read_text()
    assert_nobody_left(f"HOME={home}")


def assert_every_step_once(run: Run) -> None:
    rows, events = shown_offline(run), logged(run)
    assert [row["_step"] for row in rows] == list(range(1, STEPS + 1)) == sorted(events)
    assert [without_own(row) for row in rows] == [events[step] for step in range(1, STEPS + 1)]
    validated = [row["_step"] for row in rows if "finetune/id_val/top1" in row]
    assert validated == [*range(7, STEPS, 7), STEPS]


def assert_nothing_of_people(run: Run, home: Path) -> None:
    """Neither in what is sent nor in W&B's own logs."""
    content = b"".join(file.read_bytes() for file in (run.path / "wandb").rglob("*") if file.is_file())
    names = b"\n".join(str(file.relative_to(run.path)).encode() for file in (run.path / "wandb").rglob("*"))
    for secret in (str(home), USER, PASSWORD, KEY):
        assert secret.encode() not in content + names, secret
    for file in offline_files(run, wandb_id(run, "finetune", "")):
        (opened,) = [record.run for record in records(file) if record.HasField("run")]
        assert opened.host == ""
        assert socket.gethostname() not in str(opened.config).split('"')


def test_offline_files_of_a_killed_and_resumed_training_hold_every_step_once_and_nothing_of_people(home: Path) -> None:
    run = make_run(make_world(home))
    train_and_kill(run, home, step=65)
    finish(run, home)
    told_twice = [event["step"] for event in read_events(run) if "lr" in event]
    assert len(told_twice) > len(set(told_twice)) == STEPS
    assert len(offline_files(run, wandb_id(run, "finetune", ""))) == 2
    assert_every_step_once(run)
    assert_nothing_of_people(run, home)
    assert_wandb_reads_the_same(run)


def assert_wandb_reads_the_same(run: Run) -> None:
    """W&B's own program reads the files and sends them; a server takes every row once, in order."""
    folders = [str(file.parent) for file in offline_files(run, wandb_id(run, "finetune", ""))]
    with wandb_server() as server:
        done = subprocess.run(
            [sys.executable, "-m", "wandb", "sync", *folders],
            env=os.environ | server.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )
        assert done.returncode == 0, done.stderr
        received = server.received.runs[wandb_id(run, "finetune", "")]
    assert received.lost == [] and received.steps == list(range(1, STEPS + 1))
    assert [without_own(row) for row in received.rows] == [without_own(row) for row in shown_offline(run)]


@pytest.mark.matrix
def test_so_they_do_after_many_kills(home: Path) -> None:
    run, chance = make_run(make_world(home)), random.Random(0)
    for step in sorted(chance.sample(range(10, STEPS - 20), 4)):
        train_and_kill(run, home, step=step)
    finish(run, home)
    assert len(offline_files(run, wandb_id(run, "finetune", ""))) == 5
    assert_every_step_once(run)
    assert_nothing_of_people(run, home)
