"""No stage imports W&B: that takes long, and leaves folders behind when a process is killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import importlib, os, pkgutil, sys
import wiseft_dist
for package in ("data", "evaluate", "finetune", "launch", "merge", "models", "report", "weights"):
    folder = importlib.import_module(f"wiseft_dist.{package}")
    for module in pkgutil.walk_packages(folder.__path__, folder.__name__ + "."):
        importlib.import_module(module.name)
assert "open_clip" in sys.modules and "wandb" not in sys.modules
left = [name for name in os.listdir(os.environ["TMPDIR"]) if "wandb" in name]
assert not left, left
import wandb
assert wandb.__version__  # whoever needs it later has it
"""


def test_every_module_of_every_stage_is_imported_without_it(tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
