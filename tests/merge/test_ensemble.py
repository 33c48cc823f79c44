"""Ensembles in memory: what every method writes, set in place in a live module."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merging import METHODS, information, learn, merged, mixed, number_of_models, several, zero_shot
from real_checkpoints import same_bits
from torch import Tensor, nn

from wiseft_dist.merge import ensemble as in_memory
from wiseft_dist.merge.ensemble import Ensemble, load_weights
from wiseft_dist.merge.methods.slerp import Slerp
from wiseft_dist.merge.methods.task_arithmetic import TaskArithmetic
from wiseft_dist.merge.methods.ties import Ties
from wiseft_dist.merge.methods.uniform_soup import UniformSoup
from wiseft_dist.merge.methods.wise import Wise
from wiseft_dist.weights.records import Weights

ALPHAS = [0.3, 0.0, 1.0, 0.77, 0.5, 0.001]


class Live(nn.Module):
    """A module with the tensors of a model: parameters, and buffers of integers."""

    def __init__(self, tensors: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        for name, value in tensors.items():
            *path, last = name.split(".")
            owner: nn.Module = self
            for part in path:
                if part not in dict(owner.named_children()):
                    owner.add_module(part, nn.Module())
                owner = owner.get_submodule(part)
            if value.is_floating_point():
                owner.register_parameter(last, nn.Parameter(torch.full_like(value, 7, dtype=dtype)))
            else:
                owner.register_buffer(last, torch.full_like(value, 7))


def differing(module: nn.Module, wanted: dict[str, Tensor]) -> list[str]:
    held = module.state_dict()
    assert held.keys() == wanted.keys()
    return [name for name in held if not same_bits(held[name], wanted[name])]


def inputs(case: str, seed: int = 0):
    models = several(number_of_models(case), seed)
    return models, information(models) if case == "fisher" else []


@pytest.mark.parametrize("case", METHODS)
def test_an_ensemble_in_memory_is_what_the_method_mixes_bit_for_bit(case):
    models, fisher = inputs(case)
    module = Live(models[0])
    ensemble = Ensemble(module, models[0], models[1:], method=METHODS[case](), fisher=fisher)
    method = learn(METHODS[case](), models, fisher)
    for alpha in [*ALPHAS, *reversed(ALPHAS)]:
        ensemble.set_alpha(alpha)
        assert differing(module, mixed(method, models, alpha, fisher=fisher)) == []
    for first, second in zip([*models, *fisher], [*inputs(case)[0], *inputs(case)[1]], strict=True):
        assert all(same_bits(first[name], second[name]) for name in first)


@settings(max_examples=10, deadline=None)
@given(piece=st.integers(1, 150), alpha=st.sampled_from(ALPHAS), seed=st.integers(0, 3))
@pytest.mark.parametrize("case", METHODS)
def test_pieces_of_any_size_give_the_same_bits(case, piece, alpha, seed):
    models, fisher = inputs(case, seed)
    usual, in_memory.HOST_PIECE = in_memory.HOST_PIECE, piece
    try:
        module = Live(models[0])
        Ensemble(module, models[0], models[1:], method=METHODS[case](), fisher=fisher).set_alpha(alpha)
    finally:
        in_memory.HOST_PIECE = usual
    assert differing(module, merged(METHODS[case](), models, alpha, fisher=fisher)) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", METHODS)
def test_a_module_in_another_dtype_holds_the_ensemble_rounded_once(case, dtype):
    models, fisher = inputs(case)
    module = Live(models[0], dtype)
    ensemble = Ensemble(module, models[0], models[1:], method=METHODS[case](), fisher=fisher)
    for alpha in ALPHAS:
        ensemble.set_alpha(alpha)
        assert differing(module, merged(METHODS[case](), models, alpha, fisher=fisher, dtype=dtype)) == []


@pytest.mark.parametrize("case", METHODS)
def test_models_held_in_bf16_are_mixed_in_fp32(case):
    models, fisher = inputs(case)
    held = [{name: value.to(torch.bfloat16) for name, value in model.items()} for model in models]
    module = Live(models[0])
    ensemble = Ensemble(module, held[0], held[1:], method=METHODS[case](), fisher=fisher)
    exact = [{name: value.float() for name, value in model.items()} for model in held]
    for alpha in ALPHAS:
        ensemble.set_alpha(alpha)
        assert differing(module, merged(METHODS[case](), exact, alpha, fisher=fisher)) == []


def test_integers_and_masks_are_theta_0s_and_at_alpha_one_theta_1s():
    base, other = several(1)
    for model, number in ((base, 5), (other, 6)):
        model["position_ids"] = torch.full((1, 7), number)
        model["mask"] = torch.tensor([number == 5, True])
    third = other | {"position_ids": torch.zeros(1, 7).long()}
    module = Live(base)
    ensemble = Ensemble(module, base, [other, third], method=UniformSoup())
    for alpha in ALPHAS:
        ensemble.set_alpha(alpha)
        wanted = other if alpha == 1.0 else base
        assert same_bits(module.state_dict()["position_ids"], wanted["position_ids"])
        assert same_bits(module.state_dict()["mask"], wanted["mask"])


@pytest.mark.parametrize("case", METHODS)
def test_what_a_model_lacks_or_shares_is_set_once(case):
    models, fisher = inputs(case)
    head, text = torch.tensor([3.0, -0.0]), torch.tensor([4.0])
    for model in models[1:]:
        model["head.weight"] = head
        model["shared"] = text
    models[0] |= {"text.weight": text, "shared": text}
    for model in fisher:
        model["shared"] = text
    module = Live(models[0] | {"head.weight": head})
    ensemble = Ensemble(module, models[0], models[1:], method=METHODS[case](), fisher=fisher)
    for alpha in ALPHAS:
        ensemble.set_alpha(alpha)
        held = module.state_dict()
        assert same_bits(held["head.weight"], head)
        assert same_bits(held["text.weight"], text)
        assert same_bits(held["shared"], text)
        kept = same_bits(held["visual.conv1.weight"], models[0]["visual.conv1.weight"])
        assert kept == (alpha == 0.0)


EQUAL = ("visual.conv1.weight", "visual.transformer.resblocks.0.bias", "logit_scale", "visual.ln_pre.bias")


@settings(max_examples=5, deadline=None)
@given(alpha=st.floats(0, 1), seed=st.integers(0, 3))
@pytest.mark.parametrize("case", METHODS)
def test_what_is_equal_in_all_models_does_not_vary_where_the_method_keeps_it_so(case, alpha, seed):
    """Held against the method's own arithmetic, with signed zeros, the smallest numbers and large ones among them."""
    models, _ = inputs(case, seed)
    models[0]["visual.ln_pre.bias"] = torch.tensor([0.0, -0.0, 0.0])
    models[0]["visual.conv1.weight"].view(-1)[2:6] = torch.tensor([1e-45, -3e-39, 3e38, -1.1754944e-38])
    for model in models[1:]:
        model |= {name: models[0][name].clone() for name in EQUAL}
    fisher = information(models) if case == "fisher" else []
    module = Live(models[0])
    ensemble = Ensemble(module, models[0], models[1:], method=METHODS[case](), fisher=fisher)
    assert ensemble.varying == models[0].keys() - (EQUAL if METHODS[case]().keeps_equal else ())
    ensemble.set_alpha(0.5 * alpha)
    ensemble.set_alpha(alpha)
    assert differing(module, merged(METHODS[case](), models, alpha, fisher=fisher)) == []
    if METHODS[case]().keeps_equal:
        assert all(same_bits(module.state_dict()[name], models[0][name]) for name in EQUAL)


