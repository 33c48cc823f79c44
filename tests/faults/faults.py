"""The faults: what happens to a run in the middle of a stage, and what its user is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import node_faults as nodes
import storage_faults as stores
from fault_world import STAGES
from scene import Scene

BY_ITSELF = "goes on by itself"
AGAIN = "`wiseft run` again"
MENDED = "a person mends it, then `wiseft run` again"
LOST = "lost 127.0.0."
"""Nodes of a devcluster are named so."""


def nothing(scene: Scene) -> None:
    """For faults that need no such step."""


@dataclass(frozen=True)
class Fault:
    """One of them. Its functions change the scene, and are called in the order in which they stand here."""

    name: str
    happens: Callable[[Scene], None]
    """While every rank stands still with something committed; it lets them go on."""
    ending: Mapping[str, str]
    """By stage: what brings the run to its end."""
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By stage: what the `wiseft run` that meets it must say."""
    prepared: Callable[[Scene], None] = nothing
    """Before the stage begins."""
    afterwards: Callable[[Scene], None] = nothing
    """Once the first `wiseft run` has ended: what a person meets who gives the command again."""
    edit: Mapping[str, str] = field(default_factory=dict)
    """By stage: a setting that this person changes."""
    mended: Callable[[Scene], None] = nothing
    """What the sentence says that this person must do."""
    is_told: bool = False
    """Whether the ranks hear of it in time: a training then saves before it stops."""
    stages: tuple[str, ...] = STAGES
    on_ci: str = "merge"
    """The stage in which continuous integration tries it; nothing for none."""

    def ends_anew(self) -> bool:
        """Whether what must be mended is met by the next `wiseft run`, and not by the one that was at work."""
        return self.afterwards is not nothing or bool(self.edit)


def everywhere(ending: str) -> dict[str, str]:
    return dict.fromkeys(STAGES, ending)


def in_all(*words: str) -> dict[str, tuple[str, ...]]:
    return dict.fromkeys(STAGES, words)


FAULTS = (
    Fault("one rank killed", nodes.kill_last_rank, everywhere(AGAIN), in_all("failed")),
    Fault("rank 0 killed", nodes.kill_first_rank, everywhere(AGAIN), in_all("failed")),
    Fault("a node's tasks killed", nodes.kill_tasks_of_a_node, everywhere(AGAIN), in_all("failed")),
    Fault("slurmd killed", nodes.kill_slurmd, everywhere(BY_ITSELF), in_all(LOST)),
    Fault("a whole node lost", nodes.kill_whole_node, everywhere(BY_ITSELF), in_all(LOST), on_ci=""),
    Fault("preempted twice", nodes.preempt_twice, everywhere(BY_ITSELF), is_told=True),
    Fault("time limit", nodes.reach_time_limit, everywhere(BY_ITSELF), is_told=True),
    Fault(
        "scancel", nodes.cancel, everywhere(AGAIN), in_all("was cancelled", "run again"), is_told=True,
    ),
    Fault(
        "full disk", stores.fill_disk, everywhere(MENDED), in_all("No space left on device"),
        prepared=stores.on_a_small_disk, mended=stores.free_disk,
    ),
    Fault(
        "503 for a while", stores.refuse_for_a_while, everywhere(BY_ITSELF), prepared=stores.in_a_store,
        on_ci="evaluate",
    ),
    Fault(
        "503 for too long", stores.refuse_for_too_long, everywhere(AGAIN), in_all("the store answered 503", "gave up"),
        prepared=stores.in_a_store, on_ci="",
    ),
    Fault(
        "a deleted shard", stores.delete_a_shard, {"finetune": MENDED, "merge": AGAIN, "evaluate": MENDED},
        {
            "finetune": ("train/3.tar",),
            "merge": ("optim_states.pt", "No such file"),
            "evaluate": ("photo/2.tar",),
        },
        mended=stores.put_back,
    ),
    Fault(
        "a corrupted checkpoint", nodes.cancel, everywhere(MENDED),
        in_all("not the file that was committed", "step_", "Delete "),
        afterwards=stores.corrupt_newest_checkpoint, mended=stores.delete_damaged, is_told=True, on_ci="finetune",
    ),
    Fault(
        "a corrupted cell", nodes.cancel, {"evaluate": MENDED}, {"evaluate": ("part-", "is damaged", "delete it")},
        afterwards=stores.corrupt_a_cell, mended=stores.delete_damaged, stages=("evaluate",), on_ci="",
    ),
    Fault(
        "an edited configuration", nodes.cancel, everywhere(MENDED),
        {
            "finetune": ("finetune.optimizer.lr", "0.004", "put the settings back"),
            "merge": ("merge.method", "slerp", "put the settings back"),
            "evaluate": ("data.id_val_fraction", "put"),
        },
        edit={"finetune": "finetune.optimizer.lr=0.004", "merge": "merge.method=slerp",
              "evaluate": "data.id_val_fraction=0.4"},
    ),
)  # fmt: skip
