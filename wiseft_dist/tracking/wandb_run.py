"""One W&B run for each stage (and job of it): opened with our settings, told items of a replay, never by training.

All of a run's W&B runs are one group. The ids come from ``RUN/id``, so a requeued job goes on in the same W&B run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from wiseft_dist.config import RunConfig
from wiseft_dist.run import Run, run_id
from wiseft_dist.tracking.private_folder import private_folder
from wiseft_dist.tracking.replay import SYSTEM, TRAININGS, Alert, Item, Preempting, Report, Row, Summary
from wiseft_dist.tracking.scrubbing import scrubbed, scrubbed_tree

Mode = Literal["online", "offline"]
MAX_ID_LETTERS = MAX_TAG_LETTERS = 64
NOT_SHOWN = {"output", "launch"}
"""Sections of the configuration about this machine: paths, accounts, variables."""
SWEEP_FILE = "sweep.json"
"""What the folder of a sweep has beside its runs."""
INIT_SECONDS = 90.0
"""Which W&B may take to answer the first question."""
OURS = """
WANDB_API_KEY WANDB_BASE_URL WANDB_CONFIG_DIR WANDB_CREDENTIALS_FILE WANDB_ENTITY WANDB_HTTP_PROXY WANDB_HTTPS_PROXY
WANDB_HTTP_TIMEOUT WANDB_IDENTITY_TOKEN_FILE WANDB_INSECURE_DISABLE_SSL WANDB_X_EXTRA_HTTP_HEADERS
"""
"""Variables that W&B may see: who sends, and on which way; others (``WANDB_RUN_ID``, ``WANDB_DIR``, ``WANDB_PROJECT``,
...) would make it another run elsewhere."""


def wandb_id(run: Run, stage: str, job: str) -> str:
    """The W&B id of a stage (or job of it) of this run directory, of letters that W&B takes."""
    name = "-".join(filter(None, [run_id(run), stage, job]))
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:MAX_ID_LETTERS]


def group_name(run: Run) -> str:
    """The W&B group of a run directory."""
    return f"{scrubbed(run.path.name)}-{run_id(run)}"


def in_one_line(error: Exception) -> str:
    """What W&B raised, without names and secrets."""
    if isinstance(error, ValidationError):  # its first line names no setting
        first = error.errors()[0]
        text = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    else:
        text = str(error).strip().split("\n")[0]
    return scrubbed(text)[:300].rstrip(".") or type(error).__name__


def forget_other_variables() -> None:
    """Take every variable of W&B's out of this process's environment that would put the run somewhere else."""
    for name in [name for name in os.environ if name.startswith("WANDB_") and name not in OURS.split()]:
        del os.environ[name]
    os.environ["WANDB_DATA_DIR"] = str(private_folder())  # manifests name files there; not below a home
    os.environ["WANDB_ERROR_REPORTING"] = "false"  # or W&B's own troubles are sent too, with addresses in them


def open_wandb_run(
    config: RunConfig,
    run: Run,
    stage: str,
    job: str = "",
    *,
    mode: Mode,
    stats_pid: int | None = None,
    init_seconds: float = INIT_SECONDS,
    folder: Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Any:
    """Start or go on with the W&B run of a stage.

    Args:
        config: The run's.
        run: The run.
        stage: ``finetune``, ``linear_head``, ``merge``, ``evaluate`` or ``report``.
        job: Which job of it.
        mode: Offline runs are written to ``RUN/wandb``.
        stats_pid: Of whose process W&B's monitor tells; left out, it is off.
        init_seconds: How long W&B may take to answer.
        folder: Where W&B writes its own files; left out, the run directory.
        settings: More of W&B's settings.

    Returns:
        What :func:`wandb.init` does.

    Raises:
        Exception: whatever W&B raises.
    """
    import wandb

    opened = wandb.init(
        project=config.wandb.project,
        entity=config.wandb.entity,
        mode=mode,
        id=wandb_id(run, stage, job),
        resume="allow" if mode == "online" else None,
        name=scrubbed("-".join(filter(None, [run.path.name, stage, job]))),
        group=group_name(run),
        job_type="finetune" if stage in TRAININGS else stage,
        tags=[scrubbed(run.path.parent.name)[:MAX_TAG_LETTERS]] if (run.path.parent / SWEEP_FILE).is_file() else None,
        dir=str(folder or run.path),
        config=scrubbed_tree(config.model_dump(mode="json", exclude=NOT_SHOWN)),
        settings=_settings(stats_pid, init_seconds, settings or {}),
    )
    for training in TRAININGS:
        opened.define_metric(f"{training}/*", step_metric="step")
    opened.define_metric(f"{SYSTEM}*", step_metric="step")
    opened.define_metric("report/*", step_metric="alpha")
    return opened


def _settings(stats_pid: int | None, init_seconds: float, further: Mapping[str, Any]) -> Any:
    """Without code, host, user, program and arguments."""
    import wandb

    stats = {} if stats_pid is None else {"x_stats_pid": stats_pid}
    return wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        save_code=False,
        disable_job_creation=True,
        host="",
        username="",
        email="",
        program="wiseft",
        program_relpath="wiseft",
        program_abspath="wiseft",
        init_timeout=init_seconds,
        x_disable_meta=True,
        x_disable_machine_info=stats_pid is None,  # it would switch the monitor off too
        x_disable_stats=stats_pid is None,
        x_save_requirements=False,
        x_executable="python",
        **(stats | dict(further)),
    )


def tell(wandb_run: Any, item: Item, *, config: RunConfig, run: Run, job: str = "", after: int = -1) -> None:
    """Show one item of a replay.

    Args:
        wandb_run: From :func:`open_wandb_run`.
        item: What to show.
        config: The run's.
        run: The run.
        job: The W&B run's.
        after: The last step that the W&B run held when it was opened.

    Raises:
        Exception: whatever W&B raises.
    """
    match item:
        case Row(step, values, time):
            at = {} if time is None else {"_timestamp": time}
            wandb_run.log(scrubbed_tree(values) | at, step=step, commit=True)
        case Summary(values):
            wandb_run.summary.update(scrubbed_tree(values))
        case Alert(title, text, level) if config.wandb.alerts:
            wandb_run.alert(title=f"{scrubbed(run.path.name)}: {scrubbed(title)}", text=scrubbed(text), level=level)
        case Preempting():
            wandb_run.mark_preempting()
        case Report():
            from wiseft_dist.tracking import shown_report

            shown_report.show(wandb_run, run, config, job=job, after=after)
