"""The fine-tuning stage: the same under a laptop, torchrun and Slurm; what is done is read from disk."""

from __future__ import annotations

import torch

from wiseft_dist.config import RunConfig, batch_arithmetic
from wiseft_dist.data.cache import shard_cache
from wiseft_dist.data.receipt import Account
from wiseft_dist.data.stage import TRAIN, index, load_manifest
from wiseft_dist.data.stream import TrainStream, sample_order
from wiseft_dist.data.transforms import training_transform
from wiseft_dist.data.vocabulary import load_vocabulary
from wiseft_dist.distributed import (
    Ranks,
    broadcast_from_main,
    device_of,
    discover_ranks,
    process_group,
    together,
    use_cores,
)
from wiseft_dist.errors import RunError
from wiseft_dist.finetune.checkpoint import Checkpointer
from wiseft_dist.finetune.engine import Engine
from wiseft_dist.finetune.loop import Loop
from wiseft_dist.finetune.mixing import make_mixing
from wiseft_dist.finetune.recipes import Recipe, make_recipe
from wiseft_dist.finetune.schedule import total_steps
from wiseft_dist.models.classifier import read_vocabulary, write_zero_shot
from wiseft_dist.models.clip import create_clip, preprocess_of, read_config
from wiseft_dist.models.zero_shot import zero_shot_head
from wiseft_dist.run import Run, committing, is_committed
from wiseft_dist.tracking import Tracker, tracking


def finetune(config: RunConfig, run: Run) -> None:
    """Write theta_0, train to theta_1 from wherever an earlier session stopped, commit the last checkpoint."""
    ranks = discover_ranks()
    if ranks.world_size == 1 and run.final_checkpoint() is not None:
        return
    _check_world_size(config, ranks)
    use_cores(ranks.local_world_size)
    with process_group(ranks, timeout_minutes=config.distributed.timeout_minutes):
        if broadcast_from_main(ranks.is_main and run.final_checkpoint() is not None):
            return
        recipe = make_recipe(config.finetune)
        together(lambda: _prepare(config, run, recipe, ranks))
        if ranks.is_main:
            with tracking(config, run, "finetune") as tracker:
                _train(config, run, recipe, ranks, tracker)
        else:
            _train(config, run, recipe, ranks, None)


def _prepare(config: RunConfig, run: Run, recipe: Recipe, ranks: Ranks) -> None:
    """What is done once, by rank 0, before any rank can train."""
    if ranks.is_main:
        index(config, run)
        prepare_zero_shot(config, run, recipe, device=device_of(ranks))


def prepare_zero_shot(config: RunConfig, run: Run, recipe: Recipe, *, device: torch.device) -> None:
    """Write theta_0 to the run, with a head from prompts where the recipe trains one."""
    if is_committed(run.zero_shot):
        return
    clip = create_clip(config.model, seed=config.seed)
    with committing(run.zero_shot) as folder:
        if recipe.trains_head:
            vocabulary = load_vocabulary(config.data)
            head = zero_shot_head(clip, vocabulary.classnames, vocabulary.templates, device=device)
            write_zero_shot(folder, clip, head, vocabulary)
        else:
            write_zero_shot(folder, clip, None, None)


def _train(config: RunConfig, run: Run, recipe: Recipe, ranks: Ranks, tracker: Tracker | None) -> None:
    micro_batch_size, accumulation_steps = batch_arithmetic(config, ranks.world_size)
    manifest = load_manifest(run, TRAIN)
    preprocess = preprocess_of(read_config(run.zero_shot))
    engine = Engine(
        recipe.module(run.zero_shot),
        config.finetune,
        device=device_of(ranks),
        micro_batch_size=micro_batch_size,
        accumulation_steps=accumulation_steps,
    )
    checkpointer = Checkpointer(run, engine, config.finetune.checkpoint, ranks)
    first_step = checkpointer.resume()
    data = config.data
    stream = TrainStream(
        manifest=manifest,
        order=sample_order(manifest, seed=config.seed, lanes=data.lanes, block_samples=data.block_samples),
        transform=training_transform(preprocess, data.augment),
        target=recipe.target(run.zero_shot),
        global_batch_size=config.finetune.global_batch_size,
        cache=shard_cache(data),
    )
    account = Account(
        manifest.num_training, data.max_bad_samples, first_position=first_step * config.finetune.global_batch_size
    )
    steps = total_steps(config, manifest.num_training)
    if tracker is not None:
        tracker.event("started", step=first_step, total_steps=steps, world_size=ranks.world_size)
    mixing = None
    if recipe.trains_head:
        mixing = make_mixing(
            data.augment,
            num_classes=len(read_vocabulary(run.zero_shot).classnames),
            label_smoothing=config.finetune.label_smoothing,
            seed=config.seed,
        )
    loop = Loop(
        engine, recipe, preprocess, config.finetune, micro_batch_size, steps, ranks, config.seed, account, mixing
    )
    batches = stream.batches(
        first_step=first_step,
        rank=ranks.rank,
        world_size=ranks.world_size,
        num_workers=data.workers,
        pin_memory=engine.device.type == "cuda",
    )
    loop.run(batches, first_step=first_step, checkpointer=checkpointer, tracker=tracker)
    checkpointer.save(steps, final=True)
    if tracker is not None:
        tracker.event("finished", step=steps)


def _check_world_size(config: RunConfig, ranks: Ranks) -> None:
    """A job whose processes never found each other looks like training; refuse it."""
    planned = config.launch.finetune.num_tasks
    if ranks.world_size != planned:
        raise RunError(
            f"this job has {ranks.world_size} processes, launch.finetune plans {planned}: "
            "start as many, or set launch.finetune.nodes and tasks_per_node."
        )
