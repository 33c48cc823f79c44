"""open_clip's own trainer, started with what it needs on this machine; its speed is read from its log.

python -m benchmarks.finetune_peer ARCHITECTURE TRAINER_OPTION ...
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from benchmarks.finetune_cases import NUM_SHARDS, Case, run_ranks


def train_peer(case: Case) -> list[float]:
    """Train with ``open_clip_train``.

    Returns:
        Samples/s over all ranks, of each reading but those of the start.
    """
    steps = case.steps + 1  # it reads its clock after the first step, and then every so many
    options = {
        "model": case.model_name,
        "train-data": f"{case.folder}/shards/{{0..{NUM_SHARDS - 1}}}.tar",
        "dataset-type": "webdataset",
        "train-num-samples": steps * case.global_batch_size,
        "batch-size": case.global_batch_size // case.processes,
        "workers": case.workers,
        "epochs": 1,
        "warmup": case.window,
        "lr": 1e-4,
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-8,
        "wd": 0.1,
        "grad-clip-norm": 1.0,
        "precision": "fp32" if case.precision == "fp32" else f"amp_{case.precision}",
        "device": case.device,
        "log-every-n-steps": case.window,
        "logs": "none",
    }
    switches = ["--local-loss", "--gather-with-grad"] if case.processes > 1 else []
    switches += ["--torchcompile"] if case.compile else []
    arguments = [f"--{name}={value}" for name, value in options.items()] + switches
    log = run_ranks("benchmarks.finetune_peer", [case.architecture, *arguments], case)
    seconds = [float(text) for text in re.findall(r"Batch \(t\): ([\d.]+)", log)]
    return [case.global_batch_size / of_a_step for of_a_step in seconds[2:]]


def main(architecture: str, *arguments: str) -> None:
    """Run the trainer with three repairs that leave its work as it is."""
    import open_clip
    import torch
    from open_clip_train import data
    from open_clip_train.main import main as train
    from torch.nn.parallel import DistributedDataParallel
    from webdataset.tariterators import tar_file_expander

    def on_any_device(model: torch.nn.Module, device_ids: list[torch.device], **options: Any) -> torch.nn.Module:
        # The trainer names a device on CPUs too, which torch refuses.
        ids = device_ids if device_ids[0].type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids, **options)

    # webdataset 1.0 marks the end of a shard by an empty dictionary, which open_clip's grouping does not expect.
    data.tar_file_expander = lambda *args, **named: filter(None, tar_file_expander(*args, **named))
    torch.nn.parallel.DistributedDataParallel = on_any_device  # type: ignore[assignment,misc]
    if Path(architecture).suffix == ".json":
        open_clip.add_model_config(architecture)
    train(list(arguments))


if __name__ == "__main__":
    main(*sys.argv[1:])
