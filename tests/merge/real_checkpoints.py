"""What the fixtures of this folder hand out: real DeepSpeed checkpoints. And how tensors are compared: by bits."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

STAGES = ["1-fp32", "2-fp32", "3-fp32"]
SHARDED = {
    1: STAGES,
    2: [*STAGES, "1-bf16", "2-bf16", "3-bf16", "1-bf16_fp32"],
    3: [*STAGES, "1-bf16_fp32", "1-fp32_aligned", "2-fp32_aligned", "2-fp32_robin"],
    4: STAGES,
    7: [*STAGES, "1-bf16_fp32"],
}
AVERAGED = [f"{stage}-fp32-{optimizer}" for stage in range(4) for optimizer in ("adamw", "debiased", "sgd")]
WITH_STATES = (1, 2, 3)
"""World sizes of which the optimizer's states are looked at too."""
CASES = {
    world_size: ["0-fp32", *sharded, *AVERAGED] if world_size in WITH_STATES else sharded
    for world_size, sharded in SHARDED.items()
}
"""World sizes and what is written with each; one launch writes all cases of a world size."""


@dataclass(frozen=True)
class Checkpoint:
    """A DeepSpeed checkpoint (`folder/tag`) and what the live module held when it was saved."""

    folder: Path

    @property
    def tag(self) -> Path:
        return self.folder / "tag"

    def live(self) -> dict[str, Tensor]:
        """fp32 masters, frozen parameters and buffers."""
        return torch.load(self.folder / "live.pt")

    def start(self) -> dict[str, Tensor]:
        """The same before the first update."""
        return torch.load(self.folder / "start.pt")

    def groups(self) -> list[list[str]]:
        """Names of the parameters in each of the optimizer's groups."""
        return torch.load(self.folder / "optimizer.pt")["groups"]

    def states(self) -> dict[str, dict[str, Tensor]]:
        """What the optimizer held, by key and parameter."""
        return torch.load(self.folder / "optimizer.pt")["states"]


class Writer:
    """The process that writes real checkpoints; it imports DeepSpeed when it is first asked for one."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: subprocess.Popen[str] | None = None

    def train(self, folder: Path, cases: list[str], world_size: int) -> None:
        self._ask({"folder": str(folder), "cases": cases, "world_size": world_size})

    def convert(self, checkpoint: Path, universal: Path) -> None:
        self._ask({"checkpoint": str(checkpoint), "universal": str(universal)})

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()

    def _ask(self, request: dict[str, Any]) -> None:
        if self._process is None:
            program = [sys.executable, str(Path(__file__).with_name("write_checkpoints.py"))]
            with self._log.open("w") as log:
                self._process = subprocess.Popen(
                    program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
                )
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, self._log.read_text()[-4000:]
        assert json.loads(answer) == "done", json.loads(answer)


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Equal dtype, shape and bytes: -0.0 is not 0.0, and a NaN is itself."""
    return first.dtype == second.dtype and first.shape == second.shape and _bytes(first) == _bytes(second)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
