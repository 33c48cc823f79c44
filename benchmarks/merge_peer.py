"""What people do today: ``zero_to_fp32``, then for each alpha load both models, interpolate, save; synced to disk.

python -m benchmarks.merge_peer ZERO_SHOT CONSOLIDATED OUTPUT DTYPE ALPHA ...
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # its imports would count as the contestants'
    from benchmarks.merge_model import MadeUp

CONSOLIDATED = "model.safetensors"


def run_program(arguments: Sequence[str | Path], folder: Path, **environment: str) -> float:
    """Run a program to its end and sync what it wrote to a folder.

    Returns:
        Seconds, with the program's start.
    """
    started = time.perf_counter()
    done = subprocess.run(arguments, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"benchmarks.merge: {' '.join(map(str, arguments))} failed.\n{done.stderr[-2000:]}")
    for file in folder.rglob("*.safetensors"):
        _sync(file)
    return time.perf_counter() - started


def consolidate(models: MadeUp, folder: Path) -> float:
    """DeepSpeed's own program; it leaves ``model.safetensors`` in ``folder``.

    Returns:
        Seconds.
    """
    folder.mkdir()
    program: list[str | Path] = [sys.executable, "-m", "deepspeed.utils.zero_to_fp32", models.finetuned, folder]
    return run_program([*program, "--safe_serialization", "--max_shard_size", "100GB"], folder, DS_ACCELERATOR="cpu")


def merge_with_a_script(
    zero_shot: Path, consolidated: Path, output: Path, dtype: str, alphas: Sequence[float]
) -> float:
    """The usual few lines, in one process for all alphas.

    Returns:
        Seconds.
    """
    output.mkdir()
    program: list[str | Path] = [sys.executable, "-m", "benchmarks.merge_peer", zero_shot, consolidated, output, dtype]
    return run_program([*program, *map(str, alphas)], output)


def script_file(output: Path, alpha: float) -> Path:
    """Where the ensemble of an alpha is."""
    return output / f"alpha_{alpha:g}" / "model.safetensors"


def main(zero_shot: str, consolidated: str, output: str, dtype: str, *alphas: str) -> None:
    """The usual few lines."""
    import torch
    from safetensors.torch import load_file, save_file

    for alpha in map(float, alphas):
        first, second = load_file(zero_shot), load_file(consolidated)
        merged = {name: torch.lerp(first[name], second[name], alpha) for name in first}
        if dtype == "bf16":
            merged = {name: tensor.bfloat16() for name, tensor in merged.items()}
        file = script_file(Path(output), alpha)
        file.parent.mkdir()
        save_file(merged, file)
        _sync(file)


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


if __name__ == "__main__":
    main(*sys.argv[1:])
