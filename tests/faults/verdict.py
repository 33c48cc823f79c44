"""What must be true after a fault: the same weights and results, nothing committed lost or made again, nobody left."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pyarrow.parquet
from job_processes import processes_of

from wiseft_dist.commits import commit_digest, is_committed, read_commit
from wiseft_dist.data.stage import sizes_to_evaluate
from wiseft_dist.evaluate.cells.files import FILE_NAME
from wiseft_dist.evaluate.cells.store import CellStore, members_of
from wiseft_dist.merge.verify import verify
from wiseft_dist.run import Run, committed_checkpoints
from wiseft_dist.tracking import read_events

Stamp = tuple[int, int, int]
"""Inode, time of the last change in nanoseconds, bytes."""
LEAVING_SECONDS = 60.0
"""In which a process that lost its job must have ended."""


def committed_files(run: Run) -> dict[str, Stamp]:
    """Every file of every committed checkpoint, ensemble and part of a cell."""
    folders = [run.zero_shot, *committed_checkpoints(run), *run.merged.glob("alpha_*")]
    files = [folder / name for folder in folders if is_committed(folder) for name in read_commit(folder)["files"]]
    files += [file for file in run.cells.rglob("part-*.parquet") if FILE_NAME.fullmatch(file.name)]
    return {str(file.relative_to(run.path)): _stamp(file) for file in files}


def assert_nothing_lost(run: Run, before: dict[str, Stamp]) -> None:
    """What was committed is the same file still: neither gone nor written again."""
    now = committed_files(run)
    lost = [name for name in before if name not in now]
    written_again = [name for name in before if name in now and now[name] != before[name]]
    assert (lost, written_again) == ([], [])


def assert_saved_when_told(run: Run) -> None:
    """A training that had to stop saved at a step at which nothing else asked for it."""
    saved = [event["step"] for event in read_events(run) if event["event"] == "saved"]
    every = run.load_config().finetune.checkpoint.every_steps
    assert every is not None
    assert [step for step in saved if step % every and step != max(saved)], saved


def assert_chunks_kept(run: Run, undisturbed: Run) -> None:
    """A merge that was begun again wrote less than a whole one: finished chunks were found."""
    begun = [event for event in read_events(run) if (event["stage"], event["event"]) == ("merge", "started")]
    if len(begun) > 1:
        assert 0 <= _bytes_merged(run) < _bytes_merged(undisturbed)


def _bytes_merged(run: Run) -> int:
    finished = [event for event in read_events(run) if (event["stage"], event["event"]) == ("merge", "finished")]
    return int(finished[-1]["bytes"])


def assert_same_end(run: Run, undisturbed: Run) -> None:
    """The same bits of weights, the same predictions, the same table; all of it current."""
    here, there = run.final_checkpoint(), undisturbed.final_checkpoint()
    assert here is not None and there is not None
    assert commit_digest(here) == commit_digest(there)
    assert_same_ensembles(run, undisturbed)
    assert predictions(run) == predictions(undisturbed)
    assert run.results_file.read_text() == undisturbed.results_file.read_text()


def assert_same_ensembles(run: Run, undisturbed: Run) -> None:
    """Committed by the same checksums, and their bytes have them."""
    folders = sorted(folder.name for folder in undisturbed.merged.glob("alpha_*"))
    assert sorted(folder.name for folder in run.merged.glob("alpha_*")) == folders
    for name in folders:
        assert _weights(run.merged / name) == _weights(undisturbed.merged / name)
        verify(run.merged / name)
    assert not list(run.merged.glob(".merge-*"))


def predictions(run: Run) -> dict[tuple[str, float], list[dict[str, Any]]]:
    """The rows of each dataset and alpha in the order of their positions, wherever the shards lay."""
    config = run.load_config()
    store = CellStore.of_run(config, run)
    return {
        (dataset, member.alpha): _rows(store.folder(dataset, member))
        for dataset in sizes_to_evaluate(config, run)
        for member in members_of(config)
    }


def _rows(cell: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for file in cell.glob("part-*.parquet"):
        table = pyarrow.parquet.read_table(file)
        rows += table.select([name for name in table.column_names if name != "feature_moments"]).to_pylist()
    return sorted(rows, key=lambda row: int(row["position"]))


def assert_nobody_left(slurm_conf: Path) -> None:
    """Every process of every job ends by itself, wherever it was when its job was taken from it."""
    deadline = time.monotonic() + LEAVING_SECONDS
    while left := processes_of(slurm_conf):
        assert time.monotonic() < deadline, [(each.job, each.rank, each.command) for each in left]
        time.sleep(0.2)


def _weights(folder: Path) -> dict[str, Any]:
    files = read_commit(folder)["files"]
    return {name: entry for name, entry in files.items() if name.endswith(".safetensors")}


def _stamp(file: Path) -> Stamp:
    status = file.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size
