"""The files of a DeepSpeed checkpoint: which there are, and what every rank has written, in the order of the ranks.

Source: deepspeed/runtime/engine.py, ``save_checkpoint``, and deepspeed/checkpoint/ds_to_universal.py (0.19.8).
DeepSpeed itself is not needed here.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, TypeVar

from wiseft_dist.errors import UserError
from wiseft_dist.storage import join
from wiseft_dist.weights.places import LOOKING_THREADS, File, Folder, open_folder, read_text
from wiseft_dist.weights.torch_archive import read_archive
from wiseft_dist.weights.unpickling import Opaque

T = TypeVar("T")
MODEL_FILE = "mp_rank_00_model_states.pt"
UNIVERSAL_FILE = "zero/optimizer_state.pt"
"""What only a universal checkpoint has."""
TAG_FILES = ("latest", "latest_universal")
"""What names the folder of the last save; where both are there, the save itself is as good as its conversion."""


@dataclass(frozen=True)
class RankFiles:
    """How the ranks' files of one kind are called."""

    kind: str
    prefixes: tuple[str, ...]
    suffix: str

    def rank(self, name: str) -> int | None:
        """The rank whose file that is."""
        found = re.fullmatch(f"(?:{'|'.join(self.prefixes)})zero_pp_rank_([0-9]+){re.escape(self.suffix)}", name)
        return int(found[1]) if found else None

    def names(self, rank: int) -> list[str]:
        """What a rank's file may be called."""
        return [f"{prefix}zero_pp_rank_{rank}{self.suffix}" for prefix in self.prefixes]


OPTIMIZERS = RankFiles("optimizer", ("", "bf16_"), "_mp_rank_00_optim_states.pt")
MODELS = RankFiles("model", ("",), "_mp_rank_00_model_states.pt")
SIGNS = [MODEL_FILE, *OPTIMIZERS.names(0), *MODELS.names(0)]
"""Files of which a checkpoint has at least one."""
TENSOR_PARALLEL = [name.replace("mp_rank_00", "mp_rank_01") for name in SIGNS]
"""Files of which a checkpoint has one if every parameter of it is cut over several model-parallel ranks."""


@dataclass(frozen=True)
class ZeroFiles:
    """What the ranks have written; tensors are places in the files."""

    folder: Folder
    stage: int
    """0 or 3, or 2 for stages 1 and 2, which lie alike."""
    models: list[dict[str, Any]]
    """One, or at stage 3 that of every rank."""
    optimizers: list[dict[str, Any]]
    """``optimizer_state_dict`` of every rank. None at stage 0, where the model's file holds the optimizer's state too,
    and of a universal checkpoint, which holds no rank's."""

    @property
    def kind(self) -> str:
        """What was saved, for people."""
        ranks = self.models[0].get("dp_world_size")
        over = f", {ranks} rank{'s' * (ranks != 1)}" if isinstance(ranks, int) else ""
        if not self.optimizers:
            return f"DeepSpeed ZeRO stage {'1 or 2' if self.stage == 2 else self.stage}{over}"
        stage = self.optimizers[0].get("zero_stage")
        if stage is None:
            return f"DeepSpeed ZeRO stage 1 for bf16 with fp32 accumulation{over}"
        return f"DeepSpeed ZeRO stage {stage.arguments[0] if isinstance(stage, Opaque) else stage}{over}"

    @property
    def step(self) -> int | None:
        """Optimizer steps before it was saved."""
        step = self.models[0].get("global_steps")
        return step if isinstance(step, int) else None


def is_zero_checkpoint(folder: Folder) -> bool:
    """Whether the folder, or the one its ``latest`` names, is a DeepSpeed checkpoint."""
    return bool(folder.look_up([*SIGNS, *TAG_FILES]))


def zero_folder(folder: Path) -> Path | None:
    """The folder on disk with a DeepSpeed checkpoint's files: that, or what its ``latest`` names; None if it is none.

    Raises:
        UserError: if what ``latest`` names is not there.
    """
    found = open_folder(folder)
    return Path(str(tagged_folder(found))) if is_zero_checkpoint(found) else None


def is_universal(folder: Folder) -> bool:
    """Whether this is the folder of a universal checkpoint."""
    return folder.file(UNIVERSAL_FILE) is not None


