"""Which W&B run a stage is, and what it is opened with."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import re
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import wandb
from mirrored import without_own
from pydantic import ValidationError

from wiseft_dist.config import RunConfig
from wiseft_dist.errors import UserError
from wiseft_dist.run import Run, open_run, run_id
from wiseft_dist.tracking import tracking
from wiseft_dist.tracking.offline_files import history, last_step, offline_files, records
from wiseft_dist.tracking.wandb_run import group_name, in_one_line, open_wandb_run, wandb_id


def config_of(folder: Path) -> RunConfig:
    tree: dict[str, Any] = {"output": str(folder), "model": {"architecture": "A"}, "data": {"train": "t"}}
    return RunConfig.model_validate(tree | {"wandb": {"mode": "offline", "project": "flowers"}})


def test_a_run_directory_keeps_its_id_wherever_it_goes_and_another_one_there_has_its_own(tmp_path):
    config = config_of(tmp_path / "run")
    run = open_run(config)
    first = run_id(run)
    assert re.fullmatch("[a-z0-9]{8}", first) and run_id(open_run(config)) == first
    shutil.move(run.path, tmp_path / "elsewhere")
    assert run_id(Run(tmp_path / "elsewhere")) == first
    assert run_id(open_run(config)) != first
    run.id_file.write_text("")
    assert re.fullmatch("[a-z0-9]{8}", run_id(run))


def test_where_no_id_can_be_written_a_sentence_says_so(tmp_path, monkeypatch):
    def refused(*_args: Any, **_options: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refused)  # for the root of a container nothing is read-only
    with pytest.raises(UserError, match=re.escape(f"{tmp_path} has no id yet, and none can be written there (Perm")):
        run_id(Run(tmp_path))


def test_what_wandb_refuses_is_named():
    with pytest.raises(ValidationError) as refused:
        wandb.Settings(run_tags=("x" * 65,))
    assert in_one_line(refused.value).startswith("run_tags: ")


def _ask(run, barrier, answers):
    barrier.wait()
    answers.put(run_id(run))


def test_processes_that_ask_for_the_id_at_once_get_the_same(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(8), context.Queue()
    askers = [context.Process(target=_ask, args=(Run(tmp_path), barrier, answers)) for _ in range(8)]
    for asker in askers:
        asker.start()
    assert len({answers.get() for _ in askers}) == 1
    for asker in askers:
        asker.join()
    assert [path.name for path in tmp_path.iterdir()] == ["id"]


def test_ids_are_made_of_letters_that_wandb_takes(tmp_path):
    (tmp_path / "id").write_text("abcd1234\n")
    assert wandb_id(Run(tmp_path), "evaluate", "1-of-3") == "abcd1234-evaluate-1-of-3"
    assert wandb_id(Run(tmp_path), "merge", "a/b:c") == "abcd1234-merge-a_b_c"


def test_a_stage_of_a_sweeps_run_has_its_group_type_tag_and_settings(tmp_path):
    sweep = tmp_path / f"learning_rates_{'x' * 80}"
    sweep.mkdir()
    (sweep / "sweep.json").write_text("{}")
    config = config_of(sweep / "lr_0.1")
    run = open_run(config)
    with tracking(config, run, "linear_head") as tracker:
        tracker.metrics({"loss": 0.5}, step=1)
    (file,) = offline_files(run, wandb_id(run, "linear_head", ""))
    (opened,) = [record.run for record in records(file) if record.HasField("run")]
    assert (opened.project, opened.job_type, list(opened.tags)) == ("flowers", "finetune", [sweep.name[:64]])
    assert opened.run_group == group_name(run) == f"lr_0.1-{run_id(run)}"
    assert opened.display_name == "lr_0.1-linear_head" and opened.host == ""
    shown = {item.key: json.loads(item.value_json) for item in opened.config.update}
    assert shown["seed"] == 0 and shown["finetune"]["optimizer"]["lr"] == config.finetune.optimizer.lr
    assert not {"output", "launch"} & set(shown)
    steps = {r.metric.glob_name: r.metric.step_metric for r in records(file) if r.HasField("metric")}
    assert steps["linear_head/*"] == steps["finetune/*"] == steps["system/*"] == "step"
    assert steps["report/*"] == "alpha"


def test_wandbs_monitor_measures_the_stage_and_tells_nothing_of_the_machine(tmp_path):
    config = config_of(tmp_path / "run")
    run = open_run(config)
    settings = {"x_stats_sampling_interval": 0.2}
    for seconds in (1, 5, 25):  # a slow machine may need more
        opened = open_wandb_run(config, run, "evaluate", mode="offline", stats_pid=os.getpid(), settings=settings)
        time.sleep(seconds)
        opened.finish()
        file = offline_files(run, wandb_id(run, "evaluate", ""))[-1]
        if told := {item.key for record in records(file) for item in record.stats.item}:
            break
    wandb.teardown()
    assert {"proc.memory.rssMB", "memory_percent"} <= told
    assert not any(record.HasField("environment") for record in records(file))
    for word in (socket.gethostname(), str(tmp_path), "linux-gnu", platform.release()):
        assert f'"{word}' not in file.read_bytes().decode(errors="replace")


def test_of_an_offline_file_that_was_cut_off_anywhere_the_whole_rows_are_read(tmp_path):
    config = config_of(tmp_path / "run")
    run = open_run(config)
    with tracking(config, run, "finetune") as tracker:
        for step in range(1, 5):
            tracker.metrics({f"long_name_{step}_{'x' * 1000}_{index}": 1.0 for index in range(30)}, step=step)
    (file,) = offline_files(run, wandb_id(run, "finetune", ""))
    content, whole = file.read_bytes(), [without_own(row) for row in history(file)]
    assert len(content) > 4 * 32768 and [row["step"] for row in whole] == [1, 2, 3, 4]  # records span blocks
    seen = set()
    for size in (*range(0, len(content), 997), len(content) - 1):
        file.write_bytes(content[:size])
        rows = [without_own(row) for row in history(file)]
        assert rows == whole[: len(rows)]
        seen.add(len(rows))
    assert seen == {0, 1, 2, 3, 4}
    file.write_bytes(content[:50_000] + b"?" + content[50_001:])
    assert [without_own(row) for row in history(file)] == whole[: max(0, last_step(run, wandb_id(run, "finetune", "")))]
    assert last_step(run, "another") == -1
