"""How many files are open, and that none is closed under a reader."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import safetensors.torch
import torch

from wiseft_dist.weights.descriptors import MOST_OPEN, Descriptors
from wiseft_dist.weights.sources import open_weights


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Each with its number in it."""
    paths = [tmp_path / str(number) for number in range(8)]
    for path in paths:
        path.write_text(path.name)
    return paths


def num_open(folder: Path) -> int:
    """Descriptors of this process for files in a folder."""
    found = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            found += str(descriptor.readlink()).startswith(str(folder))
        except FileNotFoundError:
            continue
    return found


def test_those_least_recently_read_are_closed(files: list[Path], tmp_path: Path):
    descriptors = Descriptors(most=3)
    for path in files:
        with descriptors.reading("a", path) as descriptor:
            assert os.pread(descriptor, 9, 0).decode() == path.name
    assert num_open(tmp_path) == 3
    descriptors.close("b")
    assert num_open(tmp_path) == 3
    descriptors.close("a")
    assert num_open(tmp_path) == 0


def test_a_file_that_is_read_is_closed_after_it(files: list[Path], tmp_path: Path):
    descriptors = Descriptors(most=1)
    with descriptors.reading("a", files[0]) as first, descriptors.reading("a", files[1]) as second:
        descriptors.close("a")
        assert (os.pread(first, 9, 0), os.pread(second, 9, 0)) == (b"0", b"1")
    assert num_open(tmp_path) == 0


def test_threads_that_need_more_files_than_stay_open_read_the_right_ones(files: list[Path], tmp_path: Path):
    descriptors = Descriptors(most=2)

    def read(turn: int) -> bool:
        path = files[turn * 5 % 8]
        with descriptors.reading("a", path) as descriptor:
            return os.pread(descriptor, 9, 0).decode() == path.name

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(4000)))
    descriptors.close("a")
    assert num_open(tmp_path) == 0


def test_a_model_of_many_files_keeps_few_open(tmp_path: Path):
    for number in range(MOST_OPEN + 20):
        safetensors.torch.save_file({f"{number}": torch.tensor([number])}, tmp_path / f"{number}.safetensors")
    with open_weights(tmp_path) as weights:
        assert all(weights.tensor(name).item() == int(name) for name in weights)
        assert num_open(tmp_path) == MOST_OPEN
    assert num_open(tmp_path) == 0
