"""`wiseft plan`: what would run where, and what it costs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from wiseft_dist.printable import printable
from wiseft_dist.progress import duration

MOST_LISTED = 16
"""Jobs of an array that are shown one by one."""
FIRST_LISTED = 3
"""Of a longer one."""


def plan(
    config: Annotated[Path, typer.Argument(help="Configuration file (YAML).", metavar="CONFIG")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings to change, such as finetune.epochs=5.", metavar="[KEY=VALUE]..."),
    ] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", min=1e-9, help="Training samples a second, all ranks together.")
    ] = None,
    rate_from: Annotated[
        Path | None, typer.Option("--rate-from", metavar="RUN", help="A run that has measured how fast it goes.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what would run where: jobs, ranks, batches, steps, bytes, hours. Touches nothing."""
    from wiseft_dist.config import load_config
    from wiseft_dist.config.sites import site_in_force
    from wiseft_dist.launch.preview import preview

    settings = overrides or []
    loaded = load_config(config, settings)
    described = preview(loaded, site=site_in_force(config, settings), rate=rate, rate_from=rate_from)
    print(json.dumps(described, indent=1) if as_json else printable("\n".join(plan_lines(described)), keep="\n"))


def plan_lines(described: Mapping[str, Any]) -> Iterator[str]:
    """The plan as a person reads it."""
    yield from _job_lines(described) if described["jobs"] else ["nothing left to do"]
    yield (
        f"batch {described['global_batch_size']} = {described['world_size']} ranks x {described['micro_batch_size']} "
        f"x {described['accumulation_steps']} accumulation; {described['steps']} steps for {described['epochs']:g} "
        f"epochs of {described['training_samples']} samples in {described['training_shards']} shards "
        f"({described['held_out_samples']} held out)"
    )
    tests = ", ".join(f"{name} {count}" for name, count in described["test_samples"].items())
    yield f"{len(described['alphas'])} alphas on: {tests or 'nothing'}"
    site = f", site {described['site']}" if described["site"] else ""
    yield f"executor {described['executor']}{site}"
    yield from _cost_lines(described)
    yield from (f"{finding['level']}: {finding['text']}" for finding in described["slurm"])


def _job_lines(described: Mapping[str, Any]) -> Iterator[str]:
    """A line a job: its name, processes, GPUs and limits and, of the evaluation, how many images it scores."""
    for step in described["steps_of_jobs"]:
        jobs = [job for job in described["jobs"] if job["name"].partition("/")[0] == step["stage"]]
        if len(jobs) > 1:
            yield f"{step['stage']}: an array of {len(jobs)}, at most {step['max_parallel']} at the same time"
        after = f"; after {step['after']}" if step["after"] else ""
        for job in jobs if len(jobs) <= MOST_LISTED else jobs[:FIRST_LISTED]:
            images = ", ".join(f"{name} {count}" for name, count in job.get("images", {}).items())
            yield f"{job['name']:<24} {_resources(job)}{after}{f'; images: {images}' if images else ''}"
            after = ""
        if len(jobs) > MOST_LISTED:
            counts = [sum(job["images"].values()) for job in jobs[FIRST_LISTED:]]
            yield f"{'':<24} and {len(counts)} more like these, with {min(counts)} to {max(counts)} images each"


def _resources(job: Mapping[str, Any]) -> str:
    words = [f"{job['nodes']} x {job['tasks_per_node']} processes, {job['gpus_per_node']} GPUs a node"]
    words += [f"{job['cpus_per_task']} cores a process"] if job["cpus_per_task"] else []
    words += [f"{job['mem_gb']:g} GB a node"] if job["mem_gb"] else []
    words.append(f"{job['timeout_minutes']} minutes")
    words += [f"{name} {job[name]}" for name in ("partition", "account", "qos", "constraint", "container") if job[name]]
    return ", ".join(words)


def _cost_lines(described: Mapping[str, Any]) -> Iterator[str]:
    reading, scoring, parameters = described["reading"], described["scoring"], described["parameters"]
    fewest, most = reading["shards_a_rank"]
    yield (
        f"reads {_size(reading['bytes_an_epoch'])} an epoch, {_size(reading['bytes_of_training'])} in all, and "
        f"{_size(reading['bytes_of_evaluation'])} to evaluate; a rank opens {fewest} to {most} shards an epoch"
    )
    yield (
        f"scores {scoring['images']} images with {scoring['members']} models: each is decoded once, "
        f"{scoring['predictions']} predictions"
    )
    disk = described["disk_bytes"]
    parts = [(disk["checkpoints"], "checkpoints"), (disk["ensembles"], "ensembles"), (disk["predictions"], "cells")]
    known = ", ".join(f"{_size(number)} of {name}" for number, name in parts if number is not None)
    unknown = "" if parameters else " (and weights: how many parameters the model has is not known before it is built)"
    yield f"disk about {known}{unknown}"
    if disk["cache_a_node"]:
        yield f"cache up to {_size(disk['cache_a_node'])} on each node"
    if parameters:
        yield (
            f"trains {parameters['trained']} of {parameters['model']} parameters: "
            f"{_size(described['gpu_bytes_without_activations'])} a rank, and its activations"
        )
    yield from _time_lines(described["time"])


def _time_lines(time: Mapping[str, Any]) -> Iterator[str]:
    training, rate = time["finetune_seconds"], time["samples_per_second"]
    if training is None:
        yield "how long fine-tuning takes is not known: say --rate SAMPLES_A_SECOND, or --rate-from RUN"
    else:
        yield f"fine-tuning takes about {duration(training)} at {_rate(rate)} samples/s ({time['rate_of']})"
        yield from _limit_lines("finetune", time["finetune_jobs"])
    scoring, rate = time["evaluate_seconds"], time["predictions_per_second_a_process"]
    if scoring is None:
        yield "how long the evaluation takes is not known: say --rate-from RUN, of one that has scored something"
    else:
        yield (
            f"the evaluation takes about {duration(scoring)}, its jobs side by side, at {_rate(rate)} predictions/s "
            f"of each process ({time['scoring_rate_of']})"
        )
        yield from _limit_lines("evaluate", time["evaluate_starts_a_job"])


def _limit_lines(stage: str, num_starts: int) -> Iterator[str]:
    """Where a job needs longer than it may."""
    if num_starts > 1:
        yield (
            f"note: that is more than launch.{stage}.timeout_minutes; a Slurm job keeps what it has done and comes "
            f"back by itself, {'once' if num_starts == 2 else f'{num_starts - 1} times'}"
        )


def _rate(rate: float) -> str:
    return f"{rate:.{0 if rate >= 10 else 2}f}"


def _size(number: int) -> str:
    """In decimal units, as disks are sold: ``1.2 GB``."""
    size, units = float(number), ["bytes", "kB", "MB", "GB", "TB", "PB"]
    while size >= 999.5 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.3g} {units[0]}"
