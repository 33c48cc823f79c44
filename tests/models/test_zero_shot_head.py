"""The zero-shot head is section 2 of arXiv 2109.01903, and with it a classifier is the CLIP it came from."""

from __future__ import annotations

import os
from pathlib import Path

import open_clip
import pytest
import torch
from tiny_clip import MODEL, plain_open_clip
from torch.nn import functional

from wiseft_dist.config import ModelConfig
from wiseft_dist.data.vocabulary import Vocabulary
from wiseft_dist.models.classifier import read_classifier, write_zero_shot
from wiseft_dist.models.clip import Clip, create_clip
from wiseft_dist.models.zero_shot import zero_shot_head

CPU = torch.device("cpu")
CLASSNAMES = ("dog", "guitar", "traffic light")
TEMPLATES = ("a photo of a {c}.", "a sketch of the {c}, seen twice: {c}.")


@pytest.fixture
def clip() -> Clip:
    return Clip(plain_open_clip(), {"model_cfg": MODEL, "preprocess_cfg": {}})


def test_a_class_is_the_normalised_mean_of_its_normalised_prompts_times_the_scale(clip: Clip) -> None:
    head = zero_shot_head(clip, CLASSNAMES, TEMPLATES, device=CPU)

    tokenize = open_clip.tokenizer.SimpleTokenizer(context_length=8)
    rows = []
    with torch.no_grad():
        for name in CLASSNAMES:
            prompts = [f"a photo of a {name}.", f"a sketch of the {name}, seen twice: {name}."]
            embeddings = clip.model.encode_text(tokenize(prompts))
            embeddings = embeddings / embeddings.norm(dim=-1, keepdim=True)
            mean = embeddings.mean(dim=0)
            rows.append(clip.model.logit_scale.exp() * mean / mean.norm())
    torch.testing.assert_close(head.weight, torch.stack(rows))


def test_the_bias_is_zero_and_every_row_is_as_long_as_the_scale(clip: Clip) -> None:
    head = zero_shot_head(clip, CLASSNAMES, TEMPLATES, device=CPU)
    assert torch.equal(head.bias, torch.zeros(3))
    torch.testing.assert_close(head.weight.norm(dim=1), torch.full((3,), 3.7).exp())
    assert head.weight.requires_grad


def test_prompts_are_encoded_alike_in_one_pass_and_in_many(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = zero_shot_head(clip, CLASSNAMES, TEMPLATES, device=CPU)
    monkeypatch.setattr("wiseft_dist.models.zero_shot.TEXTS_PER_PASS", 4)
    torch.testing.assert_close(zero_shot_head(clip, CLASSNAMES, TEMPLATES, device=CPU).weight, whole.weight)


@pytest.mark.pictures
def test_a_real_model_gives_the_logits_that_open_clip_gives(tmp_path: Path) -> None:
    if "WISEFT_TEST_DATA" not in os.environ:
        pytest.skip("WISEFT_TEST_DATA is not set: it names the folder with the real model")
    folder = Path(os.environ["WISEFT_TEST_DATA"]) / "models" / "pacs-clip"
    clip = create_clip(ModelConfig(architecture=str(folder)))
    template = ("a photo of a {c}.",)
    head = zero_shot_head(clip, CLASSNAMES, template, device=CPU)
    write_zero_shot(tmp_path, clip, head, Vocabulary(CLASSNAMES, template))
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))

    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    texts = open_clip.get_tokenizer(f"local-dir:{folder}")([f"a photo of a {name}." for name in CLASSNAMES])
    model.eval()
    with torch.no_grad():
        image_features = functional.normalize(model.encode_image(images), dim=-1)
        text_features = functional.normalize(model.encode_text(texts), dim=-1)
        expected = model.logit_scale.exp() * image_features @ text_features.T
        logits = read_classifier(tmp_path).eval()(images)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.1
