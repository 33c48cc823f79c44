"""A checkpoint goes on under another number of ranks, and at another ZeRO stage, without losing a bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_ranks import LEARNING_RATE, Case, run_cases
from test_engine import same_state

from wiseft_dist.weights.zero import open_zero_states

GROUPS = {"optimizer": {"lr": LEARNING_RATE, "decay_biases_and_norms": False}, "ema": {"decay": 0.5}}
SGD = {"optimizer": {"name": "sgd", "lr": LEARNING_RATE}}
SAVED_AT, LAST = 3, 6


def saving(world_size: int) -> list[Case]:
    cases = [Case(f"stage_{stage}", GROUPS | {"zero_stage": stage}) for stage in (0, 1, 2, 3)]
    cases.append(Case("sgd", SGD | {"zero_stage": 2}))
    cases.append(Case("offload", GROUPS | {"zero_stage": 2, "offload_optimizer": True}))
    return [replace(case, last_step=SAVED_AT, save=True) for case in cases]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """What two ranks have saved after three steps, and the state that they had then."""
    folder = tmp_path_factory.mktemp("saved")
    return folder, run_cases(saving(2), folder, world_size=2)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The same trainings without a stop."""
    cases = [replace(case, last_step=LAST, save=False) for case in saving(2)]
    return run_cases(cases, tmp_path_factory.mktemp("undisturbed"), world_size=2)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_bit_of_the_state_arrives_and_training_goes_on(
    tmp_path: Path, saved: Any, undisturbed: dict[str, dict[str, Any]], world_size: int
) -> None:
    folder, before = saved
    cases = [
        replace(case, first_step=SAVED_AT, last_step=LAST, load=str(folder / case.name / "saved"), save=False)
        for case in saving(2)
    ]
    for name, found in run_cases(cases, tmp_path, world_size=world_size).items():
        assert same_state(found["at_start"], before[name]["after_evaluation"]), name
        assert {"exp_avg", "exp_avg_sq", "ema"} <= found["at_start"]["3.weight"].keys() or name == "sgd"
        expected = undisturbed[name]
        if world_size == 2:
            assert found["losses"] == expected["losses"][SAVED_AT:], name
            assert same_state(found["state"], expected["state"]), name
        assert found["losses"] == pytest.approx(expected["losses"][SAVED_AT:], rel=1e-4), name
        assert found["norms"] == pytest.approx(expected["norms"][SAVED_AT:], rel=1e-3), name
        assert found["updates"] == LAST


def test_another_stage_takes_over(tmp_path: Path, saved: Any, undisturbed: dict[str, dict[str, Any]]) -> None:
    folder, before = saved
    cases = [
        Case(
            f"from_{old}_to_{new}",
            GROUPS | {"zero_stage": new},
            first_step=SAVED_AT,
            last_step=LAST,
            load=str(folder / f"stage_{old}" / "saved"),
        )
        for old, new in ((1, 3), (2, 3), (3, 0), (0, 1), (3, 2))
    ]
    for name, found in run_cases(cases, tmp_path, world_size=2).items():
        old = name.split("_")[1]
        assert same_state(found["at_start"], before[f"stage_{old}"]["state"]), name
        assert found["losses"] == pytest.approx(undisturbed["stage_1"]["losses"][SAVED_AT:], rel=1e-4), name


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_what_is_read_is_what_deepspeed_converts_to_its_universal_checkpoint(
    tmp_path: Path, saved: Any, stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, before = saved
    checkpoint = folder / f"stage_{stage}" / "saved"
    converted = _universal(checkpoint, tmp_path / "universal", monkeypatch)
    states = open_zero_states(checkpoint)
    for name in before[f"stage_{stage}"]["state"]:
        for key in ("fp32", "exp_avg", "exp_avg_sq"):
            theirs = torch.load(converted / "zero" / name / f"{key}.pt", weights_only=False)
            theirs = theirs["param"] if isinstance(theirs, dict) else theirs
            with states.tensors[key] as ours:
                assert torch.equal(ours.read(name), theirs.flatten()), (name, key)


def _universal(checkpoint: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """DeepSpeed's own conversion of a checkpoint."""
    import subprocess
    import sys

    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    command += ["--input_folder", str(checkpoint), "--output_folder", str(output)]
    command += ["--num_extract_workers", "1", "--num_merge_workers", "1"]
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return output
