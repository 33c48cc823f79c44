"""An alpha for each tensor: patterns, LiNeS, and both around any method."""

from __future__ import annotations

import open_clip
import pytest
from merging import learn, merged, mixed, several
from real_checkpoints import same_bits

from wiseft_dist.config import MergeConfig
from wiseft_dist.errors import UserError
from wiseft_dist.merge.methods.choice import make_method
from wiseft_dist.merge.methods.lines import depth_factors
from wiseft_dist.merge.methods.method import Method
from wiseft_dist.merge.methods.ties import Ties
from wiseft_dist.merge.methods.wise import Wise

BLOCKS = {f"visual.transformer.resblocks.{index}.mlp.c_fc.weight": (7, 3) for index in range(12)}
SHAPES = BLOCKS | {"visual.conv1.weight": (5,), "visual.proj": (4,), "head.weight": (3,)}


def method_with(**settings: object) -> Method:
    return make_method(MergeConfig.model_validate(settings))


def check(settings: dict[str, object], alpha: float, wanted: dict[str, float]) -> None:
    """Each tensor named is the plain method's at the alpha wanted; the others are at the ensemble's."""
    models = several(1, shapes=SHAPES)
    found, plain = merged(method_with(**settings), models, alpha), learn(Wise(), models)
    for name, value in found.items():
        expected = mixed(plain, models, wanted.get(name, alpha))[name]
        assert same_bits(value, expected), name


def test_the_first_pattern_that_matches_counts():
    block = "visual.transformer.resblocks.{}.mlp.c_fc.weight"
    layers = {
        block.format("1[01]"): {"alpha": 0.9},
        "visual.transformer.*": {"scale": 0.5},
        block.format("3"): {"alpha": 0.1},
        "*.weight": {"scale": 1.5},
    }
    wanted = dict.fromkeys(BLOCKS, 0.2) | {block.format(index): 0.9 for index in (10, 11)}
    check({"layers": layers}, 0.4, wanted | {"visual.conv1.weight": 0.4 * 1.5, "head.weight": 0.4 * 1.5})


def test_a_scaled_alpha_is_cut_off_at_one():
    check({"layers": {"head.*": {"scale": 3}}}, 0.4, {"head.weight": 1.0})


@pytest.mark.parametrize("layers", [{"*": {"alpha": 0.7}}, {"*": {"scale": 2}}])
def test_alpha_zero_stays_theta_0(layers):
    check({"layers": layers}, 0.0, {})


def test_an_alpha_of_its_own_does_not_follow_the_ensembles():
    for alpha in (0.1, 1.0):
        check({"layers": {"visual.proj": {"alpha": 0.3}}}, alpha, {"visual.proj": 0.3})
        check({"layers": {"visual.proj": {"alpha": 0}}}, alpha, {"visual.proj": 0.0})


def test_lines_grows_linearly_with_depth():
    wanted = {name: 0.8 * (0.2 + 0.8 * index / 11) for index, name in enumerate(BLOCKS)}
    check({"lines": 0.2}, 0.8, wanted | {"visual.conv1.weight": 0.8 * 0.2})


def test_lines_multiplies_scales_and_leaves_fixed_alphas_alone():
    first, *_, last = BLOCKS
    layers = {first: {"scale": 0.5}, last: {"alpha": 0.25}, "visual.conv1.*": {"alpha": 0.75}}
    wanted = {name: index / 11 for index, name in enumerate(BLOCKS)}
    wanted |= {first: 0.0, last: 0.25, "visual.conv1.weight": 0.75}
    check({"lines": 0, "layers": layers}, 1.0, wanted)


def test_lines_of_one_is_the_plain_method():
    check({"lines": 1.0}, 0.37, {})


def test_a_method_with_statistics_keeps_them_under_layers():
    models = several(2)
    found = merged(method_with(method="ties", density=0.5, layers={"*": {"scale": 0.5}}), models, 1.0)
    wanted = merged(Ties(0.5), models, 0.5)
    assert all(same_bits(found[name], wanted[name]) for name in wanted)


def test_provenance_holds_each_tensors_alpha_or_factor():
    settings = {"lines": 0.5, "layers": {"head.*": {"alpha": 0.1}}}
    described = learn(method_with(**settings), several(1, shapes=SHAPES)).describe()
    assert described["name"] == "wise"
    assert described["lines"] == 0.5
    assert described["fixed_alphas"] == {"head.weight": 0.1}
    assert described["factors"].keys() == SHAPES.keys() - {"head.weight"}
    assert described["factors"]["visual.conv1.weight"] == 0.5


def test_each_tower_has_its_own_depth():
    names = [f"visual.transformer.resblocks.{index}.attn.in_proj_weight" for index in range(24)]
    names += [f"transformer.resblocks.{index}.attn.in_proj_weight" for index in range(12)]
    factors = depth_factors(names, 0.0)
    assert factors["visual.transformer.resblocks.11.attn.in_proj_weight"] == pytest.approx(11 / 23)
    assert factors["transformer.resblocks.11.attn.in_proj_weight"] == 1.0


@pytest.mark.parametrize(
    ("architecture", "shallow", "deep"),
    [
        (
            "ViT-B-32",
            ["visual.conv1.weight", "visual.ln_pre.bias", "positional_embedding", "token_embedding.weight"],
            ["visual.ln_post.weight", "visual.proj", "text_projection", "logit_scale", "ln_final.weight"],
        ),
        (
            "ViT-B-16-SigLIP",
            ["visual.trunk.patch_embed.proj.weight", "visual.trunk.pos_embed", "text.token_embedding.weight"],
            [
                "visual.trunk.norm.weight",
                "visual.trunk.attn_pool.q.weight",
                "text.text_projection.weight",
                "logit_bias",
            ],
        ),
        (
            "EVA02-B-16",
            ["visual.trunk.patch_embed.proj.weight", "visual.trunk.cls_token", "text.positional_embedding"],
            ["visual.trunk.norm.weight", "visual.trunk.head.weight", "text.text_projection"],
        ),
        ("coca_ViT-B-32", ["visual.conv1.weight", "text.cls_emb"], ["visual.attn_pool.query", "text.ln_final.weight"]),
    ],
)
def test_every_tensor_of_open_clips_transformers_has_a_depth(architecture, shallow, deep):
    model = open_clip.create_model(architecture, device="meta")
    names = [name for name, value in model.state_dict().items() if value.is_floating_point()]
    factors = depth_factors(names, 0.25)
    assert {factors[name] for name in shallow} == {0.25}
    assert {factors[name] for name in deep} == {1.0}
    assert min(factors.values()) == 0.25
    assert max(factors.values()) == 1.0
    assert len(set(factors.values())) >= 12


@pytest.mark.parametrize("architecture", ["RN50", "convnext_base"])
def test_a_model_whose_depth_is_not_known_is_refused(architecture):
    model = open_clip.create_model(architecture, device="meta")
    with pytest.raises(UserError, match=r"merge\.lines: the depth of tensor visual\..* cannot be told"):
        depth_factors(model.state_dict().keys(), 0.5)


def test_an_alpha_of_its_own_needs_no_known_depth():
    names = ["visual.conv1.weight", "adapter.weight"]
    assert depth_factors(names, 0.5, own={"adapter.weight"}) == {"visual.conv1.weight": 0.5}
    with pytest.raises(UserError, match=r"adapter\.weight"):
        depth_factors(names, 0.5)
