"""The evaluation stage: every alpha that a dataset has no committed cell for, on one decode pass."""

from __future__ import annotations

import torch
from torch import Tensor

from wiseft_dist.config import RunConfig
from wiseft_dist.data.batch import ClassLabel
from wiseft_dist.data.cache import shard_cache
from wiseft_dist.data.evaluation import EvaluationStream
from wiseft_dist.data.stage import ID_VAL, datasets_to_evaluate, load_manifest
from wiseft_dist.data.transforms import evaluation_transform, normalize
from wiseft_dist.distributed import device_of, discover_ranks, require_single_process, use_cores
from wiseft_dist.errors import UserError
from wiseft_dist.evaluate.cells import CellStore
from wiseft_dist.evaluate.sweep import sweep
from wiseft_dist.merge.ensemble import Ensemble, load_weights
from wiseft_dist.merge.writer import DTYPES
from wiseft_dist.models.classifier import Classifier, read_classifier, read_vocabulary
from wiseft_dist.models.clip import preprocess_of, read_config
from wiseft_dist.progress import progress_bar
from wiseft_dist.run import Run
from wiseft_dist.tracking import Tracker, tracking
from wiseft_dist.weights.finetuned import open_pair


def evaluate(config: RunConfig, run: Run, *, dataset: str | None = None) -> None:
    """Score every ensemble on one dataset, or on all of them in turn.

    Raises:
        UserError: if the run has no dataset of that name.
        RunError: if fine-tuning has not finished, or not every sample was seen exactly once.
    """
    names = datasets_to_evaluate(config, run)
    if dataset is not None and dataset not in names:
        raise UserError(f"{dataset} is not a dataset of this run. Its datasets: {', '.join(names)}.")
    store = CellStore(config, run)
    todo = {name: store.missing(name, config.merge.alphas) for name in ([dataset] if dataset else names)}
    todo = {name: missing for name, missing in todo.items() if missing}
    if not todo:
        return
    require_single_process("evaluate")
    use_cores(num_processes=1)
    device = device_of(discover_ranks())
    ensemble = _load_ensemble(config, run, device)
    for name, missing in todo.items():
        with tracking(config, run, "evaluate", job=name) as tracker:
            tracker.event("started", dataset=name, alphas=missing)
            _evaluate_dataset(config, run, name, missing, ensemble, store, tracker)
            tracker.event("finished", dataset=name)


def _load_ensemble(config: RunConfig, run: Run, device: torch.device) -> Ensemble:
    """theta_0 from the run, theta_1 straight from the sharded checkpoint. What was not trained is held once."""
    module: Classifier = read_classifier(run.zero_shot)
    module.to(device=device, dtype=DTYPES[config.evaluate.precision]).eval().requires_grad_(False)
    with open_pair(config, run) as models:
        zero_shot = load_weights(models.zero_shot, module, device=device)
        finetuned = load_weights(models.finetuned[0], module, device=device, carried=zero_shot)
        return Ensemble(module, zero_shot, finetuned)


def _evaluate_dataset(
    config: RunConfig,
    run: Run,
    name: str,
    alphas: list[float],
    ensemble: Ensemble,
    store: CellStore,
    tracker: Tracker,
) -> None:
    preprocess = preprocess_of(read_config(run.zero_shot))
    stream = EvaluationStream(
        load_manifest(run, name),
        evaluation_transform(preprocess, config.evaluate.preprocess),
        held_out=name == ID_VAL,
        max_bad=config.evaluate.max_bad_samples,
        target=ClassLabel(len(read_vocabulary(run.zero_shot).classnames)),
        cache=shard_cache(config.data),
    )
    parameter = next(ensemble.module.parameters())

    def prepare(pixels: Tensor) -> Tensor:
        return normalize(pixels.to(parameter.device, non_blocking=True), preprocess, parameter.dtype)

    with progress_bar(f"evaluating {name}", total=stream.num_samples, unit="images") as bar:
        predictions = sweep(
            ensemble,
            stream.batches(config.evaluate.batch_size, num_workers=config.evaluate.workers),
            alphas,
            prepare=prepare,
            cache_images=config.evaluate.cache_images,
            on_progress=bar.advance,
        )
    for skipped in predictions.bad:
        tracker.event("skipped", dataset=name, sample=str(skipped))
    for index, alpha in enumerate(alphas):
        cell = store.write(name, alpha, predictions, index)
        tracker.metrics({f"{name}/top1": cell.top1}, alpha=alpha)
