"""The merge stage: one model for each alpha that is not committed yet, straight from DeepSpeed's shards."""

from __future__ import annotations

import json
import platform
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import wiseft_dist
from wiseft_dist import storage
from wiseft_dist.config import MergeConfig, RunConfig
from wiseft_dist.distributed import require_single_process
from wiseft_dist.errors import UserError
from wiseft_dist.merge.writer import DTYPES, write_ensembles
from wiseft_dist.models.files import CLASSES_FILE, CONFIG_FILE
from wiseft_dist.publish import publish_ensembles
from wiseft_dist.run import COMMIT_FILE, Run, alpha_name, commit_digest, committing, sha256_file
from wiseft_dist.tracking import tracking
from wiseft_dist.weights.finetuned import describe_finetuned, open_pair
from wiseft_dist.weights.pairing import Models, match
from wiseft_dist.weights.sources import open_weights

PROVENANCE_FILE = "model.json"


def merge(config: RunConfig, run: Run) -> None:
    """Write one model for each alpha that is not committed yet, and publish what is not published yet."""
    missing = run.missing_ensembles(config.merge.alphas)
    if missing or config.publish is not None:
        require_single_process("merge")
    if missing:
        _merge_missing(config, run, missing)
    publish_ensembles(config, run)


def _merge_missing(config: RunConfig, run: Run, missing: list[float]) -> None:
    for abandoned in run.merged.glob(".alpha_*"):  # a merge that was killed; its ensembles were never committed
        shutil.rmtree(abandoned, ignore_errors=True)
    sources = {
        "zero_shot": {"path": str(run.zero_shot), "digest": commit_digest(run.zero_shot)},
        "finetuned": describe_finetuned(config, run),
    }
    with tracking(config, run, "merge") as tracker, open_pair(config, run) as models:
        tracker.event("started", alphas=missing)
        folders = {alpha: run.ensemble(alpha) for alpha in missing}
        _write(
            models,
            folders,
            method=config.merge.method,
            dtype=config.merge.dtype,
            sources=sources,
            side=run.zero_shot,
        )
        tracker.event("finished", alphas=missing)


def merge_files(
    zero_shot: Path,
    finetuned: Path,
    output: Path,
    settings: MergeConfig,
    *,
    carry: Sequence[str] = (),
    average: bool = False,
) -> list[Path]:
    """Merge two checkpoints of any kind, without a run.

    Args:
        zero_shot: theta_0.
        finetuned: theta_1.
        output: Gets a folder for each alpha.
        settings: Alphas and dtype.
        carry: Patterns (``transformer.*``) of tensors that only theta_0 needs to have.
        average: Whether theta_1 is the moving average that the checkpoint holds, instead of its last weights.

    Returns:
        The folders written, one for each alpha.

    Raises:
        UserError: if a model is unreadable, they do not fit together, or an output is there already.
    """
    folders = {alpha: output / alpha_name(alpha) for alpha in settings.alphas}
    taken = [folder for folder in folders.values() if folder.exists()]
    if taken:
        raise UserError(f"{taken[0]}: is there already. Choose another --output, or delete it.")
    with open_weights(zero_shot) as first, open_weights(finetuned, average=average) as second:
        models = match(first, [second], carry=carry)
        sources: dict[str, dict[str, Any]] = {
            role: {
                "path": str(weights.source),
                "sha256": {file.name: sha256_file(file) for file in weights.files()},
            }
            for role, weights in (("zero_shot", first), ("finetuned", second))
        }
        if average:
            sources["finetuned"]["average"] = True
        side = zero_shot if zero_shot.is_dir() else zero_shot.parent
        _write(models, folders, method=settings.method, dtype=settings.dtype, sources=sources, side=side)
    return list(folders.values())


def merge_to_store(
    zero_shot: Path,
    finetuned: Path,
    url: str,
    settings: MergeConfig,
    *,
    carry: Sequence[str] = (),
    average: bool = False,
) -> list[str]:
    """As :func:`merge_files`, into a folder of a store; all ensembles lie in the temporary directory on the way.

    Returns:
        The URLs of the folders written, one for each alpha.

    Raises:
        UserError: as :func:`merge_files`, and if nothing can be uploaded there.
        RunError: if the store fails for good.
    """
    storage.refuse_as_target(url)
    targets = [storage.join(url, alpha_name(alpha)) for alpha in settings.alphas]
    for target in targets:
        if storage.exists(storage.join(target, COMMIT_FILE)):
            raise UserError(f"{target}: is there already. Choose another --output, or delete it.")
    with tempfile.TemporaryDirectory(prefix="wiseft-merge-") as aside:
        folders = merge_files(zero_shot, finetuned, Path(aside), settings, carry=carry, average=average)
        for folder, target in zip(folders, targets, strict=True):
            storage.upload_folder(folder, target, last=COMMIT_FILE)
    return targets


def _write(
    models: Models, folders: dict[float, Path], *, method: str, dtype: str, sources: dict[str, Any], side: Path
) -> None:
    """Write all ensembles aside in one pass, then commit each."""
    with ExitStack() as stack:
        aside = {
            alpha: stack.enter_context(committing(folder, alpha=alpha, method=method, dtype=dtype))
            for alpha, folder in folders.items()
        }
        write_ensembles(models, aside, dtype=DTYPES[dtype])
        for alpha, folder in aside.items():
            for name in (CONFIG_FILE, CLASSES_FILE):
                if (side / name).is_file():
                    shutil.copyfile(side / name, folder / name)
            provenance = {
                "method": method,
                "alpha": alpha,
                "dtype": dtype,
                "arithmetic": "fp32, rounded once; integers and masks from the zero-shot model",
                "carried_from_zero_shot": sorted(models.carried),
                "device": f"cpu ({platform.machine()})",
                "sources": sources,
                "versions": {"wiseft_dist": wiseft_dist.__version__, "torch": version("torch")},
            }
            (folder / PROVENANCE_FILE).write_text(json.dumps(provenance, indent=1))
