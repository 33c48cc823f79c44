"""Attempts at a stage: each is told in the events, requeues that lead nowhere end, and only the newest one works."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from wiseft_dist.claims import claim_file, ending_when_taken_over, release, take
from wiseft_dist.code_identity import code_identity
from wiseft_dist.commits import read_commit
from wiseft_dist.config import RunConfig
from wiseft_dist.data.stage import sizes_to_evaluate
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.evaluate.cells.parts import cut, parts_of_job
from wiseft_dist.evaluate.cells.store import CellStore, members_of
from wiseft_dist.merge.request import missing_ensembles
from wiseft_dist.ranks import Launcher, Ranks, discover_launcher, node_name
from wiseft_dist.run import Run, newest_checkpoint
from wiseft_dist.surroundings import surroundings
from wiseft_dist.tracking import append_event, read_events
from wiseft_dist.weights.finetuned import are_models_known, is_finetuned

NOT_KNOWN = "not known"


@contextmanager
def attempt(config: RunConfig, run: Run, stage: str, part: str | None, ranks: Ranks) -> Iterator[None]:
    """What every start of a stage goes through, on every rank, whoever started it.

    The first rank tells of the attempt in the run's events and makes it the newest one. Ranks of an older attempt that
    live on end themselves. An evaluation that someone starts by hand disturbs nobody and is not disturbed.

    Args:
        config: The run.
        run: Its directory.
        stage: The stage's name.
        part: Which job of the evaluation.
        ranks: This process's place.

    Raises:
        StageTakenError: if someone else is at work on the stage.
        RunError: if Slurm has started this job too often without anything new on disk, or anew meanwhile.
    """
    launcher = discover_launcher()
    if stage == "evaluate" and part is None:
        if ranks.is_main:
            _tell(config, run, stage, part, ranks, launcher)
        yield
        return
    file = claim_file(run, stage, part)
    number = take(file, launcher, stage if part is None else f"{stage}/{part}") if ranks.is_main else 0
    try:
        if ranks.is_main:
            _tell(config, run, stage, part, ranks, launcher)
        with ending_when_taken_over(file, run, stage, launcher, ranks, number):
            yield
    finally:
        if ranks.is_main:
            release(file, launcher)


def progress_of(config: RunConfig, run: Run, stage: str, part: str | None = None) -> str:
    """What of a stage is committed: ``step 40``, ``3 of 11 ensembles``, ``7 of 20 parts``. Read from disk alone."""
    try:
        return _progress_of(config, run, stage, part)
    except (UserError, RunError, OSError, ValueError, LookupError):
        return NOT_KNOWN  # the stage itself finds a sentence for what is wrong


def _tell(config: RunConfig, run: Run, stage: str, part: str | None, ranks: Ranks, launcher: Launcher) -> None:
    """Write the event of this attempt, unless it is one too many."""
    progress = progress_of(config, run, stage, part)
    if launcher.restart and not _is_finished(config, run, stage):
        before = fruitless(read_events(run), stage, part, launcher, progress)
        if len(before) > config.launch.max_restarts_without_progress:
            raise RunError(_too_many(config, run, stage, progress, launcher, before))
    identity = code_identity()
    append_event(
        run.events_file,
        stage=stage,
        event="attempt",
        job=part,
        job_id=launcher.job_id,
        restart=launcher.restart,
        launcher=launcher.kind,
        host=node_name(),
        world_size=ranks.world_size,
        progress=progress,
        code=identity.digest,
        version=identity.version,
        **surroundings(),
    )


def _is_finished(config: RunConfig, run: Run, stage: str) -> bool:
    """Whether the stage has nothing left to do: a batch script of several stages begins each of them anew."""
    if stage == "finetune":
        return is_finetuned(config, run)
    return stage == "merge" and are_models_known(config, run) and not missing_ensembles(config, run)


def fruitless(
    events: Sequence[dict[str, Any]], stage: str, part: str | None, launcher: Launcher, progress: str
) -> list[dict[str, Any]]:
    """The starts of this very Slurm job, one for each requeue, since which nothing new was committed."""
    starts: dict[int, dict[str, Any]] = {}
    for event in events:
        if (event.get("event"), event.get("stage"), event.get("job")) != ("attempt", stage, part):
            continue
        if event.get("job_id") != launcher.job_id or event.get("restart") == launcher.restart:
            continue
        if event.get("progress") != progress:
            starts = {}
        else:
            starts.setdefault(event.get("restart", 0), event)
    return list(starts.values())


def _too_many(
    config: RunConfig, run: Run, stage: str, progress: str, launcher: Launcher, before: Sequence[dict[str, Any]]
) -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(before[0]["time"]))
    return (
        f"Slurm has started job {launcher.job_id} {len(before)} times since {since} without anything new on disk "
        f"({stage}: {progress}), and launch.max_restarts_without_progress is "
        f"{config.launch.max_restarts_without_progress}: it ends here. See in its logs in {run.jobs / stage} why it "
        f"does not get on, then `wiseft run {run.config_file}` goes on and counts afresh."
    )


def _progress_of(config: RunConfig, run: Run, stage: str, part: str | None) -> str:
    if stage == "finetune":
        return _steps(config, run)
    if stage == "merge":
        return _ensembles(config, run)
    if stage == "evaluate":
        return _parts(config, run, part)
    return "written" if all(file.is_file() for file in run.report_files) else "not written"


def _steps(config: RunConfig, run: Run) -> str:
    newest = newest_checkpoint(run)
    if newest is None and config.finetune.recipe == "lp_ft":
        head = newest_checkpoint(replace(run, training="linear_head"))
        return f"step {0 if head is None else read_commit(head)['step']} of the head"
    return f"step {0 if newest is None else read_commit(newest)['step']}"


def _ensembles(config: RunConfig, run: Run) -> str:
    """Ensembles are finished together; on the way there, what counts are the chunks in the journals."""
    num_all = len(config.merge.alphas)
    num_missing = len(missing_ensembles(config, run)) if are_models_known(config, run) else num_all
    num_chunks = sum(file.read_bytes().count(b'{"chunk"') for file in run.merged.glob(".merge-*/journal-*.jsonl"))
    return f"{num_all - num_missing} of {num_all} ensembles" + (f", {num_chunks} chunks" if num_chunks else "")


def _parts(config: RunConfig, run: Run, part: str | None) -> str:
    sizes = sizes_to_evaluate(config, run)
    parts = cut(sizes, config.evaluate.part_samples) if part is None else parts_of_job(config, sizes, part)
    is_known = are_models_known(config, run)
    left = CellStore.of_run(config, run).left(parts, members_of(config)) if is_known else parts
    return f"{len(parts) - len(left)} of {len(parts)} parts"
