"""Which weights were evaluated is told from the files as they are, not only from what was once written down of them."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file, save_file
from tiny_run import MODEL

from wiseft_dist.commits import committing, is_committed
from wiseft_dist.config import ModelConfig
from wiseft_dist.evaluate.standalone.model_sources import ModelSources, opened
from wiseft_dist.models.classifier import write_zero_shot
from wiseft_dist.models.clip import create_clip
from wiseft_dist.models.files import WEIGHTS_FILE


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.json").write_text(json.dumps({"model_cfg": MODEL}))
    with committing(tmp_path / "theta_0") as aside:
        write_zero_shot(aside, create_clip(ModelConfig(architecture=str(tmp_path / "model.json")), seed=0), None, None)
    return tmp_path / "theta_0"


def identity(folder):
    with opened(ModelSources(str(folder))) as found:
        return found.identity


def test_weights_that_were_replaced_in_a_committed_folder_are_other_weights_and_a_moved_folder_is_the_same(folder):
    before = identity(folder)
    moved = folder.rename(folder.with_name("moved"))
    assert identity(moved) == before
    weights = moved / WEIGHTS_FILE
    num_bytes = weights.stat().st_size
    save_file({name: value + 1 for name, value in load_file(weights).items()}, weights)
    assert weights.stat().st_size == num_bytes and is_committed(moved)
    assert identity(moved) != before
