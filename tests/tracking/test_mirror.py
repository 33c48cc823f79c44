"""The process that shows a stage in W&B, against real servers that answer, refuse or stall."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from mirrored import assert_nobody_left, shown_offline
from tiny_run import wiseft
from wandb_server import KEY, WandbServer, wandb_server

from wiseft_dist.commits import write_atomically
from wiseft_dist.config import RunConfig, WandbConfig
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.launch.job import StageJob
from wiseft_dist.pipeline import execute
from wiseft_dist.run import Run, open_run
from wiseft_dist.tracking import append_event, private_folder, read_events, tracking
from wiseft_dist.tracking.offline_files import offline_files
from wiseft_dist.tracking.wandb_run import wandb_id
from wiseft_dist.tracking.writers import only_sender


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A variable by which everything that this test starts is found; nobody is logged in to W&B."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return f"HOME={tmp_path / 'home'}"


def make_run(folder: Path, **wandb: Any) -> tuple[RunConfig, Run]:
    """A run directory; its W&B runs have two seconds for the end."""
    config = RunConfig.model_validate(
        {
            "output": str(folder / "run"),
            "model": {"architecture": "A"},
            "data": {"train": "t"},
            "wandb": {"mode": "online", "finish_seconds": 2.0, **wandb},
        }
    )
    return config, open_run(config)


def train(config: RunConfig, run: Run, *, first: int = 1, last: int = 4) -> None:
    with tracking(config, run, "finetune") as tracker:
        for step in range(first, last + 1):
            tracker.metrics({"loss": 1 / step}, step=step)


def warnings_of(run: Run) -> list[str]:
    return [event["warning"] for event in read_events(run) if event["event"] == "warning"]


@contextmanager
def refusing() -> Iterator[str]:
    """The address of a port at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{probe.getsockname()[1]}"


@contextmanager
def stalling() -> Iterator[str]:
    """The address of a server that takes every connection and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    taken.append(server.accept()[0])
                except OSError:  # the test is over
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        for connection in taken:
            connection.close()


@pytest.fixture
def server(mark: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    with wandb_server() as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.mark.parametrize("outage", [refusing, pytest.param(stalling, marks=pytest.mark.matrix)])
def test_a_stage_ends_with_its_results_and_one_warning_while_wandb_is_out(copied: Run, mark: str, outage: Any) -> None:
    expected = copied.results_file.read_bytes()
    tree = yaml.safe_load(copied.config_file.read_text())
    tree["wandb"] |= {"mode": "online", "finish_seconds": 3600}
    copied.config_file.write_text(yaml.safe_dump(tree, sort_keys=False))
    copied.results_file.unlink()
    before = len(read_events(copied))
    with outage() as url:
        done = wiseft("report", copied.path, WANDB_BASE_URL=url, WANDB_API_KEY=KEY)
    assert done.returncode == 0, done.stderr
    assert copied.results_file.read_bytes() == expected
    (warning,) = [event for event in read_events(copied)[before:] if event["event"] == "warning"]
    assert warning["stage"] == "report"
    assert "W&B did not answer within 5 s. The run goes on" in warning["warning"]
    assert done.stderr.count("W&B") == 2 and f"`wiseft sync {copied.path}` sends the rest" in done.stderr
    assert_nobody_left(mark)


def test_a_stage_that_is_told_to_stop_does_not_wait_for_wandb(
    tmp_path: Path, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = make_run(tmp_path, finish_seconds=600.0)
    folders = tmp_path / "temporary"
    folders.mkdir()
    monkeypatch.setattr(private_folder, "TEMPORARY", str(folders))
    of_others = tmp_path / "of_others"
    of_others.mkdir()
    monkeypatch.setenv("TMPDIR", str(of_others))
    with stalling() as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt), tracking(config, run, "finetune"):
            while not [*folders.glob("*/*wandb*"), *of_others.iterdir()]:  # until W&B is at work
                time.sleep(0.05)
            raise KeyboardInterrupt
        assert time.monotonic() - began < 300
        assert_nobody_left(mark)
    assert list(folders.iterdir()) == list(of_others.iterdir()) == []  # W&B's own files of a mirror that was killed
    assert warnings_of(run) == []


def test_without_a_key_the_stage_goes_on_and_says_so(
    tmp_path: Path, mark: str, capfd: pytest.CaptureFixture[str]
) -> None:
    config, run = make_run(tmp_path, finish_seconds=60.0)
    train(config, run)
    (warning,) = warnings_of(run)
    assert "No API key configured" in warning
    assert capfd.readouterr().err == f"wiseft: {warning}\n"
    assert_nobody_left(mark)


def test_a_key_that_is_refused_is_a_warning(
    tmp_path: Path, server: WandbServer, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = make_run(tmp_path, finish_seconds=60.0)
    monkeypatch.setenv("WANDB_API_KEY", "f" * 40)
    train(config, run)
    (warning,) = warnings_of(run)
    assert "f" * 8 not in warning and server.received.refused and server.received.runs == {}
    assert_nobody_left(mark)


def test_without_the_package_wandb_the_stage_goes_on_and_says_so(
    tmp_path: Path, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = make_run(tmp_path, mode="offline", finish_seconds=60.0)
    (tmp_path / "without" / "wandb").mkdir(parents=True)
    (tmp_path / "without" / "wandb" / "__init__.py").write_text("raise ImportError('No module named wandb')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "without"))
    train(config, run)
    (warning,) = warnings_of(run)
    assert "the package wandb cannot be used (No module named wandb)" in warning
    assert_nobody_left(mark)


def test_where_no_offline_file_can_be_written_the_stage_goes_on_and_says_so(tmp_path: Path, mark: str) -> None:
    config, run = make_run(tmp_path, mode="offline", finish_seconds=60.0)
    (run.path / "wandb").write_text("in the way")
    train(config, run)
    (warning,) = warnings_of(run)
    assert "wandb" in warning and len([event for event in read_events(run) if event["event"] == "metrics"]) == 4
    assert_nobody_left(mark)


def test_of_an_offline_file_for_which_there_is_no_room_the_stage_says_so(tmp_path: Path, mark: str) -> None:
    config, run = make_run(tmp_path, mode="offline", finish_seconds=60.0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # what the mirror starts with
    try:
        with tracking(config, run, "finetune") as tracker:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            for step in range(1, 101):
                tracker.metrics({"loss": 1 / step}, step=step)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(warnings_of(run)) == 1
    assert len(shown_offline(run)) < 100
    assert_nobody_left(mark)


def test_a_mirror_that_was_killed_does_no_harm(tmp_path: Path, mark: str) -> None:
    config, run = make_run(tmp_path, mode="offline", finish_seconds=60.0)
    with tracking(config, run, "finetune") as tracker:
        tracker.metrics({"loss": 0.5}, step=1)
        (mirror,) = [child for child in psutil.Process().children() if "wiseft_dist.tracking.mirror" in child.cmdline()]
        mirror.send_signal(signal.SIGKILL)
        tracker.metrics({"loss": 0.25}, step=2)
    assert "ended with -9" in "".join(warnings_of(run))
    assert_nobody_left(mark)
    train(config, run, first=3, last=3)
    assert [row["_step"] for row in shown_offline(run)] == [1, 2, 3]


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="Linux does not group processes by sessions")
def test_wherever_processors_are_shared_between_sessions_the_mirrors_give_way_until_the_stage_has_ended() -> None:
    program = """
