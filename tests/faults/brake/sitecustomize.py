"""On the PYTHONPATH of a run's jobs: a rank stands still at the moment at which a fault is to find it.

Nothing else is changed. ``WISEFT_BRAKE`` names the stage, ``WISEFT_BRAKE_FOLDER`` where a rank that stands still
leaves a file; once there is a file ``off``, everybody goes on. Signals are answered meanwhile, as at any other time.
"""

import importlib.abc
import os
import sys
import time
from importlib.machinery import PathFinder
from pathlib import Path

MOMENTS = {
    "finetune": ("wiseft_dist.finetune.checkpoint", "Checkpointer.save", 2),
    "merge": ("wiseft_dist.merge.journal", "Journal.add", 1),
    "evaluate": ("wiseft_dist.evaluate.cells.files", "write_part_file", 3),
}
"""By stage: the module, and what in it returns, and the call that does not return."""


class BrakeFinder(importlib.abc.MetaPathFinder):
    """Finds one module as everybody does, and changes it once it is loaded."""

    def __init__(self, module, name, count):
        self.module, self.name, self.count = module, name, count

    def find_spec(self, fullname, path, target=None):
        if fullname != self.module:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        load = spec.loader.exec_module

        def load_and_change(module):
            load(module)
            insert_brake(module, self.name, self.count)

        spec.loader.exec_module = load_and_change
        return spec


def insert_brake(module, name, count):
    """Wrap a function or method of a module so that it does not return from its ``count``-th call on."""
    *owner, attribute = name.split(".")
    holder = getattr(module, owner[0]) if owner else module
    function = getattr(holder, attribute)
    calls = [0]

    def with_brake(*args, **kwargs):
        result = function(*args, **kwargs)
        calls[0] += 1
        if calls[0] >= count:
            stand_still()
        return result

    setattr(holder, attribute, with_brake)


def stand_still():
    """Leave word, and wait."""
    folder = Path(os.environ["WISEFT_BRAKE_FOLDER"])
    attempt = os.environ.get("SLURM_RESTART_COUNT") or "0"
    if not (folder / "off").exists():
        (folder / f"{os.environ['SLURM_JOB_ID']}.{attempt}.{os.environ['SLURM_PROCID']}").touch()
    while not (folder / "off").exists():
        time.sleep(0.05)


if "WISEFT_BRAKE" in os.environ and "SLURM_PROCID" in os.environ:
    sys.meta_path.insert(0, BrakeFinder(*MOMENTS[os.environ["WISEFT_BRAKE"]]))
