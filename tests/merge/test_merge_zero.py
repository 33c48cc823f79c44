"""DeepSpeed's sharded checkpoints against DeepSpeed's own consolidation and the live module."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from real_checkpoints import SHARDED, Checkpoint, same_bits

from wiseft_dist.errors import UserError
from wiseft_dist.weights.sources import open_weights

ALL = [(world_size, case) for world_size, cases in SHARDED.items() for case in cases]
Written = Callable[[int, str], Checkpoint]


@pytest.fixture
def damaged(zero_checkpoint: Written, tmp_path: Path) -> Callable[[int, str], Path]:
    """A copy of a checkpoint's folder, to be damaged."""

    def copy(world_size: int, case: str) -> Path:
        return shutil.copytree(zero_checkpoint(world_size, case).tag, tmp_path / "tag")

    return copy


@pytest.mark.parametrize(("world_size", "case"), [*ALL, (1, "0-fp32"), (2, "0-fp32")])
def test_a_checkpoint_is_the_live_module_bit_for_bit(zero_checkpoint: Written, world_size: int, case: str):
    checkpoint = zero_checkpoint(world_size, case)
    live = checkpoint.live()
    with open_weights(checkpoint.tag) as weights:
        assert weights.keys() == live.keys()
        assert [name for name in weights if not same_bits(weights.tensor(name), live[name])] == []


@pytest.mark.parametrize(("world_size", "case"), ALL)
def test_a_sharded_checkpoint_is_what_deepspeed_consolidates(zero_checkpoint: Written, world_size: int, case: str):
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    checkpoint = zero_checkpoint(world_size, case)
    if case == "1-bf16_fp32":
        with pytest.raises(ValueError, match="not a zero checkpoint"):
            get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.folder), tag="tag")
        return
    consolidated = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.folder), tag="tag")
    with open_weights(checkpoint.tag) as weights:
        left_out = weights.keys() - consolidated.keys()
        # zero_to_fp32 leaves out what stage 1 keeps only in the module; the test above has those.
        assert left_out == ({"frozen.weight", "tied_frozen.weight"} if case.startswith("1") else set())
        different = [name for name in consolidated if not same_bits(weights.tensor(name), consolidated[name])]
        assert different == []


@pytest.mark.parametrize("case", ["2-fp32", "3-fp32", "3-bf16"])
def test_masters_are_fp32_and_the_rest_keeps_its_dtype(zero_checkpoint: Written, case: str):
    with open_weights(zero_checkpoint(2, case).tag) as weights:
        assert weights["second.weight"].dtype == torch.float32
        assert weights["frozen.weight"].dtype == (torch.bfloat16 if "bf16" in case else torch.float32)
        assert weights["position_ids"].dtype == torch.int64
        assert weights["mask"].dtype == torch.bool


@pytest.mark.parametrize(("world_size", "case"), [(1, "2-fp32"), (3, "1-fp32"), (3, "2-fp32"), (3, "3-fp32")])
def test_any_part_of_any_tensor_is_the_slice_of_the_whole(zero_checkpoint: Written, world_size: int, case: str):
    with open_weights(zero_checkpoint(world_size, case).tag) as weights:
        for name in weights:
            whole = weights.read(name)
            for start in range(len(whole) + 1):
                for stop in range(start, len(whole) + 1):
                    assert same_bits(weights.read(name, start, stop), whole[start:stop]), (name, start, stop)


def test_some_parameter_straddles_ranks_and_stage_3_has_several_sub_groups(zero_checkpoint: Written):
    """Else the tests above would show less than they say."""
    with open_weights(zero_checkpoint(3, "2-fp32").tag) as weights:
        assert max(len(record.extents) for record in weights.values()) > 1
    state = torch.load(
        zero_checkpoint(3, "3-fp32").tag / "zero_pp_rank_0_mp_rank_00_model_states.pt", weights_only=False
    )
    assert len(state["param_shapes"]) > 2


