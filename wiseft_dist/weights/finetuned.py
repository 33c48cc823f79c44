"""What the models of a run are: theta_1 of its last checkpoint, further models, and a head computed from theta_1."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wiseft_dist.commits import commit_digest, digest, is_committed, read_commit
from wiseft_dist.config import RunConfig
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.models.files import HEAD_FILE
from wiseft_dist.run import Run

if TYPE_CHECKING:
    from wiseft_dist.weights.pairing import Models
    from wiseft_dist.weights.records import Weights


Sources = dict[str, list[dict[str, Any]]]
"""Descriptions of models by role: zero_shot, finetuned, fisher."""


def is_finetuned(config: RunConfig, run: Run) -> bool:
    """Whether everything that theta_1 is made of is committed."""
    return run.final_checkpoint() is not None and (not _has_own_head(config) or is_committed(run.finetuned_head))


def are_models_known(config: RunConfig, run: Run) -> bool:
    """Whether theta_1 is finished and, of a greedy soup, its models are chosen."""
    return is_finetuned(config, run) and (config.merge.method != "greedy_soup" or _chosen(config, run) is not None)


def describe_finetuned(config: RunConfig, run: Run) -> dict[str, Any]:
    """Everything that decides what theta_1 is, for provenance and content keys.

    Raises:
        RunError: if fine-tuning has not finished.
    """
    checkpoint = run.finished_checkpoint()
    described: dict[str, Any] = {"path": str(checkpoint), "digest": commit_digest(checkpoint)}
    if config.finetune.ema is not None:
        described["average"] = read_commit(checkpoint)["ema"]
    if _has_own_head(config):
        described["head"] = commit_digest(_head(run))
    return described


def describe_models(config: RunConfig, run: Run) -> Sources:
    """As :func:`describe_finetuned`, for every model that is merged.

    Raises:
        UserError: if a further model cannot be read, or was not fine-tuned from the same zero-shot model.
        RunError: if a fine-tuning has not finished, or the models of a greedy soup are not chosen yet.
    """
    candidates = describe_candidates(config, run)
    return {
        "zero_shot": [{"path": str(run.zero_shot), "digest": commit_digest(run.zero_shot)}],
        "finetuned": [candidates[number] for number in _ingredients(config, run)],
        "fisher": [_describe_file(source) for source in config.merge.fisher],
    }


def without_places(sources: Sources) -> list[dict[str, Any]]:
    """What the models are, wherever they lie: a run may be moved."""
    return [
        {key: value for key, value in model.items() if key != "path"} for role in sources.values() for model in role
    ]


def describe_candidates(config: RunConfig, run: Run) -> list[dict[str, Any]]:
    """theta_1 and every further model, whether or not a greedy soup has chosen it.

    Raises:
        UserError: as :func:`describe_models`.
        RunError: if a fine-tuning has not finished.
    """
    return [describe_finetuned(config, run), *(_describe_further(run, source) for source in config.merge.models)]


def open_finetuned(config: RunConfig, run: Run) -> Weights:
    """theta_1 as named slices: what was trained, and no more.

    Raises:
        UserError: if the checkpoint cannot be read.
        RunError: if fine-tuning has not finished.
    """
    from wiseft_dist.weights.records import Weights
    from wiseft_dist.weights.safetensors_files import open_safetensors
    from wiseft_dist.weights.sources import open_weights

    weights = open_weights(run.finished_checkpoint(), average=config.finetune.ema is not None)
    if not _has_own_head(config):
        return weights
    return Weights(weights.source, dict(weights) | dict(open_safetensors([_head(run) / HEAD_FILE])))


@contextmanager
def open_models(config: RunConfig, run: Run, *, ingredients: Sequence[int] | None = None) -> Iterator[Models]:
    """theta_0 and every model that is merged with it; what was not trained is carried over from theta_0.

    Args:
        config: The run.
        run: Its directory.
        ingredients: Numbers of the models, 0 for theta_1 and then as in ``merge.models``. Left out: all of them, or
            those that a greedy soup has chosen.

    Raises:
        UserError: if they do not fit together.
        RunError: if fine-tuning has not finished, or the models of a greedy soup are not chosen yet.
    """
    from wiseft_dist.weights.fisher import open_fisher
    from wiseft_dist.weights.pairing import match
    from wiseft_dist.weights.sources import open_weights

    trained = set(read_commit(run.finished_checkpoint())["trained"])
    with ExitStack() as stack:
        zero_shot = stack.enter_context(open_weights(run.zero_shot))
        finetuned = [
            stack.enter_context(
                _trained_part(open_further(run, config.merge.models[number - 1]), zero_shot, trained)
                if number
                else open_finetuned(config, run)
            )
            for number in (_ingredients(config, run) if ingredients is None else ingredients)
        ]
        fisher = [stack.enter_context(open_fisher(source)) for source in config.merge.fisher]
        yield match(zero_shot, finetuned, carry=sorted(zero_shot.keys() - trained), fisher=fisher)


def open_further(run: Run, source: str) -> Weights:
    """A further fine-tuned model: another run's theta_1, or anything people have.

    Raises:
        UserError: if it cannot be read, or was not fine-tuned from the run's zero-shot model.
        RunError: if the other run has not finished.
    """
    from wiseft_dist.weights.sources import open_weights

    other = _as_run(run, source)
    return open_weights(source) if other is None else open_finetuned(other.load_config(), other)


def _trained_part(weights: Weights, zero_shot: Weights, trained: set[str]) -> Weights:
    """The tensors that the run trains; what else a whole model holds must be theta_0's."""
    from wiseft_dist.weights.records import Weights

    others = [name for name in weights if name in zero_shot and name not in trained]
    changed = [name for name in others if not zero_shot.read(name).equal(weights.read(name).to(zero_shot[name].dtype))]
    if changed:
        raise UserError(
            f"merge.models: {weights.source} has another {changed[0]} than theta_0, which this run does not train; "
            "only models whose fine-tuning changed the same tensors can be averaged."
        )
    return Weights(weights.source, {name: record for name, record in weights.items() if name not in others})


