"""Processes that compute features: some are killed on the way, some share the work. They count what they decode."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from tiny_finetune import NUM_SAMPLES

from wiseft_dist.data.manifest import Manifest
from wiseft_dist.data.transforms import EvaluationTransform
from wiseft_dist.distributed import process_group
from wiseft_dist.finetune.features.compute import Features, FeatureSource, compute_features
from wiseft_dist.ranks import Ranks, discover_ranks

CHUNK_SAMPLES = 8
CHUNKS = NUM_SAMPLES // CHUNK_SAMPLES


def source_of(folder: Path) -> FeatureSource:
    """The features of ``folder/zero_shot`` for the samples of ``folder/train.json``."""
    manifest = Manifest.load(folder / "train.json")
    return FeatureSource(folder / "zero_shot", manifest, "fast", torch.float32, CHUNK_SAMPLES)


def computed(source: FeatureSource, folder: Path, ranks: Ranks, *, max_bad: int = 0, workers: int = 0) -> Features:
    """The features, by the ranks of a group that is there already."""
    return compute_features(
        source, folder, ranks=ranks, device=torch.device("cpu"), batch_size=3, workers=workers, max_bad=max_bad
    )


def computed_alone(source: FeatureSource, folder: Path, *, max_bad: int = 0, workers: int = 0) -> Features:
    """The features, by this process."""
    ranks = Ranks()
    with process_group(ranks, timeout_minutes=1, folder=folder):
        return computed(source, folder, ranks, max_bad=max_bad, workers=workers)


def main(folder: Path, rank: int, world_size: int, port: int, decodes: int) -> None:
    """Compute; die after so many pictures; write down how many there were."""
    count = 0
    decode = EvaluationTransform.__call__

    def counted(self: EvaluationTransform, data: bytes, out: np.ndarray) -> None:
        nonlocal count
        if count == decodes:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
        decode(self, data, out)

    EvaluationTransform.__call__ = counted  # type: ignore[method-assign]
    torch.set_num_threads(1)
    place = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world_size}
    os.environ.update(
        {name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    ranks = discover_ranks()
    with process_group(ranks, timeout_minutes=1):
        computed(source_of(folder), folder / "features", ranks)
    (folder / f"decoded_{rank}").write_text(str(count))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
