"""Merging checkpoints of any kind, without a run: what ``wiseft merge --zero-shot A --finetuned B`` does."""

from __future__ import annotations

import fnmatch
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from wiseft_dist import storage
from wiseft_dist.commits import COMMIT_FILE
from wiseft_dist.config import MergeConfig, refuse_number_of_models
from wiseft_dist.distributed import process_group, require_single_process
from wiseft_dist.errors import UserError
from wiseft_dist.merge.request import read_request, request_digest
from wiseft_dist.merge.side_files import side_files
from wiseft_dist.merge.stage import TIMEOUT_MINUTES, write_models
from wiseft_dist.merge.verify import verify
from wiseft_dist.merge.writer import Written
from wiseft_dist.models.files import HEAD_PREFIX
from wiseft_dist.progress import BYTES, progress_bar
from wiseft_dist.ranks import discover_ranks
from wiseft_dist.run import alpha_name
from wiseft_dist.weights.fisher import open_fisher
from wiseft_dist.weights.integrity import check_sources
from wiseft_dist.weights.pairing import match
from wiseft_dist.weights.records import Weights
from wiseft_dist.weights.sources import open_weights


def merge_files(
    zero_shot: str | Path,
    finetuned: Sequence[str | Path],
    output: Path,
    settings: MergeConfig,
    *,
    carry: Sequence[str] = (),
    allow_missing_head: bool = False,
    average: bool = False,
    check: bool = False,
) -> tuple[list[Path], Written | None]:
    """Merge checkpoints of any kind; alone, or as one of the ranks of a job, which share the work.

    Args:
        zero_shot: theta_0.
        finetuned: theta_1, ... theta_n.
        output: Gets a folder for each alpha.
        settings: Alphas, method and dtype.
        carry: Patterns (``transformer.*``) of tensors that only theta_0 needs to have.
        allow_missing_head: Whether the classification head may be in one model only; every ensemble has that one.
        average: Whether theta_1 is the moving average that the checkpoint holds, instead of its last weights.
        check: Whether sources that have checksums are read whole and compared with them first.

    Returns:
        The folders, one for each alpha, and what writing them took; None if the same call had written all of them.

    Raises:
        UserError: if a model is unreadable, they do not fit together, or an output is another model.
        RunError: if writing fails; the same call again finishes the rest.
    """
    if settings.method == "greedy_soup":
        raise UserError("greedy_soup chooses its models on a run's ID-val: use `wiseft merge RUN` with merge.models.")
    try:
        refuse_number_of_models(settings, len(finetuned))
    except ValueError as error:
        raise UserError(f"wiseft merge: {error}.") from None
    folders = {alpha: output / alpha_name(alpha) for alpha in settings.alphas}
    head = [f"{HEAD_PREFIX}*"] if allow_missing_head else []
    ranks = discover_ranks()
    with ExitStack() as stack:
        if ranks.world_size > 1:
            group = process_group(ranks, timeout_minutes=TIMEOUT_MINUTES, folder=output, on_host=True)
            stack.enter_context(group)
        first = stack.enter_context(open_weights(zero_shot))
        others = [stack.enter_context(open_weights(source, average=average)) for source in finetuned]
        fisher = [stack.enter_context(open_fisher(source)) for source in settings.fisher]
        models = match(first, others, carry=[*carry, *head], take=head, fisher=fisher)
        _refuse_idle_patterns(carry, first)
        if check and ranks.is_main:
            for weights in (first, *others, *fisher):
                check_sources(weights)
        sources = {
            "zero_shot": [_describe(first)],
            "finetuned": [_describe(weights) | ({"average": True} if average else {}) for weights in others],
            "fisher": [_describe(weights) for weights in fisher],
        }
        request = request_digest(settings, sources, [sorted(models.carried), sorted(models.taken)])
        missing = _missing(folders, request)
        if missing:
            beside = side_files(zero_shot)
            written = write_models(models, settings, missing, request=request, sources=sources, beside=beside)
    return list(folders.values()), written if missing else None


def merge_to_store(
    zero_shot: str | Path,
    finetuned: Sequence[str | Path],
    url: str,
    settings: MergeConfig,
    **options: Any,
) -> tuple[list[str], Written | None]:
    """As :func:`merge_files`, into a folder of a store; all ensembles lie in the temporary directory on the way.

    Returns:
        The URLs of the folders written, one for each alpha, and what writing them here took.

    Raises:
        UserError: as :func:`merge_files`, and if nothing can be uploaded there.
        RunError: if the store fails for good.
    """
    require_single_process("merge into a store")
    storage.refuse_as_target(url)
    with tempfile.TemporaryDirectory(prefix="wiseft-merge-") as aside:
        folders, written = merge_files(zero_shot, finetuned, Path(aside), settings, **options)
        targets = {storage.join(url, folder.name): folder for folder in folders}
        missing = [target for target, folder in targets.items() if not _holds(target, folder)]
        for target in missing:
            storage.upload_folder(targets[target], target, last=COMMIT_FILE)
    return list(targets), written


def _holds(target: str, folder: Path) -> bool:
    """Whether the store has this very model there, from a call that was interrupted."""
    record = storage.join(target, COMMIT_FILE)
    if not storage.exists(record):
        return False
    if storage.read_bytes(record) != (folder / COMMIT_FILE).read_bytes():
        raise UserError(f"{target}: another model is there already. Choose another --output, or delete it.")
    return True


def verify_models(folder: Path) -> tuple[list[Path], int]:
    """Read every byte of a written model, or of all in a folder, and compare it with its checksum.

    Returns:
        The models, and their size in bytes.

    Raises:
        UserError: if nothing was committed there, or something differs, naming file and place.
    """
    found = sorted(path.parent for path in folder.glob(f"*/{COMMIT_FILE}"))
    models = [folder] if (folder / COMMIT_FILE).is_file() else found
    if not models:
        raise UserError(f"{folder}: neither a written model nor a folder of such; there is no {COMMIT_FILE}.")
    total = sum(path.stat().st_size for model in models for path in model.rglob("*") if path.is_file())
    with progress_bar("verifying", total=total, unit=BYTES) as bar:
        return models, sum(verify(model, on_progress=bar.advance) for model in models)


def _missing(folders: dict[float, Path], request: str) -> dict[float, Path]:
    """Those that the same request has not written before."""
    missing = {}
    for alpha, folder in folders.items():
        if not folder.exists():
            missing[alpha] = folder
        elif read_request(folder) != request:
            raise UserError(f"{folder}: another model is there already. Choose another --output, or delete it.")
    return missing


def _refuse_idle_patterns(carry: Sequence[str], zero_shot: Weights) -> None:
    for pattern in carry:
        if not fnmatch.filter(zero_shot, pattern):
            raise UserError(f"--carry {pattern}: {zero_shot.source} has no tensor of such a name.")


def _describe(weights: Weights) -> dict[str, Any]:
    return {"path": weights.source, "files": weights.fingerprint()}
