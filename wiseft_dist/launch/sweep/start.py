"""What `wiseft sweep` does: open every run, hand over what is missing, follow it, make the soup."""

from __future__ import annotations

import resource
import sys
from contextlib import ExitStack
from pathlib import Path

from wiseft_dist.data.stage import index
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.launch.ledger import read_ledger
from wiseft_dist.launch.lock import only_one
from wiseft_dist.launch.others import refuse_unknown_jobs
from wiseft_dist.launch.outcomes import Outcome, outcome_of
from wiseft_dist.launch.processes import start_in_background
from wiseft_dist.launch.site_checks import check_site
from wiseft_dist.launch.snapshot import snapshot
from wiseft_dist.launch.start import note_code, refuse_to_change_under_jobs
from wiseft_dist.launch.sweep.arrays import Array, Missing
from wiseft_dist.launch.sweep.directory import Sweep
from wiseft_dist.launch.sweep.follow import follow
from wiseft_dist.launch.sweep.local import run_here
from wiseft_dist.launch.sweep.names import few
from wiseft_dist.launch.sweep.plan import Asked, Plan, missing_of, plan_sweep, refuse_what_came_between, stages_of
from wiseft_dist.launch.sweep.soup import prepare_soup
from wiseft_dist.launch.sweep.submit import submit_arrays, submit_soup
from wiseft_dist.pipeline import remaining
from wiseft_dist.printable import printable
from wiseft_dist.run import Run, find_run, open_run
from wiseft_dist.slurm import cancel_jobs, job_states, max_array_size
from wiseft_dist.weights.finetuned import is_finetuned

LOG_FILE = "sweep.log"
FILES_BESIDE = 256
"""File descriptors for everything but the runs' locks."""


def start(asked: Asked, *, detach: bool = False) -> Plan:
    """Check a sweep, open its runs, submit what is missing and, unless detached, follow it to its end.

    A run that fails does not stop the others, and raises nothing here.

    Raises:
        UserError: before anything is written, for every mistake that can be seen by then.
        RunError: if Slurm refuses the jobs or stays silent.
    """
    plan = plan_sweep(asked)
    for sentence in plan.warnings:
        _say(f"wiseft: {sentence}")
    _say(f"{len(plan.planned)} runs in {plan.sweep.folder}")
    is_local = plan.launch.executor == "local"
    with only_one(Run(plan.sweep.folder), what="sweep"):
        refuse_what_came_between(plan)
        if not is_local:
            _check_slurm(plan)
        plan.sweep.write()
        with ExitStack() as locks:
            _lock_all(plan, locks)
            _open(plan)
            if not is_local:
                _submit(plan)
        if is_local and not detach:
            _run_here(plan)
        elif not is_local and not detach:
            _follow(plan)
    if is_local and detach:
        _go_on_in_background(asked, plan)  # it takes the lock itself
    return plan


def _check_slurm(plan: Plan) -> None:
    """Tell what Slurm may not do of the stages that are to be submitted.

    Raises:
        UserError: with what it would refuse, or with jobs of this sweep that no run knows.
    """
    refuse_unknown_jobs(Run(plan.sweep.folder), [job_id for ids in _noted(plan.sweep).values() for job_id in ids])
    queued = _queued(plan.sweep)
    missing = {name: jobs for name, jobs in missing_of(plan).items() if name not in queued}
    for sentence in check_site(stages_of(plan, missing)):
        _say(f"wiseft: {sentence}")


