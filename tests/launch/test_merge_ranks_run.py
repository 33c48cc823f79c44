"""The merge and the evaluation of a run, by several processes."""

from __future__ import annotations

import shutil

from pyarrow.parquet import read_table
from tiny_run import wiseft

from wiseft_dist.commits import sha256_file
from wiseft_dist.models.files import HEAD_FILE, WEIGHTS_FILE
from wiseft_dist.run import Run

ALPHAS = (0.0, 0.5, 1.0)
COLUMNS = ("key", "position", "label", "class", "top5")


def ensembles(run: Run) -> dict[str, str]:
    files = [run.ensemble(alpha) / name for alpha in ALPHAS for name in (WEIGHTS_FILE, HEAD_FILE)]
    return {str(file): sha256_file(file) for file in files}


def classes(run: Run) -> dict[str, list[object]]:
    """By cell. Probabilities may differ in their last bit: two processes have half the threads each."""
    return {str(file): [read_table(file)[name].to_pylist() for name in COLUMNS] for file in run.cells.glob("*/*/*")}


def test_two_processes_write_what_one_does_and_only_that_is_done_again(copied: Run):
    weights, cells = ensembles(copied), classes(copied)
    assert len(cells) == 4 * 3
    shutil.rmtree(copied.merged)
    shutil.rmtree(copied.cells)
    done = wiseft("run", copied.config_file, "launch.merge.tasks_per_node=2", "launch.evaluate.tasks_per_node=2")
    assert done.returncode == 0, done.stderr
    assert ensembles(copied) == weights and classes(copied) == cells
    assert "merge: done" in done.stderr and "evaluate/1-of-1: done" in done.stderr
    assert "finetune: done" not in done.stderr and "report: done" not in done.stderr
    events = copied.events_file.read_text()
    assert events.count('"stage": "merge", "event": "finished"') == 2  # the first run's, and that of both processes
