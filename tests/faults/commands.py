"""`wiseft run` as a person starts it, with a Slurm that lets a requeued job wait no longer than it must."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tiny_run import command

if TYPE_CHECKING:
    from fault_cluster import FaultCluster

PATIENCE_SECONDS = 400.0


@dataclass(frozen=True)
class Said:
    """How the command ended."""

    code: int
    text: str
    """Its standard error."""


class Command:
    """A `wiseft run` at work."""

    def __init__(self, cluster: FaultCluster, *arguments: object, **environment: str) -> None:
        self._cluster = cluster
        self._said: Said | None = None
        self._process = subprocess.Popen(
            command("run", *arguments),
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env=os.environ | cluster.environment | {"OMP_NUM_THREADS": "1"} | environment,
        )  # fmt: skip

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def end(self) -> Said:
        """Wait for it, however often this is asked."""
        if self._said is not None:
            return self._said
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self.has_ended():
            self._cluster.start_requeued_now()
            if time.monotonic() > deadline:
                self._process.kill()
            time.sleep(0.3)
        _, text = self._process.communicate()
        self._said = Said(self._process.returncode, text)
        return self._said

    def kill(self) -> None:
        """Whatever has become of it."""
        self._process.kill()
        self._process.wait()


def brake_environment(stage: str, folder: Path) -> dict[str, str]:
    """What makes the ranks of a stage stop at the moment for a fault; see ``brake/sitecustomize.py``."""
    folder.mkdir(exist_ok=True)
    path = os.pathsep.join(filter(None, [str(Path(__file__).with_name("brake")), os.environ.get("PYTHONPATH")]))
    return {"WISEFT_BRAKE": stage, "WISEFT_BRAKE_FOLDER": str(folder), "PYTHONPATH": path}
