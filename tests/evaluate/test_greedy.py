"""A greedy soup is chosen by ID-val's own metric, and chosen again where anything that decides it has changed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import wiseft_dist
from wiseft_dist.config import DatasetSpec
from wiseft_dist.data.stage import index
from wiseft_dist.evaluate.cells.store import CellStore
from wiseft_dist.evaluate.greedy import _Trials, choose_soup
from wiseft_dist.evaluate.predictions import Member
from wiseft_dist.weights.finetuned import open_finetuned


def with_metric(config, metric):
    data = config.data.model_copy(update={"datasets": {"id_val": DatasetSpec(metric=metric)}})
    return config.model_copy(update={"data": data})


@pytest.fixture
def soup(copied, tmp_path):
    """A run, and a further model that finds class 0 in every picture."""
    config = copied.load_config()
    with open_finetuned(config, copied) as weights:
        further = {name: weights.tensor(name) for name in weights}
    further["head.bias"] = further["head.bias"] + torch.tensor([1e4, 0, 0])
    save_file(further, tmp_path / "further.safetensors")
    models = {"method": "greedy_soup", "models": (str(tmp_path / "further.safetensors"),)}
    return config.model_copy(update={"merge": config.merge.model_copy(update=models)}), copied


def test_the_metric_of_id_val_decides_and_whatever_decides_its_value_is_asked_again(soup, monkeypatch):
    config, run = soup
    by_f1 = with_metric(config, "macro_f1")
    labels = CellStore.of_run(run.load_config(), run).read("id_val", [Member(1.0)]).labels[:, 0]
    share = (labels == 0).mean()
    choose_soup(by_f1, run)
    record = json.loads(run.soup_file.read_text())
    assert record["accuracies"].keys() == {"0", "1", "0+1"}
    assert record["chosen"] == [0]
    # One of three classes is found whenever it is there, with this precision; top-1 would be the share itself.
    assert record["accuracies"]["1"] == pytest.approx(2 * share / (1 + share) / 3)
    assert _Trials(by_f1, run).chosen == record["chosen"]
    assert _Trials(config, run).chosen is None  # by top-1
    with monkeypatch.context() as patch:
        patch.setattr(wiseft_dist, "__version__", "another")
        assert _Trials(by_f1, run).chosen is None


def test_training_shards_that_changed_in_place_are_tried_again(soup, tmp_path):
    config, run = soup
    shutil.copytree(config.data.train, tmp_path / "data" / "train")
    for vocabulary in Path(config.data.train).parent.glob("*.txt"):
        shutil.copy(vocabulary, tmp_path / "data")
    data = config.data.model_copy(update={"train": str(tmp_path / "data" / "train")})
    config = config.model_copy(update={"data": data})
    index(config, run)
    trials = _Trials(config, run)
    trials.choose([1])
    index(config, run)
    assert _Trials(config, run).chosen == [1]
    shard = tmp_path / "data" / "train" / "0.tar"
    os.utime(shard, ns=(0, shard.stat().st_mtime_ns + 10**9))
    index(config, run)
    assert _Trials(config, run).chosen is None