def test_every_method_but_fisher_keeps_what_is_equal():
    assert [case for case, make in METHODS.items() if not make().keeps_equal] == ["fisher"]


def test_what_varies_is_what_alpha_changes():
    base, other = several(1)
    base |= {"same": torch.arange(3), "count": torch.tensor([1, 2]), "mask": torch.tensor([1.0, -torch.inf])}
    other |= {"same": torch.arange(3), "count": torch.tensor([1, 3]), "mask": torch.tensor([1.0, -torch.inf])}
    other["logit_scale"] = base["logit_scale"]
    other["visual.proj"] = base["visual.proj"].double()
    only = {"head.weight": torch.ones(2)}
    module = Live(base | only)
    ensemble = Ensemble(module, base, [other | only])
    assert ensemble.varying == module.state_dict().keys() - {
        "same",
        "mask",
        "logit_scale",
        "visual.proj",
        "head.weight",
    }


def test_tensors_that_the_module_has_not_count_in_statistics():
    base, other = {"seen": torch.zeros(4), "unseen": torch.zeros(4)}, {"seen": torch.ones(4), "unseen": torch.ones(4)}
    other["unseen"] *= 5
    module = Live({"seen": base["seen"]})
    Ensemble(module, base, [other], method=Ties(0.5)).set_alpha(1.0)
    assert same_bits(module.state_dict()["seen"], base["seen"])
    Ensemble(module, {"seen": base["seen"]}, [{"seen": other["seen"]}], method=Ties(0.5)).set_alpha(1.0)
    assert same_bits(module.state_dict()["seen"], other["seen"])


def test_a_merged_model_is_held_in_place_of_the_fine_tuned_ones():
    models = several(3, shapes={"w": (1000,)})
    module = Live(models[0])
    ensemble = Ensemble(module, models[0], models[1:], method=TaskArithmetic())
    wanted = merged(TaskArithmetic(), models, 0.3)
    for model in models[1:]:
        model["w"].fill_(torch.nan)
    ensemble.set_alpha(0.3)
    assert differing(module, wanted) == []


