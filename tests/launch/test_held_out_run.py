"""A run without a test set: the held-out piece of its training set is what its ensembles are scored on."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from tiny_run import World, wiseft

from wiseft_dist.run import Run

TEST_SETS = ("reference:", "photo:", "shifts:", "sketch:", "clipart:")


@pytest.fixture
def config(world: World, tmp_path: Path) -> Path:
    lines = world.config.read_text().splitlines()
    kept = [line for line in lines if not line.strip().startswith(TEST_SETS)]
    assert len(kept) == len(lines) - len(TEST_SETS)
    file = tmp_path / "config.yaml"
    file.write_text("\n".join(kept))
    return file


def test_every_alpha_is_scored_on_what_was_held_out_and_on_nothing_else(config: Path, tmp_path: Path):
    output = f"output={tmp_path / 'run'}"
    planned = json.loads(wiseft("plan", config, output, "--json").stdout)
    assert [job["name"] for job in planned["jobs"]] == ["finetune", "merge", "evaluate/1-of-1", "report"]
    done = wiseft("run", config, output)
    assert done.returncode == 0, done.stderr
    run = Run(tmp_path / "run")
    assert [folder.name for folder in run.cells.iterdir()] == ["id_val"]
    rows = list(csv.DictReader(run.results_file.open()))
    held_out = str(planned["held_out_samples"])
    assert [(row["dataset"], row["role"], row["alpha"], row["num_samples"]) for row in rows] == [
        ("id_val", "id_val", alpha, held_out) for alpha in ("0.0", "0.5", "1.0")
    ]
    selection = json.loads(run.selection_file.read_text())
    assert [choice["name"] for choice in selection["choices"]] == ["fixed", "id_val"]
    accuracy = {entry["alpha"]: entry["top1"] for entry in selection["id_val"]}
    assert accuracy[selection["choices"][1]["alpha"]] == max(accuracy.values())
    assert "id_val" in done.stdout
    assert "ensemble, chosen on ID-val" in done.stdout
    page = (run.report / "index.html").read_text()
    assert "there is no test set, so the accuracies are on the same samples" in page
    again = wiseft("run", config, output)
    assert again.returncode == 0, again.stderr
    assert "done (" not in again.stderr


def test_with_nothing_held_out_a_run_ends_with_its_weights(config: Path, tmp_path: Path):
    planned = wiseft("plan", config, f"output={tmp_path / 'run'}", "data.id_val_fraction=0", "--json")
    assert [job["name"] for job in json.loads(planned.stdout)["jobs"]] == ["finetune", "merge"]
