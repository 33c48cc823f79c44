"""From a configuration to one training: its data, its engine, its loop, put together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wiseft_dist.commits import commit_digest
from wiseft_dist.config import RunConfig, batch_arithmetic
from wiseft_dist.data.manifest import Manifest
from wiseft_dist.data.receipt import Account
from wiseft_dist.data.stage import TRAIN, load_manifest
from wiseft_dist.distributed import device_of
from wiseft_dist.finetune.checkpoint import Checkpointer
from wiseft_dist.finetune.engine import Engine
from wiseft_dist.finetune.flops import peak_flops, training_flops
from wiseft_dist.finetune.loop import Loop
from wiseft_dist.finetune.meter import Meter, untried
from wiseft_dist.finetune.mixing import Mixing, make_mixing
from wiseft_dist.finetune.recipes import Recipe, make_recipe
from wiseft_dist.finetune.schedule import total_steps
from wiseft_dist.finetune.training_data import training_data
from wiseft_dist.finetune.validation import ValidationTimes, Validator
from wiseft_dist.finetune.watchdog import Watchdog
from wiseft_dist.models.classifier import read_vocabulary
from wiseft_dist.models.clip import preprocess_of, read_config
from wiseft_dist.models.short_texts import WIDTH_STEP, reads_short_texts
from wiseft_dist.ranks import Ranks
from wiseft_dist.run import Run, identity
from wiseft_dist.tracking import Tracker
from wiseft_dist.tracking.system import SystemSampler

CONTEXT_LENGTH = 77
"""Tokens of a text, where a model's configuration does not say."""


def train(config: RunConfig, run: Run, ranks: Ranks, tracker: Tracker | None) -> None:
    """Train to the last step from wherever an earlier session stopped, and commit the last checkpoint.

    Args:
        config: Its section ``finetune`` is that of this training.
        run: Where theta_0 and the manifests are, and the checkpoints go.
        ranks: This process's place; all ranks call this.
        tracker: On the rank that writes.
    """
    settings, device = config.finetune, device_of(ranks)
    micro_batch_size, accumulation_steps = batch_arithmetic(config, ranks.world_size)
    head = replace(run, training="linear_head").finetuned_head
    recipe = make_recipe(settings, head=head)
    manifest = load_manifest(run, TRAIN)
    steps = total_steps(config, manifest.num_training)
    data = training_data(config, run, recipe, manifest, ranks)
    module = recipe.module(run.zero_shot)
    flops = training_flops(module, *_stand_ins(recipe, run.zero_shot))
    engine = Engine(
        module,
        settings,
        device=device,
        micro_batch_size=micro_batch_size,
        accumulation_steps=accumulation_steps,
        pull=recipe.pull,
    )
    watchdog = Watchdog(run.events_file, ranks, timeout_minutes=config.distributed.timeout_minutes)
    checkpointer = Checkpointer(
        run,
        engine,
        settings.checkpoint,
        ranks,
        identity=_identity(config, run, recipe, manifest, micro_batch_size * ranks.world_size),
        tracker=tracker,
    )
    first_step = checkpointer.resume()

    @watchdog.noticing
    def prepare(inputs: Tensor) -> Tensor:
        return data.prepare(inputs, engine.dtype)

    validator = Validator(
        data.held_out,
        ValidationTimes(settings.validation, settings.global_batch_size, manifest.num_training, steps),
        recipe,
        engine,
        ranks,
        prepare,
        run.zero_shot,
        batch_size=settings.validation.batch_size,
        workers=config.data.workers,
        average=settings.ema is not None,
        max_bad=config.data.max_bad_samples,
    )
    meter = Meter(
        device,
        ranks,
        steps,
        settings.global_batch_size,
        flops,
        peak_flops(device, settings.precision, settings.peak_tflops),
        first_step,
        advice=untried(settings, device=device, accumulation_steps=accumulation_steps),
    )
    if tracker is not None:
        tracker.event("started", step=first_step, total_steps=steps, world_size=ranks.world_size)
    Loop(
        engine=engine,
        recipe=recipe,
        prepare=prepare,
        config=settings,
        micro_batch_size=micro_batch_size,
        total_steps=steps,
        ranks=ranks,
        seed=config.seed,
        account=Account(
            manifest.num_training,
            config.data.max_bad_samples,
            first_position=first_step * settings.global_batch_size,
        ),
        meter=meter,
        validator=validator,
        checkpointer=checkpointer,
        watchdog=watchdog,
        timeout_minutes=config.distributed.timeout_minutes,
        mixing=_make_mixing(config, run, recipe),
        tracker=tracker,
        system=None if tracker is None else SystemSampler(),
    ).run(data.batches(first_step), first_step=first_step)
    if tracker is not None:
        tracker.event("finished", step=steps)


def _identity(config: RunConfig, run: Run, recipe: Recipe, manifest: Manifest, samples_a_pass: int) -> dict[str, Any]:
    """What a checkpoint belongs to: settings by their names, the model and the data by their content."""
    settings = {
        key: value
        for key, value in identity(config).items()
        if key.split(".")[0] not in ("model", "merge") and key not in ("data.train", "data.classnames")
    }
    if recipe.inputs == "features":
        settings["evaluate.preprocess"] = config.evaluate.preprocess
    compared = {"samples compared in a forward pass": samples_a_pass} if recipe.compares_within_batch else {}
    return settings | compared | {"model": commit_digest(run.zero_shot), "data": manifest.content_digest}


def _make_mixing(config: RunConfig, run: Run, recipe: Recipe) -> Mixing | None:
    if not recipe.trains_head or recipe.inputs == "features":
        return None
    return make_mixing(
        config.data.augment,
        num_classes=len(read_vocabulary(run.zero_shot).classnames),
        label_smoothing=config.finetune.label_smoothing,
        seed=config.seed,
    )


def _stand_ins(recipe: Recipe, zero_shot: Path) -> list[Tensor]:
    """One sample's inputs of the recipe's module, without memory."""
    config = read_config(zero_shot)
    if recipe.inputs == "features":
        return [torch.empty(1, config["model_cfg"]["embed_dim"], device="meta")]
    size = preprocess_of(config).size
    images = torch.empty(1, 3, size, size, device="meta")
    if recipe.trains_head:
        return [images]
    context = config["model_cfg"].get("text_cfg", {}).get("context_length", CONTEXT_LENGTH)
    length = min(context, WIDTH_STEP) if reads_short_texts(config) else context  # the least that a text costs
    return [images, torch.zeros(1, length, dtype=torch.int64, device="meta")]