def _describe_further(run: Run, source: str) -> dict[str, Any]:
    other = _as_run(run, source)
    return _describe_file(source) if other is None else describe_finetuned(other.load_config(), other)


def _describe_file(source: str) -> dict[str, Any]:
    from wiseft_dist.weights.sources import open_weights

    with open_weights(source) as weights:
        return {"path": source, "digest": digest(weights.fingerprint())}


def _as_run(run: Run, source: str) -> Run | None:
    other = Run(Path(source))
    if not other.config_file.is_file():
        return None
    if not is_committed(other.zero_shot) or commit_digest(other.zero_shot) != commit_digest(run.zero_shot):
        raise UserError(
            f"merge.models: {source} was fine-tuned from another zero-shot model than {run.path}; "
            "only models with one common start can be averaged."
        )
    return other


def _ingredients(config: RunConfig, run: Run) -> list[int]:
    if config.merge.method != "greedy_soup":
        return list(range(1 + len(config.merge.models)))
    chosen = _chosen(config, run)
    if chosen is None:
        raise RunError(f"{run.path}: the models of the soup are not chosen yet. Run `wiseft merge {run.path}` first.")
    return chosen


def candidates_digest(config: RunConfig, run: Run) -> str:
    """One hash for all models that a greedy soup may be made of."""
    return digest(without_places({"finetuned": describe_candidates(config, run)}))


def _chosen(config: RunConfig, run: Run) -> list[int] | None:
    if not run.soup_file.is_file():
        return None
    record = json.loads(run.soup_file.read_text())
    chosen: list[int] | None = record["chosen"] if record["candidates"] == candidates_digest(config, run) else None
    return chosen


def _has_own_head(config: RunConfig) -> bool:
    """Whether the head is none of the trained parameters, but computed from them (FLYP, arXiv 2212.00638)."""
    return config.finetune.recipe == "flyp"


def _head(run: Run) -> Path:
    if not is_committed(run.finetuned_head):
        raise RunError(f"{run.finetuned_head}: the fine-tuned head is missing. Run `wiseft finetune {run.path}` again.")
    return run.finetuned_head
