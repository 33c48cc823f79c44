"""For a head on a frozen encoder, ensembles of weights and of outputs are the same (arXiv 2109.01903, section 2)."""

from __future__ import annotations

import pytest
import torch
from tiny_zero_shot import write_tiny_zero_shot
from torch import Tensor, nn

from wiseft_dist.config import FinetuneConfig
from wiseft_dist.finetune.recipes import make_recipe
from wiseft_dist.merge.methods.wise import interpolate
from wiseft_dist.models.classifier import read_classifier

ALPHAS = [index / 10 for index in range(11)]


@pytest.fixture(scope="module")
def features_and_heads(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensor, nn.Linear, nn.Linear]:
    """Features of pictures, theta_0's head, and the one that some steps of the recipe lead to."""
    zero_shot = write_tiny_zero_shot(tmp_path_factory.mktemp("theta_0") / "zero_shot")
    classifier, recipe = read_classifier(zero_shot), make_recipe(FinetuneConfig(recipe="linear_head"))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        features = classifier.features(torch.randn(64, 3, 16, 16, generator=generator))
    module = recipe.module(zero_shot)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.3)
    for _ in range(20):
        optimizer.zero_grad()
        recipe.loss(module, features, torch.randint(3, (64,), generator=generator)).backward()
        optimizer.step()
    return features, classifier.head, module.head


@torch.no_grad()
@pytest.mark.parametrize("alpha", ALPHAS)
def test_weight_space_and_output_space_ensembles_agree_to_rounding(
    features_and_heads: tuple[Tensor, nn.Linear, nn.Linear], alpha: float
) -> None:
    features, zero_shot, finetuned = features_and_heads
    ensemble = type(zero_shot)(*reversed(zero_shot.weight.shape))
    for name, value in ensemble.named_parameters():
        interpolate(zero_shot.get_parameter(name), finetuned.get_parameter(name), alpha, out=value)

    outputs = (1 - alpha) * zero_shot(features).double() + alpha * finetuned(features).double()
    scale = max(zero_shot(features).abs().max(), finetuned(features).abs().max()).item()
    assert (zero_shot(features) - finetuned(features)).abs().max() > 0.1 * scale
    rounding = 8 * torch.finfo(torch.float32).eps * scale
    torch.testing.assert_close(ensemble(features).double(), outputs, rtol=0, atol=rounding)
