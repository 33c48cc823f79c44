"""The whole road on real pictures and a real Slurm: the command that the README shows, and what it leaves behind."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from wiseft_dist.run import Run, is_committed, read_commit

CONFIG = Path(__file__).parents[2] / "configs" / "pacs.yaml"
SAMPLES = {"photo": 492, "art_painting": 612, "cartoon": 719, "sketch": 1135}
ALPHAS = [index / 10 for index in range(11)]

pytestmark = [pytest.mark.slurm, pytest.mark.pictures, pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def pacs_run(devcluster: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Run, str]]:
    """The finished run, and what the command printed."""
    if "WISEFT_TEST_DATA" not in os.environ:
        pytest.skip("WISEFT_TEST_DATA does not name a folder with the PACS shards")
    output = tmp_path_factory.mktemp("pacs") / "run"
    command = [sys.executable, "-m", "wiseft_dist", "run", str(CONFIG), "launch.executor=slurm", f"output={output}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1100)
    assert done.returncode == 0, done.stdout + done.stderr
    yield Run(output), done.stdout


def test_every_alpha_is_scored_on_every_picture_of_every_domain(pacs_run: tuple[Run, str]) -> None:
    run, _ = pacs_run
    with run.results_file.open() as handle:
        rows = list(csv.DictReader(handle))
    assert [(row["dataset"], float(row["alpha"])) for row in rows] == [(d, a) for d in SAMPLES for a in ALPHAS]
    for row in rows:
        assert int(row["num_samples"]) == SAMPLES[row["dataset"]]
        assert 0 <= int(row["num_correct"]) <= int(row["num_samples"])
        assert float(row["ci95_low"]) <= float(row["top1"]) <= float(row["ci95_high"])


def test_fine_tuning_gains_on_the_reference_and_an_ensemble_gives_back_shift_accuracy(
    pacs_run: tuple[Run, str],
) -> None:
    run, printed = pacs_run
    with run.results_file.open() as handle:
        top1 = {(row["dataset"], float(row["alpha"])): float(row["top1"]) for row in csv.DictReader(handle)}
    shifts = {a: sum(top1[d, a] for d in SAMPLES if d != "photo") / 3 for a in ALPHAS}
    assert top1["photo", 1.0] > top1["photo", 0.0]
    assert shifts[1.0] < shifts[0.0]
    assert any(shifts[a] > shifts[1.0] and top1["photo", a] > top1["photo", 1.0] - 0.01 for a in ALPHAS[1:-1])
    assert "chosen" in printed and "zero-shot" in printed


def test_two_nodes_trained_and_every_stage_left_committed_output(pacs_run: tuple[Run, str]) -> None:
    run, _ = pacs_run
    checkpoint = run.finished_checkpoint()
    assert read_commit(checkpoint)["world_size"] == 2
    assert len(list(checkpoint.glob("zero_pp_rank_*_optim_states.pt"))) == 2
    assert all(is_committed(run.ensemble(alpha)) for alpha in ALPHAS)
    assert (run.report / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_stages_waited_for_each_other_and_evaluation_was_one_array(pacs_run: tuple[Run, str]) -> None:
    run, _ = pacs_run
    jobs: dict[str, str] = json.loads((run.jobs / "submitted.json").read_text())
    arrays = {job_id.split("_")[0] for name, job_id in jobs.items() if name.startswith("evaluate/")}
    assert len(arrays) == 1
    assert {name for name in jobs if name.startswith("evaluate/")} == {f"evaluate/{d}" for d in [*SAMPLES, "id_val"]}
    events = [json.loads(line) for line in run.events_file.read_text().splitlines()]
    ended = {e["stage"]: e["time"] for e in events if e["event"] == "finished"}
    started = {e["stage"]: e["time"] for e in reversed(events) if e["event"] == "started"}
    for before, after in (("finetune", "merge"), ("merge", "evaluate"), ("evaluate", "report")):
        assert ended[before] <= started[after]


def test_running_it_again_submits_nothing(pacs_run: tuple[Run, str], devcluster: object) -> None:
    run, _ = pacs_run
    before = (run.jobs / "submitted.json").read_text()
    command = [sys.executable, "-m", "wiseft_dist", "run", str(run.config_file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "submitted" not in done.stderr
    assert (run.jobs / "submitted.json").read_text() == before
