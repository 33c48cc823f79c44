"""Losses and gradients of the recipes against formulas written out in fp64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rank_gradients import Towers, global_batch, on_rank
from tiny_finetune import MODEL
from torch import Tensor

from wiseft_dist.config import FinetuneConfig
from wiseft_dist.errors import UserError
from wiseft_dist.finetune.recipes import make_recipe
from wiseft_dist.models.classifier import write_zero_shot
from wiseft_dist.models.clip import Clip, create_unweighted

CONFIG = {"model_cfg": MODEL, "preprocess_cfg": {}}


def contrastive_reference(module: Towers, images: Tensor, texts: Tensor) -> Tensor:
    """-log of the chance of the right caption and of the right image, written out."""
    image_features, text_features, scale = module(images, texts)
    logits = scale * image_features @ text_features.T
    right = logits.diagonal()
    return ((logits.logsumexp(dim=1) - right).mean() + (logits.logsumexp(dim=0) - right).mean()) / 2


def test_two_ranks_have_the_loss_and_gradient_of_the_one_global_batch(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(on_rank, (2, str(tmp_path)), nprocs=2)

    module = Towers()
    loss = contrastive_reference(module, *global_batch())
    loss.backward()
    for rank in range(2):
        found = torch.load(tmp_path / f"rank_{rank}.pt")
        torch.testing.assert_close(found.pop("loss"), loss.detach(), check_dtype=False, rtol=1e-5, atol=0)
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)
            assert parameter.grad.abs().max() > 1e-3, name


def test_the_contrastive_logits_are_scaled_by_no_more_than_a_hundred() -> None:
    recipe = make_recipe(FinetuneConfig(recipe="contrastive"))
    module, batch = Towers(), global_batch()
    with torch.no_grad():
        module.logit_scale.fill_(9.0)
        found = recipe.loss(module, *batch)
        module.logit_scale.copy_(torch.tensor([100.0]).log())
        torch.testing.assert_close(found, contrastive_reference(module, *batch), check_dtype=False, rtol=1e-4, atol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_end_to_end_is_the_mean_cross_entropy(smoothing: float) -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(6, 4, generator=generator, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    recipe = make_recipe(FinetuneConfig(label_smoothing=smoothing))
    recipe.loss(lambda images: images, logits, labels).backward()

    wanted = torch.eye(4, dtype=torch.float64)[labels] * (1 - smoothing) + smoothing / 4
    probabilities = logits.detach().double().softmax(dim=1)
    torch.testing.assert_close(logits.grad, ((probabilities - wanted) / 6).float(), rtol=1e-5, atol=1e-7)


def test_the_contrastive_module_is_all_of_open_clip_with_a_scale_that_can_be_sharded(tmp_path: Path) -> None:
    clip = create_unweighted(CONFIG)
    write_zero_shot(tmp_path, Clip(clip, CONFIG), None, None)
    module = make_recipe(FinetuneConfig(recipe="contrastive")).module(tmp_path)
    assert module.state_dict().keys() == clip.state_dict().keys()
    assert module.logit_scale.shape == (1,) and module.logit_scale.requires_grad
    assert module.logit_scale.item() == clip.logit_scale.item()


def test_a_model_made_for_the_sigmoid_loss_is_refused(tmp_path: Path) -> None:
    config = {"model_cfg": MODEL | {"init_logit_bias": -10}, "preprocess_cfg": {}}
    write_zero_shot(tmp_path, Clip(create_unweighted(config), config), None, None)
    with pytest.raises(UserError, match="SigLIP"):
        make_recipe(FinetuneConfig(recipe="contrastive")).module(tmp_path)
