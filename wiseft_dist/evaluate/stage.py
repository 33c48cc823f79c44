"""The evaluation stage: every alpha of which something is not committed, on one decode pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial

import torch

from wiseft_dist.commits import refuse_damaged
from wiseft_dist.config import RunConfig
from wiseft_dist.data.stage import sizes_to_evaluate
from wiseft_dist.distributed import device_of, use_cores
from wiseft_dist.errors import UserError
from wiseft_dist.evaluate.cells.parts import Part, assign, cut, parts_of_job
from wiseft_dist.evaluate.cells.store import CellStore, members_of
from wiseft_dist.evaluate.predictions import Member, Predictions
from wiseft_dist.evaluate.reader import Reader, Score
from wiseft_dist.evaluate.scoring import layers_of, load_module, open_test_set_of_run, score_part
from wiseft_dist.merge.ensemble import Ensemble, load_weights
from wiseft_dist.merge.methods.choice import make_method
from wiseft_dist.progress import progress_bar
from wiseft_dist.ranks import Ranks, discover_ranks
from wiseft_dist.run import Run
from wiseft_dist.tracking import Tracker, tracking
from wiseft_dist.weights.finetuned import open_models


def evaluate(config: RunConfig, run: Run, *, dataset: str | None = None, job: str | None = None) -> None:
    """Score every ensemble, in one process or in several, which share the work without talking to each other.

    Args:
        config: The run.
        run: Its directory.
        dataset: Only this one.
        job: Only what this job of the run scores, such as ``1-of-3``.

    Raises:
        UserError: if the run has no such dataset or job.
        RunError: if fine-tuning has not finished, not every sample was seen exactly once, or too many are damaged.
    """
    read(config, run, discover_ranks(), dataset=dataset, job=job)


def read(config: RunConfig, run: Run, ranks: Ranks, *, dataset: str | None = None, job: str | None = None) -> None:
    """What one process of :func:`evaluate` does."""
    parts = parts_of_reader(config, run, ranks, dataset=dataset, job=job)
    store, members = CellStore.of_run(config, run), members_of(config)
    if store.left(parts, members):
        use_cores(num_processes=ranks.local_world_size)
        with _tracker(config, run, ranks, job or "") as tracker:
            reader = Reader(store, members, config.evaluate.max_bad_samples, tracker, ranks.is_main)
            reader.score(parts, _load_scorer(config, run, device_of(ranks)))


def _tracker(config: RunConfig, run: Run, ranks: Ranks, job: str) -> AbstractContextManager[Tracker]:
    """The events of all ranks of a job are one W&B run's, which the first of them shows."""
    return tracking(config, run, "evaluate", job=job) if ranks.is_main else nullcontext(Tracker(run, "evaluate", job))


def parts_of_reader(
    config: RunConfig, run: Run, ranks: Ranks, *, dataset: str | None = None, job: str | None = None
) -> list[Part]:
    """What one process of a group scores: its share of a job's parts, of one dataset's, or of all.

    Raises:
        UserError: if the run has no such dataset or job.
    """
    sizes = sizes_to_evaluate(config, run)
    if dataset is not None and dataset not in sizes:
        raise UserError(f"{dataset} is not a dataset of this run. Its datasets: {', '.join(sizes)}.")
    if job is not None:
        parts = [part for part in parts_of_job(config, sizes, job) if dataset in (None, part.dataset)]
    else:
        chosen = {name: size for name, size in sizes.items() if dataset in (None, name)}
        parts = cut(chosen, config.evaluate.part_samples, num_readers=ranks.world_size)
    return assign(parts, ranks.world_size)[ranks.rank]


def _load_scorer(config: RunConfig, run: Run, device: torch.device) -> Score:
    """The ensemble in memory, and what scores it on parts of any dataset."""
    ensemble = _load_ensemble(config, run, device)
    layers = layers_of(ensemble, config.evaluate)
    open_once = cache(partial(open_test_set_of_run, config, run))

    def score(part: Part, members: Sequence[Member], on_progress: Callable[[int], None]) -> Predictions:
        test_set = open_once(part.dataset)
        return score_part(ensemble, layers, test_set, part, members, config.evaluate, on_progress=on_progress)

    return score


def _load_ensemble(config: RunConfig, run: Run, device: torch.device) -> Ensemble:
    """theta_0 from the run, theta_1 straight from the sharded checkpoint. What was not trained is held once."""
    refuse_damaged(run.finished_checkpoint())
    module, method = load_module(config, run, device), make_method(config.merge)
    with progress_bar("loading models"), open_models(config, run) as models:
        # Statistics are those of the whole model, of which the module is only what classifies images.
        others = [name for name in models.records if models.is_mixed(name)] if method.num_passes else []
        load = partial(load_weights, module=module, device=device, others=others)
        zero_shot = load(models.zero_shot)
        finetuned = [load(each, carried=zero_shot) for each in models.finetuned]
        fisher = [load(each, carried=zero_shot) for each in models.fisher]
        return Ensemble(module, zero_shot, finetuned, method=method, fisher=fisher)
