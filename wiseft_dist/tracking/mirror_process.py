"""The stage's side of a mirror: starts the process, hears what is wrong, and waits for it at the end, but not long."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from threading import Thread

import wiseft_dist
from wiseft_dist.printable import printable
from wiseft_dist.run import Run
from wiseft_dist.tracking.events import append_event
from wiseft_dist.tracking.killing import kill_with_children
from wiseft_dist.tracking.mirror import STOPPED_SECONDS, End, Order, Outcome
from wiseft_dist.tracking.private_folder import VARIABLE, new_folder
from wiseft_dist.tracking.wandb_run import Mode

FAILED_SECONDS = 20.0
"""For the message about a failed stage: its end is written to the events only after that."""
MOST_SECONDS: dict[Outcome, float] = {"stopped": STOPPED_SECONDS, "failed": FAILED_SECONDS}
MARGIN_SECONDS = 5.0
"""More than the mirror itself takes: it may have been stopped, or the machine is very slow."""


class MirrorProcess:
    """A running mirror of one stage.

    Args:
        run: The run.
        stage: Whose events it shows.
        job: Of which job of it.
        mode: Where to.
        finish_seconds: How long the end of the stage waits for it.

    Raises:
        OSError: if no process can be started.
    """

    def __init__(self, run: Run, stage: str, job: str, *, mode: Mode, finish_seconds: float) -> None:
        self._run, self._stage, self._job, self._finish_seconds = run, stage, job, finish_seconds
        self._has_warned = False
        known = run.events_file.stat().st_size if run.events_file.is_file() else 0
        self._folder = new_folder()
        order = Order(str(run.path), stage, job, mode, stage_pid=os.getpid(), known_bytes=known)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "wiseft_dist.tracking.mirror", json.dumps(asdict(order))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | self._environment(),
            start_new_session=True,  # Ctrl-C and what is sent to the stage's group are not for it
        )
        self._listener = Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _environment(self) -> dict[str, str]:
        folder = str(self._folder)
        return {"PYTHONPATH": _python_path(), "OMP_NUM_THREADS": "1", VARIABLE: folder, "TMPDIR": folder}

    def end(self, outcome: Outcome, error: BaseException | None = None) -> None:
        """Tell the mirror how the stage ended, and wait until W&B has everything or the time is up.

        Args:
            outcome: How.
            error: What made it fail.
        """
        seconds = min(MOST_SECONDS.get(outcome, self._finish_seconds), self._finish_seconds)
        words = (type(error).__name__, str(error)) if error is not None and outcome == "failed" else None
        process = self._process
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(asdict(End(outcome, seconds, words))).encode() + b"\n")
            process.stdin.close()
            process.wait(seconds + MARGIN_SECONDS)
        except OSError:  # it has left already, and said why
            pass
        except subprocess.TimeoutExpired:
            kill_with_children(process.pid)
        code = process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)  # it may have been killed
        self._listener.join(MARGIN_SECONDS)
        if code and outcome != "stopped":
            self._warn(f"the process that tells W&B ended with {code}")

    def _listen(self) -> None:
        """Pass on what the mirror says is wrong."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._warn(json.loads(line)["problem"])

    def _warn(self, problem: str) -> None:
        """Once: what comes of one trouble is no news."""
        if not self._has_warned:
            self._has_warned = True
            warn(self._run, self._stage, self._job, problem)


def warn(run: Run, stage: str, job: str, problem: str) -> None:
    """Say that W&B does not show what it should: in the run's events, and on standard error."""
    sentence = (
        f"W&B does not have everything of {stage}: {problem}. The run goes on; `wiseft sync {run.path}` sends the rest."
    )
    print(f"wiseft: {printable(sentence)}", file=sys.stderr, flush=True)
    of = {"stage": stage} | ({"job": job} if job else {})
    with suppress(OSError):  # the disk that W&B has no room on may be this one
        append_event(run.events_file, **of, event="warning", warning=sentence)


def _python_path() -> str:
    """The code that runs here, whatever the working directory is."""
    code = str(Path(wiseft_dist.__file__).parents[1])
    return os.pathsep.join(filter(None, [code, os.environ.get("PYTHONPATH", "")]))
