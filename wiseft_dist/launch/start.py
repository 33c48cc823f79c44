"""What `wiseft run` and `wiseft plan` do: check everything that can be checked, then hand over to the executor."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from wiseft_dist import storage
from wiseft_dist.code_identity import CodeIdentity, code_identity
from wiseft_dist.commits import is_committed
from wiseft_dist.config import RunConfig, batch_arithmetic, dump_config
from wiseft_dist.data.manifest import Manifest
from wiseft_dist.data.stage import (
    datasets_to_evaluate,
    evaluated_sizes,
    index,
    index_all,
    load_manifest,
    refuse_credentials,
)
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.evaluate.catalog.entries import with_absolute_files
from wiseft_dist.evaluate.dataset_checks import check_datasets
from wiseft_dist.launch.container_checks import unseen_in_containers
from wiseft_dist.launch.follow import queued_jobs, run_pipeline
from wiseft_dist.launch.lock import only_one
from wiseft_dist.launch.model_files import check_merged_models, check_model_files
from wiseft_dist.launch.others import record_batch_job, refuse_beside_others
from wiseft_dist.launch.processes import start_in_background
from wiseft_dist.launch.site_checks import check_site
from wiseft_dist.pipeline import STAGES, Step, is_finished, plan, remaining
from wiseft_dist.printable import printable
from wiseft_dist.run import Run, find_run, open_run
from wiseft_dist.tracking import append_event, read_events


def start(config: RunConfig, *, detach: bool = False) -> Run:
    """Check a configuration, open its run, submit what is missing, follow it and print the table.

    Raises:
        UserError: before anything is submitted, for every mistake that can be seen by then.
        RunError: if a job fails.
    """
    config, run = checked(config)
    goes_to_background = detach and config.launch.executor == "local"
    with only_one(run):
        refuse_beside_others(run)
        _open(config, run, is_submitted=config.launch.executor == "slurm")
        if not goes_to_background:
            run_pipeline(config, run, detach=detach)
    if goes_to_background:
        _go_on_in_background(run)  # it takes the lock itself
    elif not detach:
        print_summary(run)
    return run


def prepare(config: RunConfig) -> Run:
    """Check a configuration and write its run directory, for stages that are started by hand; submit nothing.

    In a batch job, such as ``slurm/run.sbatch``, that job stands in the run's ledger as the one that runs the stages.

    Raises:
        UserError: as :func:`start`.
    """
    config, run = checked(config)
    with only_one(run):
        refuse_beside_others(run)
        _open(config, run)
        record_batch_job(config, run)
    return run


def checked(config: RunConfig) -> tuple[RunConfig, Run]:
    """What can be checked before anything is written and without reading shards; tells what may be wrong.

    Returns:
        The configuration with paths that do not depend on the working directory, and its run, which need not exist.

    Raises:
        UserError: naming the first mistake.
    """
    config = resolve_paths(config)
    refuse_placeholders(config)
    world_size = config.launch.finetune.num_tasks
    batch_arithmetic(config, world_size)
    lanes = config.data.lanes // world_size
    if config.data.workers > lanes:
        print(
            f"wiseft: data.workers is {config.data.workers}, but a rank reads {lanes} lanes and uses as many workers: "
            f"set data.lanes to {config.data.workers * world_size} or more before the first start.",
            file=sys.stderr,
        )
    with_container = [stage for stage in STAGES if getattr(config.launch, stage).container]
    if config.launch.executor == "local" and with_container:
        print(
            f"wiseft: launch.{with_container[0]}.container is not used: launch.executor=local starts no containers.",
            file=sys.stderr,
        )
    if config.launch.executor == "slurm":
        warn_of(unseen_in_containers(config))
    return config, _find(config)


def refuse_placeholders(config: RunConfig) -> None:
    """Slurm and submitit replace ``%j`` and the like in the names of a job's files.

    Raises:
        UserError: if the run's path has one.
    """
    if config.launch.executor == "slurm" and "%" in config.output:
        raise UserError(
            f"output: {config.output} has a %, which begins Slurm's own placeholders in the names of a job's files: "
            "choose another output."
        )


def _find(config: RunConfig) -> Run:
    """The run's place, after what can be checked without reading shards. Writes nothing."""
    refuse_credentials(config)
    run = find_run(config)
    if not is_committed(run.zero_shot):
        check_model_files(config.model)
    check_merged_models(config.merge)
    return run


def _open(config: RunConfig, run: Run, *, is_submitted: bool = False) -> None:
    """Write the configuration and the manifests, after everything is checked; a new run that fails is taken away.

    The caller holds the run's lock. A mistake leaves a run as it was: the next call must not go on with it.
    """
    find_run(config)  # again: what is there may be of whoever held the lock before
    is_new = not run.config_file.is_file()
    if not is_new:
        refuse_to_change_under_jobs(config, run)
    try:
        manifests = index_all(config, run)
        warnings = check_datasets(config, manifests)
        if is_submitted:
            warnings += _check_site(config, run, manifests)
        open_run(config)
        index(config, run, manifests)
    except BaseException:
        if is_new:
            shutil.rmtree(run.path)
        raise
    warn_of(warnings, run)
    note_code(config, run)


