"""The stages, what each waits for, what is left to do, and how one is run in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from wiseft_dist.config import Resources, RunConfig, batch_arithmetic
from wiseft_dist.data.manifest import Manifest
from wiseft_dist.data.stage import TRAIN, datasets_to_evaluate
from wiseft_dist.errors import UserError
from wiseft_dist.evaluate.cells import CellStore
from wiseft_dist.merge.request import missing_ensembles
from wiseft_dist.publish import ensembles_are_published, report_is_published
from wiseft_dist.run import Run
from wiseft_dist.tracking import append_event
from wiseft_dist.weights.finetuned import are_models_known, is_finetuned

STAGES = ("finetune", "merge", "evaluate", "report")


@dataclass(frozen=True)
class Job:
    """One stage, or one dataset of the evaluation."""

    stage: str
    dataset: str | None
    resources: Resources

    @property
    def name(self) -> str:
        """``merge``, ``evaluate/sketch``."""
        return self.stage if self.dataset is None else f"{self.stage}/{self.dataset}"


@dataclass(frozen=True)
class Step:
    """The jobs of a stage; they run side by side, after every job of the step before."""

    stage: str
    jobs: tuple[Job, ...]


def plan(config: RunConfig, datasets: Collection[str], finished: Collection[str] = ()) -> list[Step]:
    """What is left to run, in order.

    Args:
        config: The run.
        datasets: What is evaluated, the ID-val piece included; empty for a run that only trains and merges.
        finished: Names of jobs whose output is committed.
    """
    steps = []
    for stage in STAGES if datasets else STAGES[:2]:
        names = list(datasets) if stage == "evaluate" else [None]
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
    store = CellStore(config, run)
    if job.stage == "evaluate":
        assert job.dataset is not None
        return not store.missing(job.dataset, config.merge.alphas)
    if not run.results_file.is_file() or not run.selection_file.is_file():
        return False
    current = store.report_digest(datasets_to_evaluate(config, run))
    is_current = json.loads(run.selection_file.read_text()).get("cells") == current
    return is_current and report_is_published(config, run)


def remaining(config: RunConfig, run: Run) -> list[Step]:
    """What is left of an indexed run, read from its directory."""
    datasets = datasets_to_evaluate(config, run)
    finished = [job.name for step in plan(config, datasets) for job in step.jobs if is_finished(config, run, job)]
    return plan(config, datasets, finished)


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


def execute(stage: str, run: Run, *, dataset: str | None = None) -> None:
    """Run a stage in this process (group); a failure is written to the run's events before it is raised.

    Raises:
        UserError: if there is no such stage or the directory is no run.
    """
    if stage not in STAGES:
        raise UserError(f"{stage} is not a stage. Stages: {', '.join(STAGES)}.")
    config = run.load_config()
    try:
        _stage_function(stage, dataset)(config, run)
    except BaseException as error:
        if not isinstance(error, SystemExit):  # submitit leaves a requeued job this way
            append_event(
                run.events_file,
                stage=stage,
                event="failed",
                dataset=dataset,
                kind=type(error).__name__,
                error=str(error) or type(error).__name__,
            )
        raise


def _stage_function(stage: str, dataset: str | None) -> Callable[[RunConfig, Run], object]:
    """Stages are imported only where they run: the command line and the scheduler do without torch."""
    if stage == "finetune":
        from wiseft_dist.finetune.stage import finetune

        return finetune
    if stage == "merge":
        return _merge
    if stage == "evaluate":
        from wiseft_dist.evaluate.stage import evaluate

        return lambda config, run: evaluate(config, run, dataset=dataset)
    from wiseft_dist.report.stage import report

    return report


def _merge(config: RunConfig, run: Run) -> None:
    from wiseft_dist.merge.stage import merge

    if config.merge.method == "greedy_soup":
        from wiseft_dist.evaluate.greedy import choose_soup

        choose_soup(config, run)
    merge(config, run)
