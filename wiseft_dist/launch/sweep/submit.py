"""Handing a sweep to Slurm: an array for each stage over all runs, then the soup's jobs."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from pathlib import Path

from wiseft_dist.config import LaunchConfig
from wiseft_dist.launch.executors import slurm_executor, submitting
from wiseft_dist.launch.job import StageJob
from wiseft_dist.launch.ledger import Entry, read_ledger, record
from wiseft_dist.launch.processes import signals_held
from wiseft_dist.launch.sweep.arrays import Array, Missing
from wiseft_dist.launch.sweep.directory import SOUP, Sweep
from wiseft_dist.launch.sweep.soup import SoupMerge
from wiseft_dist.run import Run


def submit_arrays(sweep: Sweep, arrays: Sequence[Array], launch: LaunchConfig, code: Path | None) -> list[str]:
    """Submit arrays in their order; each run's ledger knows its task. The caller holds the runs' locks.

    Returns:
        Slurm's ids of the arrays.

    Raises:
        UserError, RunError: if Slurm is not there or refuses one; the arrays before it stay.
    """
    ids: list[str] = []
    for array in arrays:
        runs = [sweep.run(name) for name in array.runs]
        calls = [StageJob(run, array.stage, array.part) for run in runs]
        kind = "aftercorr" if len(runs) > 1 else "afterok"  # a single job is no array
        dependency = _dependency(kind, [ids[place] for place in array.after])
        with signals_held():  # tasks that Slurm has taken and no run knows would run beside the next call's
            job_ids = _submit(sweep, calls, launch, dependency, code, at_once=array.at_once)
            for run, job_id in zip(runs, job_ids, strict=True):
                record(run, [_entry(sweep, array.stage, array.name, job_id)])
        ids.append(job_ids[0].partition("_")[0])
    return ids


def submit_soup(
    sweep: Sweep,
    missing: Missing,
    launch: LaunchConfig,
    code: Path | None,
    *,
    after: Sequence[Run],
    submitted: Collection[str],
) -> None:
    """Submit what the soup lacks, to start when the runs' fine-tunings have succeeded.

    A soup of the finished runs starts when the last job of each has ended in any way.

    Args:
        sweep: The sweep.
        missing: What the soup lacks.
        after: The runs that it waits for; their jobs are in the queue.
        launch: Resources.
        code: As for the runs.
        submitted: Slurm's ids of the arrays that were submitted just now, whole.

    Raises:
        UserError, RunError: as :func:`submit_arrays`.
    """
    run, before = sweep.soup_run, _waited_for(sweep, after, submitted)
    kind = "afterany" if sweep.soup_of_finished else "afterok"
    for stage in dict.fromkeys(stage for stage, _ in missing):
        parts = [part for each, part in missing if each == stage]
        calls = [SoupMerge(run, stage, part) if stage == "merge" else StageJob(run, stage, part) for part in parts]
        at_once = getattr(launch, stage).max_parallel
        names = [stage if part is None else f"{stage}/{part}" for part in parts]
        with signals_held():
            job_ids = _submit(sweep, calls, launch, _dependency(kind, before), code, at_once=at_once)
            record(run, [_entry(sweep, stage, name, job_id) for name, job_id in zip(names, job_ids, strict=True)])
        kind, before = "afterok", [job_ids[0].partition("_")[0]]


def _waited_for(sweep: Sweep, runs: Sequence[Run], submitted: Collection[str]) -> list[str]:
    """The jobs that the soup waits for: whole arrays of now, and tasks of arrays from before."""
    job_ids = []
    for run in runs:
        entries = read_ledger(run)
        last = list(entries)[-1:] if sweep.soup_of_finished else ["finetune"]
        job_ids += [entries[name].job_id for name in last if name in entries]
    wholes = dict.fromkeys(base for job_id in job_ids if (base := job_id.partition("_")[0]) in submitted)
    return [*wholes, *(job_id for job_id in job_ids if job_id.partition("_")[0] not in submitted)]


def _submit(
    sweep: Sweep,
    calls: Sequence[StageJob],
    launch: LaunchConfig,
    dependency: str | None,
    code: Path | None,
    *,
    at_once: int,
) -> list[str]:
    """The ids of the jobs: ``123_0``, ``123_1``, ..., or ``123`` of a single one."""
    stage = calls[0].stage
    resources = getattr(launch, stage).model_copy(update={"max_parallel": at_once})
    executor = slurm_executor(
        sweep.jobs / stage,
        f"{sweep.folder.name}-{f'{SOUP}-' if calls[0].run == sweep.soup_run else ''}{stage}",
        resources,
        dependency=dependency,
        code=code,
        run_folders=[sweep.folder],
    )
    with submitting(stage):
        handles = [executor.submit(calls[0])] if len(calls) == 1 else executor.submit_array(list(calls))
    return [str(handle.job_id) for handle in handles]


def _dependency(kind: str, ids: Sequence[str]) -> str | None:
    return f"{kind}:{':'.join(ids)}" if ids else None


def _entry(sweep: Sweep, stage: str, name: str, job_id: str) -> Entry:
    return Entry(name, job_id, str(sweep.jobs / stage), "slurm", time.time())
