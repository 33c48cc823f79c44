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
    cases.append(Case("offload_3", GROUPS | {"zero_stage": 3, "offload_optimizer": True}))
    cases += [Case(f"bf16_{stage}", GROUPS | {"zero_stage": stage, "precision": "bf16"}) for stage in (1, 2, 3)]
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


@pytest.mark.parametrize("world_size", [1, *(pytest.param(each, marks=pytest.mark.matrix) for each in (2, 4))])
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
        tolerance = 0.03 if "bf16" in name else 1e-3
        assert found["losses"] == pytest.approx(expected["losses"][SAVED_AT:], rel=tolerance), name
        assert found["norms"] == pytest.approx(expected["norms"][SAVED_AT:], rel=tolerance), name
        assert found["updates"] == LAST


@pytest.mark.matrix
def test_a_group_with_fewer_elements_than_ranks_survives_two_changes(tmp_path: Path) -> None:
    two, four, one = (
        [
            Case(
                f"stage_{stage}",
                {"zero_stage": stage, "ema": {"decay": 0.5}},
                pull="tiny",
                first_step=2 * session,
                last_step=2 * session + 2,
                load=str(tmp_path / str(session - 1) / f"stage_{stage}" / "saved") if session else None,
                save=True,
            )
            for stage in (1, 3)
        ]
        for session in range(3)
    )
    before = run_cases(two, tmp_path / "0", world_size=2)
    between = run_cases(four, tmp_path / "1", world_size=4)
    after = run_cases(one, tmp_path / "2", world_size=1)
    for name in before:
        assert same_state(between[name]["at_start"], before[name]["state"]), name
        assert same_state(after[name]["at_start"], between[name]["state"]), name
        assert between[name]["at_start"]["5.bias"]["ema"].shape == (5,)


@pytest.mark.parametrize("stages", [(2, 3), (0,)])  # autocast is global in DeepSpeed
@pytest.mark.matrix
def test_fp16_goes_on_with_its_loss_scale(tmp_path: Path, stages: tuple[int, ...]) -> None:
    whole = [Case(f"stage_{stage}", {"zero_stage": stage, "precision": "fp16"}, last_step=LAST) for stage in stages]
    first = [replace(case, last_step=SAVED_AT, save=True) for case in whole]
    second = [replace(case, first_step=SAVED_AT, load=str(tmp_path / "first" / case.name / "saved")) for case in whole]
    undisturbed = run_cases(whole, tmp_path / "whole", world_size=2, fp16=True)
    run_cases(first, tmp_path / "first", world_size=2, fp16=True)
    resumed = run_cases(second, tmp_path / "second", world_size=2, fp16=True)
    for name, found in resumed.items():
        expected = undisturbed[name]
        assert found["losses"] == expected["losses"][SAVED_AT:] and same_state(found["state"], expected["state"]), name
        assert found["scaler"] == expected["scaler"] and found["loss_scale"] == expected["loss_scale"], name
        assert (found["scaler"] is not None) == (name == "stage_0")


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


@pytest.mark.parametrize("stage", [pytest.param(1, marks=pytest.mark.matrix), 2, 3])
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
