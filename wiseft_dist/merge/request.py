"""What a written ensemble was asked for with: it is current while the same would be asked for again. Without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wiseft_dist.commits import digest, is_committed
from wiseft_dist.config import MergeConfig, RunConfig
from wiseft_dist.run import Run
from wiseft_dist.weights.finetuned import Sources, describe_models, without_places

PROVENANCE_FILE = "model.json"


def request_digest(settings: MergeConfig, sources: Sources, allowed: Any = None) -> str:
    """Everything but alpha that decides what an ensemble is.

    Args:
        settings: How models are merged.
        sources: What they are; where they lie does not count.
        allowed: Which tensors may be in some of the models only.
    """
    decides = settings.model_dump(mode="json", exclude={"alphas", "models", "fisher"})
    return digest([decides, without_places(sources), allowed])


def read_request(folder: Path) -> str | None:
    """That of a written ensemble; None if it is none."""
    file = folder / PROVENANCE_FILE
    if not is_committed(folder) or not file.is_file():
        return None
    request: str | None = json.loads(file.read_text()).get("request")
    return request


def missing_ensembles(config: RunConfig, run: Run) -> list[float]:
    """The alphas of a run whose ensemble is not written yet, or of other models than there are now.

    Raises:
        UserError: if a further model cannot be read.
        RunError: if fine-tuning has not finished, or the models of a greedy soup are not chosen yet.
    """
    request = request_digest(config.merge, describe_models(config, run))
    return [alpha for alpha in config.merge.alphas if read_request(run.ensemble(alpha)) != request]
