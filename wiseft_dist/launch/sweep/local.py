"""The runs of a sweep on this machine: a `wiseft run` each, one after the other or as many at once as fit."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wiseft_dist.config import LaunchConfig
from wiseft_dist.launch.processes import end_processes, termination_interrupts
from wiseft_dist.progress import Bar, progress_bar
from wiseft_dist.run import Run

POLL_SECONDS = 0.2
LOG_FILE = "run.log"
"""What a run's own `wiseft run` says."""


def run_here(runs: Sequence[Run], launch: LaunchConfig, at_once: int | None) -> None:
    """Run what is missing of each; one that fails does not stop the others."""
    cores = sorted(os.sched_getaffinity(0))
    num_slots = min(len(runs), slots(launch, len(cores), at_once)) if runs else 0
    waiting, running = list(runs), list[_Running]()
    free = [cores[slot::num_slots] for slot in range(num_slots)]
    with termination_interrupts(), progress_bar("sweep", total=len(runs), unit="runs") as bar:
        try:
            while waiting or running:
                while waiting and free:
                    running.append(_start(waiting.pop(0), free.pop()))
                for each in [each for each in running if each.process.poll() is not None]:
                    running.remove(each)
                    free.append(each.cores)
                    _tell(each, bar)
                bar.update(note=", ".join(each.run.path.name for each in running))
                time.sleep(POLL_SECONDS)
        except BaseException:
            left = [each.process for each in running]
            end_processes([process.pid for process in left], reap=lambda: [process.wait() for process in left])
            raise


def slots(launch: LaunchConfig, num_cores: int, at_once: int | None) -> int:
    """How many runs work side by side: one where a run takes all cores or a GPU, or as many as the cores suffice for.

    Args:
        launch: The resources of a run.
        num_cores: Of this machine.
        at_once: What the user allows; None: nothing was said.
    """
    stages = (launch.finetune, launch.merge, launch.evaluate)
    if any(stage.gpus_per_node for stage in stages):
        return 1  # submitit gives each job the first GPUs
    if at_once is not None:
        return max(1, min(at_once, num_cores // max(stage.num_tasks for stage in stages)))
    if any(stage.cpus_per_task is None for stage in stages):
        return 1
    return max(1, num_cores // max(stage.num_tasks * (stage.cpus_per_task or 1) for stage in stages))


@dataclass(frozen=True)
class _Running:
    run: Run
    process: subprocess.Popen[bytes]
    cores: list[int]
    started: float


def _start(run: Run, cores: list[int]) -> _Running:
    """A process that sees only its cores, and divides them among its own."""
    command = [sys.executable, "-m", "wiseft_dist", "run", str(run.config_file)]
    with (run.path / LOG_FILE).open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
    return _Running(run, process, cores, time.monotonic())


def _tell(ended: _Running, bar: Bar) -> None:
    bar.advance()
    seconds = time.monotonic() - ended.started
    code = ended.process.returncode
    words = f"done ({seconds:.0f} s)" if code == 0 else f"failed; its log: {_relative(ended.run.path / LOG_FILE)}"
    print(f"{ended.run.path.name}: {words}", file=sys.stderr, flush=True)


def _relative(file: Path) -> str:
    return os.path.relpath(file) if file.is_relative_to(Path.cwd()) else str(file)
