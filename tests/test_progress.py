from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import sys
import threading
import time

import pytest

from wiseft_dist.launch.progress_line import progress_line
from wiseft_dist.progress import BYTES, Rated, duration, progress_bar

PROGRAM = """
import time
from wiseft_dist.progress import progress_bar
with progress_bar("counting a[/b]", total=3, unit="sheep") as bar:
    for _ in range(3):
        bar.advance()
    bar.update(completed=3, note="asleep [/b]")
    with progress_bar("shearing", total=2_500_000_000, unit="bytes") as inner:
        inner.advance(1_250_000_000)
        time.sleep(0.3)
"""
CLI = "import time; from wiseft_dist.cli import app; app"
"""At a terminal a bar is drawn ten times a second."""


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SUBMITIT_LOCAL_GLOBALID"):
        monkeypatch.delenv(name, raising=False)
    return Clock()


def on_terminal(program: str, *, columns: int = 100, **variables: str) -> str:
    """What a terminal is sent."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": str(columns)} | variables
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=theirs, env=environment) as p:
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 4096):
                shown += piece
        except OSError:  # how Linux says that the other side has hung up
            pass
        assert p.stdout is not None
        assert p.stdout.read() == b""
    os.close(ours)
    assert p.returncode == 0
    return shown.decode()


def test_what_is_shorter_than_a_minute_says_nothing_where_standard_error_is_no_terminal():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_person_at_a_terminal_sees_bars_under_each_other():
    shown = on_terminal(PROGRAM)
    for words in ("counting a[/b]", "3 of 3 sheep", "asleep [/b]", "shearing", "1.2 of 2.5 GB"):
        assert words in shown


NARROW = """
import time
from wiseft_dist.progress import progress_bar
with progress_bar("imagenet_v2_matched_frequency_and_more", total=50_000, unit="images") as bar:
    for _ in range(5):
        bar.advance(1000)
        time.sleep(0.1)
    bar.update(completed=5000, note="finetune: step 1,924 of 2,100, epoch 5 of 6, 867 samples/s")
    time.sleep(0.3)
