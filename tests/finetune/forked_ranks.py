"""Ranks of the real stage that start in a moment: forked from a process that has done the imports.

Only for tests that need many sessions; otherwise ``tiny_finetune.start`` is nearer to what people run.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed  # noqa: F401
import open_clip  # noqa: F401

import wiseft_dist.finetune.stage  # noqa: F401
from wiseft_dist.pipeline import execute
from wiseft_dist.run import Run


def start_forked(run: Run, processes: int) -> list[BaseProcess]:
    """Start the stage, one process a rank; what they print goes to ``rank_N.log`` beside the run."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    of_the_server = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}  # not for what else tests start
    with mock.patch.dict(os.environ, of_the_server):
        forkserver.ensure_running()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks: list[BaseProcess] = []
    for rank in range(processes):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ranks.append(context.Process(target=_run_stage, args=(run, place | address, log_of(run, rank))))
    for each in ranks:
        each.start()
    return ranks


def log_of(run: Run, rank: int) -> Path:
    return run.path.with_name(f"{run.path.name}_rank_{rank}.log")


def _run_stage(run: Run, environment: dict[str, object], log: Path) -> None:
    os.environ.update({name: str(value) for name, value in environment.items()})
    with log.open("a") as handle:
        os.dup2(handle.fileno(), 1)
        os.dup2(handle.fileno(), 2)
    execute("finetune", run)
