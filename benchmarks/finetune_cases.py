"""What is trained in ``benchmarks.finetune``: the shards, the architecture, and how a rank's processes are started."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NUM_SHARDS, SAMPLES_A_SHARD = 16, 75

VIT_S_32: dict[str, Any] = {
    "embed_dim": 384,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 384, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 256, "heads": 4, "layers": 6},
}
"""40 million parameters: small enough for CPU cores, large enough that they compute most of the time."""


@dataclass(frozen=True)
class Case:
    """One training, the same for every contestant."""

    folder: Path
    """Where the shards are and what a contestant writes goes."""
    architecture: str
    """An open_clip name, or a JSON file."""
    global_batch_size: int
    window: int
    """Optimizer steps between two readings of the speed."""
    windows: int
    """Readings."""
    device: str = "cpu"
    precision: str = "fp32"
    compile: bool = False
    zero_stage: int = 0
    """Of ours. The peer keeps everything on every rank, as stage 0 does."""
    processes: int = 1
    workers: int = 1
    """Decoding processes a rank."""
    exact_memory: bool = False
    """Give what is freed back to the system at once, so that a peak is what was in use. Slower."""

    @property
    def steps(self) -> int:
        """Optimizer steps of the training."""
        return self.window * self.windows

    @property
    def model_name(self) -> str:
        """The name by which open_clip knows the architecture."""
        return Path(self.architecture).stem


def write_shards(source: Path, folder: Path) -> None:
    """The photographs of ``source`` with a caption from their class, each several times, in tar files."""
    import webdataset
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    pairs = []
    for shard in sorted(source.glob("*.tar")):
        with tarfile.open(shard) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        labels = {name.removesuffix(".cls"): int(text) for name, text in members.items() if name.endswith(".cls")}
        pairs += [
            (members[f"{key}.jpg"], f"a photo of a {IMAGENET_CLASSNAMES[label]}.") for key, label in labels.items()
        ]
    folder.mkdir()
    for shard_number in range(NUM_SHARDS):
        with webdataset.TarWriter(str(folder / f"{shard_number}.tar")) as writer:
            for number in range(shard_number * SAMPLES_A_SHARD, (shard_number + 1) * SAMPLES_A_SHARD):
                picture, caption = pairs[number % len(pairs)]
                writer.write({"__key__": f"s{number:07d}", "jpg": picture, "txt": caption.encode()})


def write_architecture(path: Path, architecture: dict[str, Any]) -> str:
    """A JSON file that open_clip and wiseft take for an architecture."""
    path.write_text(json.dumps(architecture))
    return str(path)


def run_ranks(module: str, arguments: Sequence[str], case: Case) -> str:
    """Run ``python -m module`` in as many processes as the case has, as torchrun would start them.

    The cores are shared out evenly between the ranks.

    Returns:
        What rank 0 wrote to both its outputs.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threads = max(1, len(os.sched_getaffinity(0)) // case.processes)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SUBMITIT"))}
    shared = {
        "WORLD_SIZE": str(case.processes),
        "LOCAL_WORLD_SIZE": str(case.processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": str(threads),
        **({"MALLOC_MMAP_THRESHOLD_": "65536"} if case.exact_memory else {}),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    command = [sys.executable, "-m", module, *arguments]
    logs = [case.folder / f"{module}.{rank}.log" for rank in range(case.processes)]
    ranks = []
    for rank, log in enumerate(logs):
        environment = clean | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        with log.open("w") as output:
            ranks.append(
                subprocess.Popen(command, env=environment, cwd=case.folder, stdout=output, stderr=subprocess.STDOUT)
            )
    codes = [process.wait() for process in ranks]
    if any(codes):
        failed = next(log for log, code in zip(logs, codes, strict=True) if code)
        sys.exit(f"benchmarks.finetune: {' '.join(command)} failed:\n{failed.read_text()[-3000:]}")
    return logs[0].read_text()
