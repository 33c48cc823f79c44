"""open_clip's pretrained tags as sources of weights. Nothing is downloaded: the file lies in open_clip's cache."""

from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import safetensors.torch
import torch

from wiseft_dist.errors import UserError
from wiseft_dist.weights.sources import open_weights

TAG = "ViT-B-32:openai"


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the hub's client, which is told to stay off the network, looks for the file of that tag."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    known = open_clip.get_pretrained_cfg("ViT-B-32", "openai")
    repository = tmp_path / f"models--{known['hf_hub'].rstrip('/').replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    return repository / "snapshots" / ("0" * 40) / "open_clip_model.safetensors"


@pytest.mark.parametrize("source", [TAG, "ViT-B/32:openai"])
def test_a_tag_whose_file_is_in_the_cache_is_opened(cached: Path, source: str):
    safetensors.torch.save_file({"logit_scale": torch.tensor(4.6), "visual.proj": torch.ones(2, 3)}, cached)
    with open_weights(source) as weights:
        assert weights.tensor("visual.proj").shape == (2, 3)
        assert weights.tensor("logit_scale") == torch.tensor(4.6)
        assert weights.files() == [cached]


def test_a_file_of_another_librarys_names_is_refused(cached: Path):
    safetensors.torch.save_file({"image_encoder.model.proj": torch.ones(2)}, cached)
    with pytest.raises(UserError, match=rf"{TAG}: its file names tensors as another .*image_encoder\.model\.proj"):
        open_weights(TAG)


def test_what_cannot_be_downloaded_is_a_sentence(cached: Path):
    with pytest.raises(UserError, match=f"{TAG}: could not be downloaded"):
        open_weights(TAG)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("ViT-B-23:openai", r"ViT-B-23 is no architecture of open_clip \(near: .*ViT-B-32"),
        ("Nothing:openai", r"Nothing is no architecture of open_clip"),
        ("ViT-B/32:laion2b_s34b_b79", r"no weights laion2b_s34b_b79 for ViT-B-32 \(near: laion2b_s34b_b79k"),
        ("ViT-B-32:quite_else", r"no weights quite_else for ViT-B-32; it has: openai, laion400m_e31"),
        ("ViT-B-32", "ViT-B-32: no such checkpoint"),
        ("C:\\models\\m.pt", "no such checkpoint"),
    ],
)
def test_an_unknown_architecture_or_tag_is_answered_with_near_ones(source: str, message: str):
    with pytest.raises(UserError, match=message):
        open_weights(source)


def test_a_file_with_a_colon_in_its_name_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    torch.save({"a": torch.ones(1)}, tmp_path / "ViT-B-32:openai")
    monkeypatch.chdir(tmp_path)
    assert open_weights("ViT-B-32:openai").keys() == {"a"}
