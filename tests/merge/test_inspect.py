"""What `wiseft merge --inspect` says of real checkpoints."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from real_checkpoints import Checkpoint
from write_checkpoints import NUM_UPDATES

from wiseft_dist.weights.inspect import inspect

Written = Callable[[int, str], Checkpoint]
Converted = Callable[[int, str], Path]


@pytest.mark.parametrize(
    ("world_size", "case", "kind"),
    [
        (1, "1-fp32", "DeepSpeed ZeRO stage 1, 1 rank"),
        (2, "0-fp32", "DeepSpeed ZeRO stage 0, 2 ranks"),
        (2, "2-bf16", "DeepSpeed ZeRO stage 2, 2 ranks"),
        (2, "1-bf16_fp32", "DeepSpeed ZeRO stage 1 for bf16 with fp32 accumulation, 2 ranks"),
        (3, "3-fp32", "DeepSpeed ZeRO stage 3, 3 ranks"),
    ],
)
def test_a_deepspeed_checkpoint_says_its_stage_ranks_step_and_states(
    zero_checkpoint: Written, world_size: int, case: str, kind: str
):
    inspection = inspect(zero_checkpoint(world_size, case).tag)
    assert (inspection.kind, inspection.step) == (kind, NUM_UPDATES)
    assert inspection.states == ("exp_avg", "exp_avg_sq")


def test_tensors_are_listed_with_their_parts_and_tied_ones_are_counted_once(zero_checkpoint: Written):
    checkpoint = zero_checkpoint(3, "3-fp32")
    inspection = inspect(checkpoint.tag)
    live = checkpoint.live()
    assert {tensor.name: (tensor.shape, tensor.num_bytes) for tensor in inspection.tensors} == {
        name: (tuple(value.shape), value.nbytes) for name, value in live.items()
    }
    parts = {tensor.name: tensor.num_parts for tensor in inspection.tensors}
    assert (parts["second.weight"], parts["scale"], parts["position_ids"]) == (3, 1, 1)
    distinct = [value for name, value in live.items() if name not in ("tied.weight", "tied_frozen.weight")]
    assert inspection.num_elements == sum(value.numel() for value in distinct)
    assert inspection.num_bytes == sum(value.nbytes for value in distinct)


def test_files_are_listed_with_all_that_is_in_them(zero_checkpoint: Written):
    folder = zero_checkpoint(2, "2-fp32").tag
    assert inspect(folder).files == {str(path): path.stat().st_size for path in sorted(folder.glob("*.pt"))}


def test_a_universal_checkpoint_is_told_from_what_it_was_made_of(universal_checkpoint: Converted):
    inspection = inspect(universal_checkpoint(3, "3-fp32"))
    assert inspection.kind == "DeepSpeed universal checkpoint of ZeRO stage 3, 3 ranks"
    assert inspection.states == ("exp_avg", "exp_avg_sq")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    saved = {"visual.weight": torch.zeros(1000, 3).bfloat16(), "b": torch.zeros(()), "ids": torch.zeros(2).long()}
    safetensors.torch.save_file(saved, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def test_people_get_a_table(model: Path):
    assert inspect(model).as_text().splitlines() == [
        f"source  {model}",
        "kind    safetensors",
        "holds   3 tensors, 3,003 elements, 6,020 bytes",
        f"files   1, {model.stat().st_size:,} bytes",
        f"        {model}  {model.stat().st_size:,}",
        "",
        "tensor         shape      dtype     parts  bytes",
        "b              []         float32       1      4",
        "ids            [2]        int64         1     16",
        "visual.weight  [1000, 3]  bfloat16      1  6,000",
    ]
    assert inspect(model).as_text(limit=1).splitlines()[-3:] == [
        "tensor  shape  dtype    parts  bytes",
        "b       []     float32      1      4",
        "and 2 more",
    ]


def test_programs_get_json(model: Path):
    said = json.loads(json.dumps(inspect(model).as_dict()))
    assert said["num_elements"] == 3003 and said["step"] is None
    assert said["tensors"][1] == {"name": "ids", "shape": [2], "dtype": "int64", "num_parts": 1, "num_bytes": 16}