import subprocess, time
from pathlib import Path
from wiseft_dist.tracking.priority import all_give_way, give_way, take_turns
give_way()
child = subprocess.Popen(["sleep", "60"], start_new_session=True)
for change in (all_give_way, take_turns):
    change()
    print(*[Path(f"/proc/{pid}/autogroup").read_text().split()[-1] for pid in ("self", child.pid)])
child.kill()
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, start_new_session=True, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["10 10", "0 0"]


def test_mirror_and_wandbs_own_process_give_way_to_the_training(tmp_path: Path, mark: str) -> None:
    config, run = make_run(tmp_path, mode="offline", finish_seconds=60.0)
    with tracking(config, run, "finetune") as tracker:
        tracker.metrics({"loss": 0.5}, step=1)
        deadline = time.monotonic() + 200
        while (found := nice_of_mirror()) not in ([19, 19], [19, 10, 19, 10]):
            assert time.monotonic() < deadline, found
            time.sleep(0.1)
    assert_nobody_left(mark)


def nice_of_mirror() -> list[int]:
    """The priorities of the mirror and of W&B's own process, each followed by its session's where it has one."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess, OSError):
        for each in psutil.Process().children(recursive=True):
            if "wiseft_dist.tracking.mirror" in each.cmdline() or "wandb-core" in each.name():
                session = Path(f"/proc/{each.pid}/autogroup")
                of_session = [int(session.read_text().split()[-1])] if session.exists() else []
                found += [each.nice(), *of_session]
    return found


def test_offline_files_hold_every_step_though_wandbs_own_process_was_killed(tmp_path: Path, mark: str) -> None:
    config, run = make_run(tmp_path, mode="offline", finish_seconds=60.0)
    with tracking(config, run, "finetune") as tracker:
        tracker.metrics({"loss": 0.5}, step=1)
        deadline = time.monotonic() + 60
        while not offline_files(run, wandb_id(run, "finetune", "")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(1.1)  # the name of W&B's folder is of the second
        (core,) = [each for each in psutil.Process().children(recursive=True) if "wandb-core" in each.name()]
        core.kill()
        for step in (2, 3):
            tracker.metrics({"loss": 0.25}, step=step)
    assert [row["_step"] for row in shown_offline(run)] == [1, 2, 3]
    assert_nobody_left(mark)


def test_a_training_is_shown_once_over_several_attempts(tmp_path: Path, server: WandbServer, mark: str) -> None:
    config, run = make_run(tmp_path, finish_seconds=60.0)
    with pytest.raises(SystemExit), tracking(config, run, "finetune") as tracker:
        for step in range(1, 7):
            tracker.metrics({"loss": 1 / step}, step=step)
        StageJob(run, "finetune").checkpoint()
        raise SystemExit(1)
    with pytest.raises(RunError), tracking(config, run, "finetune") as tracker:
        for step in range(4, 10):
            tracker.metrics({"loss": 1 / step}, step=step)
        for _ in range(2):  # other ranks
            tracker.event("failed", kind="RunError", error="the loss is no number")
        raise RunError("the loss is no number")
    append_event(run.events_file, stage="finetune", event="failed", kind="RunError", error="the loss is no number")
    train(config, run, first=8, last=12)
    assert_nobody_left(mark)

    assert warnings_of(run) == []
    (shown,) = server.received.runs.values()
    assert shown.identity == wandb_id(run, "finetune", "")
    assert shown.steps == list(range(1, 13)) and shown.lost == []
    assert [row["finetune/loss"] for row in shown.rows] == [1 / step for step in range(1, 13)]
    assert shown.num_preempting > 0
    assert [alert["text"] for alert in shown.alerts] == ["RunError: the loss is no number"]
    assert shown.exit_codes == [1, 1, 0]
    assert server.received.unknown == []


def test_the_end_of_a_run_is_an_alert_unless_nobody_wants_them(tmp_path: Path, server: WandbServer) -> None:
    config, run = make_run(tmp_path, finish_seconds=60.0)
    for alerts in (True, False):
        write_atomically(
            run.config_file, run.config_file.read_text().replace("alerts: true", f"alerts: {alerts}".lower())
        )
        with tracking(config, run, "report", job=f"with-{alerts}") as tracker:
            tracker.event("started")
            tracker.event("finished")
    sent = {identity.split("-")[-1]: len(run.alerts) for identity, run in server.received.runs.items()}
    assert sent == {"True": 1, "False": 0}


def test_a_stage_that_fails_before_there_is_anything_to_show_is_one_alert(
    tmp_path: Path, server: WandbServer, mark: str
) -> None:
    _, run = make_run(tmp_path, finish_seconds=60.0)

    def refuse(_: RunConfig) -> None:
        raise UserError("the data are not there")

    with pytest.raises(UserError):
        execute("merge", run, check=refuse)
    (shown,) = server.received.runs.values()
    assert [alert["text"] for alert in shown.alerts] == ["UserError: the data are not there"]
    assert warnings_of(run) == []


def test_a_mirror_never_writes_beside_another_process(tmp_path: Path, server: WandbServer, mark: str) -> None:
    config, run = make_run(tmp_path)
    identity = wandb_id(run, "finetune", "")
    with only_sender(run, identity):
        train(config, run)  # two seconds at its end
        assert_nobody_left(mark)
        (warning,) = warnings_of(run)
        assert "another process is sending it" in warning and server.received.runs == {}
    with ExitStack() as held:
        held.enter_context(only_sender(run, identity))
        threading.Timer(2.0, held.close).start()
        train(config.model_copy(update={"wandb": WandbConfig(mode="online")}), run, first=5, last=6)
    (shown,) = server.received.runs.values()
    assert shown.steps == [1, 2, 3, 4, 5, 6] and shown.lost == []


def test_the_mirror_begins_without_torch_and_pyarrow() -> None:
    program = """
