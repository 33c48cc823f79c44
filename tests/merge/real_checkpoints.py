"""What the fixtures of this folder hand out: real DeepSpeed checkpoints. And how tensors are compared: by bits."""

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

SHARDED = {
    1: ["1-fp32", "2-fp32", "3-fp32"],
    2: ["1-fp32", "2-fp32", "3-fp32", "1-bf16", "2-bf16", "3-bf16"],
    3: ["1-fp32", "2-fp32", "3-fp32"],
}
AVERAGED = [f"{stage}-fp32-{optimizer}" for stage in range(4) for optimizer in ("adamw", "debiased", "sgd")]
CASES = {world_size: ["0-fp32", *sharded, *AVERAGED] for world_size, sharded in SHARDED.items()}
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


def launch(folder: Path, cases: list[str], world_size: int) -> None:
    """Start one process a rank and wait for all."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = [sys.executable, str(Path(__file__).with_name("write_checkpoints.py")), str(folder), *cases]
    shared = os.environ | {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = []
    for rank in range(world_size):
        with (folder / f"rank_{rank}.log").open("w") as log:
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            ranks.append(subprocess.Popen(program, env=shared | place, stdout=log, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=180) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert not any(codes), (folder / f"rank_{codes.index(max(codes, key=abs))}.log").read_text()[-4000:]


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Equal dtype, shape and bytes: -0.0 is not 0.0, and a NaN is itself."""
    return first.dtype == second.dtype and first.shape == second.shape and _bytes(first) == _bytes(second)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
