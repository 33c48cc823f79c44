"""The stages, what each waits for, what is left to do, and how one is run in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from wiseft_dist.attempts import attempt
from wiseft_dist.claims import StageTakenError
from wiseft_dist.config import Resources, RunConfig, batch_arithmetic
from wiseft_dist.data.manifest import Manifest
from wiseft_dist.data.stage import TRAIN, sizes_to_evaluate
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.evaluate.cells.parts import job_names, parts_of_job
from wiseft_dist.evaluate.cells.store import CellStore, members_of, report_digest
from wiseft_dist.merge.request import missing_ensembles
from wiseft_dist.publish import ensembles_are_published, report_is_published
from wiseft_dist.ranks import discover_ranks, node_name, speaks_for_its_group
from wiseft_dist.run import Run
from wiseft_dist.tracking import append_event, tell_failure, wandb_mode
from wiseft_dist.visibility import wait_until_visible
from wiseft_dist.weights.finetuned import are_models_known, is_finetuned

STAGES = ("finetune", "merge", "evaluate", "report")
WAIT_FOR_CONFIG_SECONDS = 60.0
"""For the run's own settings to show up; what else may take how long is written in them."""


@dataclass(frozen=True)
class Job:
    """One stage, or a share of the evaluation."""

    stage: str
    part: str | None
    """Which share: ``1-of-3``."""
    resources: Resources

    @property
    def name(self) -> str:
        """``merge``, ``evaluate/1-of-3``."""
        return self.stage if self.part is None else f"{self.stage}/{self.part}"


@dataclass(frozen=True)
class Step:
    """The jobs of a stage; they run side by side, after every job of the step before."""

    stage: str
    jobs: tuple[Job, ...]


def plan(config: RunConfig, sizes: Mapping[str, int], finished: Collection[str] = ()) -> list[Step]:
    """What is left to run, in order.

    Args:
        config: The run.
        sizes: Samples of what is evaluated, by dataset, the ID-val piece included; empty for a run that only trains and
            merges.
        finished: Names of jobs whose output is committed.
    """
    steps = []
    for stage in STAGES if sizes else STAGES[:2]:
        names = job_names(config, sizes) if stage == "evaluate" else [None]
        jobs = [Job(stage, name, getattr(config.launch, stage)) for name in names]
        left = tuple(job for job in jobs if job.name not in finished)
        if left:
            steps.append(Step(stage, left))
    return steps


def is_finished(config: RunConfig, run: Run, job: Job) -> bool:
    """Whether the job's output is on disk, committed and current, and published where the run says so."""
    if job.stage == "finetune":
        return is_finetuned(config, run)
    if job.stage == "merge":
        is_merged = are_models_known(config, run) and not missing_ensembles(config, run)
        return is_merged and ensembles_are_published(config, run)
    if not are_models_known(config, run):
        return False
    store, sizes = CellStore.of_run(config, run), sizes_to_evaluate(config, run)
    if job.stage == "evaluate":
        assert job.part is not None
        return not store.left(parts_of_job(config, sizes, job.part), members_of(config))
    if not all(file.is_file() for file in run.report_files):
        return False
    current = report_digest(config, store, sizes)
    is_current = json.loads(run.selection_file.read_text()).get("cells") == current
    return is_current and report_is_published(config, run)


def remaining(config: RunConfig, run: Run) -> list[Step]:
    """What is left of an indexed run, read from its directory."""
    sizes = sizes_to_evaluate(config, run)
    planned = {step.stage: step.jobs for step in plan(config, sizes)}
    evaluations = planned.pop("evaluate", ())
    finished = [job.name for jobs in planned.values() for job in jobs if is_finished(config, run, job)]
    return plan(config, sizes, [*finished, *_scored(config, run, sizes, evaluations)])


def _scored(config: RunConfig, run: Run, sizes: Mapping[str, int], jobs: Collection[Job]) -> list[str]:
    """The finished ones of many jobs of the evaluation, without looking at every cell for each."""
    if not jobs or not are_models_known(config, run):
        return []
    parts = {job.name: parts_of_job(config, sizes, job.part) for job in jobs if job.part is not None}
    store = CellStore.of_run(config, run)
    left = set(store.left([part for of_job in parts.values() for part in of_job], members_of(config)))
    return [name for name, of_job in parts.items() if left.isdisjoint(of_job)]


