"""Universal checkpoints, written by DeepSpeed's own tool from real ones, against the live module."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from real_checkpoints import Checkpoint, same_bits
from test_merge_reading import RunsOnLoad

from wiseft_dist.errors import UserError
from wiseft_dist.weights.inspect import inspect
from wiseft_dist.weights.sources import open_weights

Written = Callable[[int, str], Checkpoint]
Converted = Callable[[int, str], Path]
CASES = [(3, "2-fp32"), (3, "3-fp32"), (2, "1-bf16"), (2, "3-bf16"), (3, "2-fp32_aligned")]


@pytest.fixture
def damaged(universal_checkpoint: Converted, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a checkpoint of 3 ranks, to be damaged."""
    return lambda case: shutil.copytree(universal_checkpoint(3, case), tmp_path / "tag")


@pytest.mark.parametrize(("world_size", "case"), CASES)
def test_a_universal_checkpoint_is_the_live_module_bit_for_bit(
    zero_checkpoint: Written, universal_checkpoint: Converted, world_size: int, case: str
):
    live = zero_checkpoint(world_size, case).live()
    with open_weights(universal_checkpoint(world_size, case)) as weights:
        assert weights.keys() == live.keys()
        assert [name for name in weights if not same_bits(weights.tensor(name), live[name])] == []


@pytest.mark.parametrize("case", ["2-fp32", "3-fp32"])
def test_trained_parameters_come_from_the_parameters_own_files(damaged: Callable[[str], Path], case: str):
    """Else the test above could read the model files, which hold the same numbers in fp32."""
    folder = damaged(case)
    with open_weights(folder) as weights:
        assert {file.parent.name for file in weights.files()} >= {"second.weight", "first.bias", "scale"}


def test_latest_universal_is_followed_where_there_is_no_latest(damaged: Callable[[str], Path]):
    parent = damaged("2-fp32").parent
    (parent / "latest_universal").write_text("tag")
    assert inspect(parent).kind == "DeepSpeed universal checkpoint of ZeRO stage 1 or 2, 3 ranks"
    (parent / "latest_universal").write_text("global_step9")
    with pytest.raises(UserError, match="latest_universal names global_step9, which is not there"):
        open_weights(parent)


@pytest.mark.parametrize("case", ["2-fp32", "3-fp32"])
def test_a_missing_parameter_is_refused_by_name(damaged: Callable[[str], Path], case: str):
    folder = damaged(case)
    (folder / "zero/second.weight/fp32.pt").unlink()
    with pytest.raises(UserError, match=r"zero/second\.weight/fp32\.pt is missing"):
        open_weights(folder)


def test_a_missing_model_file_of_stage_3_is_refused_by_rank(damaged: Callable[[str], Path]):
    folder = damaged("3-fp32")
    (folder / "zero_pp_rank_1_mp_rank_00_model_states.pt").unlink()
    with pytest.raises(UserError, match="model file of rank 1 of 3 is missing"):
        open_weights(folder)


def test_a_parameter_of_another_shape_is_refused(damaged: Callable[[str], Path]):
    folder = damaged("2-fp32")
    torch.save({"param": torch.zeros(11, 6)}, folder / "zero/second.weight/fp32.pt")
    with pytest.raises(UserError, match=r"second\.weight/fp32\.pt: holds shape \[11, 6\] .* of shape \[11, 5\]"):
        open_weights(folder)


@pytest.mark.parametrize("case", ["2-fp32", "3-fp32"])
def test_a_parameters_pickle_that_runs_a_command_is_refused_and_nothing_runs(
    damaged: Callable[[str], Path], tmp_path: Path, case: str
):
    folder, mark = damaged(case), tmp_path / "it_ran"
    torch.save({"param": RunsOnLoad(f"touch {mark}")}, folder / "zero/scale/fp32.pt")
    with pytest.raises(UserError, match=r"scale/fp32\.pt: its pickle asks for (posix|nt)\.system"):
        open_weights(folder)
    assert not mark.exists()