def test_a_number_may_be_one_element():
    module = Live({"logit_scale": torch.tensor(0.0)})
    Ensemble(module, {"logit_scale": torch.tensor(2.0)}, [{"logit_scale": torch.tensor([4.0])}]).set_alpha(0.5)
    assert same_bits(module.state_dict()["logit_scale"], torch.tensor(3.0))


def test_parameters_in_another_memory_format_are_set_too():
    models = several(1, shapes={"weight": (4, 3, 5, 5)})
    module = nn.Conv2d(3, 4, 5, bias=False).to(memory_format=torch.channels_last)
    assert not module.weight.is_contiguous()
    Ensemble(module, models[0], models[1:], method=Slerp()).set_alpha(0.4)
    assert same_bits(module.weight.detach(), merged(Slerp(), models, 0.4)["weight"])
    assert module.weight.is_contiguous(memory_format=torch.channels_last)


def test_weights_are_set_in_place():
    """Optimizers, and modules that share a parameter, keep seeing it."""
    models = several(1)
    module = Live(models[0])
    before = {name: value.data_ptr() for name, value in module.named_parameters()}
    Ensemble(module, models[0], models[1:]).set_alpha(0.3)
    assert {name: value.data_ptr() for name, value in module.named_parameters()} == before
    assert all(value.requires_grad for value in module.parameters())


def test_a_module_moved_after_the_ensemble_was_made_is_set_where_it_is():
    models = several(1)
    module = Live(models[0])
    ensemble = Ensemble(module, models[0], models[1:])
    module.to(torch.bfloat16)
    ensemble.set_alpha(0.3)
    assert differing(module, merged(Wise(), models, 0.3, dtype=torch.bfloat16)) == []


def test_loaded_are_the_modules_tensors_and_others_asked_for(tmp_path):
    import safetensors.torch

    from wiseft_dist.weights.sources import open_weights

    stored = zero_shot() | {"text.weight": torch.ones(3), "text.bias": torch.ones(2)}
    safetensors.torch.save_file(stored, tmp_path / "model.safetensors")
    module, cpu = Live(zero_shot() | {"head.weight": torch.ones(2)}), torch.device("cpu")
    with open_weights(tmp_path / "model.safetensors") as weights:
        loaded = load_weights(weights, module, device=cpu, others=["text.weight", "visual.proj", "nowhere"])
        carried = load_weights(weights, module, device=cpu, carried={"head.weight": stored["text.bias"]})
    assert loaded.keys() == zero_shot().keys() | {"text.weight"}
    assert all(same_bits(loaded[name], stored[name]) for name in loaded)
    assert carried["head.weight"] is stored["text.bias"]
    assert load_weights(Weights("nothing", {}), module, device=cpu) == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("held_on", ["cpu", "cuda"])
@pytest.mark.parametrize("case", METHODS)
def test_models_on_the_host_or_the_device_set_a_module_on_the_device(case, held_on):
    models, fisher = inputs(case)
    held, information_held = ([{n: v.to(held_on) for n, v in m.items()} for m in ms] for ms in (models, fisher))
    module = Live(models[0]).cuda()
    ensemble = Ensemble(module, held[0], held[1:], method=METHODS[case](), fisher=information_held)
    for alpha in ALPHAS:
        ensemble.set_alpha(alpha)
        for name, value in merged(METHODS[case](), models, alpha, fisher=fisher).items():
            torch.testing.assert_close(module.state_dict()[name].cpu(), value, rtol=3e-7, atol=1e-10)


@pytest.mark.parametrize("case", ["wise", "ties"])
def test_a_mask_of_infinities_stays_and_leaves_the_rest_alone(case):
    plain, _ = inputs(case)
    mask = torch.full((60, 60), float("-inf")).triu(1)
    models = [model | {"mask": mask.clone()} for model in plain]
    without = [model | {"mask": torch.zeros(60, 60)} for model in plain]
    module = Live(models[0])
    ensemble = Ensemble(module, models[0], models[1:], method=METHODS[case]())
    for alpha in ALPHAS:
        ensemble.set_alpha(alpha)
        assert differing(module, merged(METHODS[case](), without, alpha) | {"mask": mask}) == []


@pytest.mark.parametrize("made", [False, True])
def test_an_ensemble_may_be_set_in_inference_mode(made):
    models, _ = inputs("wise")
    wide = {"wide": torch.randn(3, 2, 5, 5)}
    models = [model | wide if index == 0 else model | {"wide": wide["wide"] + 1} for index, model in enumerate(models)]
    with torch.inference_mode(made):
        module = Live(models[0]).to(memory_format=torch.channels_last)
        ensemble = Ensemble(module, models[0], models[1:])
    with torch.inference_mode():
        ensemble.set_alpha(0.3)
    assert not module.wide.is_contiguous()
    assert differing(module, merged(Wise(), models, 0.3)) == []
