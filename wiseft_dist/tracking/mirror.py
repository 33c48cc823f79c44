"""The process that shows one stage's events in W&B, so that the stage itself never waits for W&B.

It reads ``events.jsonl`` like anyone else. On its standard input comes one line of JSON when the stage ends; no more
comes where the stage was killed. On its standard output it tells the stage's process, one JSON object a line, what is
wrong. Whatever W&B does, it is gone at its deadline, and W&B's own process with it.

    python -m wiseft_dist.tracking.mirror ORDER     (a JSON object: :class:`Order`)
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Event, Thread
from typing import IO, Any, Literal

from wiseft_dist.config import RunConfig
from wiseft_dist.run import Run
from wiseft_dist.tracking.events import Tail
from wiseft_dist.tracking.killing import kill_children, kill_with_children
from wiseft_dist.tracking.login import wandb_login
from wiseft_dist.tracking.offline_files import last_step, last_step_of, offline_files
from wiseft_dist.tracking.priority import all_give_way, give_way, take_turns
from wiseft_dist.tracking.private_folder import remove_private_folder
from wiseft_dist.tracking.replay import Alert, Item, Preempting, Replay, Row
from wiseft_dist.tracking.scrubbing import hide_hosts_of, scrubbed
from wiseft_dist.tracking.wandb_run import Mode, forget_other_variables, in_one_line, open_wandb_run, tell, wandb_id

Outcome = Literal["finished", "failed", "stopped", "killed"]
"""How the stage ended: by itself, with an error, because someone told it to, or so that it could not say."""
POLL_SECONDS = 1.0
FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 30.0, 600.0
"""Between two attempts at W&B while the stage goes on."""
STOPPED_SECONDS = 3.0
"""For what is left, where a stage was told to stop: whoever told it does not wait long."""
KILLED_SECONDS = 5.0
"""The same where the stage was killed: nothing of its job may stay behind."""
SILENT_SECONDS = 5.0
"""For which a server that answers nothing at all is waited for when the stage has ended."""


@dataclass(frozen=True)
class Order:
    """What a mirror is started for."""

    run: str
    stage: str
    job: str
    mode: Mode
    stage_pid: int
    known_bytes: int
    """Size of ``events.jsonl`` when the stage began: alerts about what was before are not given again."""


@dataclass(frozen=True)
class End:
    """The stage's last word."""

    outcome: Outcome
    seconds: float
    """Which the mirror has left."""
    error: tuple[str, str] | None = None
    """Kind and text of what made the stage fail."""


def main() -> None:
    """Mirror until the stage has ended."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # meant for the stage, which says how it ends
    give_way()
    logging.disable(logging.INFO)  # W&B writes paths and settings into its own logs
    order = Order(**json.loads(sys.argv[1]))
    Mirror(order, *_private_pipes()).run()


def _private_pipes() -> tuple[int, IO[str]]:
    """Standard input and output under numbers that W&B's process does not get; it gets ``/dev/null``."""
    commands, answers = os.dup(0), os.fdopen(os.dup(1), "w", buffering=1)
    with Path(os.devnull).open("r+b", buffering=0) as nothing:
        for number in (0, 1, 2):
            os.dup2(nothing.fileno(), number)
    return commands, answers


