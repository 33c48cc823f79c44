"""Who may work on a stage: the newest attempt, as long as it gets on."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from wiseft_dist import claims
from wiseft_dist.attempts import attempt, fruitless, progress_of
from wiseft_dist.claims import StageTakenError, claim_file, read_claim, take
from wiseft_dist.commits import write_atomically
from wiseft_dist.errors import RunError
from wiseft_dist.pipeline import execute
from wiseft_dist.ranks import Launcher, Ranks
from wiseft_dist.run import Run, newest_checkpoint
from wiseft_dist.tracking import read_events

PATIENCE_SECONDS = 60
SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SUBMITIT_EXECUTOR": "slurm"}


@pytest.fixture(autouse=True)
def quick_and_without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM", "SUBMITIT", "TORCHELASTIC")) or name in ("RANK", "MASTER_PORT"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(claims, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(claims, "LEAVING_SECONDS", 0.3)


@pytest.fixture
def held() -> Iterator[list[BaseProcess]]:
    """Processes that a test starts; ended after it."""
    processes: list[BaseProcess] = []
    yield processes
    for process in processes:
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, signal.SIGKILL)


def hold(
    held: list[BaseProcess],
    run: Run,
    env: Mapping[str, str] = MappingProxyType({}),
    *,
    stage: str = "merge",
    part: str | None = None,
    rank: int = 0,
) -> BaseProcess:
    """A process that is at work on a stage until something ends it, and has begun, or ended, when this returns."""
    begun = run.path.with_name(f"begun-{len(held)}")
    process = multiprocessing.get_context("fork").Process(target=_hold, args=(run, stage, part, rank, dict(env), begun))
    process.start()
    held.append(process)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not begun.exists() and process.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def _hold(run: Run, stage: str, part: str | None, rank: int, env: dict[str, str], begun: Path) -> None:
    os.environ.update(env)
    with attempt(run.load_config(), run, stage, part, Ranks(rank, 2, rank, 2)):
        begun.touch()
        time.sleep(1000)


def work(run: Run, stage: str = "merge", part: str | None = None) -> None:
    with attempt(run.load_config(), run, stage, part, Ranks()):
        pass


def test_progress_is_what_is_committed(copied: Run) -> None:
    config = copied.load_config()
    assert progress_of(config, copied, "finetune") == "step 7"
    assert progress_of(config, copied, "merge") == "3 of 3 ensembles"
    assert progress_of(config, copied, "evaluate", "1-of-1") == "4 of 4 parts"
    assert progress_of(config, copied, "report") == "written"
    shutil.rmtree(copied.report)
    shutil.rmtree(copied.cells / "photo")
    shutil.rmtree(copied.ensemble(0.5))
    (copied.merged / ".merge-1").mkdir()
    (copied.merged / ".merge-1" / "journal-0001-00000.jsonl").write_text('{"alphas": [0.5]}\n{"chunk": 3}\n')
    assert progress_of(config, copied, "merge") == "2 of 3 ensembles, 1 chunks"
    assert progress_of(config, copied, "evaluate", "1-of-1") == "3 of 4 parts"
    assert progress_of(config, copied, "report") == "not written"
    newest = newest_checkpoint(copied)
    assert newest is not None
    shutil.rmtree(newest)
    assert progress_of(config, copied, "finetune") == "step 4"
    assert progress_of(config, copied, "merge") == "0 of 3 ensembles, 1 chunks"
    shutil.rmtree(copied.manifests)
    assert progress_of(config, copied, "evaluate") == "not known"


def test_every_start_of_a_stage_is_told_in_the_events(copied: Run) -> None:
    execute("report", copied)
    told = [event for event in read_events(copied) if event["event"] == "attempt"][-1]
    assert told["stage"] == "report" and told["progress"] == "written" and told["world_size"] == 1
    assert (told["job_id"], told["restart"], told["launcher"]) == ("", 0, "plain")
    assert re.fullmatch("[0-9a-f]{16}", told["code"]) and told["host"]


def test_a_job_that_slurm_starts_again_and_again_without_progress_ends(
    copied: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_JOB_ID", "6")
    for restart in range(8):  # a batch script of several stages begins those anew that are finished
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        work(copied)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    shutil.rmtree(copied.ensemble(0.5))
    for restart in range(6):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        work(copied)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "6")
    with pytest.raises(RunError) as caught:
        work(copied)
    assert re.match(
        r"Slurm has started job 7 6 times since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d without anything new on disk "
        r"\(merge: 2 of 3 ensembles\), and launch.max_restarts_without_progress is 5: it ends here\. See in its logs "
        r"in \S*/jobs/merge why it does not get on, then `wiseft run \S*config.yaml` goes on and counts afresh\.",
        str(caught.value),
    )
    monkeypatch.setenv("SLURM_JOB_ID", "8")  # what a person submits after that
    work(copied)


def test_of_many_starts_at_one_moment_each_has_a_number_of_its_own(tmp_path: Path) -> None:
    launchers = [Launcher("slurm", f"slurm-7.{restart}.0", "7", restart, True) for restart in range(8)]
    file = tmp_path / "attempts" / "merge.json"
    taken: list[int] = []

    def start(launcher: Launcher) -> None:
        with suppress(RunError):  # a later start was quicker
            taken.append(take(file, launcher, "merge"))

    threads = [threading.Thread(target=start, args=(launcher,)) for launcher in launchers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    claim = read_claim(file)
    assert claim is not None and claim.restart == 7 and claim.number == max(taken)
    assert len(set(taken)) == len(taken) >= 1


def test_something_new_on_disk_makes_the_count_begin_again() -> None:
    def start(restart: int, progress: str, job_id: str = "7", **others: object) -> dict[str, Any]:
        place = {"stage": "finetune", "job": None, "job_id": job_id, "restart": restart, "progress": progress}
        return {"event": "attempt", **place, **others}

    now = Launcher("slurm", "slurm-7.5.0", "7", 5, True)
    events = [start(0, "step 0"), start(1, "step 0"), start(2, "step 40"), start(3, "step 40"), start(4, "step 40")]
    assert [event["restart"] for event in fruitless(events, "finetune", None, now, "step 40")] == [2, 3, 4]
    assert fruitless(events, "finetune", None, now, "step 41") == []
    assert fruitless(events, "merge", None, now, "step 40") == []
    assert fruitless(events, "finetune", None, replace(now, job_id="8"), "step 40") == []
    by_hand_inside = [start(5, "step 40"), start(4, "step 40"), start(9, "step 40", job="1-of-2")]
    assert len(fruitless(events + by_hand_inside, "finetune", None, now, "step 40")) == 3


def test_a_newer_start_of_the_same_job_ends_every_process_of_the_older(
    copied: Run, held: list[BaseProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = [hold(held, copied, SLURM | {"SLURM_RESTART_COUNT": "0"}, rank=rank) for rank in (0, 1)]
    assert [process.is_alive() for process in old] == [True, True]
    for name, value in (SLURM | {"SLURM_RESTART_COUNT": "1"}).items():
        monkeypatch.setenv(name, value)
    work(copied)
    for process in old:
        process.join(PATIENCE_SECONDS)
    assert [process.exitcode for process in old] == [1, 1]
    [told] = [event for event in read_events(copied) if event["event"] == "taken_over"]
    assert (told["job_id"], told["restart"]) == ("7", 0) and "job 7, start 2, on" in told["text"]


def test_a_rank_that_comes_too_late_for_its_own_attempt_ends(
    copied: Run, held: list[BaseProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(held, copied, SLURM | {"SLURM_RESTART_COUNT": "3"})
    late = hold(held, copied, SLURM | {"SLURM_RESTART_COUNT": "2"}, rank=1)
    late.join(PATIENCE_SECONDS)
    assert late.exitcode == 1 and held[0].is_alive()
    for name, value in (SLURM | {"SLURM_RESTART_COUNT": "2"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match="Slurm has started job 7 again meanwhile"):
        work(copied)


def test_the_ranks_of_one_start_and_the_jobs_of_one_array_do_not_disturb_each_other(
    copied: Run, held: list[BaseProcess]
) -> None:
    # One that is there before the first rank has said anything.
    late_one = hold(held, copied, SLURM, stage="evaluate", part="1-of-2", rank=1)
    second = SLURM | {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
    hold(held, copied, SLURM, stage="evaluate", part="1-of-2")
    hold(held, copied, second, stage="evaluate", part="2-of-2")
    hold(held, copied, {"SLURM_JOB_ID": "9"}, stage="evaluate")
    work(copied, "evaluate", None)
    time.sleep(20 * claims.LOOK_SECONDS)
    assert late_one.is_alive() and all(process.is_alive() for process in held)


def test_a_second_start_by_hand_is_refused_and_leaves_no_trace(copied: Run, held: list[BaseProcess]) -> None:
    first = hold(held, copied, stage="report")
    events = copied.events_file.read_text()
    with pytest.raises(StageTakenError, match=rf"process {first.pid} on \S+ is at work on report of this run since"):
        execute("report", copied)
    assert copied.events_file.read_text() == events and first.is_alive()


def test_what_was_killed_holds_nobody_up(copied: Run, held: list[BaseProcess]) -> None:
    first = hold(held, copied)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    first.join(PATIENCE_SECONDS)
    work(copied)
    claim = read_claim(claim_file(copied, "merge", None))
    assert claim is not None and (claim.pid, claim.is_over) == (os.getpid(), True)


def test_an_attempt_that_nobody_can_ask_about_gets_time_to_leave(
    copied: Run, held: list[BaseProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = hold(held, copied, SLURM)
    file = claim_file(copied, "merge", None)
    write_atomically(file, json.dumps(json.loads(file.read_text()) | {"machine": "another", "host": "gpu07"}))
    monkeypatch.setattr(claims, "LOOK_SECONDS", 1.0)
    started = time.monotonic()
    work(copied)  # Slurm, which is not there, does not say that job 7 runs
    assert time.monotonic() - started >= 2
    lost.join(PATIENCE_SECONDS)
    assert lost.exitcode == 1


def test_a_torn_file_is_no_claim(copied: Run) -> None:
    file = claim_file(copied, "merge", None)
    for text in ("", "{", "[]", "null", '{"number": 1}'):
        file.write_text(text)
        assert read_claim(file) is None
    work(copied)


def test_what_an_earlier_job_has_committed_is_waited_for(
    copied: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a network file system does, its name shows up after a while."""
    for name, value in (SLURM | {"SLURM_NTASKS": "1", "SLURM_NNODES": "1", "SLURM_LOCALID": "0"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n1")
    copied.cells.rename(tmp_path / "cells")
    process = multiprocessing.get_context("fork").Process(target=_show, args=(tmp_path / "cells", copied.cells))
    process.start()
    execute("report", copied)
    process.join()
    copied.cells.rename(tmp_path / "cells")
    copied.config_file.write_text(
        copied.config_file.read_text().replace("visible_seconds: 60.0", "visible_seconds: 0.5")
    )
    with pytest.raises(RunError, match=r"report cannot begin: \S+ does not see in .* 0.5 s after they had ended"):
        execute("report", copied)
    assert read_events(copied)[-1]["event"] == "failed"


def _show(hidden: Path, place: Path) -> None:
    time.sleep(1)
    hidden.rename(place)


def test_by_hand_nothing_is_waited_for(copied: Run) -> None:
    shutil.rmtree(copied.checkpoints)
    settings = copied.config_file.read_text()
    copied.config_file.write_text(settings.replace("visible_seconds: 60.0", "visible_seconds: 36000.0"))
    with pytest.raises(RunError, match="fine-tuning has not finished"):
        execute("merge", copied)
