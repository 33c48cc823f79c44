"""`wiseft sync`: a run's events once more, from the first on, for whatever W&B does not hold of them yet.

What is told is what a live mirror tells (:mod:`wiseft_dist.tracking.replay`), under the same ids. W&B says which steps
it holds; they are not sent again.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from wiseft_dist.config import RunConfig
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.run import Run
from wiseft_dist.tracking.events import read_events
from wiseft_dist.tracking.login import wandb_login
from wiseft_dist.tracking.replay import Item, Replay, Row, Summary, wandb_runs
from wiseft_dist.tracking.replay import Report as WrittenReport
from wiseft_dist.tracking.scrubbing import hide_hosts_of
from wiseft_dist.tracking.shown_report import num_rows_of_report
from wiseft_dist.tracking.wandb_run import (
    forget_other_variables,
    group_name,
    in_one_line,
    open_wandb_run,
    tell,
    wandb_id,
)
from wiseft_dist.tracking.writers import only_sender

OPEN_SECONDS = 30.0
"""Which W&B may take to answer the first question."""
QUIET_SECONDS = 3600.0
"""After its last word a training at which nobody is known to be at work counts as killed."""
Events = Sequence[dict[str, Any]]


class RefusedKeyError(UserError):
    """W&B does not know the key: nothing else can be sent with it either."""


@dataclass(frozen=True)
class Target:
    """One W&B run that a run directory has something for."""

    run: Run
    config: RunConfig
    stage: str
    job: str
    is_at_work: bool = False
    """Whether a process is known to be at work on the run."""

    @property
    def wandb_id(self) -> str:
        """Its W&B id, which a live mirror uses too."""
        return wandb_id(self.run, self.stage, self.job)

    @property
    def title(self) -> str:
        """What people call it: ``evaluate/1-of-3``."""
        return self.stage + (f"/{self.job}" if self.job else "")

    def items(self, events: Events, *, after: int = -1) -> Sequence[Item]:
        """What W&B shows of it; messages and preemptions are of a moment that is over."""
        replay = Replay(self.stage, self.job, after=after)
        told: list[Item] = [item for event in events for item in replay.feed(event)]
        if not self.is_at_work and _quiet_seconds(_own(self, events)) > QUIET_SECONDS:  # killed: nothing more comes
            told += replay.flush()
        reports = [item for item in told if isinstance(item, WrittenReport)]
        return [item for item in told if isinstance(item, Row | Summary)] + reports[-1:]


@dataclass(frozen=True)
class Sent:
    """What became of one W&B run."""

    target: Target
    num_rows: int
    """Rows that W&B did not hold before; of a dry run, all that there are."""
    url: str = ""
    """Of the W&B run; empty where nothing was sent."""
    skipped: str = ""
    """Why nothing was sent."""

    @property
    def group_url(self) -> str:
        """Of the group, which all W&B runs of a run directory are in."""
        return f"{self.url.rsplit('/runs/', 1)[0]}/groups/{quote(group_name(self.target.run), safe='')}"


def targets(
    run: Run, *, project: str | None = None, entity: str | None = None, is_at_work: bool = False
) -> list[Target]:
    """Every W&B run of a run directory, in the order of their beginnings.

    Args:
        run: The run.
        project: Instead of the configured one.
        entity: Instead of the configured one.
        is_at_work: Whether a process is known to be at work on the run.

    Raises:
        UserError: if the directory is no run.
    """
    config = run.load_config()
    changes = {name: value for name, value in {"project": project, "entity": entity}.items() if value is not None}
    config = config.model_copy(update={"wandb": config.wandb.model_copy(update=changes)})
    return [Target(run, config, stage, job, is_at_work) for stage, job in wandb_runs(read_events(run))]


def require_login() -> None:
    """Make sure that W&B can be asked, before anything is read.

    Raises:
        UserError: without a key.
        RunError: if nobody answers.
    """
    login = wandb_login()
    if not login.has_key:
        raise UserError(f"there is no key for {login.shown}: `wandb login`, or set WANDB_API_KEY.")
    if problem := login.unreachable():
        raise RunError(f"W&B at {login.shown} cannot be reached ({problem}): run `wiseft sync` where it can be.")


def planned(target: Target) -> Sent:
    """What there is of a W&B run; nothing is sent, and nobody is asked what is there already."""
    items = target.items(read_events(target.run))
    return Sent(target, sum(_num_rows(item, target, -1) for item in items))


def send(target: Target, *, on_row: Callable[[], None] = lambda: None, timeout: float = 3600.0) -> Sent:
    """Bring one W&B run up to date.

    Args:
        target: Which.
        on_row: Called for each item that was handed to W&B.
        timeout: Seconds for W&B to take everything.

    Raises:
        UserError: if W&B refuses the key.
        RunError: if W&B cannot be reached, or does not take everything in time. What it took it holds.
    """
    with only_sender(target.run, target.wandb_id) as somebody:
        if somebody:
            return Sent(target, 0, skipped=somebody)
        if target.stage == "report" and not num_rows_of_report(target.run, target.job):
            return Sent(target, 0, skipped="it was written over by a report of other cells, or is being written")
        events = read_events(target.run)
        for event in events:
            hide_hosts_of(event)
        forget_other_variables()
        os.environ["WANDB_SILENT"] = "true"
        folder = Path(tempfile.mkdtemp(prefix="wiseft_sync_"))
        try:
            return _send(target, events, folder, on_row, timeout)
        except (UserError, RunError):
            raise
        except Exception as error:  # W&B may raise whatever it likes
            raise _in_words(error, timeout) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _send(target: Target, events: Events, folder: Path, on_row: Callable[[], None], timeout: float) -> Sent:
    outcome = _outcome(target, events)
    wandb_run = open_wandb_run(
        target.config,
        target.run,
        target.stage,
        target.job,
        mode="online",
        init_seconds=OPEN_SECONDS,
        folder=folder,
        settings={
            "finish_timeout": timeout,
            "finish_timeout_raises": True,
            "x_update_finish_state": outcome is not None,  # of a stage that goes on, nobody knows how it ends
        },
    )
    after, num_rows = wandb_run.starting_step - 1, 0
    try:
        for item in target.items(events, after=after):
            tell(wandb_run, item, config=target.config, run=target.run, job=target.job, after=after)
            num_rows += _num_rows(item, target, after)
            on_row()
        url = wandb_run.url or ""
    except BaseException:
        with suppress(Exception):
            wandb_run.finish(exit_code=1)
        raise
    wandb_run.finish(exit_code=outcome or 0)
    return Sent(target, num_rows, url)


def _num_rows(item: Item, target: Target, after: int) -> int:
    """How many rows an item adds to those up to ``after``."""
    if isinstance(item, WrittenReport):
        return max(0, num_rows_of_report(target.run, target.job) - (after + 1))
    return int(isinstance(item, Row))


def _own(target: Target, events: Events) -> list[dict[str, Any]]:
    return [e for e in events if e.get("stage") == target.stage and str(e.get("job") or "") == target.job]


def _quiet_seconds(events: Events) -> float:
    return time.time() - max((float(event.get("time", 0)) for event in events), default=0.0)


def _outcome(target: Target, events: Events) -> int | None:
    """0 if the stage has ended well, 1 if it failed, None if it goes on, was killed or has parts that are open."""
    open_parts: set[tuple[Any, ...]] = set()
    ended: int | None = None
    for event in _own(target, events):
        name, part = event.get("event"), tuple(event.get(key) for key in ("dataset", "start", "stop"))
        if name in ("attempt", "started"):
            ended = None
            open_parts.add(part)
        elif name in ("finished", "chosen"):
            ended = 0
            open_parts.discard(part)
        elif name == "failed":
            ended = 1
    return None if ended == 0 and target.stage == "evaluate" and open_parts - {(None, None, None)} else ended


def _in_words(error: Exception, timeout: float) -> UserError | RunError:
    """One sentence for what W&B raised."""
    from wandb.errors import AuthenticationError

    text = in_one_line(error)
    if isinstance(error, AuthenticationError) or "error 401" in text:
        return RefusedKeyError(
            f"W&B at {wandb_login().shown} refuses the key: `wandb login` again, or set WANDB_API_KEY."
        )
    if any(code in text for code in ("error 403", "error 404", "permission denied")):
        return UserError(f"the key may not write there ({text}): see wandb.entity and wandb.project.")
    if isinstance(error, TimeoutError):
        return RunError(
            f"W&B did not take everything within {timeout:g} s (--timeout): `wiseft sync` again goes on there."
        )
    return RunError(f"W&B cannot be written to ({text}). Run `wiseft sync` again: it goes on from what W&B holds.")