class Mirror:
    """One W&B run, fed until the stage's end; opened anew where W&B breaks down.

    Args:
        order: What for.
        commands: The descriptor on which the stage's last word comes.
        answers: Where the stage's process is told what is wrong.
    """

    def __init__(self, order: Order, commands: int, answers: IO[str]) -> None:
        self._order, self._commands, self._answers = order, commands, answers
        self._run = Run(Path(order.run))
        self._ended, self._end = Event(), End("killed", KILLED_SECONDS)
        self._waits_for_lock = self._is_open = self._has_told_failure = False
        self._asked_at, self._has_answered = float("inf"), False
        self._files_before: list[Path] = []
        self._id = wandb_id(self._run, order.stage, order.job)

    @cached_property
    def _config(self) -> RunConfig:
        return self._run.load_config()

    def run(self) -> None:
        """Show everything there is to show, or say what is wrong; at the deadline it ends in any case."""
        Thread(target=self._watch_stage, daemon=True).start()
        pause, has_ended = FIRST_RETRY_SECONDS, False
        while True:
            try:
                self._mirror()
                return
            except ImportError as error:
                return self._tell_problem(f"the package wandb cannot be used ({scrubbed(str(error))})")
            except Exception as error:  # W&B may raise whatever it likes
                if self._ended.is_set() and self._end.outcome == "stopped":
                    return  # its process was killed at the deadline, as was to be
                self._tell_problem(in_one_line(error))
            _forget_service()
            if has_ended or (self._ended.wait(pause) and self._order.mode == "online"):
                return
            has_ended = self._ended.is_set()  # offline one more try is cheap
            pause = min(2 * pause, LONGEST_RETRY_SECONDS)

    def _watch_stage(self) -> None:
        """Wait for the stage's last word or death, then for the deadline; then kill W&B's process and this one."""
        self._end = self._last_word()
        self._ended.set()
        take_turns()
        if self._order.mode == "online":
            Thread(target=self._ask_server, daemon=True).start()
        deadline = time.monotonic() + self._end.seconds
        while (left := deadline - time.monotonic()) > 0 and not self._is_silent():
            if os.getppid() != self._order.stage_pid:  # nobody waits for this process any more
                time.sleep(min(left, KILLED_SECONDS))
                break
            time.sleep(min(left, POLL_SECONDS))
        if self._end.outcome in ("finished", "failed"):
            self._tell_problem(self._why_late())
        kill_children()  # they may write into the folder
        remove_private_folder()
        kill_with_children(os.getpid())

    def _ask_server(self) -> None:
        """Find out whether anybody answers at all: else the stage does not wait for what cannot be sent."""
        with suppress(Exception):  # without the package there is nothing to wait for, and the other thread says so
            login = wandb_login()
            self._asked_at = time.monotonic()
            while not (self._has_answered or self._is_silent()):
                self._has_answered = login.answers(SILENT_SECONDS)
                time.sleep(0.1)

    def _is_silent(self) -> bool:
        return not (self._has_answered or self._waits_for_lock) and time.monotonic() > self._asked_at + SILENT_SECONDS

    def _why_late(self) -> str:
        if self._waits_for_lock:
            return "another process is sending it"
        if self._is_silent():
            return f"W&B did not answer within {SILENT_SECONDS:g} s"
        did_not = "take everything" if self._is_open else "answer"
        return f"W&B did not {did_not} within {self._end.seconds:g} s (wandb.finish_seconds)"

    def _last_word(self) -> End:
        """What the stage says; its death shows even where a process that it forked holds the pipe open."""
        text = b""
        while os.getppid() == self._order.stage_pid and not text.endswith(b"\n"):
            if select.select([self._commands], [], [], POLL_SECONDS)[0]:
                if not (piece := os.read(self._commands, 65536)):
                    break
                text += piece
        return End(**json.loads(text)) if text.endswith(b"\n") else End("killed", KILLED_SECONDS)

    def _tell_problem(self, text: str) -> None:
        with suppress(OSError):  # nobody listens any more
            print(json.dumps({"problem": text}), file=self._answers, flush=True)

    def _mirror(self) -> None:
        """Open the W&B run, feed it to the stage's end, and close it."""
        with self._alone():
            wandb_run, after = self._open()
            told = after
            for item in self._items(Replay(self._order.stage, self._order.job, after=after)):
                tell(wandb_run, item, config=self._config, run=self._run, job=self._order.job, after=after)
                told = item.step if isinstance(item, Row) else told
            self._close(wandb_run, told, after)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While no other process writes to the same W&B run: the mirror of a killed attempt, or `wiseft sync`.

        Never without the lock: two that write at once lose or double each other's steps. The deadline ends the wait.

        Raises:
            OSError: if nothing can be written there; W&B itself would turn to the temporary folder.
        """
        folder = self._run.path / "wandb"
        folder.mkdir(exist_ok=True)
        with (folder / f"{self._id}.lock").open("a") as handle:
            while not _locked(handle):
                self._waits_for_lock = True
                time.sleep(0.1)
            self._waits_for_lock = False
            handle.truncate(0)
            handle.write(f"{self._order.mode}\n")  # `wiseft sync` wants to know
            handle.flush()
            os.fsync(handle.fileno())  # a full disk shows only now
            yield

    def _open(self) -> tuple[Any, int]:
        """The W&B run, and the last step that it holds."""
        forget_other_variables()
        order, held = self._order, -1
        if order.mode == "offline":
            held, self._files_before = last_step(self._run, self._id), offline_files(self._run, self._id)
        wandb_run = open_wandb_run(
            self._config, self._run, order.stage, order.job, mode=order.mode, stats_pid=order.stage_pid
        )
        self._is_open = True
        if not self._ended.is_set():
            all_give_way()
        return wandb_run, held if order.mode == "offline" else wandb_run.starting_step - 1

    def _items(self, replay: Replay) -> Iterator[Item]:
        """What there is to show, until the stage has ended and everything is read."""
        tail = Tail(self._run)
        while True:
            is_last = self._ended.is_set()
            for begin, event in tail.read():
                hide_hosts_of(event)
                yield from self._current(replay.feed(event), is_new=begin >= self._order.known_bytes)
            if is_last:
                break
            self._ended.wait(POLL_SECONDS)
        if self._end.error is not None:  # its event is written after the mirror is gone
            kind, text = self._end.error
            failed = {"stage": self._order.stage, "job": self._order.job, "event": "failed"}
            yield from self._current(replay.feed(failed | {"kind": kind, "error": text}), is_new=True)
        if self._end.outcome == "finished":
            yield from replay.flush()

    def _current(self, items: Iterator[Item], *, is_new: bool) -> Iterator[Item]:
        """Without messages about what an earlier attempt, or another rank of this one, has told already."""
        for item in items:
            if isinstance(item, Alert | Preempting) and not is_new:
                continue
            if isinstance(item, Alert) and item.level == "ERROR":
                if self._has_told_failure:
                    continue
                self._has_told_failure = True
            yield item

    def _close(self, wandb_run: Any, told: int, after: int) -> None:
        """Wait until W&B has taken everything.

        Raises:
            OSError: if the offline file does not hold everything.
        """
        import wandb

        wandb_run.finish(exit_code=0 if self._end.outcome == "finished" else 1)
        wandb.teardown()  # ends when W&B's own process has
        if self._order.mode == "offline" and told > after and self._last_written() < told:
            raise OSError(f"the offline file in {self._run.path / 'wandb'} does not hold every step: is the disk full?")

    def _last_written(self) -> int:
        """The last step in what was written since the W&B run was opened."""
        written = set(offline_files(self._run, self._id)) - set(self._files_before)
        return max(map(last_step_of, written), default=-1)


def _locked(handle: IO[str]) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _forget_service() -> None:
    """End W&B's own process, so that the next attempt begins with another one."""
    kill_children()
    with suppress(Exception, SystemExit):  # which W&B raises for a process of its own that was killed
        import wandb

        wandb.teardown()


if __name__ == "__main__":
    main()
