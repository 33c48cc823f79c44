"""The files of a DeepSpeed checkpoint: which there are, and what every rank has written, in the order of the ranks.

Source: deepspeed/runtime/engine.py, ``save_checkpoint`` (0.19.8). DeepSpeed itself is not needed here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from wiseft_dist.errors import UserError
from wiseft_dist.weights.torch_archive import read_archive

T = TypeVar("T")
MODEL_FILE = "mp_rank_00_model_states.pt"
_OPTIM = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt$")
_MODEL = re.compile(r"zero_pp_rank_(\d+)_mp_rank_00_model_states\.pt$")


@dataclass(frozen=True)
class ZeroFiles:
    """What the ranks have written; tensors are places in the files."""

    folder: Path
    models: list[dict[str, Any]]
    """One, or at stage 3 that of every rank."""
    optimizers: list[dict[str, Any]]
    """``optimizer_state_dict`` of every rank; at stage 0 none: the model's file holds the optimizer's state too."""

    @property
    def stage(self) -> int:
        """0 or 3, or 2 for stages 1 and 2, which lie alike."""
        if not self.optimizers:
            return 0
        return 3 if "fp32_flat_groups" in self.optimizers[0] else 2


def is_zero_checkpoint(folder: Path) -> bool:
    """Whether the folder, or the one its ``latest`` names, is a DeepSpeed checkpoint."""
    return bool(_ranked(folder, _OPTIM)) or any((folder / name).is_file() for name in (MODEL_FILE, "latest"))


def read_zero_files(folder: Path) -> ZeroFiles:
    """Read every rank's file.

    Args:
        folder: With the files, or with a ``latest`` that names such a folder.

    Raises:
        UserError: if a rank's file is missing, damaged or one too many.
    """
    folder = tagged_folder(folder)
    optimizers = _read_optimizers(folder)
    if optimizers and "fp32_flat_groups" in optimizers[0]:
        files = _of_all_ranks(folder, "model", _ranked(folder, _MODEL), len(optimizers))
        return ZeroFiles(folder, [_read(file) for file in files], optimizers)
    model = _read(folder / MODEL_FILE)
    if not optimizers and not isinstance(model.get("optimizer"), dict):
        raise UserError(f"{folder}: the optimizer file of rank 0 is missing.")
    return ZeroFiles(folder, [model], optimizers)


def tagged_folder(folder: Path) -> Path:
    """The folder with the files: itself, or the one that ``latest`` names.

    Raises:
        UserError: if that is not there.
    """
    if _ranked(folder, _OPTIM) or not (folder / "latest").is_file():
        return folder
    tag = folder / (folder / "latest").read_text(errors="replace").strip()
    if not tag.is_dir():
        raise UserError(f"{folder}/latest names {tag.name}, which is not there.")
    return tag


def _ranked(folder: Path, pattern: re.Pattern[str]) -> dict[int, Path]:
    files: dict[int, Path] = {}
    for path in sorted(folder.glob("*.pt")):
        if match := pattern.match(path.name):
            rank = int(match.group(1))
            if rank in files:
                raise UserError(
                    f"{folder}: both {files[rank].name} and {path.name} are of rank {rank}; two saves are mixed here."
                )
            files[rank] = path
    return files


def _read_optimizers(folder: Path) -> list[dict[str, Any]]:
    """The optimizer states of all ranks."""
    files = _ranked(folder, _OPTIM)
    states = {rank: _read(file)["optimizer_state_dict"] for rank, file in files.items()}
    count = next(iter(states.values()))["partition_count"] if states else 0
    return _of_all_ranks(folder, "optimizer", states, max(count) if isinstance(count, list) else count)


def _of_all_ranks(folder: Path, kind: str, ranked: Mapping[int, T], world_size: int) -> list[T]:
    """In the order of the ranks, none missing and none too many."""
    if missing := set(range(world_size)) - ranked.keys():
        raise UserError(f"{folder}: the {kind} file of rank {min(missing)} of {world_size} is missing.")
    if surplus := ranked.keys() - set(range(world_size)):
        raise UserError(f"{folder}: has a file of rank {min(surplus)}, but was written by {world_size} ranks.")
    return [ranked[rank] for rank in range(world_size)]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: this file of the checkpoint is missing.")
    state = read_archive(path)
    if not isinstance(state, dict):
        raise UserError(f"{path}: not a DeepSpeed state file.")
    return state
