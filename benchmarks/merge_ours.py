"""Ours, in a process of its own, whose peak memory is read at its end.

python -m benchmarks.merge_ours ZERO_SHOT FINETUNED OUTPUT DTYPE ALPHA ...
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # its imports would count as the contestants'
    from benchmarks.merge_model import MadeUp


@dataclass(frozen=True)
class Reading:
    """What one merge took."""

    seconds: float
    """From opening the models to the last commit."""
    seconds_with_start: float
    """Of the whole process."""
    peak_memory_mb: float
    """The most that the process held in memory, the interpreter and libraries included, in 10^6 bytes."""
    start_memory_mb: float
    """The same before the merge: what importing torch and the package takes."""


def merge_ours(models: MadeUp, output: Path, dtype: str, alphas: Sequence[float]) -> Reading:
    """All ensembles in one pass, committed to disk."""
    program: list[str | Path] = [
        sys.executable,
        "-m",
        "benchmarks.merge_ours",
        models.zero_shot,
        models.finetuned,
        output,
        dtype,
    ]
    started = time.perf_counter()
    done = subprocess.run([*program, *map(str, alphas)], stdout=subprocess.PIPE, text=True, check=True)
    seconds_with_start = time.perf_counter() - started
    return Reading(seconds_with_start=seconds_with_start, **json.loads(done.stdout.splitlines()[-1]))


def main(zero_shot: str, finetuned: str, output: str, dtype: str, *alphas: str) -> None:
    """Merge and print the reading as JSON."""
    import torch

    from wiseft_dist.merge.methods.wise import Wise
    from wiseft_dist.merge.writer import write_ensembles
    from wiseft_dist.run import alpha_name
    from wiseft_dist.weights.pairing import match
    from wiseft_dist.weights.sources import open_weights

    dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32}
    folders = {alpha: Path(output) / alpha_name(alpha) for alpha in map(float, alphas)}
    start_memory_mb = _peak_memory_mb()
    started = time.perf_counter()
    with open_weights(Path(zero_shot)) as first, open_weights(Path(finetuned)) as second:
        write_ensembles(
            match(first, [second]), Wise(), folders, dtype=dtypes[dtype], side_files=lambda _alpha, _inputs: {}
        )
    seconds = time.perf_counter() - started
    figures = {"seconds": seconds, "peak_memory_mb": _peak_memory_mb(), "start_memory_mb": start_memory_mb}
    print(json.dumps(figures))


def _peak_memory_mb() -> float:
    status = Path("/proc/self/status").read_text()
    kibibytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(kibibytes) * 1024 / 1e6


if __name__ == "__main__":
    main(*sys.argv[1:])
