"""Which parameters decay, how fast each layer learns, and what is pulled."""

from __future__ import annotations

import pytest
from tiny_finetune import MODEL
from torch import nn

from wiseft_dist.config import OptimizerConfig
from wiseft_dist.errors import UserError
from wiseft_dist.finetune.groups import lr_scales, parameter_groups
from wiseft_dist.finetune.recipes import Pull
from wiseft_dist.models.clip import create_unweighted


@pytest.fixture(scope="module")
def clip() -> nn.Module:
    config = MODEL | {"vision_cfg": MODEL["vision_cfg"] | {"layers": 3}}
    return create_unweighted({"model_cfg": config, "preprocess_cfg": {}})


def groups_of(clip: nn.Module, pull: Pull | None = None, **settings: object) -> dict[str, tuple[float, float]]:
    """Weight decay and factor on the learning rate of every trained parameter."""
    config = OptimizerConfig.model_validate(settings)
    found: dict[str, tuple[float, float]] = {}
    for group in parameter_groups(clip, config, lambda name: pull):
        assert not found.keys() & group.names and len(group.names) == len(group.parameters)
        assert group.pull == pull
        found |= dict.fromkeys(group.names, (group.weight_decay, group.lr_scale))
    return found


def test_the_paper_decays_everything_alike(clip: nn.Module) -> None:
    assert groups_of(clip) == {name: (0.1, 1.0) for name, _ in clip.named_parameters()}


def test_biases_norms_and_scales_can_be_left_out(clip: nn.Module) -> None:
    found = groups_of(clip, decay_biases_and_norms=False, weight_decay=0.2)
    undecayed = {name for name, (decay, _) in found.items() if decay == 0.0}
    assert {decay for decay, _ in found.values()} == {0.0, 0.2}
    assert {"logit_scale", "visual.class_embedding", "visual.ln_post.weight", "ln_final.bias"} <= undecayed
    assert "visual.transformer.resblocks.0.mlp.c_fc.bias" in undecayed
    assert not {"visual.proj", "visual.conv1.weight", "positional_embedding", "token_embedding.weight"} & undecayed


def test_each_layer_learns_slower_than_the_one_above_it(clip: nn.Module) -> None:
    scales = {name: scale for name, (_, scale) in groups_of(clip, layer_decay=0.5).items()}
    for name, expected in {
        "visual.conv1.weight": 0.5**4,
        "visual.class_embedding": 0.5**4,
        "visual.transformer.resblocks.0.ln_1.weight": 0.5**3,
        "visual.transformer.resblocks.2.ln_1.weight": 0.5,
        "visual.ln_post.weight": 1.0,
        "visual.proj": 1.0,
        "token_embedding.weight": 0.5**2,
        "transformer.resblocks.0.ln_1.weight": 0.5,
        "ln_final.weight": 1.0,
        "text_projection": 1.0,
        "logit_scale": 1.0,
    }.items():
        assert scales[name] == expected, name


def test_layers_of_other_families_are_known_too() -> None:
    timm = ["patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.1.attn.qkv.weight", "norm.weight"]
    timm = [f"visual.trunk.{name}" for name in timm]
    assert [lr_scales(timm, 0.5)[name] for name in timm] == [0.125, 0.25, 0.5, 1.0]
    resnet = ["visual.conv1.weight", *(f"visual.layer{n}.0.conv1.weight" for n in (1, 2, 3, 4)), "head.weight"]
    assert [lr_scales(resnet, 0.5)[name] for name in resnet] == [0.5**5, 0.5**4, 0.5**3, 0.5**2, 0.5, 1.0]


def test_layers_without_known_names_are_refused() -> None:
    with pytest.raises(UserError, match=r"layer_decay is 0.5, but the tower of visual.stem.weight has no layers"):
        lr_scales(["visual.stem.weight", "visual.trunk.weird_3.weight"], 0.5)


def test_pulls_are_kept_apart(clip: nn.Module) -> None:
    assert groups_of(clip, pull=Pull(0.1, towards_start=True)).keys() == {name for name, _ in clip.named_parameters()}
    towards = Pull(0.1, towards_start=True)
    pulled = parameter_groups(clip, OptimizerConfig(), lambda name: towards if name.startswith("visual.") else None)
    assert [group.pull for group in pulled] == [None, towards] or [group.pull for group in pulled] == [towards, None]
    assert all(name.startswith("visual.") for group in pulled if group.pull for name in group.names)


def test_a_model_without_anything_to_train_is_refused() -> None:
    with pytest.raises(UserError, match="no parameter that this recipe trains"):
        parameter_groups(nn.GELU(), OptimizerConfig(), lambda name: None)
