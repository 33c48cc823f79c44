"""What theta_1 of a run is: the last checkpoint's weights or their average, and a head that was computed from them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wiseft_dist.config import RunConfig
from wiseft_dist.errors import RunError
from wiseft_dist.models.files import HEAD_FILE
from wiseft_dist.run import Run, commit_digest, is_committed, read_commit

if TYPE_CHECKING:
    from wiseft_dist.weights.pairing import Models
    from wiseft_dist.weights.records import Weights


def is_finetuned(config: RunConfig, run: Run) -> bool:
    """Whether everything that theta_1 is made of is committed."""
    return run.final_checkpoint() is not None and (not _has_own_head(config) or is_committed(run.finetuned_head))


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


def open_finetuned(config: RunConfig, run: Run) -> Weights:
    """theta_1 as named slices: what was trained, and no more.

    Raises:
        UserError: if the checkpoint cannot be read.
        RunError: if fine-tuning has not finished.
    """
    from wiseft_dist.weights.records import Weights
    from wiseft_dist.weights.sources import open_safetensors, open_weights

    weights = open_weights(run.finished_checkpoint(), average=config.finetune.ema is not None)
    if not _has_own_head(config):
        return weights
    return Weights(weights.source, dict(weights) | dict(open_safetensors([_head(run) / HEAD_FILE])))


@contextmanager
def open_pair(config: RunConfig, run: Run) -> Iterator[Models]:
    """theta_0 and theta_1 of a run; what was not trained is carried over from theta_0.

    Raises:
        UserError: if they do not fit together.
        RunError: if fine-tuning has not finished.
    """
    from wiseft_dist.weights.pairing import match
    from wiseft_dist.weights.sources import open_weights

    trained = set(read_commit(run.finished_checkpoint())["trained"])
    with open_weights(run.zero_shot) as zero_shot, open_finetuned(config, run) as finetuned:
        yield match(zero_shot, [finetuned], carry=sorted(zero_shot.keys() - trained))


def _has_own_head(config: RunConfig) -> bool:
    """Whether the head is none of the trained parameters, but computed from them (FLYP, arXiv 2212.00638)."""
    return config.finetune.recipe == "flyp"


def _head(run: Run) -> Path:
    if not is_committed(run.finetuned_head):
        raise RunError(f"{run.finetuned_head}: the fine-tuned head is missing. Run `wiseft finetune {run.path}` again.")
    return run.finetuned_head
