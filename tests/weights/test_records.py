"""Where the elements of a tensor lie, and what tells a file from one that was changed."""

import os
from pathlib import Path

import pytest
import safetensors.torch
import torch

from wiseft_dist.errors import RunError, UserError
from wiseft_dist.weights.records import Extent, TensorRecord, Weights
from wiseft_dist.weights.sources import open_weights


def spread(folder: Path) -> Weights:
    """A tensor of 5 elements, the first 2 in one file and the rest in another."""
    for name, values in (("first", [0.0, 1.0]), ("second", [2.0, 3.0, 4.0])):
        (folder / name).write_bytes(torch.tensor(values).numpy().tobytes())
    extents = (Extent(folder / "first", 0, 2), Extent(folder / "second", 0, 3))
    return Weights("spread", {"w": TensorRecord((5,), torch.float32, extents)})


def test_an_element_is_located_in_the_file_that_holds_it(tmp_path: Path):
    with spread(tmp_path) as weights:
        assert [weights.locate("w", element).rsplit("/", 1)[1] for element in range(5)] == [
            *["first"] * 2,
            *["second"] * 3,
        ]
        with pytest.raises(IndexError, match="w has 5 elements, and no element 5"):
            weights.locate("w", 5)


def test_a_fingerprint_changes_with_size_or_time_and_else_does_not(tmp_path: Path):
    with spread(tmp_path) as weights:
        before = weights.fingerprint()
        assert before == weights.fingerprint()
        assert {Path(place).name: known["bytes"] for place, known in before.items()} == {"first": 8, "second": 12}
        os.utime(tmp_path / "first", ns=(1, 1))
        assert weights.fingerprint() != before


def test_a_read_error_names_the_file_and_the_byte():
    """The first page of a process's memory is never mapped, and reading it fails as a broken disk does."""
    record = TensorRecord((2,), torch.float32, (Extent(Path("/proc/self/mem"), 64, 2),))
    with (
        Weights("m", {"w": record}) as weights,
        pytest.raises(RunError, match=r"^/proc/self/mem: .* byte 64: Input/out"),
    ):
        weights.read("w")


def test_elements_that_are_missing_are_counted(tmp_path: Path):
    with pytest.raises(UserError, match=r"tensor w has shape \[2, 3\], but 5 of 6 elements"):
        Weights("m", {"w": TensorRecord((2, 3), torch.float32, spread(tmp_path)["w"].extents)})


def test_a_path_may_be_a_file_url(tmp_path: Path):
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "m.safetensors")
    with open_weights(f"file://{tmp_path}/m.safetensors") as weights:
        assert weights.tensor("a").tolist() == [1, 1]