def describe(config: RunConfig, manifests: dict[str, Manifest]) -> dict[str, Any]:
    """The arithmetic of a run before it starts.

    Raises:
        UserError: if the batch cannot be shared by the planned processes.
    """
    from wiseft_dist.finetune.schedule import total_steps

    world_size = config.launch.finetune.num_tasks
    micro_batch_size, accumulation_steps = batch_arithmetic(config, world_size)
    train = manifests[TRAIN]
    return {
        "world_size": world_size,
        "micro_batch_size": micro_batch_size,
        "accumulation_steps": accumulation_steps,
        "global_batch_size": config.finetune.global_batch_size,
        "training_samples": train.num_training,
        "held_out_samples": train.num_held_out,
        "training_shards": len(train.shards),
        "steps": total_steps(config, train.num_training),
        "epochs": config.finetune.epochs,
        "alphas": list(config.merge.alphas),
        "test_samples": {name: manifest.num_samples for name, manifest in manifests.items() if name != TRAIN},
    }


def execute(
    stage: str,
    run: Run,
    *,
    dataset: str | None = None,
    part: str | None = None,
    check: Callable[[RunConfig], None] | None = None,
) -> None:
    """Run a stage in this process (group); a failure is written to the run's events before it is raised.

    Args:
        stage: Its name.
        run: The run.
        dataset: Evaluate only this one.
        part: Evaluate only what this job scores, such as ``1-of-3``.
        check: Asked first; what it raises is the stage's failure.

    Raises:
        UserError: if there is no such stage, the directory is no run, or someone else is at work on the stage.
    """
    if stage not in STAGES:
        raise UserError(f"{stage} is not a stage. Stages: {', '.join(STAGES)}.")
    wait_until_visible(run.config_file.is_file, run.config_file, WAIT_FOR_CONFIG_SECONDS)
    config = run.load_config()
    try:
        wandb_mode(config.wandb)  # refused here, on every rank, not when everything is loaded
        if check is not None:
            check(config)
        _wait_for_stages_before(config, run, stage)
        with attempt(config, run, stage, part, discover_ranks()):
            _stage_function(stage, dataset, part)(config, run)
    except StageTakenError:
        raise  # of the stage itself there is nothing to tell
    except BaseException as error:
        if not isinstance(error, SystemExit):  # submitit leaves a requeued job this way
            append_event(
                run.events_file,
                stage=stage,
                event="failed",
                dataset=dataset,
                job=part,
                kind=type(error).__name__,
                error=str(error) or type(error).__name__,
            )
            if speaks_for_its_group():
                tell_failure(config, run, stage, part or "", error)
        raise


def _wait_for_stages_before(config: RunConfig, run: Run, stage: str) -> None:
    seconds = config.launch.visible_seconds
    if not wait_until_visible(lambda: _is_ready(config, run, stage), run.path, seconds):
        raise RunError(
            f"{stage} cannot begin: {node_name()} does not see in {run.path} what the stages before it "
            f"have to write, {seconds:g} s after they had ended (launch.visible_seconds). "
            f"`wiseft run {run.config_file}` does what is missing."
        )


def _is_ready(config: RunConfig, run: Run, stage: str) -> bool:
    """Whether what the stages before have committed is there, as far as this one cannot begin without it."""
    if stage == "finetune":
        return True
    if stage == "merge":
        return is_finetuned(config, run)
    try:
        if stage == "evaluate" or not are_models_known(config, run):
            return are_models_known(config, run)
        sizes = sizes_to_evaluate(config, run)
    except RunError:  # what was counted of the shards is not there
        return False
    parts = [part for name in job_names(config, sizes) for part in parts_of_job(config, sizes, name)]
    return not CellStore.of_run(config, run).left(parts, members_of(config))


def _stage_function(stage: str, dataset: str | None, part: str | None) -> Callable[[RunConfig, Run], object]:
    """Stages are imported only where they run: the command line and the scheduler do without torch."""
    if stage == "finetune":
        from wiseft_dist.finetune.stage import finetune

        return finetune
    if stage == "merge":
        return _merge
    if stage == "evaluate":
        from wiseft_dist.evaluate.stage import evaluate

        return lambda config, run: evaluate(config, run, dataset=dataset, job=part)
    from wiseft_dist.report.stage import report

    return report


def _merge(config: RunConfig, run: Run) -> None:
    from wiseft_dist.merge.stage import merge

    if config.merge.method == "greedy_soup":
        from wiseft_dist.evaluate.greedy import choose_soup

        choose_soup(config, run)
    merge(config, run)
