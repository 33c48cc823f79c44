"""What happened, and when: ``events.jsonl`` is the truth, Weights & Biases mirrors it."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from wiseft_dist.config import RunConfig, WandbConfig
from wiseft_dist.run import Run, digest


class Tracker:
    """Appends events of one stage to the run's ``events.jsonl`` and mirrors metrics to W&B."""

    def __init__(self, run: Run, stage: str, mirror: Any = None) -> None:
        self._file, self._stage, self._mirror = run.events_file, stage, mirror

    def event(self, name: str, **values: Any) -> None:
        """Record that something happened: ``started``, ``finished``, ``failed``."""
        append_event(self._file, stage=self._stage, event=name, **values)

    def metrics(self, values: dict[str, float], **at: float) -> None:
        """Record numbers at a place on their axis: ``step=10`` or ``alpha=0.5``."""
        append_event(self._file, stage=self._stage, event="metrics", **at, **values)
        if self._mirror is not None:
            self._mirror.log({f"{self._stage}/{key}": value for key, value in values.items()} | at)

    def summary(self, values: dict[str, float]) -> None:
        """Record final numbers."""
        append_event(self._file, stage=self._stage, event="summary", **values)
        if self._mirror is not None:
            self._mirror.summary.update(values)

    def image(self, name: str, path: Path) -> None:
        """Show a picture in W&B; the file itself stays where it is."""
        if self._mirror is not None:
            import wandb

            self._mirror.log({name: wandb.Image(str(path))})


def append_event(file: Path, **values: Any) -> None:
    """Append one JSON object; a line is one write to the system, however long, so that writers do not mix.

    Raises:
        OSError: if not all of it could be written. What was torn then stays a line of its own.
    """
    line = (json.dumps({"time": round(time.time(), 3)} | values, default=str) + "\n").encode()
    with file.open("a+b", buffering=0) as handle:
        line = line if _ends_in_newline(handle) else b"\n" + line
        while line:  # a disk that fills takes a part first and refuses the rest
            line = line[handle.write(line) :]


def _ends_in_newline(handle: FileIO) -> bool:
    """Whether a line can begin here; another writer that is not done yet makes it no, and an empty line then."""
    size = handle.seek(0, os.SEEK_END)
    return size == 0 or os.pread(handle.fileno(), 1, size - 1) == b"\n"


def read_events(run: Run) -> list[dict[str, Any]]:
    """Every event so far, oldest first; lines that are torn or still being written are left out."""
    if not run.events_file.is_file():
        return []
    lines = run.events_file.read_text(encoding="utf-8", errors="replace").split("\n")
    return [event for line in lines if (event := _parsed(line)) is not None]


def read_events_from(run: Run, offset: int) -> list[dict[str, Any]]:
    """The events from a byte of the file on; of a line that began before it, nothing.

    Args:
        run: The run.
        offset: Negative: so many bytes before the end.
    """
    try:
        with run.events_file.open("rb") as handle:
            size = handle.seek(0, os.SEEK_END)
            start = max(0, size + offset) if offset < 0 else min(offset, size)
            handle.seek(max(0, start - 1))
            lines = handle.read().decode(errors="replace").split("\n")
    except FileNotFoundError:
        return []
    if start:
        lines = lines[1:]  # empty where the byte before was the end of a line
    return [event for line in lines if (event := _parsed(line)) is not None]


def _parsed(line: str) -> dict[str, Any] | None:
    """The event of a line; nodes that append to one file on a network file system can tear each other's lines."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


@contextmanager
def tracking(config: RunConfig, run: Run, stage: str, *, job: str = "") -> Iterator[Tracker]:
    """A tracker for a stage, for the one process that writes; ``job`` tells parallel jobs of a stage apart."""
    try:
        mirror = _start_mirror(config, run, stage, job)
    except Exception as error:  # W&B is a mirror: whatever is wrong with it must not stop the work
        append_event(run.events_file, stage=stage, event="warning", warning=f"W&B did not start: {error}")
        print(f"wiseft: W&B did not start, the run goes on without it: {error}", file=sys.stderr)
        mirror = None
    tracker = Tracker(run, stage, mirror)
    try:
        yield tracker
    except BaseException:
        if mirror is not None:
            mirror.finish(exit_code=1)
        raise
    if mirror is not None:
        mirror.finish()


def wandb_mode(config: WandbConfig) -> str:
    """The mode in force: the configured one, else ``WANDB_MODE``, else online only where a key is set."""
    if config.mode is not None:
        return config.mode
    return os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")


def _start_mirror(config: RunConfig, run: Run, stage: str, job: str) -> Any:
    mode: Any = wandb_mode(config.wandb)
    if mode == "disabled":
        return None
    import wandb

    # The id comes from the run directory, so a requeued job goes on in the same W&B run.
    identity = digest([str(run.path), stage, job])
    mirror = wandb.init(
        project=config.wandb.project,
        entity=config.wandb.entity,
        mode=mode,
        id=identity,
        resume="allow" if mode == "online" else None,
        name="-".join(filter(None, [run.path.name, stage, job])),
        group=run.path.name,
        job_type=stage,
        dir=str(run.path),
        config=config.model_dump(mode="json", exclude={"output", "launch"}),
        settings=wandb.Settings(silent=True, console="off", disable_git=True, x_disable_meta=True),
    )
    mirror.define_metric("finetune/*", step_metric="step")
    mirror.define_metric("report/*", step_metric="alpha")
    return mirror