"""


def test_a_narrow_terminal_shows_numbers_and_note_whole():
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", on_terminal(NARROW, columns=60))
    frames = [line for line in re.split(r"[\r\n]+", shown) if line.strip()]
    assert max(map(len, frames)) <= 60
    assert any("5,000 of 50,000 images" in line and "images/s" in line and " s left" in line for line in frames), frames
    assert any("imagenet" in line and "…" in line for line in frames)
    assert any(line.strip() == "finetune: step 1,924 of 2,100, epoch 5 of 6, 867 samples/s" for line in frames), frames


def test_the_other_processes_of_a_group_say_nothing():
    group = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    assert "counting" in on_terminal(PROGRAM, RANK="0", **group)
    assert on_terminal(PROGRAM, RANK="1", **group) == ""


def test_a_training_tells_a_line_a_minute(clock, capsys):
    with progress_bar(
        "fine-tuning", total=800, unit="steps", completed=80, rated=Rated("samples", 512), clock=clock
    ) as bar:
        for step in range(120):
            clock.now += 1
            bar.advance(0.5)
            if step % 10 == 0:
                bar.update(note="epoch 2 of 5")
    assert capsys.readouterr().err.splitlines() == [
        "fine-tuning: 110 of 800 steps, epoch 2 of 5, 256 samples/s, 23 min left",
        "fine-tuning: 140 of 800 steps, epoch 2 of 5, 256 samples/s, 22 min left",
    ]


def test_however_often_and_from_however_many_bars_it_is_called_a_minute_has_one_line(clock, capsys):
    with progress_bar("evaluating", total=16, unit="datasets", clock=clock) as datasets:
        for name in ("photo", "sketch"):
            with progress_bar(name, total=5000, unit="images", clock=clock) as images:
                for _ in range(500):
                    clock.now += 0.09
                    images.advance(10)
            datasets.advance()
    assert capsys.readouterr().err.splitlines() == [
        "evaluating: 1 of 16 datasets, 60 s each, 15 min left; sketch: 1,670 of 5,000 images, 111 images/s, 30 s left"
    ]


def test_what_was_done_before_counts_for_no_rate(clock, capsys):
    with progress_bar("packing", total=1000, unit="shards", completed=900, clock=clock) as bar:
        clock.now += 61
        bar.advance(0)
    assert capsys.readouterr().err == "packing: 900 of 1,000 shards\n"


def test_a_merge_tells_gigabytes_a_second(clock, capsys):
    with progress_bar("merging", total=200e9, unit=BYTES, clock=clock) as bar:
        clock.now += 60
        bar.advance(120e9)
    assert capsys.readouterr().err == "merging: 120.0 of 200.0 GB, 2.00 GB/s, 40 s left\n"


def test_a_line_shows_control_characters_of_a_name_as_escapes(clock, capsys):
    with progress_bar("reading \x1b[2J", unit="shards", clock=clock) as bar:
        clock.now += 60
        bar.advance(6)
    assert capsys.readouterr().err == "reading \\x1b[2J: 6 shards, 10 s each\n"


def test_a_call_that_takes_long_tells_lines_too(clock, capsys):
    with progress_bar("loading models", clock=clock), progress_bar("loading [big].pt", clock=clock):
        clock.now += 90
        told, deadline = "", time.monotonic() + 60
        while not told:
            assert time.monotonic() < deadline
            told = capsys.readouterr().err
    assert told == "loading models: 90 s so far; loading [big].pt: 90 s so far\n"


def test_bars_begin_no_threads_of_their_own(clock):
    with progress_bar("loading models", clock=clock):
        pass
    before = threading.active_count()
    with progress_bar("evaluating", clock=clock), progress_bar("photo", clock=clock):
        assert threading.active_count() == before


def test_a_forked_process_has_bars_of_its_own(tmp_path, clock):
    with progress_bar("loading models", total=2, unit="models", clock=clock):
        child = os.fork()
        if child == 0:
            os.dup2(os.open(tmp_path / "said", os.O_WRONLY | os.O_CREAT), 2)
            sys.stderr = os.fdopen(2, "w")
            with progress_bar("photo", total=8, unit="images", clock=clock) as bar:
                clock.now += 61
                bar.advance(4)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    assert (tmp_path / "said").read_text() == "photo: 4 of 8 images, 15 s each, 61 s left\n"


def test_whoever_tells_lines_of_its_own_is_not_told_over(clock, capsys):
    with progress_bar("finetune → merge", total=2, unit="jobs", tells_lines=False, clock=clock) as bar:
        clock.now += 600
        bar.advance()
    assert capsys.readouterr().err == ""


def test_a_call_costs_next_to_nothing(clock):
    calls = 0

    def counting() -> float:
        nonlocal calls
        calls += 1
        return 0.0

    with progress_bar("fine-tuning", total=1000, unit="steps", clock=counting) as bar:
        before = calls
        for _ in range(1000):
            bar.advance()
        assert calls - before == 1000  # a look at the clock each, and nothing else


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (43.2, "43 s"),
        (99.6, "100 s"),
        (100, "2 min"),
        (720, "12 min"),
        (3599, "1 h 0 min"),
        (4321, "1 h 12 min"),
        (273_600, "3 d 4 h"),
    ],
)
def test_durations_are_told_in_what_fits(seconds, words):
    assert duration(seconds) == words


def test_whoever_follows_a_run_is_told_step_epoch_and_rate(finished):
    line = progress_line(finished.config, finished.run, "finetune")
    assert re.fullmatch(r"finetune: step (\d+) of \1, epoch 2 of 2, loss [\d.]+, [\d,]+ samples/s, \d+ s left", line), (
        line
    )
    assert progress_line(finished.config, finished.run, "merge") == "merge: 3 of 3 ensembles"
    assert progress_line(finished.config, finished.run, "report") == ""


@pytest.mark.matrix
def test_stages_at_a_terminal_show_bytes_and_datasets(copied):
    for folder in ("merge", "evaluate"):
        shutil.rmtree(copied.path / folder)
    shown = {stage: on_terminal(f"{CLI}({[stage, str(copied.path)]})") for stage in ("merge", "evaluate")}
    assert "merging" in shown["merge"] and " MB" in shown["merge"]
    for words in ("evaluating", "0 of 4 datasets", "sketch", "of 13 images"):
        assert words in shown["evaluate"]
