"""Whose log `wiseft logs` shows, how much of it, and when following ends."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from wiseft_dist.errors import RunError, UserError
from wiseft_dist.launch.ledger import Entry, log_file, record
from wiseft_dist.launch.logs import choose_job, follow, log_files, show
from wiseft_dist.run import Run

PATIENCE_SECONDS = 60


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def submitted(run: Run, name: str, job_id: str = "17", *, when: float = 0.0) -> Entry:
    """A job, and its folder."""
    folder = run.jobs / name.split("/")[0]
    folder.mkdir(parents=True, exist_ok=True)
    entry = Entry(name, job_id, str(folder), "local", when)
    record(run, [entry])
    return entry


def writes(entry: Entry, text: str, *, rank: int = 0, when: float | None = None) -> None:
    """A process of the job prints something."""
    with log_file(entry, rank).open("a") as handle:
        handle.write(text)
    if when is not None:
        os.utime(log_file(entry, rank), (when, when))


def said(call: Callable[[Callable[[str], None]], None]) -> list[str]:
    """The lines that a call says."""
    lines: list[str] = []
    call(lines.append)
    return lines


def test_the_job_that_wrote_last_is_shown_and_a_stage_or_a_job_can_be_named(run):
    first = submitted(run, "finetune")
    one, two = (submitted(run, f"evaluate/{n}-of-2", f"19_{n}") for n in (1, 2))
    submitted(run, "report", "20")  # in the queue: it has not written
    for when, entry in enumerate((first, two, one), start=1):
        writes(entry, "x\n", when=1000.0 * when)
    assert choose_job(run).name == "evaluate/1-of-2"
    assert choose_job(run, "finetune").name == "finetune"
    assert choose_job(run, "evaluate/2-of-2").name == "evaluate/2-of-2"
    assert choose_job(run, "evaluate").name == "evaluate/1-of-2"
    assert choose_job(run, "report").name == "report"


def test_a_run_without_such_a_job_says_which_there_are(run):
    with pytest.raises(UserError, match="no job was submitted yet"):
        choose_job(run)
    submitted(run, "finetune")
    with pytest.raises(UserError, match=r"merge is no job of .*\. Jobs were submitted for: finetune\."):
        choose_job(run, "merge")


def test_the_last_lines_of_a_rank_are_shown_with_control_characters_escaped(run):
    entry = submitted(run, "finetune")
    writes(entry, "".join(f"line {n}\n" for n in range(9)) + "\x1b[2Jtitled\n")
    writes(entry, "from rank 1\n", rank=1)
    assert said(lambda say: show(entry, 0, 2, say)) == ["line 8", "\\x1b[2Jtitled"]
    assert said(lambda say: show(entry, 1, 9, say)) == ["from rank 1"]


def test_of_all_ranks_each_line_names_its_own_in_the_order_of_numbers(run):
    entry, other = submitted(run, "finetune", "17"), submitted(run, "merge", "171")
    for rank in (10, 2, 0):
        writes(entry, "here\n", rank=rank)
    writes(other, "not this job\n")
    assert said(lambda say: show(entry, None, 9, say)) == ["[0] here", "[2] here", "[10] here"]
    assert list(log_files(entry, None)) == [0, 2, 10]


def test_a_log_that_is_not_there_is_a_sentence(run):
    entry = submitted(run, "finetune")
    with pytest.raises(RunError, match=r"finetune \(job 17\) has no log .*: it has not started\."):
        show(entry, 0, 9, print)
    with pytest.raises(RunError, match="has no log of rank 7"):
        show(entry, 7, 9, print)
    with pytest.raises(RunError, match="and has ended"):
        follow(run, entry, 0, 9, print)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the job is alive is looked up all the time."""
    monkeypatch.setattr("wiseft_dist.launch.logs.STATE_SECONDS", 0.1)
    monkeypatch.setattr("wiseft_dist.launch.logs.POLL_SECONDS", 0.05)


@contextmanager
def alive(run: Run, name: str) -> Iterator[Entry]:
    """A job of this machine whose process lives."""
    folder = run.jobs / name
    process = subprocess.Popen([sys.executable, "-c", "input()", str(folder)], stdin=subprocess.PIPE)
    try:
        yield submitted(run, name, str(process.pid), when=time.time())
    finally:
        process.kill()
        process.communicate()


@contextmanager
def followed(run: Run, entry: Entry, rank: int | None = 0) -> Iterator[list[str]]:
    """What is said meanwhile; at the end of the block following ends by itself."""
    lines: list[str] = []
    thread = threading.Thread(target=follow, args=(run, entry, rank, 1, lines.append), daemon=True)
    thread.start()
    yield lines
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()


def wait_for(lines: list[str], wanted: list[str]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while lines != wanted:
        assert time.monotonic() < deadline, lines
        time.sleep(0.05)


def test_following_goes_on_with_whole_lines_and_ends_with_the_job(run, often):
    with alive(run, "finetune") as entry:
        writes(entry, "old\nnewer\n")
        following = followed(run, entry)
        lines = following.__enter__()
        wait_for(lines, ["newer"])
        writes(entry, "half a ")
        writes(entry, "line\nand \x07one without an end")
        wait_for(lines, ["newer", "half a line"])
    following.__exit__(None, None, None)
    assert lines == ["newer", "half a line", "and \\x07one without an end"]


def test_following_cuts_no_line_where_much_is_written_at_once(run, often, monkeypatch):
    monkeypatch.setattr("wiseft_dist.launch.logs.CHUNK_BYTES", 16)
    written = [f"line {number}" for number in range(9)]
    with alive(run, "finetune") as entry:
        writes(entry, "old\n")
        following = followed(run, entry)
        lines = following.__enter__()
        wait_for(lines, ["old"])
        writes(entry, "".join(f"{line}\n" for line in written) + "without an end")
        wait_for(lines, ["old", *written])
    following.__exit__(None, None, None)
    assert lines == ["old", *written, "without an end"]


def test_following_goes_on_with_the_job_that_takes_its_place(run, often):
    with alive(run, "merge") as second:
        with alive(run, "merge") as first:
            writes(first, "first\n")
            following = followed(run, first, rank=None)
            lines = following.__enter__()
            wait_for(lines, ["[0] first"])
            record(run, [second])
            writes(second, "second\n")
        wait_for(lines, ["[0] first", f"-- merge is now job {second.job_id} --", "[0] second"])
    following.__exit__(None, None, None)
