"""Losses and gradients of every recipe against its formula, written out in fp64 on a real model in one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rank_gradients import global_batch, on_rank
from tiny_zero_shot import write_tiny_zero_shot
from torch import Tensor, nn

from wiseft_dist.config import FinetuneConfig
from wiseft_dist.data.vocabulary import Vocabulary
from wiseft_dist.finetune.recipes import make_recipe
from wiseft_dist.models.classifier import Head, read_classifier, read_clip, write_head

LABELS = torch.tensor([0, 1, 2, 0, 1, 0])


@pytest.fixture(scope="module")
def zero_shot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_zero_shot(tmp_path_factory.mktemp("theta_0") / "zero_shot")


def normalized(vectors: Tensor) -> Tensor:
    return vectors / vectors.square().sum(dim=1, keepdim=True).sqrt()


def contrastive_reference(module: nn.Module, images: Tensor, tokens: Tensor) -> Tensor:
    """-log of the chance of the right text and of the right image."""
    scale = module.logit_scale.exp().clamp(max=100)
    logits = scale * normalized(module.encode_image(images)) @ normalized(module.encode_text(tokens)).T
    right = logits.diagonal()
    return ((logits.logsumexp(dim=1) - right).mean() + (logits.logsumexp(dim=0) - right).mean()) / 2


def cross_entropy_reference(features: Tensor, head: nn.Linear, smoothing: float) -> Tensor:
    """-log of the chance of the smoothed labels."""
    wanted = torch.eye(3, dtype=torch.float64)[LABELS] * (1 - smoothing) + smoothing / 3
    logits = features @ head.weight.T + head.bias
    return -(wanted * (logits - logits.logsumexp(dim=1, keepdim=True))).sum(dim=1).mean()


def assert_gradients_are(found: dict[str, Tensor], reference: nn.Module) -> None:
    """Recipes compute the loss in fp32, so it is to fp32's rounding of each parameter's largest gradient."""
    wanted = {name: parameter.grad for name, parameter in reference.named_parameters() if parameter.grad is not None}
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        largest = float(gradient.abs().max())
        assert largest > 1e-7, name
        torch.testing.assert_close(found[name].reshape(gradient.shape), gradient, rtol=1e-4, atol=1e-5 * largest)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in module.named_parameters()}


@pytest.fixture(scope="module")
def ranks_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks found."""
    folder = tmp_path_factory.mktemp("ranks")
    write_tiny_zero_shot(folder / "zero_shot")
    torch.multiprocessing.spawn(on_rank, (2, str(folder), ("contrastive", "flyp")), nprocs=2)
    return folder


@pytest.mark.parametrize("recipe", ["contrastive", "flyp"])
def test_two_ranks_have_the_loss_and_gradient_of_the_one_global_batch(ranks_folder: Path, recipe: str) -> None:
    zero_shot = ranks_folder / "zero_shot"
    reference = read_clip(zero_shot).model.double()
    loss = contrastive_reference(reference, *global_batch(zero_shot))
    loss.backward()
    for rank in range(2):
        found = torch.load(ranks_folder / f"{recipe}_{rank}.pt")
        torch.testing.assert_close(found.pop("loss"), loss.detach(), check_dtype=False, rtol=1e-5, atol=0)
        assert_gradients_are(found, reference)


@pytest.mark.parametrize("recipe", ["contrastive", "flyp"])
@pytest.mark.parametrize("log_scale", [2.0, 9.0])
def test_the_contrastive_logits_are_scaled_by_no_more_than_a_hundred(
    zero_shot: Path, recipe: str, log_scale: float
) -> None:
    made, reference = make_recipe(FinetuneConfig(recipe=recipe)), read_clip(zero_shot).model.double()
    module, batch = made.module(zero_shot).double(), global_batch(zero_shot)
    with torch.no_grad():
        module.logit_scale.fill_(log_scale)
        reference.logit_scale.fill_(log_scale)
        expected = contrastive_reference(reference, *batch)
        torch.testing.assert_close(made.loss(module, *batch), expected, check_dtype=False, rtol=1e-4, atol=0)


@pytest.mark.parametrize("recipe", ["end_to_end", "lp_ft"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_everything_is_fine_tuned_on_the_mean_cross_entropy(
    tmp_path: Path, zero_shot: Path, recipe: str, smoothing: float
) -> None:
    reference = read_classifier(zero_shot).double()
    if recipe == "lp_ft":
        reference.head = Head(16, 3)
        write_head(tmp_path, reference.head, Vocabulary(("a", "b", "c"), ("{c}",)))
        reference.double()
    images, _ = global_batch(zero_shot)
    cross_entropy_reference(normalized(reference.visual(images)), reference.head, smoothing).backward()

    made = make_recipe(FinetuneConfig(recipe=recipe, label_smoothing=smoothing), head=tmp_path)
    module = made.module(zero_shot).double()
    made.loss(module, images, LABELS).backward()
    assert_gradients_are(gradients(module), reference)
    assert all(made.pull(name) is None for name in gradients(module))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_linear_head_is_trained_on_the_mean_cross_entropy_of_features(zero_shot: Path, smoothing: float) -> None:
    reference = read_classifier(zero_shot).double()
    with torch.no_grad():
        features = normalized(reference.visual(global_batch(zero_shot)[0]))
    cross_entropy_reference(features, reference.head, smoothing).backward()

    made = make_recipe(FinetuneConfig(recipe="linear_head", label_smoothing=smoothing))
    module = made.module(zero_shot).double()
    made.loss(module, features, LABELS).backward()
    assert set(gradients(module)) == {"head.weight", "head.bias"}
    assert_gradients_are(gradients(module), reference)


def test_l2_sp_pulls_the_encoder_towards_its_start_and_the_head_towards_zero(zero_shot: Path) -> None:
    made = make_recipe(FinetuneConfig.model_validate({"recipe": "l2_sp", "l2_sp": {"backbone": 0.3, "head": 0.7}}))
    module, reference = made.module(zero_shot).double(), read_classifier(zero_shot).double()
    start = {name: value.detach().clone() for name, value in reference.named_parameters()}
    moved = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=moved, dtype=torch.float64)
            module.get_parameter(name).copy_(parameter)

    images, _ = global_batch(zero_shot)
    loss = cross_entropy_reference(normalized(reference.visual(images)), reference.head, 0.0)
    for name, parameter in reference.named_parameters():
        if name in ("head.weight", "head.bias"):
            loss = loss + 0.7 / 2 * parameter.square().sum()
        else:
            loss = loss + 0.3 / 2 * (parameter - start[name]).square().sum()
    loss.backward()

    made.loss(module, images, LABELS).backward()
    found = gradients(module)
    for name, parameter in module.named_parameters():
        pull = made.pull(name)
        assert pull is not None
        anchor = start[name] if pull.towards_start else torch.zeros_like(parameter)
        found[name] = found[name] + pull.strength * (parameter.detach() - anchor)
    assert_gradients_are(found, reference)


def test_l2_sp_of_no_strength_pulls_nothing() -> None:
    made = make_recipe(FinetuneConfig.model_validate({"recipe": "l2_sp", "l2_sp": {"backbone": 0, "head": 0.7}}))
    assert made.pull("visual.proj") is None
    assert made.pull("head.bias") is not None
