"""What each rank does in the validation tests; spawned processes import it by name."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rank_features import computed, source_of
from tiny_finetune import CLASSNAMES
from torch import Tensor

from wiseft_dist.config import FinetuneConfig, ValidationConfig
from wiseft_dist.data.batch import ClassLabel
from wiseft_dist.data.evaluation import EvaluationStream
from wiseft_dist.data.manifest import Manifest
from wiseft_dist.data.transforms import Preprocess, evaluation_transform, normalize
from wiseft_dist.errors import RunError
from wiseft_dist.finetune.engine import Engine
from wiseft_dist.finetune.features.stream import FeatureStream
from wiseft_dist.finetune.recipes import make_recipe
from wiseft_dist.finetune.validation import HeldOutStream, ValidationTimes, Validator
from wiseft_dist.models.clip import preprocess_of, read_config
from wiseft_dist.ranks import Ranks

TIMES = ValidationTimes(ValidationConfig(), global_batch_size=8, num_training=32, total_steps=8)


@dataclass(frozen=True)
class Case:
    """One validation of theta_0."""

    folder: Path
    """With theta_0, shards and their manifest."""
    recipe: str = "end_to_end"
    zero_stage: int = 3
    batch_size: int = 3
    workers: int = 0
    max_bad: int = 0


def run_cases(cases: Sequence[Case], folder: Path, *, world_size: int) -> list[list[dict[str, Any]]]:
    """Run the cases one after the other on so many ranks: what each rank found, by case."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    torch.multiprocessing.spawn(_on_rank, (world_size, port, list(cases), folder), nprocs=world_size)
    ranks = [torch.load(folder / f"rank_{rank}.pt", weights_only=False) for rank in range(world_size)]
    return [list(found) for found in zip(*ranks, strict=True)]


def _on_rank(rank: int, world_size: int, port: int, cases: list[Case], folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK=str(rank),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        DEEPSPEED_LOG_LEVEL="error",
        DS_ACCELERATOR="cpu",
    )
    dist.init_process_group("gloo", rank=rank, world_size=world_size, timeout=timedelta(minutes=2))
    ranks = Ranks(rank, world_size, rank, world_size)
    torch.save([_run(case, ranks) for case in cases], folder / f"rank_{rank}.pt")
    dist.destroy_process_group()


def _run(case: Case, ranks: Ranks) -> dict[str, Any]:
    zero_shot = case.folder / "zero_shot"
    recipe = make_recipe(FinetuneConfig(recipe=case.recipe))
    module = recipe.module(zero_shot)
    config = FinetuneConfig(recipe=case.recipe, zero_stage=case.zero_stage)
    engine = Engine(module, config, device=torch.device("cpu"), micro_batch_size=1, accumulation_steps=1)
    preprocess = preprocess_of(read_config(zero_shot))
    validator = Validator(
        stream=_features(case, ranks) if recipe.inputs == "features" else held_out_pictures(case, preprocess),
        times=TIMES,
        recipe=recipe,
        engine=engine,
        ranks=ranks,
        prepare=(lambda each: each) if recipe.inputs == "features" else lambda each: normalized(each, preprocess),
        zero_shot=zero_shot,
        batch_size=case.batch_size,
        workers=case.workers,
        max_bad=case.max_bad,
    )
    found: dict[str, Any] = {"is_due": [step for step in range(1, 9) if validator.is_due(step)]}
    if found["is_due"]:
        try:
            found |= validator.run()
        except RunError as error:
            found["error"] = str(error)
    return found | {"is_training": module.training, "children": len(multiprocessing.active_children())}


def held_out_pictures(case: Case, preprocess: Preprocess) -> EvaluationStream:
    return EvaluationStream(
        Manifest.load(case.folder / "train.json"),
        evaluation_transform(preprocess, "fast"),
        held_out=True,
        max_bad=case.max_bad,
        target=ClassLabel(len(CLASSNAMES)),
    )


def normalized(pixels: Tensor, preprocess: Preprocess) -> Tensor:
    return normalize(pixels, preprocess, torch.float32)


def _features(case: Case, ranks: Ranks) -> HeldOutStream:
    features = computed(source_of(case.folder), case.folder / "features", ranks)
    return FeatureStream(features, Manifest.load(case.folder / "train.json"), 0, 8).held_out()
