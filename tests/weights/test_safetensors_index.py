"""Models whose index spreads them over several safetensors files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from wiseft_dist.errors import UserError
from wiseft_dist.weights.sources import open_weights

FILES = {"a": "m-1.safetensors", "b": "m-1.safetensors", "c": "m-2.safetensors"}


@pytest.fixture
def indexed(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """A folder whose index says that tensors are in these files."""
    safetensors.torch.save_file({"a": torch.ones(2), "b": torch.zeros(0)}, tmp_path / "m-1.safetensors")
    safetensors.torch.save_file({"c": torch.full((3,), 3.0)}, tmp_path / "m-2.safetensors")

    def write(files: dict[str, Any]) -> Path:
        (tmp_path / "m.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
        return tmp_path

    return write


@pytest.mark.parametrize("name", ["", "m.safetensors.index.json"])
def test_a_model_is_opened_by_its_folder_or_its_index(indexed: Callable[[dict[str, Any]], Path], name: str):
    folder = indexed(FILES)
    safetensors.torch.save_file({"else": torch.ones(2)}, folder / "other.safetensors")
    with open_weights(folder / name) as weights:
        assert weights.keys() == {"a", "b", "c"}
        assert weights.tensor("c").tolist() == [3, 3, 3]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (FILES | {"c": "m-3.safetensors"}, r"m-3\.safetensors: this file of the checkpoint is missing"),
        (FILES | {"a": "m-2.safetensors"}, r"index\.json: lists a in m-2\.safetensors, which does not hold it"),
        (FILES | {"d": "m-2.safetensors"}, r"index\.json: lists d in m-2\.safetensors, which does not hold it"),
        ({"a": FILES["a"], "c": FILES["c"]}, r"index\.json: does not list b, which is in one of its files"),
        (FILES | {"a": "../secret.safetensors"}, r"index\.json: not a readable index"),
        (FILES | {"a": "/etc/passwd"}, r"index\.json: not a readable index"),
        (FILES | {"a": 3}, r"index\.json: not a readable index"),
    ],
)
def test_an_index_that_lies_is_refused(indexed: Callable[[dict[str, Any]], Path], files: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        open_weights(indexed(files))


def test_two_indexes_in_a_folder_are_two_models(indexed: Callable[[dict[str, Any]], Path]):
    folder = indexed(FILES)
    (folder / "n.safetensors.index.json").write_text((folder / "m.safetensors.index.json").read_text())
    with pytest.raises(UserError, match=r"holds two models, m\.safe.* and n\.safe.*; name one of them"):
        open_weights(folder)
    assert open_weights(folder / "n.safetensors.index.json").keys() == {"a", "b", "c"}