def _check_site(config: RunConfig, run: Run, manifests: dict[str, Manifest]) -> list[str]:
    """:func:`check_site` of the steps that are neither done nor in the queue."""
    queued = {name.partition("/")[0] for name in queued_jobs(run)}
    steps = [step for step in left_of(config, run, manifests) if step.stage not in queued]
    return check_site({step.stage: step.jobs[0].resources for step in steps})


def note_code(config: RunConfig, run: Run) -> None:
    """Record which code goes on with the run, and warn where an earlier attempt ran other code."""
    now = code_identity()
    known = [event for event in reversed(read_events(run)) if event.get("code")]
    before = known[0] if known else None
    if before is not None and before["code"] == now.digest:
        return
    if before is not None and remaining(config, run):
        # A job's own event does not say of which revision its code was, the one of its launch does.
        told = next((event for event in known if event["code"] == before["code"] and event.get("revision")), before)
        earlier = CodeIdentity(str(before.get("version")), before["code"], told.get("revision"), told.get("is_dirty"))
        sentence = f"{run.path}: what is left runs with other code than before: {now}, and it was {earlier}."
        warn_of([sentence], run, stage="launch")
    append_event(
        run.events_file,
        stage="launch",
        event="code",
        code=now.digest,
        version=now.version,
        revision=now.revision,
        is_dirty=now.is_dirty,
    )


def warn_of(sentences: list[str], run: Run | None = None, *, stage: str = "shards") -> None:
    """Tell whoever is there, and the events of a run that is about to start."""
    for sentence in sentences:
        print(f"wiseft: {printable(sentence)}", file=sys.stderr)
        if run is not None:
            append_event(run.events_file, stage=stage, event="warning", warning=sentence)


def refuse_to_change_under_jobs(config: RunConfig, run: Run) -> None:
    """Jobs in the queue read the run's settings when they start: those must still be the ones they were made for.

    What stages without a job in the queue ask for may change.
    """
    before = run.load_config()
    if dump_config(config) == dump_config(before):
        return
    queued = queued_jobs(run)
    stages = {name.partition("/")[0] for name in queued}
    free = {stage: getattr(config.launch, stage) for stage in STAGES if stage not in stages}
    as_if = before.model_copy(update={"launch": before.launch.model_copy(update=free)})
    if queued and dump_config(config) != dump_config(as_if):
        raise UserError(
            f"{run.path}: jobs of this run are in the queue ({', '.join(queued.values())}) with other settings; "
            f"nothing was changed. Wait for them, or take them out with `wiseft cancel {run.path}`."
        )


def left_of(config: RunConfig, run: Run, manifests: dict[str, Manifest]) -> list[Step]:
    """What is left of a run whose directory may not know these datasets yet."""
    try:
        is_current = all(load_manifest(run, name) == manifest for name, manifest in manifests.items())
    except RunError:
        is_current = False
    if is_current:
        return remaining(config, run)
    weights = [job.name for step in plan(config, {}) for job in step.jobs if is_finished(config, run, job)]
    return plan(config, evaluated_sizes(config, manifests), weights)


def print_summary(run: Run) -> None:
    """The table that ends a run, or where its weights are if nothing was evaluated."""
    config = run.load_config()
    if not datasets_to_evaluate(config, run):
        print(f"Weights: {run.merged}")
        return
    from wiseft_dist.report.results import read_statistics
    from wiseft_dist.report.table import summary_table
    from wiseft_dist.terminal import table_console

    console = table_console()
    console.print(summary_table(read_statistics(run.statistics_file), console.width))
    print(f"Results: {run.results_file}\nReport:  {run.report / 'index.html'}")


def resolve_paths(config: RunConfig) -> RunConfig:
    """The configuration with paths that do not depend on the working directory."""
    data = config.data
    local = {
        "classnames": data.classnames and storage.absolute(data.classnames),
        "templates": data.templates and storage.absolute(data.templates),
        "cache": data.cache and storage.absolute(data.cache),
        "datasets": {name: with_absolute_files(spec) for name, spec in data.datasets.items()},
        "train": storage.absolute(data.train),
        "reference": {name: storage.absolute(url) for name, url in data.reference.items()},
        "shifts": {name: storage.absolute(url) for name, url in data.shifts.items()},
    }
    model = {key: _if_local(value) for key, value in config.model.model_dump().items()}
    merged = {name: tuple(map(_if_local, getattr(config.merge, name))) for name in ("models", "fisher")}
    return config.model_copy(
        update={
            "output": str(Path(config.output).expanduser().absolute()),
            "data": data.model_copy(update=local),
            "model": config.model.model_copy(update=model),
            "merge": config.merge.model_copy(update=merged),
        }
    )


def _if_local(name: str | None) -> str | None:
    """Names and tags stay as they are; what exists as a file or folder becomes absolute."""
    if name is None:
        return None
    path = Path(name.removeprefix("local-dir:")).expanduser()
    return str(path.absolute()) if path.exists() else name


def _go_on_in_background(run: Run) -> None:
    """Follow the run from a process of its own, which survives this terminal."""
    log = run.path / "run.log"
    command = [sys.executable, "-m", "wiseft_dist", "run", str(run.config_file)]
    print(f"The run goes on in process {start_in_background(command, log)}; it writes to {log}.")
