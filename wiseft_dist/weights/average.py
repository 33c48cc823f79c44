"""The moving average of the weights that a run keeps beside its masters, as theta_1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wiseft_dist.commits import COMMIT_FILE, read_commit
from wiseft_dist.errors import UserError
from wiseft_dist.weights.records import Weights
from wiseft_dist.weights.zero import open_zero_average
from wiseft_dist.weights.zero_files import zero_folder


def open_average(folder: Path) -> Weights:
    """Open a run's checkpoint with the average in place of the trained parameters.

    An average that started from zeros is divided by ``1 - decay^updates`` as it is read.

    Raises:
        UserError: if it is no checkpoint of a run, or the run keeps no average.
    """
    checkpoint = zero_folder(folder)
    if checkpoint is None:
        raise UserError(f"{folder}: no DeepSpeed checkpoint, and nothing else holds a moving average.")
    folder = checkpoint
    if not (folder / COMMIT_FILE).is_file():
        raise UserError(f"{folder}: has no {COMMIT_FILE}; the moving average can only be read from a run's checkpoint.")
    record = read_commit(folder)
    ema = record.get("ema")
    if ema is None:
        raise UserError(f"{folder}: was trained without a moving average (finetune.ema).")
    return open_zero_average(folder, record.get("groups"), divisor=_divisor(folder, ema))


def _divisor(folder: Path, ema: dict[str, Any]) -> float:
    if not ema["debias"]:
        return 1.0
    if not ema["updates"]:
        raise UserError(f"{folder}: its moving average has seen no update yet.")
    return float(1 - ema["decay"] ** ema["updates"])
