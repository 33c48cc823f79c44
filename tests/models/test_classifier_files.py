"""What is written for a classifier comes back as it was, and is a model that open_clip itself loads."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from tiny_clip import MODEL, plain_open_clip, same_weights, write_json
from torch import nn

from wiseft_dist.data.vocabulary import Vocabulary
from wiseft_dist.merge.methods.wise import Wise
from wiseft_dist.merge.writer import write_ensembles
from wiseft_dist.models.classifier import (
    Classifier,
    read_classifier,
    read_clip,
    read_head,
    read_vocabulary,
    write_zero_shot,
)
from wiseft_dist.models.clip import Clip
from wiseft_dist.models.files import CLASSES_FILE, CONFIG_FILE
from wiseft_dist.weights.pairing import match
from wiseft_dist.weights.sources import open_weights

VOCABULARY = Vocabulary(("dog", "guitar", "tench"), ("a photo of a {c}.", "une photo d'un·e {c}."))
CONFIG = {
    "model_cfg": MODEL,
    "preprocess_cfg": {
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.2, 0.2],
        "interpolation": "bilinear",
        "resize_mode": "squash",
    },
}


@pytest.fixture
def clip() -> Clip:
    return Clip(plain_open_clip(), CONFIG)


@pytest.fixture
def folder(clip: Clip, tmp_path: Path) -> Path:
    torch.manual_seed(1)
    (tmp_path / "written").mkdir()
    write_zero_shot(tmp_path / "written", clip, nn.Linear(16, 3), VOCABULARY)
    return tmp_path / "written"


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def test_a_classifier_has_neither_text_tower_nor_logit_scale(clip: Clip) -> None:
    names = set(Classifier(clip.model.visual, nn.Linear(16, 3)).state_dict())
    assert {name.split(".")[0] for name in names} == {"visual", "head"}
    assert {name for name in names if name.startswith("visual.")} < set(clip.model.state_dict())


def test_features_have_length_one_and_logits_are_the_head_on_them(clip: Clip, images: torch.Tensor) -> None:
    classifier = Classifier(clip.model.visual, nn.Linear(16, 3))
    features = classifier.features(images)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(5))
    assert torch.equal(classifier(images), features @ classifier.head.weight.T + classifier.head.bias)


def test_what_was_written_is_read_back(folder: Path, clip: Clip) -> None:
    torch.manual_seed(1)
    head = nn.Linear(16, 3)
    assert same_weights(read_head(folder).state_dict(), head.state_dict())
    classifier = read_classifier(folder)
    assert same_weights(classifier.state_dict(), Classifier(clip.model.visual, head).state_dict())
    assert read_vocabulary(folder) == VOCABULARY
    again = read_clip(folder)
    assert same_weights(again.model.state_dict(), clip.model.state_dict())
    assert again.config == clip.config and again.preprocess == clip.preprocess


def test_open_clip_loads_the_folder_with_weights_and_preprocessing(
    folder: Path, clip: Clip, images: torch.Tensor
) -> None:
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    assert torch.equal(model.eval().encode_image(images), clip.model.encode_image(images))
    preprocess = model.visual.preprocess_cfg
    written = CONFIG["preprocess_cfg"]
    assert {name: preprocess[name] for name in written} == written


def test_open_clip_loads_the_file_by_the_architectures_name(
    folder: Path, clip: Clip, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("open_clip.factory._MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    monkeypatch.setattr("open_clip.factory._MODEL_CONFIG_PATHS", list(open_clip.factory._MODEL_CONFIG_PATHS))
    open_clip.add_model_config(write_json(folder.parent / "ViT-tiny-written.json"))
    weights = str(folder / "open_clip_model.safetensors")
    model, _, _ = open_clip.create_model_and_transforms("ViT-tiny-written", pretrained=weights)
    assert torch.equal(model.eval().encode_image(images), clip.model.encode_image(images))


def test_a_model_without_a_head_is_written_without_one(clip: Clip, tmp_path: Path) -> None:
    write_zero_shot(tmp_path, clip, None, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["open_clip_config.json", "open_clip_model.safetensors"]


def test_an_ensemble_in_shards_is_read_as_the_model_that_it_is(clip: Clip, folder: Path, tmp_path: Path) -> None:
    small = {name: (folder / name).read_bytes() for name in (CONFIG_FILE, CLASSES_FILE)}
    with open_weights(folder) as model:
        write_ensembles(
            match(model, [model]),
            Wise(),
            {0.5: tmp_path / "sharded"},
            dtype=torch.float32,
            side_files=lambda alpha, inputs: small,
            max_shard_bytes=200_000,
        )
    assert len(list((tmp_path / "sharded").glob("model-*-of-*.safetensors"))) > 1
    assert same_weights(read_clip(tmp_path / "sharded").model.state_dict(), clip.model.state_dict())
    expected = read_classifier(folder).state_dict()
    assert same_weights(read_classifier(tmp_path / "sharded").state_dict(), expected)
