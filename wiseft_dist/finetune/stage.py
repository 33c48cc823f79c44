"""The fine-tuning stage: the same under a laptop, torchrun and Slurm; what is done is read from disk."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from wiseft_dist.commits import committing, is_committed
from wiseft_dist.config import RunConfig
from wiseft_dist.data.stage import index
from wiseft_dist.data.vocabulary import load_vocabulary
from wiseft_dist.distributed import broadcast_from_main, device_of, process_group, together, use_cores
from wiseft_dist.errors import RunError
from wiseft_dist.finetune.recipes import make_recipe
from wiseft_dist.finetune.recipes.flyp import rebuilt_head
from wiseft_dist.finetune.recipes.lp_ft import head_phase
from wiseft_dist.finetune.training import train
from wiseft_dist.models.classifier import Head, read_vocabulary, write_head, write_zero_shot
from wiseft_dist.models.clip import create_clip
from wiseft_dist.models.files import HEAD_PREFIX
from wiseft_dist.models.zero_shot import zero_shot_head
from wiseft_dist.preflight import preflight
from wiseft_dist.ranks import Ranks, discover_launcher, discover_ranks
from wiseft_dist.run import Run
from wiseft_dist.tracking import tracking
from wiseft_dist.weights.finetuned import is_finetuned
from wiseft_dist.weights.sources import open_weights


def finetune(config: RunConfig, run: Run) -> None:
    """Write theta_0, train to theta_1 from wherever an earlier session stopped, commit the last checkpoint."""
    ranks = discover_ranks()
    if ranks.world_size == 1 and is_finetuned(config, run):
        return
    _check_world_size(config, ranks)
    use_cores(ranks.local_world_size)
    minutes = config.distributed.timeout_minutes
    with process_group(ranks, timeout_minutes=minutes, folder=run.jobs) as ranks:
        if broadcast_from_main(ranks.is_main and is_finetuned(config, run)):
            return
        if config.launch.preflight.enabled:
            preflight(config, run, ranks)
        together(lambda: _prepare(config, run, ranks))
        if config.finetune.recipe == "lp_ft":
            _train_head_first(config, run, ranks)
        _train(config, run, ranks)
        if config.finetune.recipe == "flyp":
            together(lambda: _rebuild_head(config, run, ranks))


def _prepare(config: RunConfig, run: Run, ranks: Ranks) -> None:
    """What is done once, by rank 0, before any rank can train."""
    if ranks.is_main:
        index(config, run)
        prepare_zero_shot(config, run, device=device_of(ranks))


def prepare_zero_shot(config: RunConfig, run: Run, *, device: torch.device) -> None:
    """Write theta_0 to the run, with a head from prompts where the recipe needs one."""
    if is_committed(run.zero_shot):
        return
    clip = create_clip(config.model, seed=config.seed)
    with committing(run.zero_shot) as folder:
        if make_recipe(config.finetune).needs_head:
            vocabulary = load_vocabulary(config.data)
            head = zero_shot_head(clip, vocabulary.classnames, vocabulary.templates, device=device)
            write_zero_shot(folder, clip, head, vocabulary)
        else:
            write_zero_shot(folder, clip, None, None)


def _train(config: RunConfig, run: Run, ranks: Ranks) -> None:
    """One training to its end; rank 0 tells of it under its name."""
    if broadcast_from_main(ranks.is_main and run.final_checkpoint() is not None):
        return
    if ranks.is_main:
        with tracking(config, run, run.training) as tracker:
            train(config, run, ranks, tracker)
    else:
        train(config, run, ranks, None)


def _train_head_first(config: RunConfig, run: Run, ranks: Ranks) -> None:
    """The first training of LP-FT, and the head that the second one starts from."""
    first = replace(run, training="linear_head")
    _train(config.model_copy(update={"finetune": head_phase(config.finetune)}), first, ranks)

    def write() -> None:
        with open_weights(first.finished_checkpoint()) as trained:
            weight, bias = (trained.tensor(HEAD_PREFIX + name) for name in ("weight", "bias"))
        head = Head(weight.shape[1], weight.shape[0])
        head.load_state_dict({"weight": weight, "bias": bias})
        _write_head(run, first.finetuned_head, head)

    together(lambda: _once(ranks, first.finetuned_head, write))


def _rebuild_head(config: RunConfig, run: Run, ranks: Ranks) -> None:
    """The head of FLYP's theta_1, from its text tower."""

    def write() -> None:
        with open_weights(run.finished_checkpoint(), average=config.finetune.ema is not None) as trained:
            weights = {name: trained.tensor(name) for name in trained}
        _write_head(run, run.finetuned_head, rebuilt_head(run.zero_shot, weights, device=device_of(ranks)))

    _once(ranks, run.finetuned_head, write)


def _once(ranks: Ranks, folder: Path, write: Callable[[], None]) -> None:
    if ranks.is_main and not is_committed(folder):
        write()


def _write_head(run: Run, target: Path, head: nn.Linear) -> None:
    with committing(target) as folder:
        write_head(folder, head, read_vocabulary(run.zero_shot))


def _check_world_size(config: RunConfig, ranks: Ranks) -> None:
    """A job whose processes never found each other looks like training; refuse it.

    Whoever starts another number with srun or torchrun means it: the batch is shared by as many.
    """
    planned = config.launch.finetune.num_tasks
    if ranks.world_size == planned:
        return
    launcher = discover_launcher()
    if launcher.kind in ("torchrun", "slurm") and not launcher.is_submitted:
        if ranks.is_main:
            sentence = f"{ranks.world_size} processes fine-tune; launch.finetune plans {planned}."
            print(f"wiseft: {sentence}", file=sys.stderr, flush=True)
        return
    raise RunError(
        f"this job has {ranks.world_size} processes, launch.finetune plans {planned}: "
        "start as many, or set launch.finetune.nodes and tasks_per_node."
    )