@pytest.mark.parametrize("case", ["2-fp32", "3-fp32"])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_missing_optimizer_file_is_refused_by_rank(damaged: Callable[[int, str], Path], case: str, rank: int):
    folder = damaged(3, case)
    (folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(UserError, match=f"optimizer file of rank {rank} of 3 is missing"):
        open_weights(folder)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_missing_model_file_of_stage_3_is_refused_by_rank(damaged: Callable[[int, str], Path], rank: int):
    folder = damaged(3, "3-fp32")
    (folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt").unlink()
    with pytest.raises(UserError, match=f"model file of rank {rank} of 3 is missing"):
        open_weights(folder)


def test_a_missing_model_file_of_stage_2_is_refused_by_name(damaged: Callable[[int, str], Path]):
    folder = damaged(2, "2-fp32")
    (folder / "mp_rank_00_model_states.pt").unlink()
    with pytest.raises(UserError, match="mp_rank_00_model_states"):
        open_weights(folder)


@pytest.mark.parametrize("name", ["mp_rank_01_model_states.pt", "zero_pp_rank_0_mp_rank_01_optim_states.pt"])
def test_tensor_parallelism_is_refused(damaged: Callable[[int, str], Path], name: str):
    """Each model-parallel rank holds a part of every parameter; one rank's alone look like a smaller model."""
    folder = damaged(2, "2-fp32")
    shutil.copyfile(folder / name.replace("_01_", "_00_"), folder / name)
    with pytest.raises(UserError, match="was trained with tensor parallelism"):
        open_weights(folder)


def test_a_file_left_by_more_ranks_is_refused_by_rank(damaged: Callable[[int, str], Path]):
    folder = damaged(2, "2-fp32")
    stale = folder / "zero_pp_rank_2_mp_rank_00_optim_states.pt"
    shutil.copyfile(folder / "zero_pp_rank_1_mp_rank_00_optim_states.pt", stale)
    with pytest.raises(UserError, match="rank 2, but was written by 2 ranks"):
        open_weights(folder)


def test_two_saves_in_one_folder_are_refused(damaged: Callable[[int, str], Path]):
    folder = damaged(2, "2-fp32")
    name = "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    shutil.copyfile(folder / name, folder / f"bf16_{name}")
    with pytest.raises(UserError, match="two saves are mixed"):
        open_weights(folder)


@pytest.mark.parametrize("case", ["2-fp32", "3-fp32"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_refused_by_name(damaged: Callable[[int, str], Path], case: str, kept: float):
    folder = damaged(2, case)
    path = folder / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(UserError, match=r"zero_pp_rank_1_mp_rank_00_optim_states\.pt"):
        open_weights(folder)


def test_partitions_of_another_size_are_refused_by_rank(damaged: Callable[[int, str], Path]):
    folder = damaged(2, "2-fp32")
    path = folder / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    state = torch.load(path, weights_only=False)
    state["optimizer_state_dict"]["single_partition_of_fp32_groups"][0] = torch.empty(0)
    torch.save(state, path)
    with pytest.raises(UserError, match="rank 1's partition holds 0 elements"):
        open_weights(folder)


@pytest.mark.parametrize("key", ["param_shapes", "module"])
def test_a_model_file_without_what_is_needed_is_refused(damaged: Callable[[int, str], Path], key: str):
    folder = damaged(2, "2-fp32")
    path = folder / "mp_rank_00_model_states.pt"
    state = torch.load(path, weights_only=False)
    del state[key]
    torch.save(state, path)
    with pytest.raises(UserError, match=key):
        open_weights(folder)


def test_latest_is_followed_and_a_stale_one_is_refused_by_name(damaged: Callable[[int, str], Path]):
    parent = damaged(2, "2-fp32").parent
    (parent / "latest").write_text("tag")
    with open_weights(parent) as weights:
        assert "second.weight" in weights
    (parent / "latest").write_text("global_step9")
    with pytest.raises(UserError, match="latest names global_step9"):
        open_weights(parent)


def test_padding_after_a_parameter_is_skipped(tmp_path: Path):
    """`param_alignment_paddings`, which DeepSpeed 0.19.7 and later can write: here by hand."""
    shapes = {"a": torch.Size([3]), "b": torch.Size([2, 2])}
    flat = torch.tensor([1.0, 2.0, 3.0, 1e35, 4.0, 5.0, 6.0, 7.0, 1e35])
    for rank, part in enumerate((flat[:6], flat[6:])):
        state = {
            "single_partition_of_fp32_groups": [part.clone()],
            "partition_count": [2],
            "param_alignment_paddings": [[1, 1]],
        }
        torch.save({"optimizer_state_dict": state}, tmp_path / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    model = {"module": {}, "param_shapes": [shapes], "buffer_names": [], "shared_params": {}}
    torch.save(model, tmp_path / "mp_rank_00_model_states.pt")
    with open_weights(tmp_path) as weights:
        assert weights.tensor("a").tolist() == [1, 2, 3]
        assert weights.tensor("b").tolist() == [[4, 5], [6, 7]]


def test_ranks_are_ordered_by_number(tmp_path: Path):
    """Rank 10 comes after rank 9, not after rank 1."""
    flat = torch.arange(24.0)
    for rank in range(12):
        state = {"single_partition_of_fp32_groups": [flat[2 * rank :][:2].clone()], "partition_count": 12}
        torch.save({"optimizer_state_dict": state}, tmp_path / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    model = {"module": {}, "param_shapes": [{"a": torch.Size([24])}]}
    torch.save(model, tmp_path / "mp_rank_00_model_states.pt")
    with open_weights(tmp_path) as weights:
        assert torch.equal(weights.tensor("a"), flat)