def read_zero_files(folder: Folder) -> ZeroFiles:
    """Read every rank's file.

    Args:
        folder: With the files.

    Raises:
        UserError: if a rank's file is missing, damaged or one too many.
        RunError: if a store fails for good.
    """
    _refuse_tensor_parallel(folder)
    optimizers = _read_optimizers(folder)
    if optimizers and "fp32_flat_groups" in optimizers[0]:
        files = _of_all_ranks(folder, "model", _ranked(folder, MODELS), len(optimizers))
        return ZeroFiles(folder, 3, _read_all(files), optimizers)
    model = read_states(folder.needed(MODEL_FILE))
    if not optimizers and not isinstance(model.get("optimizer"), dict):
        raise UserError(f"{folder}: the optimizer file of rank 0 is missing.")
    return ZeroFiles(folder, 2 if optimizers else 0, [model], optimizers)


def read_universal_files(folder: Folder) -> ZeroFiles:
    """Read the model files that lie in a universal checkpoint as the ranks have written them.

    Raises:
        UserError: as :func:`read_zero_files`.
        RunError: if a store fails for good.
    """
    _refuse_tensor_parallel(folder)
    ranked = _ranked(folder, MODELS)
    if not ranked:
        return ZeroFiles(folder, 2, [read_states(folder.needed(MODEL_FILE))], [])
    world_size = read_states(ranked[min(ranked)])["dp_world_size"]
    return ZeroFiles(folder, 3, _read_all(_of_all_ranks(folder, "model", ranked, world_size)), [])


def tagged_folder(folder: Folder) -> Folder:
    """The folder with the files: itself, or the one that ``latest`` or ``latest_universal`` names.

    Raises:
        UserError: if that is not there.
    """
    if folder.look_up(SIGNS):
        return folder
    for name in TAG_FILES:
        file = folder.file(name)
        if file is not None:
            tag = read_text(file).strip()
            if "/" in tag or tag in ("", "..") or folder.folder(tag).names() == []:
                raise UserError(f"{join(str(folder), name)} names {tag or 'nothing'}, which is not there.")
            return folder.folder(tag)
    return folder


def read_states(file: File) -> dict[str, Any]:
    """A file of states by name.

    Raises:
        UserError: if it is damaged or holds something else.
    """
    state = read_archive(file)
    if not isinstance(state, dict):
        raise UserError(f"{file}: not a DeepSpeed state file.")
    return state


def _refuse_tensor_parallel(folder: Folder) -> None:
    if folder.look_up(TENSOR_PARALLEL):
        raise UserError(
            f"{folder}: was trained with tensor parallelism, which is not supported; consolidate it with the framework "
            "that trained it, and name the result."
        )


def _ranked(folder: Folder, files: RankFiles) -> dict[int, File]:
    """By rank, the files of one kind."""
    names = folder.names()
    there = _count_up(folder, files) if names is None else folder.look_up(n for n in names if files.rank(n) is not None)
    ranked: dict[int, File] = {}
    for name, file in there.items():
        rank = files.rank(name)
        assert rank is not None
        if rank in ranked:
            raise UserError(
                f"{folder}: both {ranked[rank].name} and {name} are of rank {rank}; two saves are mixed here."
            )
        ranked[rank] = file
    return ranked


def _count_up(folder: Folder, files: RankFiles) -> dict[str, File]:
    """On a web server, which lists nothing, ranks are asked for until there are no more."""
    found: dict[str, File] = {}
    for start in itertools.count(0, LOOKING_THREADS):
        ranks = range(start, start + LOOKING_THREADS)
        there = folder.look_up(name for rank in ranks for name in files.names(rank))
        found |= there
        if len(there) < len(ranks):
            break
    return found


def _read_optimizers(folder: Folder) -> list[dict[str, Any]]:
    """The optimizer states of all ranks."""
    files = _ranked(folder, OPTIMIZERS)
    states = [state["optimizer_state_dict"] for state in _read_all(list(files.values()))]
    count = states[0]["partition_count"] if states else 0
    world_size = max(count) if isinstance(count, list) else count
    return _of_all_ranks(folder, "optimizer", dict(zip(files, states, strict=True)), world_size)


def _of_all_ranks(folder: Folder, kind: str, ranked: Mapping[int, T], world_size: int) -> list[T]:
    """In the order of the ranks, none missing and none too many."""
    if missing := set(range(world_size)) - ranked.keys():
        raise UserError(f"{folder}: the {kind} file of rank {min(missing)} of {world_size} is missing.")
    if surplus := ranked.keys() - set(range(world_size)):
        raise UserError(f"{folder}: has a file of rank {min(surplus)}, but was written by {world_size} ranks.")
    return [ranked[rank] for rank in range(world_size)]


def _read_all(files: Sequence[File]) -> list[dict[str, Any]]:
    if not files:
        return []
    with ThreadPool(min(LOOKING_THREADS, len(files))) as pool:
        return pool.map(read_states, files)
