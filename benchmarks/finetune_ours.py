"""Our fine-tuning stage; its speed, waiting and memory are read from the run's own events."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Any

from benchmarks.finetune_cases import NUM_SHARDS, SAMPLES_A_SHARD, Case, run_ranks
from wiseft_dist.config import RunConfig
from wiseft_dist.run import Run, open_run
from wiseft_dist.tracking import read_events


@dataclass(frozen=True)
class Training:
    """A finished training: its directory, and every line of metrics but that of the start."""

    run: Run
    lines: list[dict[str, Any]]

    def readings(self, name: str) -> list[float]:
        """A metric, reading by reading."""
        return [line[name] for line in self.lines]


def train_ours(case: Case) -> Training:
    """Train with ``wiseft finetune``."""
    folder = case.folder / "run"
    shutil.rmtree(folder, ignore_errors=True)
    config = RunConfig.model_validate(
        {
            "output": str(folder),
            "model": {"architecture": case.architecture},
            "data": {
                "train": f"{case.folder}/shards",
                "id_val_fraction": 0.0,
                "lanes": NUM_SHARDS,
                "block_samples": SAMPLES_A_SHARD,
                "workers": case.workers,
            },
            "finetune": {
                "recipe": "contrastive",
                "epochs": case.steps * case.global_batch_size / (NUM_SHARDS * SAMPLES_A_SHARD),
                "global_batch_size": case.global_batch_size,
                "zero_stage": case.zero_stage,
                "precision": case.precision,
                "compile": case.compile,
                "log_every": case.window,
                "optimizer": {"lr": 1e-4},
                "schedule": {"warmup_steps": case.window},
                "checkpoint": {"every_minutes": None},
                "validation": {"every_epochs": None},
            },
            "wandb": {"mode": "disabled"},
            "launch": {"finetune": {"tasks_per_node": case.processes}},
        }
    )
    run = open_run(config)
    run_ranks("wiseft_dist", ["finetune", str(run.path)], case)
    lines = [event for event in read_events(run) if "samples_per_second" in event]
    return Training(run, [line for line in lines if line["step"] > case.window])
