"""The operations of a sample against the closed formula, and the peaks of devices."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import yaml
from tiny_zero_shot import write_tiny_zero_shot
from torch import Tensor, nn

from wiseft_dist.config import FinetuneConfig
from wiseft_dist.finetune.flops import DEVICES_FILE, named_peak, peak_flops, training_flops
from wiseft_dist.finetune.recipes import make_recipe
from wiseft_dist.models.classifier import Classifier, Head

IMAGE = torch.empty(1, 3, 224, 224, device="meta")
TOKENS = torch.empty(1, 77, dtype=torch.int64, device="meta")
CPU = torch.device("cpu")


def products(*sizes: int) -> int:
    """Operations of a matrix product: a multiplication and an addition each."""
    return 2 * math.prod(sizes)


def tower(tokens: int, width: int, layers: int) -> int:
    """Forward operations of a transformer: four projections, two products of attention, an MLP four times as wide."""
    return layers * (12 * products(tokens, width, width) + 2 * products(tokens, tokens, width))


PATCHES = products(196, 3 * 16 * 16, 768)
VIT_B_16 = PATCHES + tower(197, 768, 12) + products(768, 512)
TEXT = tower(77, 512, 12) + products(512, 512)
HEAD = products(512, 1000)


@pytest.fixture(scope="module")
def clip() -> Any:
    return open_clip.create_model("ViT-B-16", load_weights=False, device="meta")


def classifier(clip: Any) -> Classifier:
    return Classifier(copy.deepcopy(clip.visual), Head(512, 1000, device="meta"))


def test_a_vit_b_16_costs_what_the_formula_says() -> None:
    assert pytest.approx(35.1e9, rel=2e-3) == VIT_B_16


def test_a_trained_classifier_costs_three_forward_passes_but_for_the_gradient_of_the_pixels(clip: Any) -> None:
    assert training_flops(classifier(clip), IMAGE) == 3 * (VIT_B_16 + HEAD) - PATCHES


def test_a_whole_clip_model_costs_both_towers(clip: Any) -> None:
    assert training_flops(clip, IMAGE, TOKENS) == 3 * (VIT_B_16 + TEXT) - PATCHES


def test_a_frozen_tower_costs_its_forward_pass(clip: Any) -> None:
    module = classifier(clip)
    module.visual.requires_grad_(False)
    assert training_flops(module, IMAGE) == VIT_B_16 + 2 * HEAD


def test_activations_that_are_computed_again_are_not_counted(clip: Any) -> None:
    module = classifier(clip)
    module.visual.set_grad_checkpointing(True)
    assert training_flops(module, IMAGE) == 3 * (VIT_B_16 + HEAD) - PATCHES
    assert module.visual.transformer.grad_checkpointing


def test_a_linear_head_costs_its_product_and_its_gradient() -> None:
    assert training_flops(Head(512, 1000), torch.empty(1, 512, device="meta")) == 2 * HEAD


def test_every_recipes_module_is_counted_and_left_as_it_was(tmp_path: Path) -> None:
    zero_shot = write_tiny_zero_shot(tmp_path / "zero_shot")
    image, tokens = (torch.empty(1, 3, 16, 16, device="meta"), torch.empty(1, 8, dtype=torch.int64, device="meta"))
    inputs = {
        "linear_head": [torch.empty(1, 16, device="meta")],
        "flyp": [image, tokens],
        "contrastive": [image, tokens],
    }
    for recipe in ("end_to_end", "linear_head", "l2_sp", "flyp", "contrastive"):
        module = make_recipe(FinetuneConfig(recipe=recipe)).module(zero_shot)
        module.eval()
        before = {name: value.clone() for name, value in module.state_dict().items()}
        places = [parameter.data_ptr() for parameter in module.parameters()]
        torch.manual_seed(0)
        random = torch.get_rng_state()
        flops = training_flops(module, *inputs.get(recipe, [image]))
        assert flops is not None and flops > 0, recipe
        assert torch.equal(torch.get_rng_state(), random) and not module.training
        assert [parameter.data_ptr() for parameter in module.parameters()] == places
        assert all(parameter.grad is None and parameter.requires_grad for parameter in module.parameters())
        for name, value in module.state_dict().items():
            assert torch.equal(value, before[name]), name


def test_dropped_patches_cost_nothing() -> None:
    model = open_clip.create_model("ViT-B-16", load_weights=False, device="meta", force_patch_dropout=0.5)
    kept = PATCHES + tower(99, 768, 12) + products(768, 512)
    assert training_flops(model.visual, IMAGE) == 3 * kept - PATCHES


class AsksForValues(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) if inputs.sum().item() > 0 else inputs


def test_a_module_that_needs_values_is_not_counted() -> None:
    assert training_flops(AsksForValues(3, 4), torch.empty(1, 3, device="meta")) is None
    assert training_flops(nn.Identity(), torch.empty(1, 3, device="meta")) is None


@pytest.mark.parametrize(
    ("name", "precision", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA H200", "fp32", 66.9),
        ("NVIDIA GH200 480GB", "fp16", 989.4),
        ("NVIDIA A100-SXM4-40GB", "bf16", 312),
        ("NVIDIA A100 80GB PCIe", "fp32", 19.5),
        ("NVIDIA A10", "bf16", 125),
        ("NVIDIA A40", "bf16", 149.7),
        ("NVIDIA L4", "bf16", 121),
        ("NVIDIA L40S", "bf16", 362),
        ("Tesla V100-SXM2-16GB", "fp16", 125),
        ("Tesla V100-SXM2-16GB", "bf16", None),
        ("Tesla T4", "fp16", 65),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", None),
        ("NVIDIA GeForce RTX 3090 Ti", "bf16", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16", None),
        ("NVIDIA A10G", "bf16", None),
        ("NVIDIA B200", "bf16", 2250),
    ],
)
def test_a_device_has_the_peak_of_its_own_name_and_no_other(name: str, precision: Any, tflops: float | None) -> None:
    assert named_peak(name, precision) == (None if tflops is None else pytest.approx(tflops * 1e12))


def test_every_device_of_the_list_has_a_name_to_match_and_its_peaks() -> None:
    for entry in yaml.safe_load(DEVICES_FILE.read_text()):
        assert set(entry) <= {"name", "bf16", "fp16", "fp32"} and "fp32" in entry and "fp16" in entry
        re.compile(entry["name"])
        assert entry["fp16"] > entry["fp32"] and entry.get("bf16", entry["fp16"]) == entry["fp16"]


def test_a_cpu_has_no_peak_but_the_one_it_is_given() -> None:
    assert peak_flops(CPU, "bf16") is None
    assert peak_flops(CPU, "fp32", 1.5) == 1.5e12
