"""The run that faults are made in: two nodes for each stage, so small that starting it takes longer than its work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tiny_run
import yaml
from tiny_run import World, make_world

from wiseft_dist.run import Run

STAGES = ("finetune", "merge", "evaluate")
NUM_RANKS = {"finetune": 4, "merge": 2, "evaluate": 4}
"""Of all jobs of the stage."""
TEXT_WIDTH = 128
"""Token embeddings of 25 MB: enough chunks for both ranks of the merge."""
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "data": {"lanes": 4, "workers": 1},
    "finetune": {
        "epochs": 15,  # 52 steps: two times two checkpoints, and more to do
        "checkpoint": {"every_minutes": None, "every_steps": 10, "keep_last": 100, "keep_best": False},
        "validation": {"every_epochs": None},
    },
    "merge": {"alphas": [0, 0.25, 0.5, 0.75, 1]},
    "evaluate": {"part_samples": 2, "job_images": 22, "workers": 1},
    "distributed": {"timeout_minutes": 2},
    "launch": {
        "executor": "slurm",
        "preflight": {"min_free_disk_gb": 0.01},
        "finetune": {"nodes": 2, "tasks_per_node": 2},
        "merge": {"nodes": 2},
        "evaluate": {"nodes": 2},
    },
}


def make_fault_world(folder: Path) -> World:
    """Shards, model and configuration."""
    world = make_world(folder)
    model = {"model_cfg": tiny_run.MODEL | {"text_cfg": tiny_run.MODEL["text_cfg"] | {"width": TEXT_WIDTH}}}
    (folder / "model.json").write_text(json.dumps(model))
    config = yaml.safe_load(world.config.read_text())
    for section, values in SETTINGS.items():
        config[section] = {**config.get(section, {}), **values}
    world.config.write_text(yaml.safe_dump(config))
    return world


def begin_at(stage: str, finished: Run, path: Path) -> Run:
    """A run at ``path`` whose earlier stages are those of a finished run.

    What comes after the stage stays where it depends on the stage's bits alone: it must still be current in the end.
    """
    shutil.copytree(finished.path, path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("jobs", "events.jsonl"))
    run = Run(path)
    run.config_file.write_text(run.config_file.read_text().replace(str(finished.path), str(path)))
    for folder in {"finetune": [run.checkpoints.parent], "merge": [run.merged], "evaluate": [run.cells, run.report]}[
        stage
    ]:
        shutil.rmtree(folder)
    return run
