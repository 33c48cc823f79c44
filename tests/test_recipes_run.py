"""The whole road with each recipe: `wiseft run` trains, merges, evaluates and reports its theta_1."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny_run import World, wiseft
from torch import Tensor

from wiseft_dist.commits import read_commit
from wiseft_dist.models.classifier import read_classifier
from wiseft_dist.run import Run
from wiseft_dist.tracking import read_events
from wiseft_dist.weights.finetuned import open_finetuned

RUNS: dict[str, list[str]] = {
    "linear_head": [],
    "lp_ft": ["finetune.head.epochs=1", "finetune.head.global_batch_size=8"],
    "flyp": ["finetune.ema.decay=0.5"],
    "l2_sp": ["finetune.zero_stage=3", "finetune.ema.decay=0.9", "finetune.ema.debias=true"],
}


MATRIX = ("linear_head", "l2_sp")
"""`lp_ft` trains a head first, and `flyp` has a moving average."""


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.matrix) if name in MATRIX else name for name in RUNS],
)
def trained(request: pytest.FixtureRequest, world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Run]:
    """A whole run of a recipe."""
    recipe: str = request.param
    run = Run(tmp_path_factory.mktemp(recipe) / "run")
    done = wiseft("run", world.config, f"output={run.path}", f"finetune.recipe={recipe}", *RUNS[recipe])
    assert done.returncode == 0, done.stderr
    return recipe, run


def weights(folder: Path) -> dict[str, Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    return {name: value for file in files for name, value in safetensors.torch.load_file(file).items()}


def test_the_written_end_of_the_road_is_theta_1_to_the_bit(trained: tuple[str, Run]) -> None:
    recipe, run = trained
    zero_shot, finetuned = weights(run.zero_shot), weights(run.ensemble(1.0))
    with open_finetuned(run.load_config(), run) as theta_1:
        for name in theta_1:
            assert torch.equal(finetuned[name].flatten(), theta_1.read(name)), name
        changed = {name for name in zero_shot if not torch.equal(zero_shot[name], finetuned[name])}
        untouched = zero_shot.keys() - theta_1.keys()
    assert not changed & untouched
    assert {"head.weight", "head.bias"} - changed <= ({"head.bias"} if recipe == "flyp" else set())
    assert any(name.startswith("visual.") for name in changed) == (recipe != "linear_head")
    assert any(name.startswith("transformer.") for name in changed) == (recipe == "flyp")
    middle = weights(run.ensemble(0.5))
    for name in changed:
        torch.testing.assert_close(middle[name], (zero_shot[name] + finetuned[name]) / 2, rtol=1e-5, atol=1e-6)


def test_every_alpha_is_scored_and_the_ends_are_those_models(trained: tuple[str, Run]) -> None:
    _, run = trained
    with run.results_file.open() as lines:
        rows = list(csv.DictReader(lines))
    assert {(row["dataset"], row["alpha"]) for row in rows} >= {
        (name, alpha) for name in ("photo", "sketch", "clipart") for alpha in ("0.0", "0.5", "1.0")
    }
    assert read_classifier(run.ensemble(0.5)).head.out_features == 3


def test_training_told_what_it_was(trained: tuple[str, Run]) -> None:
    recipe, run = trained
    events: list[dict[str, Any]] = [event for event in read_events(run) if event["stage"] == "finetune"]
    validated = [event for event in events if "id_val/top1" in event]
    assert validated and all(0 <= event["id_val/top1"] <= 1 for event in validated)
    assert validated[-1]["step"] == read_commit(run.finished_checkpoint())["step"]
    assert read_commit(run.finished_checkpoint())["identity"]["finetune.recipe"] == recipe
    first = [event for event in read_events(run) if event["stage"] == "linear_head"]
    assert bool(first) == (recipe == "lp_ft")


def test_a_second_run_does_nothing(trained: tuple[str, Run], world: World) -> None:
    recipe, run = trained
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if "jobs" not in path.parts}
    done = wiseft("run", world.config, f"output={run.path}", f"finetune.recipe={recipe}", *RUNS[recipe])
    assert done.returncode == 0, done.stderr
    for path, time in before.items():
        assert (
            path.is_dir() or path.suffix not in {".safetensors", ".pt", ".parquet"} or path.stat().st_mtime_ns == time
        )
