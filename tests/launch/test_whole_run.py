"""The whole road, by the real command."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
import uuid
from pathlib import Path

import pytest
import yaml
from tiny_run import SIZES, command, wiseft

from wiseft_dist.commits import is_committed
from wiseft_dist.data.stage import TRAIN, load_manifest
from wiseft_dist.run import Run
from wiseft_dist.tracking import read_events


def submitted(run: Run) -> dict[str, int]:
    """Jobs ever handed to the executor, by stage."""
    return {folder.name: len(list(folder.glob("*_submitted.pkl"))) for folder in run.jobs.iterdir() if folder.is_dir()}


def started(run: Run, *, since: int) -> dict[str, list[float]]:
    """Datasets whose evaluation began after so many events, with their alphas."""
    events = read_events(run)[since:]
    return {e["dataset"]: e["alphas"] for e in events if e["stage"] == "evaluate" and e["event"] == "started"}


def test_a_run_ends_with_its_table_and_where_the_results_are(finished):
    for words in ("zero-shot", "fine-tuned", "ensemble, fixed", "photo", "shift avg", str(finished.run.results_file)):
        assert words in finished.command.stdout
    assert "Traceback" not in finished.command.stderr


def test_every_alpha_is_scored_on_every_sample_of_every_dataset(finished):
    rows = list(csv.DictReader(finished.run.results_file.open()))
    assert {(row["dataset"], float(row["alpha"])): int(row["num_samples"]) for row in rows} == {
        (name, alpha): SIZES[name] for name in ("photo", "sketch", "clipart") for alpha in (0.0, 0.5, 1.0)
    }
    assert len(rows) == 9
    for row in rows:
        assert float(row["top1"]) == pytest.approx(int(row["num_correct"]) / int(row["num_samples"]), abs=1e-6)
        assert float(row["ci95_low"]) <= float(row["top1"]) <= float(row["ci95_high"])


def test_the_chosen_alpha_comes_with_the_held_out_accuracies_it_was_chosen_by(finished):
    selection = json.loads(finished.run.selection_file.read_text())
    choices = {choice["name"]: choice for choice in selection["choices"]}
    assert choices["fixed"]["alpha"] == 0.5
    assert [choices[name]["uses_shifts"] for name in ("fixed", "id_val", "oracle")] == [False, False, True]
    assert [row["alpha"] for row in selection["id_val"]] == [0, 0.5, 1]
    chosen = max(row["top1"] for row in selection["id_val"])
    assert next(r["top1"] for r in selection["id_val"] if r["alpha"] == choices["id_val"]["alpha"]) == chosen


def test_every_stage_tells_its_events_that_it_started_and_finished(finished):
    events = [json.loads(line) for line in finished.run.events_file.read_text().splitlines()]
    for stage, times in (("finetune", 1), ("merge", 1), ("evaluate", 4), ("report", 1)):
        names = [event["event"] for event in events if event["stage"] == stage]
        assert (names.count("started"), names.count("finished")) == (times, times)
    assert not [event for event in events if event["event"] == "failed"]


def test_every_epoch_ends_with_a_receipt(finished):
    events = read_events(finished.run)
    receipts = [event for event in events if event["event"] == "epoch"]
    num_training = load_manifest(finished.run, TRAIN).num_training
    assert [(r["epoch"], r["seen"], r["of"], r["skipped"]) for r in receipts] == [
        (epoch, num_training, num_training, []) for epoch in range(2)
    ]


def test_a_finished_run_starts_no_job(finished, copied):
    before, events = submitted(copied), len(read_events(copied))
    again = wiseft("run", copied.config_file)
    assert again.returncode == 0, again.stderr
    assert again.stdout.replace(str(copied.path), "") == finished.command.stdout.replace(str(finished.run.path), "")
    assert submitted(copied) == before
    assert len(read_events(copied)) == events


def test_a_lost_cell_is_computed_again_and_nothing_else(copied):
    before, events = submitted(copied), len(read_events(copied))
    (file,) = (copied.cells / "sketch").glob("alpha_0.50-*/part-00000000-00000013.parquet")
    samples = file.read_bytes()
    shutil.rmtree(file.parent)
    again = wiseft("run", copied.config_file)
    assert again.returncode == 0, again.stderr
    assert started(copied, since=events) == {"sketch": [0.5]}
    assert submitted(copied) == before | {"evaluate": before["evaluate"] + 1}
    assert file.read_bytes() == samples


def test_one_more_alpha_computes_only_its_own_cells(copied):
    config = yaml.safe_load(copied.config_file.read_text())
    del config["data"]["shifts"]["clipart"], config["data"]["shifts"]["sketch"]  # two datasets are enough to see it
    copied.config_file.write_text(yaml.safe_dump(config))
    before, events = submitted(copied), len(read_events(copied))
    again = wiseft("run", copied.config_file, "merge.alphas=[0,0.25,0.5,1]")
    assert again.returncode == 0, again.stderr
    assert started(copied, since=events) == {"photo": [0.25], "id_val": [0.25]}
    assert submitted(copied) == before | {"merge": 2, "evaluate": 2, "report": 2}
    assert len(copied.results_file.read_text().splitlines()) == 1 + 4
    assert is_committed(copied.ensemble(0.25))


def test_a_second_command_leaves_a_run_that_is_at_work_alone(copied):
    with (copied.jobs / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = wiseft("run", copied.config_file)
    assert second.returncode == 2
    assert (
        second.stderr == f"wiseft: {copied.path}: another `wiseft run` is at work on this run; nothing was started.\n"
    )


def test_a_detached_run_goes_on_by_itself(copied):
    begun = wiseft("run", copied.config_file, "--detach")
    assert begun.returncode == 0, begun.stderr
    log = copied.path / "run.log"
    assert str(log) in begun.stdout
    deadline = time.monotonic() + 30
    while "Report:" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "fine-tuned" in log.read_text()


def test_a_mistake_that_only_the_job_can_see_is_told_in_its_words(world, tmp_path):
    done = wiseft("run", world.config, f"output={tmp_path / 'run'}", "model.architecture=ViT-B-61",
                  "launch.finetune.tasks_per_node=1")  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("wiseft: finetune failed: model.architecture: ViT-B-61 is neither")
    assert "Did you mean ViT-B-16?" in done.stderr
    assert "Traceback" not in done.stderr


def marked(mark: str) -> dict[int, str]:
    """Living processes that inherited the mark, with their command lines."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    return found


