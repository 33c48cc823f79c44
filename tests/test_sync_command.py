"""`wiseft sync` against a small W&B server that keeps what it is sent: every step once, whatever happened before."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_run import make_world, wiseft
from waiting import wait_until
from wandb_server import KEY, WandbServer, wandb_server

from wiseft_dist.config import RunConfig
from wiseft_dist.run import Run, open_run, run_id
from wiseft_dist.tracking import append_event
from wiseft_dist.tracking.login import wandb_login
from wiseft_dist.tracking.replay import Row
from wiseft_dist.tracking.sync import Target
from wiseft_dist.tracking.writers import only_sender

STAGE = """
import os, sys, time
from pathlib import Path
from wiseft_dist.run import Run
from wiseft_dist.tracking import tracking
run, first, last, end = Run(Path(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
with tracking(run.load_config(), run, "finetune") as tracker:
    tracker.event("started", step=first, total_steps=8, world_size=1)
    for step in range(first, last + 1, 2):
        tracker.metrics({"loss": 1 / step}, step=step)
        tracker.metrics({"id_val/top1": step / 10}, step=step)
    if end == "killed":
        Path(sys.argv[1], "ready").touch()
        time.sleep(600)
    tracker.event("finished", step=last)
"""
"""A training from one step to another that is killed, or finishes."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    with wandb_server() as serving:
        for name, value in serving.environment.items():
            monkeypatch.setenv(name, value)
        yield serving


def make_run(folder: Path, mode: str = "disabled") -> Run:
    return open_run(
        RunConfig.model_validate(
            {
                "output": str(folder),
                "model": {"architecture": "A"},
                "data": {"train": str(Path.home() / "shards/train")},
                "wandb": {"mode": mode, "project": "proofs"},
            }
        )
    )


def tell(run: Run, stage: str, name: str, **values: Any) -> None:
    append_event(run.events_file, stage=stage, event=name, **values)


def killed_and_resumed(folder: Path) -> Run:
    """The events of a training that was killed after step 6, whose newest checkpoint was at step 4, and of a merge."""
    run = make_run(folder)
    for steps in ((2, 4, 6), (6, 8)):
        tell(run, "finetune", "attempt", job=None)
        tell(run, "finetune", "started", step=steps[0] - 2, total_steps=8, world_size=1)
        for step in steps:
            tell(run, "finetune", "metrics", step=step, loss=1 / step)
    tell(run, "finetune", "metrics", **{"step": 8, "id_val/top1": 0.75})
    tell(run, "finetune", "finished", step=8)
    tell(run, "merge", "started", alphas=[0.0, 1.0])
    tell(run, "merge", "finished", alphas=[0.0, 1.0], seconds=2.0, bytes=3_000_000_000)
    return run


def sent(server: WandbServer, run: Run, stage: str) -> Any:
    return server.received.runs[f"{run_id(run)}-{stage}"]


def test_a_run_that_is_sent_twice_is_held_once(server, tmp_path):
    run = killed_and_resumed(tmp_path / "mine")
    first, second = wiseft("sync", run.path), wiseft("sync", run.path)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    group = f"mine-{run_id(run)}"
    url = f"{server.url}/team/proofs/groups/{group}"
    assert first.stdout == f"mine: finetune: 4 rows sent\nmine: merge: 1 rows sent\n{url}\n"
    assert second.stdout == f"mine: finetune: 0 rows sent\nmine: merge: 0 rows sent\n{url}\n"
    training, merge = sent(server, run, "finetune"), sent(server, run, "merge")
    assert training.steps == [2, 4, 6, 8]
    assert [row["finetune/loss"] for row in training.rows] == pytest.approx([1 / 2, 1 / 4, 1 / 6, 1 / 8])
    assert training.rows[-1]["finetune/id_val/top1"] == 0.75
    assert (merge.rows[0]["merge/gb"], merge.rows[0]["merge/gb_per_second"]) == (3.0, 1.5)
    assert training.lost == merge.lost == []
    assert training.exit_codes == [0, 0]
    assert training.summary["finetune/attempts"] == 2
    assert (training.settings["groupName"], training.settings["jobType"]) == (group, "finetune")
    assert training.alerts == []
    assert not (run.path / "wandb" / "latest-run").exists()  # W&B's own files are not left in the run


def test_nothing_that_is_sent_has_the_key_or_the_home_directory_in_it(server, tmp_path):
    run = killed_and_resumed(tmp_path / "mine")
    tell(run, "finetune", "summary", note=f"{Path.home()}/x, key {KEY}")
    assert wiseft("sync", run.path).returncode == 0
    bodies = b"\n".join(server.received.bodies)
    assert b"shards/train" in bodies  # the configuration itself is there
    assert str(Path.home()).encode() + b"/" not in bodies
    assert KEY.encode() not in bodies
    assert server.received.unknown == []


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_what_a_killed_and_resumed_training_showed_live_is_completed_and_not_repeated(server, tmp_path, mode):
    run = make_run(tmp_path / "mine", mode)
    killed = start_stage(run, 2, 6, "killed")
    wait_until((run.path / "ready").is_file)
    if mode == "online":
        wait_until(lambda: f"{run_id(run)}-finetune" in server.received.runs)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert start_stage(run, 6, 8, "finished").wait(120) == 0
    if mode == "online":
        assert sent(server, run, "finetune").steps == [2, 4, 6, 8]
    else:
        assert server.received.runs == {}
    done = wiseft("sync", run.path)
    assert done.stdout.startswith(f"mine: finetune: {0 if mode == 'online' else 4} rows sent\n"), done.stderr
    training = sent(server, run, "finetune")
    assert training.steps == [2, 4, 6, 8]
    assert training.lost == []


def start_stage(run: Run, first: int, last: int, end: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", STAGE, str(run.path), str(first), str(last), end])


def test_what_comes_after_a_sync_is_sent_by_the_next(server, tmp_path):
    run = make_run(tmp_path / "mine")
    tell(run, "finetune", "started", step=0, total_steps=8, world_size=1)
    for step in (2, 4):
        tell(run, "finetune", "metrics", step=step, loss=1.0)
    assert wiseft("sync", run.path).returncode == 0
    training = sent(server, run, "finetune")
    assert training.steps == [2]  # of step 4 more may come: its validation
    assert training.exit_codes == []  # nobody knows yet how it ends
    tell(run, "finetune", "metrics", **{"step": 4, "id_val/top1": 0.5})
    tell(run, "finetune", "failed", job=None, kind="RunError", error="the disk is full")
    tell(run, "finetune", "started", step=4, total_steps=8, world_size=1)
    tell(run, "finetune", "metrics", step=6, loss=1.0)
    tell(run, "finetune", "finished", step=6)
    login = tmp_path / "netrc"  # as `wandb login` leaves it
    login.write_text(f"machine {server.url.removeprefix('http://')}\n  login user\n  password {KEY}\n")
    environment = {"WANDB_API_KEY": "", "NETRC": str(login)}
    assert wiseft("sync", run.path, "--project", "other", "--entity", "team", **environment).returncode == 0
    assert training.steps == [2, 4, 6]
    assert training.rows[1]["finetune/id_val/top1"] == 0.5
    assert training.exit_codes == [0]
    assert training.settings["project"] == "other"


@pytest.mark.parametrize(
    ("environment", "code", "sentence"),
    [
        ({"WANDB_API_KEY": "", "NETRC": "/nonexistent"}, 2, "there is no key for {url}: `wandb login`"),
        ({"WANDB_API_KEY": "f" * 40}, 2, "W&B at {url} refuses the key: `wandb login` again"),
        ({"WANDB_BASE_URL": "http://127.0.0.1:9"}, 1, "W&B at http://127.0.0.1:9 cannot be reached"),
    ],
    ids=["no key", "refused key", "no network"],
)
def test_what_keeps_a_sync_from_sending_is_one_sentence(server, tmp_path, environment, code, sentence):
    run = killed_and_resumed(tmp_path / "mine")
    done = wiseft("sync", run.path, **environment)
    assert done.returncode == code
    assert done.stderr.startswith("wiseft: " + sentence.format(url=server.url))
    assert done.stderr.count("\n") == 1
    assert "f" * 40 not in done.stderr
    assert server.received.runs == {}


@pytest.mark.matrix
def test_a_server_that_takes_nothing_ends_a_sync_and_the_next_one_sends_the_rest(server, tmp_path):
    run = killed_and_resumed(tmp_path / "mine")
    server.received.stalls.set()
    began = time.monotonic()
    done = wiseft("sync", run.path, "--timeout", 3)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("wiseft: W&B did not take everything within 3 s")
    assert 3 < time.monotonic() - began < 100  # not for as long as W&B itself would try
    server.received.stalls.clear()
    assert wiseft("sync", run.path).returncode == 0
    assert sent(server, run, "finetune").steps == [2, 4, 6, 8]
    assert sent(server, run, "finetune").lost == []


@pytest.mark.parametrize("folder", ["WANDB_CONFIG_DIR", "HOME"])
def test_the_server_is_the_one_that_wandbs_own_settings_name(server, tmp_path, monkeypatch, folder):
    run = make_run(tmp_path / "mine")
    tell(run, "merge", "finished", alphas=[1.0], seconds=2.0, bytes=3_000_000_000)
    tell(run, "merge", "started", alphas=[1.0])
    place = tmp_path / "settings" / (".config/wandb" if folder == "HOME" else "")
    place.mkdir(parents=True)
    (place / "settings").write_text(f"[default]\nbase_url = {server.url}\n")  # as `wandb login --host` leaves it
    monkeypatch.delenv("WANDB_BASE_URL")
    done = wiseft("sync", run.path, **{folder: str(tmp_path / "settings")})
    assert (done.returncode, done.stderr) == (0, "")
    assert sent(server, run, "merge").steps == [0]


def test_what_is_behind_a_proxy_of_wandbs_own_only_wandb_can_tell(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert wandb_login().unreachable() and not wandb_login().answers(1.0)
    monkeypatch.setenv("WANDB_HTTP_PROXY", "http://127.0.0.1:10")
    assert wandb_login().unreachable() == "" and wandb_login().answers(1.0)


def test_a_dry_run_sends_nothing_and_needs_no_key(server, tmp_path):
    for name in ("lr=0.1", "lr=0.2"):
        killed_and_resumed(tmp_path / "sweep" / name)
    members = [{"name": name, "settings": {}} for name in ("lr=0.1", "lr=0.2", "lr=0.3")]
    content = {"keys": [], "members": members, "soup": "none", "soup_of_finished": False}
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps(content))
    done = wiseft("sync", tmp_path / "sweep", "--dry-run", WANDB_API_KEY="")
    lines = [
        f"{name}: {what} to send" for name in ("lr=0.1", "lr=0.2") for what in ("finetune: 4 rows", "merge: 1 rows")
    ]
    assert (done.returncode, done.stdout.splitlines()) == (0, lines)
    assert server.received.bodies == []


@pytest.mark.parametrize(("mode", "rows"), [("online", None), ("offline", 4)])
def test_what_a_live_mirror_is_sending_is_left_to_it(server, tmp_path, mode, rows):
    run = killed_and_resumed(tmp_path / "mine")
    identity = f"{run_id(run)}-finetune"
    with only_sender(run, identity) as somebody:
        assert somebody == ""
        (run.path / "wandb" / f"{identity}.lock").write_text(f"{mode}\n")
        done = wiseft("sync", run.path)
    assert done.returncode == 0
    if rows is None:
        assert "mine: finetune: not sent: a running stage or another `wiseft sync` is sending it now" in done.stdout
        assert identity not in server.received.runs
    else:
        assert f"mine: finetune: {rows} rows sent" in done.stdout
        assert server.received.runs[identity].steps == [2, 4, 6, 8]
    assert server.received.runs[f"{run_id(run)}-merge"].steps == [0]


def test_a_directory_that_is_no_run_is_refused(server, tmp_path):
    done = wiseft("sync", tmp_path)
    assert done.returncode == 2
    assert "is not a run directory" in done.stderr


def test_the_report_of_a_finished_run_is_curve_table_summary_and_model(server, copied):
    text = copied.config_file.read_text()
    copied.config_file.write_text(text.replace("upload_model: false", "upload_model: true"))
    done = wiseft("sync", copied.path)
    assert done.returncode == 0, done.stderr
    (report,) = (run for name, run in server.received.runs.items() if run.settings.get("jobType") == "report")
    digest = json.loads(copied.selection_file.read_text())["cells"]
    assert report.identity == f"{run_id(copied)}-report-{digest[:8]}"
    curve, last = report.rows[:-1], report.rows[-1]
    assert [row["alpha"] for row in curve] == [0, 0.5, 1]
    statistics = json.loads(copied.statistics_file.read_text())
    photos = statistics["datasets"]["photo"]["alphas"]
    for row, photo, shifts in zip(curve, photos, statistics["shift_average"], strict=True):
        assert row["report/reference"] == row["report/photo/top1"] == pytest.approx(photo["value"])
        assert row["report/shift_average"] == pytest.approx(shifts["value"])
        assert {"report/sketch/top1", "report/clipart/top1", "report/id_val/top1"} <= set(row)
    assert (last["report/cells"]["nrows"], last["report/cells"]["ncols"]) == (12, 12)
    assert last["report/curve"]["_type"] == "image-file"
    named = ("zero_shot", "finetuned", "fixed", "chosen")
    assert {f"{name}/{what}" for name in named for what in ("reference", "shift_average")} < set(report.summary)
    assert report.summary["chosen_alpha"] == statistics["chosen"]
    assert report.summary["zero_shot/reference"] == pytest.approx(photos[0]["value"])
    (model,) = (each for each in server.received.artifacts if each["artifactTypeName"] == "model")
    assert json.loads(model["metadata"])["alpha"] == statistics["chosen"]
    files = server.received.runs[f"artifact-{model['clientID']}"].files
    assert "COMMITTED.json" not in files  # of the files as they lie in the run
    weights = copied.ensemble(statistics["chosen"]) / "open_clip_model.safetensors"
    assert files[weights.name] == weights.read_bytes()
    for place in (Path.home(), copied.path):  # a manifest names local files
        manifests = [each.files.get("wandb_manifest.json", b"") for each in server.received.runs.values()]
        assert f'"{place}/'.encode() not in b"".join(manifests)


def test_a_report_that_was_written_over_by_one_of_other_cells_is_not_shown_as_that_one(server, copied):
    content = json.loads(copied.selection_file.read_text())
    name = f"run: report/{content['cells'][:8]}"
    assert f"{name}: 4 rows to send" in wiseft("sync", copied.path, "--dry-run").stdout
    copied.selection_file.write_text(json.dumps(content | {"cells": "0123456789abcdef"}))
    assert f"{name}: 0 rows to send" in wiseft("sync", copied.path, "--dry-run").stdout
    for stage in ("finetune", "merge", "evaluate"):
        forget(copied, stage)
    done = wiseft("sync", copied.path)
    assert (done.returncode, server.received.runs) == (0, {}), done.stderr  # nor is an empty W&B run opened
    assert f"{name}: not sent: it was written over by a report of other cells" in done.stdout


def test_what_fails_for_one_stage_keeps_the_others_from_nothing(server, tmp_path):
    runs = [make_run(tmp_path / name) for name in ("one", "two")]
    for run in runs:
        tell(run, "merge", "started", alphas=[1.0])
        tell(run, "merge", "finished", alphas=[1.0], seconds=2.0, bytes=3_000_000_000)
    runs[0].config_file.write_text(runs[0].config_file.read_text().replace("project: proofs", "project: pro/ofs"))
    done = wiseft("sync", *(run.path for run in runs))
    assert done.returncode == 1
    assert "project name" in done.stderr and done.stdout.startswith("one: merge: not sent: ")
    assert "two: merge: 1 rows sent" in done.stdout
    assert sent(server, runs[1], "merge").steps == [0]


def test_the_last_step_of_a_training_that_was_killed_for_good_is_sent_after_an_hour(tmp_path):
    run = make_run(tmp_path / "mine")
    now = time.time()
    for age, is_at_work, steps in ((0, False, [2]), (4000, False, [2, 4]), (4000, True, [2])):
        events = [
            {"time": now - age, "stage": "finetune", "event": "metrics", "step": step, "loss": 1.0} for step in (2, 4)
        ]
        target = Target(run, run.load_config(), "finetune", "", is_at_work)
        assert [item.step for item in target.items(events) if isinstance(item, Row)] == steps


def test_the_model_of_a_published_run_is_shown_by_reference(server, copied):
    text = copied.config_file.read_text()
    copied.config_file.write_text(text.replace("upload_model: false", "upload_model: true"))
    chosen = json.loads(copied.selection_file.read_text())["chosen"]
    name = copied.ensemble(chosen).relative_to(copied.path).as_posix()
    record = {name: {"url": f"s3://bucket/mine/{name}", "digest": "d"}}
    (copied.path / "published.json").write_text(json.dumps(record))
    for stage in ("finetune", "merge", "evaluate"):
        forget(copied, stage)
    assert wiseft("sync", copied.path).returncode == 0
    (model,) = (each for each in server.received.artifacts if each["artifactTypeName"] == "model")
    files = server.received.runs[f"artifact-{model['clientID']}"].files
    assert set(files) == {"wandb_manifest.json"}
    entry = json.loads(files["wandb_manifest.json"])["contents"]["open_clip_model.safetensors"]
    assert entry["ref"] == f"s3://bucket/mine/{name}/open_clip_model.safetensors"
    assert entry["size"] == (copied.path / name / "open_clip_model.safetensors").stat().st_size


@pytest.mark.matrix
def test_a_whole_run_that_was_shown_live_leaves_nothing_to_send(server, tmp_path):
    world = make_world(tmp_path)
    done = wiseft("run", world.config, "wandb.mode=online", "wandb.finish_seconds=120")
    assert done.returncode == 0, done.stderr
    run = Run(tmp_path / "run")
    synced = wiseft("sync", run.path)
    digest = json.loads(run.selection_file.read_text())["cells"][:8]
    names = ("finetune", "merge", "evaluate/1-of-1", f"report/{digest}")
    assert synced.stdout.splitlines()[:-1] == [f"run: {name}: 0 rows sent" for name in names], synced.stderr
    assert sent(server, run, "finetune").steps == [2, 4, 6, 7]
    assert sent(server, run, "evaluate-1-of-1").summary["evaluate/images"] == 43
    assert sent(server, run, f"report-{digest}").steps == [0, 1, 2, 3]
    assert all(each.lost == [] for each in server.received.runs.values())
    assert [alert["title"] for each in server.received.runs.values() for alert in each.alerts] == ["run: finished"]
    bodies = b"\n".join(server.received.bodies)
    assert KEY.encode() not in bodies
    assert re.findall(rb".{,80}" + re.escape(str(Path.home()).encode()) + rb"/.{,80}", bodies) == []
    assert server.received.unknown == []


def forget(run: Run, stage: str) -> None:
    lines = run.events_file.read_text().splitlines(keepends=True)
    run.events_file.write_text("".join(line for line in lines if json.loads(line)["stage"] != stage))
