"""The merge stage: one model for each alpha that is not committed yet, straight from DeepSpeed's shards."""

from __future__ import annotations

import fnmatch
import json
import platform
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import wiseft_dist
from wiseft_dist.commits import refuse_damaged
from wiseft_dist.config import MergeConfig, RunConfig
from wiseft_dist.distributed import process_group
from wiseft_dist.errors import UserError
from wiseft_dist.merge.methods.choice import make_method
from wiseft_dist.merge.methods.method import Method
from wiseft_dist.merge.ranks import RankGroup
from wiseft_dist.merge.request import PROVENANCE_FILE, missing_ensembles, request_digest
from wiseft_dist.merge.side_files import side_files
from wiseft_dist.merge.writer import DTYPES, Inputs, Written, write_ensembles
from wiseft_dist.publish import publish_ensembles
from wiseft_dist.ranks import discover_ranks
from wiseft_dist.run import Run
from wiseft_dist.tracking import tracking
from wiseft_dist.weights.finetuned import Sources, describe_models, open_models
from wiseft_dist.weights.pairing import Models

TIMEOUT_MINUTES = 24 * 60.0
"""For which the first rank to finish waits for the last; a rank that dies is noticed at once."""
ROLES = ("zero_shot", "finetuned", "fisher")


def merge(config: RunConfig, run: Run) -> None:
    """Write one model for each alpha that is not committed yet, and publish what is not published yet.

    Runs in one process or in several, which share the work.

    Raises:
        UserError: if the models do not fit together.
        RunError: if fine-tuning has not finished, or writing fails; what is finished is kept for the next time.
    """
    ranks = discover_ranks()
    group = process_group(ranks, timeout_minutes=TIMEOUT_MINUTES, folder=run.jobs, on_host=True)
    with group if ranks.world_size > 1 else nullcontext():
        # Other nodes may not see yet what is committed; the ranks must agree.
        missing = RankGroup.current().on_main(lambda: missing_ensembles(config, run))
        if missing and ranks.is_main:
            with tracking(config, run, "merge") as tracker:
                tracker.event("started", alphas=missing)
                written = _merge_missing(config, run, missing)
                seconds, num_bytes = round(written.seconds, 1), written.num_bytes_written
                tracker.event("finished", alphas=missing, seconds=seconds, bytes=num_bytes)
        elif missing:
            _merge_missing(config, run, missing)
    if ranks.is_main:
        publish_ensembles(config, run)


def _merge_missing(config: RunConfig, run: Run, missing: list[float]) -> Written:
    sources = describe_models(config, run)
    folders = {alpha: run.ensemble(alpha) for alpha in missing}
    if discover_ranks().is_main:
        for folder in filter(Path.exists, folders.values()):  # of other models than there are now, or damaged
            shutil.rmtree(folder)
    group, checkpoint = RankGroup.current(), run.finished_checkpoint()
    group.everywhere(lambda: refuse_damaged(checkpoint, share=group.rank, num_shares=group.world_size))
    with open_models(config, run) as models:
        request = request_digest(config.merge, sources)
        beside = side_files(run.zero_shot)
        return write_models(models, config.merge, folders, request=request, sources=sources, beside=beside)


def write_models(
    models: Models,
    settings: MergeConfig,
    folders: dict[float, Path],
    *,
    request: str,
    sources: Sources,
    beside: Mapping[str, bytes],
) -> Written:
    """Write and commit the ensembles of some alphas, with what open_clip needs and where they come from.

    Args:
        models: What is merged.
        settings: How.
        folders: By alpha.
        request: What :func:`request_digest` says about all this.
        sources: The models' descriptions, as :func:`describe_models` gives them.
        beside: Small files that go beside the weights, such as open_clip's configuration.

    Raises:
        UserError: if models or settings do not fit together.
        RunError: if reading or writing fails.
    """
    method = make_method(settings)
    for pattern in settings.layers:
        if not fnmatch.filter(models.records, pattern):
            raise UserError(f"layers: no tensor is called {pattern}; `wiseft merge --inspect` prints their names.")

    def small_files(alpha: float, inputs: Inputs) -> dict[str, bytes]:
        provenance = {"request": request} | _provenance(models, method, settings, alpha, _with_content(sources, inputs))
        return {**beside, PROVENANCE_FILE: json.dumps(provenance, indent=1).encode()}

    return write_ensembles(
        models,
        method,
        folders,
        dtype=DTYPES[settings.dtype],
        side_files=small_files,
        max_shard_bytes=settings.max_shard_size,
        allow_nonfinite=settings.allow_nonfinite,
        settings={"request": request},
    )


def _with_content(sources: Sources, inputs: Inputs) -> Sources:
    """The descriptions, each with the digest of the bytes that were merged."""
    contents = iter(inputs)
    return {role: [each | {"content": next(contents)} for each in sources[role]] for role in ROLES}


def _provenance(
    models: Models, method: Method, settings: MergeConfig, alpha: float, sources: Sources
) -> dict[str, Any]:
    return {
        "method": method.describe(),
        "alpha": alpha,
        "dtype": settings.dtype,
        "arithmetic": "fp32, rounded once; integers and masks from the zero-shot model",
        "mixed": sorted(filter(models.is_mixed, models.records)),
        "carried_from_zero_shot": sorted(models.carried),
        "taken_from_finetuned": sorted(models.taken),
        "device": f"cpu ({platform.machine()})",
        "sources": sources,
        "versions": {"wiseft_dist": wiseft_dist.__version__, "torch": version("torch")},
    }
