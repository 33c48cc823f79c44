"""The whole road on real pictures and a real Slurm: the command that the README shows, and what it leaves behind."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from wiseft_dist.commits import is_committed, read_commit
from wiseft_dist.launch.ledger import read_ledger
from wiseft_dist.run import Run

CONFIG = Path(__file__).parents[2] / "configs" / "pacs.yaml"
SAMPLES = {"photo": 492, "art_painting": 612, "cartoon": 719, "sketch": 1135}
ALPHAS = {"0,0.6,0.8,1": [0.0, 0.6, 0.8, 1.0], "0:1:0.1": [index / 10 for index in range(11)]}
"""What is asked for in continuous integration, and what the configuration says."""

pytestmark = [pytest.mark.slurm, pytest.mark.pictures, pytest.mark.slow, pytest.mark.timeout(1200)]


@dataclass(frozen=True)
class Finished:
    """A run that went its way on Slurm, and what the commands about it said."""

    run: Run
    alphas: list[float]
    submitted: subprocess.CompletedProcess[str]
    changed: subprocess.CompletedProcess[str]
    followed: subprocess.CompletedProcess[str]


def wiseft(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wiseft_dist", "run", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=1100)


@pytest.fixture(scope="module", params=["0,0.6,0.8,1", pytest.param("0:1:0.1", marks=pytest.mark.matrix)])
def pacs(request: pytest.FixtureRequest, devcluster: object, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Submitted and left alone, then asked for with other settings, then followed to the end."""
    if "WISEFT_TEST_DATA" not in os.environ:
        pytest.skip("WISEFT_TEST_DATA does not name a folder with the PACS shards")
    output = tmp_path_factory.mktemp("pacs") / "run"
    settings = (CONFIG, "launch.executor=slurm", f"output={output}", f"merge.alphas={request.param}",
                "evaluate.job_images=1200", "evaluate.part_samples=512")  # fmt: skip
    submitted = wiseft(*settings, "--detach")
    changed = wiseft(*settings, "evaluate.batch_size=128")
    followed = wiseft(*settings)
    assert followed.returncode == 0, followed.stdout + followed.stderr
    return Finished(Run(output), ALPHAS[request.param], submitted, changed, followed)


def test_a_detached_run_is_followed_by_the_same_command_and_protected_from_another(pacs: Finished) -> None:
    assert pacs.submitted.returncode == 0, pacs.submitted.stderr
    assert "report: submitted as" in pacs.submitted.stderr
    assert pacs.changed.returncode == 2
    assert "in the queue" in pacs.changed.stderr and "other settings" in pacs.changed.stderr
    assert "in the queue already: finetune" in pacs.followed.stderr
    assert "submitted" not in pacs.followed.stderr
    assert "finetune: done" in pacs.followed.stderr and "report: done" in pacs.followed.stderr


def test_every_alpha_is_scored_on_every_picture_of_every_domain(pacs: Finished) -> None:
    run = pacs.run
    with run.results_file.open() as handle:
        rows = list(csv.DictReader(handle))
    assert [(row["dataset"], float(row["alpha"])) for row in rows] == [(d, a) for d in SAMPLES for a in pacs.alphas]
    for row in rows:
        assert int(row["num_samples"]) == SAMPLES[row["dataset"]]
        assert 0 <= int(row["num_correct"]) <= int(row["num_samples"])
        assert float(row["ci95_low"]) <= float(row["top1"]) <= float(row["ci95_high"])


def test_fine_tuning_gains_on_the_reference_and_an_ensemble_gives_back_shift_accuracy(
    pacs: Finished,
) -> None:
    run, printed = pacs.run, pacs.followed.stdout
    with run.results_file.open() as handle:
        top1 = {(row["dataset"], float(row["alpha"])): float(row["top1"]) for row in csv.DictReader(handle)}
    shifts = {a: sum(top1[d, a] for d in SAMPLES if d != "photo") / 3 for a in pacs.alphas}
    assert top1["photo", 1.0] > top1["photo", 0.0]
    assert shifts[1.0] < shifts[0.0]
    assert any(shifts[a] > shifts[1.0] and top1["photo", a] > top1["photo", 1.0] - 0.01 for a in pacs.alphas[1:-1])
    assert "chosen" in printed and "zero-shot" in printed


def test_two_nodes_trained_and_every_stage_left_committed_output(pacs: Finished) -> None:
    run = pacs.run
    checkpoint = run.finished_checkpoint()
    assert read_commit(checkpoint)["world_size"] == 2
    assert len(list(checkpoint.glob("zero_pp_rank_*_optim_states.pt"))) == 2
    assert all(is_committed(run.ensemble(alpha)) for alpha in pacs.alphas)
    assert (run.report / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_stages_waited_for_each_other_and_evaluation_was_one_array(pacs: Finished) -> None:
    run = pacs.run
    jobs = {name: entry.job_id for name, entry in read_ledger(run).items()}
    arrays = {job_id.split("_")[0] for name, job_id in jobs.items() if name.startswith("evaluate/")}
    assert len(arrays) == 1
    # 2,958 pictures of the domains and the held-out ones, at 1,200 a job.
    assert {name for name in jobs if name.startswith("evaluate/")} == {f"evaluate/{n}-of-3" for n in range(1, 4)}
    events = [json.loads(line) for line in run.events_file.read_text().splitlines()]
    ended = {e["stage"]: e["time"] for e in events if e["event"] == "finished"}
    started = {e["stage"]: e["time"] for e in reversed(events) if e["event"] == "started"}
    for before, after in (("finetune", "merge"), ("merge", "evaluate"), ("evaluate", "report")):
        assert ended[before] <= started[after]


def test_running_it_again_submits_nothing(pacs: Finished) -> None:
    run = pacs.run
    before = (run.jobs / "submitted.json").read_text()
    done = wiseft(run.config_file)
    assert done.returncode == 0, done.stderr
    assert "submitted" not in done.stderr
    assert (run.jobs / "submitted.json").read_text() == before
