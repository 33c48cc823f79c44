"""The optimizer's state read from real checkpoints against what every rank's optimizer held, and the moving average."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from real_checkpoints import AVERAGED, SHARDED, WITH_STATES, Checkpoint, same_bits
from write_checkpoints import DECAY, NUM_UPDATES

from wiseft_dist.config import MergeConfig
from wiseft_dist.errors import UserError
from wiseft_dist.merge.files import merge_files
from wiseft_dist.weights.sources import open_weights
from wiseft_dist.weights.zero import open_zero_states

Written = Callable[[int, str], Checkpoint]


def committed(checkpoint: Checkpoint, folder: Path, **record: Any) -> Path:
    """A copy of the checkpoint with the record that a run leaves beside it."""
    shutil.copytree(checkpoint.tag, folder)
    (folder / "COMMITTED.json").write_text(json.dumps({"groups": checkpoint.groups()} | record))
    return folder


def averaged(checkpoint: Checkpoint, folder: Path) -> Path:
    ema = {"decay": DECAY, "debias": "debiased" in checkpoint.folder.name, "updates": NUM_UPDATES}
    return committed(checkpoint, folder, ema=ema)


@pytest.mark.parametrize("world_size", WITH_STATES)
@pytest.mark.parametrize("case", ["0-fp32", *SHARDED[1], *AVERAGED])
def test_every_state_is_what_the_optimizers_held_bit_for_bit(zero_checkpoint: Written, world_size: int, case: str):
    checkpoint = zero_checkpoint(world_size, case)
    live, held = checkpoint.live(), checkpoint.states()
    with open_zero_states(checkpoint.tag, checkpoint.groups()) as states:
        names = {name for group in checkpoint.groups() for name in group}
        assert states.tensors.keys() == {"fp32", *held}
        assert states.step == (None if case.endswith("sgd") else NUM_UPDATES)
        for key, weights in states.tensors.items():
            expected = {name: live[name] for name in names} if key == "fp32" else held[key]
            assert weights.keys() == expected.keys() == names
            assert [name for name in names if not same_bits(weights.tensor(name), expected[name])] == []


def test_states_differ_between_keys_and_parameters_else_the_test_above_could_not_fail(zero_checkpoint: Written):
    values = [
        tuple(value.flatten().tolist())
        for tensors in zero_checkpoint(2, "2-fp32-adamw").states().values()
        for name, value in tensors.items()
        if name != "tied.bias"  # sees the gradients of second.bias
    ]
    assert len(set(values)) == len(values) == 15
    assert all(any(value) for value in values)


@pytest.mark.parametrize("case", ["1-bf16", "2-bf16", "3-bf16"])
def test_states_of_a_16_bit_module_are_fp32(zero_checkpoint: Written, case: str):
    checkpoint = zero_checkpoint(2, case)
    with open_zero_states(checkpoint.tag) as states:
        for key, tensors in checkpoint.states().items():
            assert all(same_bits(states.tensors[key].tensor(name), value) for name, value in tensors.items())
            assert {record.dtype for record in states.tensors[key].values()} == {torch.float32}


def test_some_state_straddles_ranks(zero_checkpoint: Written):
    for case in ("2-fp32-sgd", "3-fp32-sgd"):
        with open_zero_states(zero_checkpoint(3, case).tag) as states:
            assert max(len(record.extents) for record in states.tensors["momentum_buffer"].values()) > 1


@pytest.mark.parametrize("case", ["1-fp32-adamw", "2-fp32-sgd", "3-fp32-adamw"])
def test_no_part_of_any_state_is_padding(zero_checkpoint: Written, tmp_path: Path, case: str):
    """Everything that no slice covers is overwritten with NaN, and nothing that is read changes."""
    checkpoint = zero_checkpoint(3, case)
    folder = shutil.copytree(checkpoint.tag, tmp_path / "tag")
    with open_zero_states(folder) as states:
        covered = {
            (extent.file, extent.offset + 4 * i)
            for weights in states.tensors.values()
            for record in weights.values()
            for extent in record.extents
            for i in range(extent.numel)
        }
        num_poisoned = sum(_poison(file, covered) for file in folder.glob("*optim_states.pt"))
        assert num_poisoned > 0
        for key, tensors in checkpoint.states().items():
            assert all(same_bits(states.tensors[key].tensor(name), value) for name, value in tensors.items())


def _poison(path: Path, covered: set[tuple[Path, int]]) -> int:
    """Write NaN over the elements of flat partitions that are not covered."""
    from wiseft_dist.weights.stored_tensor import StoredTensor
    from wiseft_dist.weights.torch_archive import read_archive

    def tensors(value: Any) -> list[StoredTensor]:
        if isinstance(value, StoredTensor):
            return [value] if value.shape else []
        children = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
        return [tensor for child in children for tensor in tensors(child)]

    offsets = [
        t.offset + 4 * i for t in tensors(read_archive(path)) for i in range(t.numel) if t.dtype == torch.float32
    ]
    padding = [offset for offset in offsets if (path, offset) not in covered]
    with path.open("r+b") as file:
        for offset in padding:
            file.seek(offset)
            file.write(b"\xff\xff\xff\xff")
    return len(padding)


def test_a_stage_0_checkpoint_without_the_names_of_its_parameters_is_refused(zero_checkpoint: Written):
    with pytest.raises(UserError, match=r"which parameter is which .* \(stage 0\) is not recorded"):
        open_zero_states(zero_checkpoint(2, "0-fp32").tag)


def test_a_stage_0_checkpoint_of_other_parameters_is_refused(zero_checkpoint: Written):
    checkpoint = zero_checkpoint(2, "0-fp32")
    first, second = checkpoint.groups()
    with pytest.raises(UserError, match=r"groups of \[2, 4\] parameters, other than were recorded"):
        open_zero_states(checkpoint.tag, [first[1:], second])
    with pytest.raises(UserError, match=r"has another shape than the parameter"):
        open_zero_states(checkpoint.tag, [first[::-1], second])


def test_a_sharded_checkpoint_without_its_optimizer_files_is_no_stage_0(zero_checkpoint: Written, tmp_path: Path):
    folder = shutil.copytree(zero_checkpoint(2, "2-fp32").tag, tmp_path / "tag")
    for file in folder.glob("*optim_states.pt"):
        file.unlink()
    with pytest.raises(UserError, match="the optimizer file of rank 0 is missing"):
        open_weights(folder)


def _change(folder: Path, case: str, change: Callable[[dict[int, Any]], object]) -> None:
    path = folder / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    saved = torch.load(path, weights_only=False)
    nested = "optimizer_state_dict" if case.startswith("3") else "base_optimizer_state"
    change(saved["optimizer_state_dict"][nested]["state"])
    torch.save(saved, path)


@pytest.mark.parametrize("case", ["2-fp32", "3-fp32"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state[1].pop("exp_avg"), "holds exp_avg for some parameters and not for others"),
        (lambda state: state.clear(), "holds exp_avg for some parameters and not for others"),
        (lambda state: state[1].update(exp_avg=torch.zeros(999)), "rank 1's partition holds 999 elements"),
        (lambda state: state[0].update(step=torch.tensor(7.0)), "updated some parameters 3 times, others 7"),
    ],
)
def test_states_that_do_not_fit_together_are_refused(
    zero_checkpoint: Written, tmp_path: Path, case: str, change: Callable[[dict[int, Any]], object], message: str
):
    folder = shutil.copytree(zero_checkpoint(2, case).tag, tmp_path / "tag")
    _change(folder, case, change)
    with pytest.raises(UserError, match=message):
        open_zero_states(folder)


@pytest.mark.parametrize("world_size", WITH_STATES)
@pytest.mark.parametrize("case", AVERAGED)
def test_the_average_replaces_what_was_trained_and_nothing_else(
    zero_checkpoint: Written, tmp_path: Path, world_size: int, case: str
):
    checkpoint = zero_checkpoint(world_size, case)
    expected = checkpoint.live()
    for name, value in checkpoint.states()["ema"].items():
        expected[name] = value / (1 - DECAY**NUM_UPDATES) if "debiased" in case else value
    expected["tied.weight"] = expected["second.weight"]
    with open_weights(averaged(checkpoint, tmp_path / "tag"), average=True) as weights:
        assert weights.keys() == expected.keys()
        assert [name for name in weights if not same_bits(weights.tensor(name), expected[name])] == []
        assert same_bits(weights.read("second.weight", 3, 17), expected["second.weight"].reshape(-1)[3:17])


@pytest.mark.parametrize("stage", range(4))
def test_the_ensemble_with_a_debiased_average_is_the_average_from_theta_0(
    zero_checkpoint: Written, tmp_path: Path, stage: int
):
    """With beta the decay and T updates, at alpha = 1 - beta^T; both from the same trajectory."""
    from_nothing, from_start = (zero_checkpoint(2, f"{stage}-fp32-{name}") for name in ("debiased", "adamw"))
    finetuned = averaged(from_nothing, tmp_path / "debiased")
    start = {name: value.clone() for name, value in from_nothing.start().items()}
    safetensors.torch.save_file(start, tmp_path / "zero_shot.safetensors")
    alpha = 1 - DECAY**NUM_UPDATES
    settings = MergeConfig(alphas=(0.0, alpha, 1.0))
    folders, _ = merge_files(tmp_path / "zero_shot.safetensors", [finetuned], tmp_path / "out", settings, average=True)
    with (
        open_weights(folders[1]) as merged,
        open_weights(averaged(from_start, tmp_path / "adamw"), average=True) as ema,
    ):
        trained = [name for group in from_start.groups() for name in group]
        for name in trained:
            torch.testing.assert_close(merged.tensor(name), ema.tensor(name), rtol=2e-6, atol=2e-7)
        moved = [name for name in trained if not torch.allclose(ema.tensor(name), start[name], rtol=1e-3, atol=1e-4)]
        assert len(moved) > 3  # else theta_0 would pass as well
    provenance = json.loads((folders[1] / "model.json").read_text())
    assert provenance["sources"]["finetuned"][0]["average"] is True


def test_weights_that_were_never_averaged_are_refused_as_an_average(zero_checkpoint: Written, tmp_path: Path):
    checkpoint = zero_checkpoint(2, "2-fp32")
    with pytest.raises(UserError, match=r"has no COMMITTED\.json"):
        open_weights(checkpoint.tag, average=True)
    with pytest.raises(UserError, match=r"trained without a moving average \(finetune\.ema\)"):
        open_weights(committed(checkpoint, tmp_path / "none", ema=None), average=True)
    with pytest.raises(UserError, match="optimizer holds no moving average"):
        open_weights(averaged(checkpoint, tmp_path / "lost"), average=True)
    unborn = {"decay": DECAY, "debias": True, "updates": 0}
    with pytest.raises(UserError, match="has seen no update yet"):
        open_weights(committed(checkpoint, tmp_path / "unborn", ema=unborn), average=True)
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "m.safetensors")
    with pytest.raises(UserError, match=r"m\.safetensors: no DeepSpeed checkpoint"):
        open_weights(tmp_path / "m.safetensors", average=True)