class UnderWay:
    """A `wiseft run` whose fine-tuning job has begun."""

    def __init__(self, config: Path, output: Path, *settings: str) -> None:
        self.mark = uuid.uuid4().hex
        self.process = subprocess.Popen(
            command("run", config, f"output={output}", *settings),
            stderr=subprocess.PIPE, text=True, env=os.environ | {"MARK": self.mark}, start_new_session=True,
            # Whoever starts the tests in the background of a shell script has Ctrl-C switched off for them.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while len(self.tasks()) < 2:
            assert time.monotonic() < deadline and self.process.poll() is None
            time.sleep(0.05)

    def __enter__(self) -> UnderWay:
        return self

    def __exit__(self, *_: object) -> None:
        for process in marked(self.mark):
            os.kill(process, signal.SIGKILL)

    def wait_for_metrics(self, run: Run) -> None:
        deadline = time.monotonic() + 120
        while not any(event["event"] == "metrics" for event in read_events(run)):
            assert time.monotonic() < deadline and self.process.poll() is None
            time.sleep(0.1)

    def tasks(self) -> list[int]:
        return [process for process, line in marked(self.mark).items() if "submitit.core._submit" in line]


@pytest.mark.parametrize(
    ("number", "settings"),
    [
        (signal.SIGINT, ("finetune.epochs=100000", "data.workers=1")),
        (signal.SIGTERM, ("launch.finetune.setup=['true']",)),
    ],
    ids=["in mid-training", "terminated while starting"],
)
def test_an_interrupted_run_leaves_no_process_behind(world, tmp_path, number, settings):
    with UnderWay(world.config, tmp_path / "run", *settings) as under_way:
        if number == signal.SIGINT:
            under_way.wait_for_metrics(Run(tmp_path / "run"))
        under_way.process.send_signal(number)
        _, said = under_way.process.communicate(timeout=60)
        assert under_way.process.returncode == 130
        assert said.endswith("wiseft: interrupted. Run the same command again to go on.\n")
        assert "Traceback" not in said
        assert marked(under_way.mark) == {}


def test_a_job_that_is_killed_fails_the_run_with_the_end_of_its_log(world, tmp_path):
    with UnderWay(world.config, tmp_path / "run") as under_way:
        for task in under_way.tasks():
            os.kill(task, signal.SIGKILL)
        _, said = under_way.process.communicate(timeout=60)
    assert under_way.process.returncode == 1
    assert said.startswith("wiseft: finetune (job ")
    assert "ended without its result." in said
    assert "The end of " in said
