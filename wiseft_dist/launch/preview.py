"""What `wiseft plan` shows: the jobs that are left and what they cost. Writes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wiseft_dist.config import RunConfig
from wiseft_dist.data.manifest import Manifest
from wiseft_dist.data.stage import TRAIN, evaluated_sizes, index_all
from wiseft_dist.data.vocabulary import load_vocabulary
from wiseft_dist.evaluate.cells.parts import images_by_dataset, parts_of_job
from wiseft_dist.evaluate.dataset_checks import check_datasets
from wiseft_dist.launch.estimate import (
    describe_disk,
    describe_memory,
    describe_parameters,
    describe_reading,
    describe_scoring,
    describe_scoring_time,
    describe_training_time,
)
from wiseft_dist.launch.rates import UNKNOWN, Rates, known_rates
from wiseft_dist.launch.site_checks import site_findings
from wiseft_dist.launch.start import checked, left_of, warn_of
from wiseft_dist.models.parameter_count import count_parameters
from wiseft_dist.pipeline import Step, describe
from wiseft_dist.run import Run

JOB_FIELDS = (
    *("nodes", "tasks_per_node", "gpus_per_node", "gpu_isolation", "cpus_per_task", "mem_gb", "timeout_minutes"),
    *("partition", "account", "qos", "constraint", "container"),
)


def preview(
    config: RunConfig, *, site: str | None = None, rate: float | None = None, rate_from: Path | None = None
) -> dict[str, Any]:
    """The arithmetic of a run, the jobs that are left and what they cost.

    Args:
        config: The run.
        site: Which profile went into it; only shown.
        rate: Training samples a second, all ranks together.
        rate_from: A run directory that tells the rates instead. Left out: this run's own.

    Raises:
        UserError: as for `wiseft run`, or if ``rate_from`` tells no rate.
    """
    config, run = checked(config)
    manifests = index_all(config, run)
    warn_of(check_datasets(config, manifests))
    return describe_plan(config, run, manifests, site=site, rates=known_rates(config, run, rate, rate_from))


def describe_plan(
    config: RunConfig,
    run: Run,
    manifests: dict[str, Manifest],
    *,
    site: str | None = None,
    rates: Rates = UNKNOWN,
) -> dict[str, Any]:
    """:func:`preview` of what is indexed already."""
    steps = left_of(config, run, manifests)
    world_size, sizes = config.launch.finetune.num_tasks, evaluated_sizes(config, manifests)
    scoring = describe_scoring(config, manifests)
    reading = describe_reading(config, manifests, world_size)
    classes = 0 if config.finetune.recipe == "contrastive" else len(load_vocabulary(config.data).classnames)
    parameters = describe_parameters(config, count_parameters(config.model.architecture), classes)
    stages = {step.stage: step.jobs[0].resources for step in steps}
    return describe(config, manifests) | {
        "site": site,
        "executor": config.launch.executor,
        "jobs": _jobs(config, steps, sizes),
        "steps_of_jobs": _steps(config, steps),
        "reading": reading,
        "scoring": scoring,
        "parameters": parameters,
        "disk_bytes": describe_disk(config, parameters, scoring, reading["bytes_an_epoch"]),
        "gpu_bytes_without_activations": describe_memory(config, parameters, world_size),
        "time": {
            **describe_training_time(config, manifests[TRAIN].num_training, rates),
            **describe_scoring_time(config, sizes, scoring["members"], rates),
        },
        "slurm": [
            {"level": finding.level, "text": finding.text}
            for finding in (site_findings(stages) if config.launch.executor == "slurm" else [])
        ],
    }


def _jobs(config: RunConfig, steps: list[Step], sizes: Mapping[str, int]) -> list[dict[str, Any]]:
    return [
        {"name": job.name}
        | job.resources.model_dump(include=set(JOB_FIELDS))
        | {"tasks": job.resources.num_tasks, "gpus": job.resources.gpus_per_node * job.resources.nodes}
        | ({"images": images_by_dataset(parts_of_job(config, sizes, job.part))} if job.part else {})
        for step in steps
        for job in step.jobs
    ]


def _steps(config: RunConfig, steps: list[Step]) -> list[dict[str, Any]]:
    """Each step of the graph: how many jobs it has, how many run at the same time, and what it waits for."""
    return [
        {
            "stage": step.stage,
            "num_jobs": len(step.jobs),
            "max_parallel": min(len(step.jobs), step.jobs[0].resources.max_parallel),
            "after": steps[place - 1].stage if place else None,
        }
        for place, step in enumerate(steps)
    ]
