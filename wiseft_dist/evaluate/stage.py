"""The evaluation stage: every alpha that a dataset has no committed cell for, on one decode pass."""

from __future__ import annotations

from functools import partial

import torch

from wiseft_dist.config import RunConfig
from wiseft_dist.data.stage import datasets_to_evaluate
from wiseft_dist.distributed import device_of, discover_ranks, require_single_process, use_cores
from wiseft_dist.errors import UserError
from wiseft_dist.evaluate.cells import CellStore
from wiseft_dist.evaluate.scoring import load_module, score_dataset
from wiseft_dist.merge.ensemble import Ensemble, load_weights
from wiseft_dist.merge.methods.choice import make_method
from wiseft_dist.run import Run
from wiseft_dist.tracking import Tracker, tracking
from wiseft_dist.weights.finetuned import open_models


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
    module, method = load_module(config, run, device), make_method(config.merge)
    with open_models(config, run) as models:
        # Statistics are those of the whole model, of which the module is only what classifies images.
        others = [name for name in models.records if models.is_mixed(name)] if method.num_passes else []
        load = partial(load_weights, module=module, device=device, others=others)
        zero_shot = load(models.zero_shot)
        finetuned = [load(each, carried=zero_shot) for each in models.finetuned]
        fisher = [load(each, carried=zero_shot) for each in models.fisher]
        return Ensemble(module, zero_shot, finetuned, method=method, fisher=fisher)


def _evaluate_dataset(
    config: RunConfig,
    run: Run,
    name: str,
    alphas: list[float],
    ensemble: Ensemble,
    store: CellStore,
    tracker: Tracker,
) -> None:
    predictions = score_dataset(config, run, name, ensemble, alphas)
    for skipped in predictions.bad:
        tracker.event("skipped", dataset=name, sample=str(skipped))
    for index, alpha in enumerate(alphas):
        cell = store.write(name, alpha, predictions, index)
        tracker.metrics({f"{name}/top1": cell.top1}, alpha=alpha)