import sys
import wiseft_dist.tracking.mirror
assert not {"torch", "pyarrow", "matplotlib", "wandb", "deepspeed"} & set(sys.modules), sorted(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_stage_that_is_killed_while_it_waits_for_wandb_leaves_nobody(tmp_path: Path, mark: str) -> None:
    _, run = make_run(tmp_path, finish_seconds=3600.0)
    program = f"""
from pathlib import Path
from wiseft_dist.run import Run
from wiseft_dist.tracking import tracking
run = Run(Path({str(run.path)!r}))
with tracking(run.load_config(), run, "finetune") as tracker:
    tracker.event("finished")
"""
    with stalling() as url:
        environment = os.environ | {"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY}
        process = subprocess.Popen([sys.executable, "-c", program], env=environment)
        while not any(event["event"] == "finished" for event in read_events(run)):
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(0.5)
        process.kill()
        process.wait()
        assert_nobody_left(mark)


def test_nothing_holds_the_output_of_the_stage_open(tmp_path: Path, mark: str) -> None:
    _, run = make_run(tmp_path, mode="offline")
    program = f"""
import os
from wiseft_dist.config import load_config
from wiseft_dist.run import Run
from wiseft_dist.tracking import tracking
from pathlib import Path
run = Run(Path({str(run.path)!r}))
with tracking(run.load_config(), run, "finetune") as tracker:
    tracker.metrics({{"loss": 0.5}}, step=1)
    os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=300)  # until both pipes end
    assert done.returncode == -9
    assert_nobody_left(mark)
