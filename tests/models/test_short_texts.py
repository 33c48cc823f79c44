"""Leaving out the padding of texts changes no embedding and no gradient."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

from wiseft_dist.data.batch import stack_targets
from wiseft_dist.models.clip import create_unweighted, tokenizer_of
from wiseft_dist.models.short_texts import let_texts_be_short, reads_short_texts, without_padding

MODEL: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "head_width": 16, "layers": 1},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
CONFIG = {"model_cfg": MODEL, "preprocess_cfg": {}}
TEXTS = ["a dog.", "a photo of a great white shark, seen from far away through quite dirty water."]


def test_embeddings_and_gradients_are_those_of_whole_texts() -> None:
    torch.manual_seed(0)
    whole = create_unweighted(CONFIG).double()
    short = copy.deepcopy(whole)
    let_texts_be_short(short, CONFIG)
    tokens = tokenizer_of(CONFIG)(TEXTS)
    cut = stack_targets([without_padding(row) for row in tokens.numpy()])
    assert tokens.shape == (2, 77) and cut.shape == (2, 32)
    assert len(without_padding(tokens[0].numpy())) == 16

    weights = torch.randn(2, 16, dtype=torch.float64)
    expected, found = whole.encode_text(tokens, normalize=True), short.encode_text(cut, normalize=True)
    torch.testing.assert_close(found, expected)
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    gradients = dict(short.named_parameters())
    for name, parameter in whole.named_parameters():
        if parameter.grad is None:
            assert gradients[name].grad is None, name
        else:
            torch.testing.assert_close(gradients[name].grad, parameter.grad)


def test_a_text_that_fills_its_context_is_not_cut() -> None:
    tokens = tokenizer_of(CONFIG)(["a very long text " * 40])[0].numpy()
    assert np.array_equal(without_padding(tokens), tokens)


@pytest.mark.parametrize(
    ("text_cfg", "more"),
    [
        ({"no_causal_mask": True}, {}),
        ({"pool_type": "last"}, {}),
        ({"embed_cls": True}, {}),
        ({"hf_model_name": "roberta-base"}, {}),
        ({}, {"custom_text": True}),
    ],
)
def test_other_towers_keep_their_padding(text_cfg: dict[str, Any], more: dict[str, Any]) -> None:
    config = {"model_cfg": MODEL | {"text_cfg": MODEL["text_cfg"] | text_cfg} | more}
    assert reads_short_texts(CONFIG) and not reads_short_texts(config)


def test_a_model_of_another_class_is_left_alone() -> None:
    config = {"model_cfg": MODEL | {"custom_text": True}, "preprocess_cfg": {}}
    model = create_unweighted(config)
    let_texts_be_short(model, config)
    assert type(model) is open_clip.CustomTextCLIP
