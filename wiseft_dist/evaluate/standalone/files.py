"""Evaluating models of any kind without a run: what ``wiseft evaluate --zero-shot A --finetuned B`` does.

The folder holds cells as a run does, keyed by content: evaluations of other models or settings lie side by side in it,
and the same call again computes only what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import torch

from wiseft_dist.config import EvaluateConfig
from wiseft_dist.distributed import device_of, use_cores
from wiseft_dist.errors import UserError
from wiseft_dist.evaluate.cells.parts import Part, assign, cut
from wiseft_dist.evaluate.cells.store import ARITHMETIC, CellStore
from wiseft_dist.evaluate.predictions import Member, Predictions, members_at
from wiseft_dist.evaluate.reader import Reader, Score
from wiseft_dist.evaluate.scoring import TestSet, layers_of, open_test_set, score_part
from wiseft_dist.evaluate.standalone.evaluation import Evaluation, Scored, forget_results
from wiseft_dist.evaluate.standalone.given_datasets import GivenDataset, IndexedDataset, index_dataset
from wiseft_dist.evaluate.standalone.heads import Classified, classify
from wiseft_dist.evaluate.standalone.live_models import load_models
from wiseft_dist.evaluate.standalone.model_sources import ModelSources, OpenedModels, opened
from wiseft_dist.evaluate.sweep.shared_layers import Adjustable, Layers
from wiseft_dist.merge.writer import DTYPES
from wiseft_dist.models.clip import preprocess_of
from wiseft_dist.ranks import discover_ranks
from wiseft_dist.run import Run
from wiseft_dist.tracking import Tracker


def evaluate_files(
    sources: Sequence[ModelSources],
    given: Sequence[GivenDataset],
    output: Path,
    settings: EvaluateConfig,
    *,
    reference: str,
) -> Evaluation:
    """Score models on test sets; alone, or as one of several processes that share the work.

    Args:
        sources: Ensembles and plain models, one after the other.
        given: The test sets.
        output: Gets cells and manifests.
        settings: How images are read and scored.
        reference: Which of the test sets is the reference; the others are its shifts.

    Returns:
        What was evaluated; where other processes share the work, some of it may not be there yet.

    Raises:
        UserError: if a model or a test set cannot be read, they do not fit together, or ``output`` is a run.
        RunError: if not every sample was seen exactly once, or too many are damaged.
    """
    output = output.expanduser().absolute()
    if Run(output).config_file.is_file():
        raise UserError(f"--output: {output} is a run, with manifests and cells of its own: choose another folder.")
    given = sorted(given, key=lambda each: each.name != reference)
    datasets = [index_dataset(each, output / "shards") for each in given]
    scored = [_evaluate(each, datasets, output, settings) for each in sources]
    return Evaluation(output, tuple(scored))


def _evaluate(
    sources: ModelSources, datasets: Sequence[IndexedDataset], output: Path, settings: EvaluateConfig
) -> Scored:
    """Score what is missing of this process's share."""
    ranks = discover_ranks()
    run = Run(output)
    with opened(sources) as models:
        classified = {each.name: classify(models, each) for each in datasets}
        members = _members(sources, settings)
        store = _store(models, classified, run.cells, settings)
        parts = cut(
            {each.name: each.manifest.num_samples for each in datasets},
            settings.part_samples,
            num_readers=ranks.world_size,
        )
        reader = Reader(store, members, settings.max_bad_samples, Tracker(run, "evaluate"))
        if reader.left(parts):
            forget_results(output)
        own = assign(parts, ranks.world_size)[ranks.rank]
        if reader.left(own):
            use_cores(num_processes=ranks.local_world_size)
            reader.score(own, _scorer(models, classified, members, settings, device_of(ranks)))
    heads = {name: each.head for name, each in classified.items()}
    maps = {name: None if (used := each.dataset.class_map) is None else used.name for name, each in classified.items()}
    return Scored(sources, tuple(datasets), tuple(members), store, settings.max_bad_samples, heads, maps)


def _members(sources: ModelSources, settings: EvaluateConfig) -> list[Member]:
    """Every alpha, and beside it the mixture of both ends' logits where that is wanted; of a plain model itself."""
    if not sources.finetuned:
        return [Member(0.0)]
    return members_at(sorted(sources.merge.alphas), output_space=settings.output_space)


def _store(
    models: OpenedModels, classified: Mapping[str, Classified], root: Path, settings: EvaluateConfig
) -> CellStore:
    weights = models.identity | {
        "architecture": models.config,
        "evaluate": settings.model_dump(mode="json", include=set(ARITHMETIC)),
    }
    return CellStore(root, weights, lambda name: classified[name].content())


def _scorer(
    models: OpenedModels,
    classified: Mapping[str, Classified],
    members: Sequence[Member],
    settings: EvaluateConfig,
    device: torch.device,
) -> Score:
    """The models in memory, and what scores them on parts of any test set."""
    live = load_models(models, device=device, dtype=DTYPES[settings.precision])
    compare = models.is_ensemble
    # What is compared is compared with theta_0; logits are mixed from those of both ends.
    ends = {0.0, 1.0} if any(member.space == "output" for member in members) else {0.0}
    alphas = ends | {member.alpha for member in members}

    @cache
    def ensemble_of(name: str) -> tuple[Adjustable, Layers]:
        ensemble = live.for_classes(classified[name].prompts, alphas)
        return ensemble, layers_of(ensemble, settings)

    @cache
    def test_set_of(name: str) -> TestSet:
        each = classified[name]
        preprocess = preprocess_of(models.config)
        return open_test_set(each.manifest, each.dataset, preprocess, settings, num_classes=each.num_classes)

    def score(part: Part, members: Sequence[Member], on_progress: Callable[[int], None]) -> Predictions:
        ensemble, layers = ensemble_of(part.dataset)
        return score_part(
            ensemble,
            layers,
            test_set_of(part.dataset),
            part,
            members,
            settings,
            compare=compare,
            on_progress=on_progress,
        )

    return score
