"""What a run will cost, by arithmetic on its configuration and on what its shards hold. Reads and asks nothing.

Sizes are bytes and times are seconds. They are estimates: of weights, training state and predictions, without the few
kilobytes that describe them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from wiseft_dist.config import Precision, Resources, RunConfig
from wiseft_dist.data.manifest import Manifest
from wiseft_dist.data.order import SampleOrder
from wiseft_dist.data.stage import TRAIN, evaluated_sizes
from wiseft_dist.evaluate.cells.parts import job_names
from wiseft_dist.evaluate.cells.store import members_of
from wiseft_dist.launch.rates import Rates
from wiseft_dist.models.parameter_count import ParameterCount

ELEMENT_BYTES: Mapping[Precision, int] = {"fp32": 4, "bf16": 2, "fp16": 2}
OPTIMIZER_BYTES = {"adamw": 8, "sgd": 4}
"""A trained parameter's moments in fp32."""
PREDICTION_BYTES = 60
"""Of a sample under one member: five classes with their logits, the right one's, and the loss; before compression."""


def describe_reading(config: RunConfig, manifests: Mapping[str, Manifest], world_size: int) -> dict[str, Any]:
    """What is read: shards of a rank in the first epoch (the fewest and the most), and compressed bytes."""
    train = manifests[TRAIN]
    tested = sum(shard.num_bytes for name in config.data.evaluated for shard in manifests[name].shards)
    an_epoch = sum(shard.num_bytes for shard in train.shards)
    held_out = an_epoch * train.num_held_out // max(1, train.num_samples)
    return {
        "shards_a_rank": _shards_a_rank(config, train, world_size),
        "bytes_an_epoch": an_epoch,
        "bytes_of_training": math.ceil(an_epoch * config.finetune.epochs),
        "bytes_of_evaluation": tested + held_out,
    }


def _shards_a_rank(config: RunConfig, train: Manifest, world_size: int) -> list[int]:
    """The fewest and the most shards that a rank opens in the first epoch."""
    counts = tuple(train.training_counts.tolist())
    order = SampleOrder(counts, config.seed, config.data.lanes, config.data.block_samples)
    opened: list[set[int]] = [set() for _ in range(world_size)]
    for lane in range(config.data.lanes):
        opened[lane % world_size].update(stretch.shard for stretch in order.stretches(0, lane))
    numbers = [len(shards) for shards in opened]
    return [min(numbers), max(numbers)]


def describe_scoring(config: RunConfig, manifests: Mapping[str, Manifest]) -> dict[str, int]:
    """Images that are decoded, models that score each, and what that makes together."""
    images, members = sum(evaluated_sizes(config, manifests).values()), len(members_of(config))
    return {"images": images, "members": members, "predictions": images * members}


def describe_parameters(config: RunConfig, count: ParameterCount | None, num_classes: int) -> dict[str, int] | None:
    """Parameters of the model with its head, and of what the recipe trains; None where they are not known."""
    if count is None:
        return None
    head = count.embed_dim * num_classes
    recipe = config.finetune.recipe
    if recipe in ("flyp", "contrastive"):
        return {"model": count.total, "trained": count.total}
    return {"model": count.total + head, "trained": head if recipe == "linear_head" else count.vision + head}


def describe_disk(
    config: RunConfig, parameters: Mapping[str, int] | None, scoring: Mapping[str, int], shard_bytes: int
) -> dict[str, int | None]:
    """What the run directory will take, and the cache on each node; None for what is not known."""
    disk: dict[str, int | None] = {"checkpoints": None, "ensembles": None}
    if parameters is not None:
        finetune = config.finetune
        # One more than is kept: a checkpoint is committed before the oldest goes.
        num_kept = finetune.checkpoint.keep_last + 1 + int(finetune.checkpoint.keep_best and _validates(config))
        stored = 4 if finetune.zero_stage == 0 else ELEMENT_BYTES[finetune.precision]
        disk["checkpoints"] = num_kept * parameters["trained"] * (stored + 4 + OPTIMIZER_BYTES[finetune.optimizer.name])
        weights = parameters["model"] * ELEMENT_BYTES[config.merge.dtype]
        disk["ensembles"] = (len(config.merge.alphas)) * weights + 4 * parameters["model"]  # and the zero-shot model
    disk["predictions"] = scoring["predictions"] * PREDICTION_BYTES
    disk["cache_a_node"] = min(int(config.data.cache_gb * 1e9), shard_bytes) if config.data.cache else 0
    return disk


def _validates(config: RunConfig) -> bool:
    often = config.finetune.validation
    return config.data.id_val_fraction > 0 and bool(often.every_epochs or often.every_steps)


def describe_memory(config: RunConfig, parameters: Mapping[str, int] | None, world_size: int) -> int | None:
    """Bytes of parameters, gradients and optimizer state on a GPU, without activations.

    Source: ZeRO (arXiv 1910.02054), section 3 and figure 1: optimizer state is shared from stage 1 on, gradients from
    stage 2 on, parameters from stage 3 on. At stage 0 the parameters are fp32 whatever the precision.
    """
    if parameters is None:
        return None
    finetune, trained = config.finetune, parameters["trained"]
    element = 4 if finetune.zero_stage == 0 else ELEMENT_BYTES[finetune.precision]
    masters = 0 if element == 4 else 4
    state = 0 if finetune.offload_optimizer else masters + OPTIMIZER_BYTES[finetune.optimizer.name]
    shared = [finetune.zero_stage >= stage for stage in (3, 2, 1)]
    parts = zip((element, element, state), shared, strict=True)
    return math.ceil(sum(trained * each / (world_size if is_shared else 1) for each, is_shared in parts))


def describe_training_time(config: RunConfig, num_training: int, rates: Rates) -> dict[str, Any]:
    """How long fine-tuning takes at a known rate, and how many starts of its job that needs with its time limit."""
    rate = rates.samples_per_second
    seconds = config.finetune.epochs * num_training / rate if rate else None
    return {
        "samples_per_second": rate,
        "rate_of": rates.training_source,
        "finetune_seconds": seconds,
        "finetune_jobs": _num_starts(config.launch.finetune, seconds),
    }


def describe_scoring_time(
    config: RunConfig, sizes: Mapping[str, int], num_members: int, rates: Rates
) -> dict[str, Any]:
    """How long the evaluation takes with all of its jobs side by side, and how many starts each of them needs.

    Args:
        config: The run.
        sizes: Images by dataset.
        num_members: Models that score each image.
        rates: What is known.
    """
    rate, resources = rates.predictions_per_second, config.launch.evaluate
    num_readers = len(job_names(config, sizes)) * resources.num_tasks
    seconds = math.ceil(sum(sizes.values()) / num_readers) * num_members / rate if rate else None
    return {
        "predictions_per_second_a_process": rate,
        "scoring_rate_of": rates.scoring_source,
        "evaluate_seconds": seconds,
        "evaluate_starts_a_job": _num_starts(resources, seconds),
    }


def _num_starts(resources: Resources, seconds: float | None) -> int | None:
    """Of a job that works so long, and saves and comes back at its time limit."""
    usable = 60 * resources.timeout_minutes - resources.warning_seconds
    return None if seconds is None else max(1, math.ceil(seconds / usable))