def _lock_all(plan: Plan, locks: ExitStack) -> None:
    """Hold the lock of every run while all are opened and submitted: none is started by another meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = len(plan.planned) + FILES_BESIDE
    if soft != resource.RLIM_INFINITY and soft < needed:
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    for each in plan.planned:
        locks.enter_context(only_one(each.run))


def _open(plan: Plan) -> None:
    """Write settings and manifests of every run, after all of them are found to be free to change."""
    for each in plan.planned:
        find_run(each.config)  # again, under its lock
        if each.run.config_file.is_file():
            refuse_to_change_under_jobs(each.config, each.run)
    for each in plan.planned:
        open_run(each.config)
        index(each.config, each.run, each.manifests)
        note_code(each.config, each.run)


def _run_here(plan: Plan) -> None:
    """Every run, then the soup of them."""
    missing = missing_of(plan)
    run_here([each.run for each in plan.planned if missing[each.member.name]], plan.launch, plan.at_once)
    if plan.sweep.soup == "none":
        return
    try:
        config = prepare_soup(plan.sweep)
    except (UserError, RunError) as error:
        _say(str(error))
        return
    if remaining(config, plan.sweep.soup_run):
        run_here([plan.sweep.soup_run], plan.launch, at_once=1)


def _submit(plan: Plan) -> None:
    """Submit what is missing of every run that has no jobs in the queue, and the soup after them."""
    sweep = plan.sweep
    queued = _queued(sweep)
    if waiting := [member.name for member in sweep.members if member.name in queued]:
        _say(f"in the queue already: {few(waiting)}")
    missing = {name: jobs for name, jobs in missing_of(plan).items() if name not in queued}
    arrays = plan.arrays(missing, longest=max_array_size())
    code = snapshot(sweep.jobs) if plan.launch.snapshot and (arrays or sweep.soup != "none") else None
    ids = submit_arrays(sweep, arrays, plan.launch, code)
    for array, job_id in zip(arrays, ids, strict=True):
        _say(_submitted(array, job_id))
    if sweep.soup != "none":
        _submit_soup(plan, ids, queued, code)


def _submit_soup(plan: Plan, ids: list[str], queued: dict[str, list[str]], code: Path | None) -> None:
    """Submit the soup, unless it is in the queue already and waits for all that it should."""
    sweep, name = plan.sweep, plan.sweep.soup_run.path.name
    if name in queued:
        if not ids:
            return
        cancel_jobs(queued[name])  # it would merge without waiting for the runs that have joined
    after = _unfinished(plan)
    missing = plan.soup_missing if after else _soup_missing(plan)
    if missing:
        with only_one(sweep.soup_run):
            submit_soup(sweep, missing, plan.launch, code, after=after, submitted=ids)
        _say(f"soup ({sweep.soup}): submitted, to start when the models are there")


def _unfinished(plan: Plan) -> list[Run]:
    """The runs that a soup waits for."""
    if plan.sweep.soup_of_finished:
        return [each.run for each in plan.planned if remaining(each.config, each.run)]
    return [each.run for each in plan.planned if not is_finetuned(each.config, each.run)]


def _soup_missing(plan: Plan) -> Missing:
    """What the soup lacks where all models are there. Where they are not, its jobs find out themselves what is done."""
    config = prepare_soup(plan.sweep)
    return tuple((job.stage, job.part) for step in remaining(config, plan.sweep.soup_run) for job in step.jobs)


def _queued(sweep: Sweep) -> dict[str, list[str]]:
    """The active jobs of each run; those that can never start are taken out of the queue first."""
    ids = _noted(sweep)
    states = job_states([job_id for each in ids.values() for job_id in each])
    outcomes = {job_id: outcome_of(state, has_result=False, failure=None) for job_id, state in states.items()}
    cancel_jobs([job_id for job_id, outcome in outcomes.items() if outcome is Outcome.blocked])
    active = {job_id for job_id, outcome in outcomes.items() if outcome in (Outcome.waiting, Outcome.running)}
    return {name: found for name, each in ids.items() if (found := [job_id for job_id in each if job_id in active])}


def _noted(sweep: Sweep) -> dict[str, list[str]]:
    """The jobs of Slurm that each run, and the soup, knows of."""
    names = [*(member.name for member in sweep.members), sweep.soup_run.path.name]
    return {
        name: [entry.job_id for entry in read_ledger(sweep.run(name)).values() if entry.executor == "slurm"]
        for name in names
    }


def _submitted(array: Array, job_id: str) -> str:
    if len(array.runs) == 1:
        return f"{array.name}: {array.runs[0]} submitted as {job_id}"
    tasks = f"{len(array.runs)} runs submitted as {job_id}_[0-{len(array.runs) - 1}]"
    return f"{array.name}: {tasks}, {array.at_once} at once"


def _follow(plan: Plan) -> None:
    runs = [each.run for each in plan.planned]
    if plan.sweep.soup != "none":
        runs.append(plan.sweep.soup_run)
    try:
        follow(plan.sweep, runs, plan.launch)
    except KeyboardInterrupt:
        _say("The jobs go on: the same command follows them again.")
        raise


def _go_on_in_background(asked: Asked, plan: Plan) -> None:
    """Go on from a process of its own, which survives this terminal."""
    log = plan.sweep.folder / LOG_FILE
    command = [sys.executable, "-m", "wiseft_dist", "sweep", str(asked.config), *asked.settings]
    command += ["--soup", plan.sweep.soup]
    command += ["--soup-of-finished" if plan.sweep.soup_of_finished else "--soup-of-all"]
    command += ["--output", str(asked.output)] if asked.output else []
    command += ["--at-once", str(asked.at_once)] if asked.at_once else []
    print(f"The sweep goes on in process {start_in_background(command, log)}; it writes to {log}.")


def _say(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)
