"""What holds for every method: the ends, equal inputs, cuts, dtypes, threads."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merging import METHODS, information, learn, merged, mixed, number_of_models, several, slices_of, zero_shot
from real_checkpoints import same_bits

from wiseft_dist.config import MergeConfig
from wiseft_dist.merge.methods import method as interface
from wiseft_dist.merge.methods.choice import make_method
from wiseft_dist.merge.methods.method import Method, Slices, add_up, blocks

ALPHAS = [0.0, 0.001, 0.3, 0.5, 0.77, 1.0]


def inputs(case: str, seed: int = 0):
    """Models, and Fisher information where the method asks for it."""
    models = several(number_of_models(case), seed)
    return models, information(models) if case == "fisher" else []


def differing(first, second) -> list[str]:
    assert first.keys() == second.keys()
    return [name for name in first if not same_bits(first[name], second[name])]


@pytest.mark.parametrize("case", METHODS)
def test_alpha_zero_is_theta_0_bit_for_bit(case):
    models, fisher = inputs(case)
    assert differing(merged(METHODS[case](), models, 0.0, fisher=fisher), models[0]) == []


@pytest.mark.parametrize("case", METHODS)
def test_every_other_alpha_is_another_model(case):
    """Otherwise most tests of this file could not fail."""
    models, fisher = inputs(case)
    found = [merged(METHODS[case](), models, alpha, fisher=fisher)["visual.conv1.weight"] for alpha in ALPHAS]
    assert not any(same_bits(first, second) for i, first in enumerate(found) for second in found[:i])


@pytest.mark.parametrize("case", ["wise", "slerp", "uniform_soup", "greedy_soup", "fisher"])
def test_alpha_one_with_one_model_is_that_model_bit_for_bit(case):
    models = several(1)
    models[1]["visual.proj"] = torch.tensor([-0.0, 1e-40, 3e38])
    fisher = information(models) if case == "fisher" else []
    assert differing(merged(METHODS[case](), models, 1.0, fisher=fisher), models[1]) == []


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("case", METHODS)
def test_equal_inputs_stay_equal_to_the_bit(case, alpha):
    base = zero_shot() | {"visual.proj": torch.tensor([-0.0, 0.0, 1e-40, -3e38, 3e38, 0.1])}
    models = [base] * (1 + number_of_models(case))
    fisher = information([base, zero_shot(1) | {"visual.proj": torch.ones(6)}] * 2)[: len(models)]
    found = merged(METHODS[case](), models, alpha, fisher=fisher if case == "fisher" else [])
    assert differing(found, base) == []


@pytest.mark.parametrize("case", [case for case in METHODS if case not in ("slerp", "lines")])
def test_elements_that_no_model_changed_stay_equal_to_the_bit(case):
    """But for slerp, which turns a tensor as a whole."""
    models, fisher = inputs(case)
    found = merged(METHODS[case](), models, 0.3, fisher=fisher)
    for name, value in models[0].items():
        same = torch.stack([model[name] == value for model in models]).all(dim=0)
        assert same_bits(found[name][same], value[same])


@settings(max_examples=25, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 142), max_size=6),
    alpha=st.one_of(st.sampled_from(ALPHAS), st.floats(0, 1)),
    seed=st.integers(0, 3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    prepared=st.booleans(),
)
@pytest.mark.parametrize("case", METHODS)
def test_any_cut_gives_the_same_bits(case, cuts, alpha, seed, dtype, prepared):
    models, fisher = inputs(case, seed)
    method = learn(METHODS[case](), models, fisher)
    whole = mixed(method, models, alpha, fisher=fisher, dtype=dtype)
    cut = mixed(method, models, alpha, fisher=fisher, dtype=dtype, cuts=cuts, prepared=prepared)
    assert differing(cut, whole) == []


@pytest.mark.parametrize("case", METHODS)
def test_large_slices_give_the_bits_of_small_ones(case):
    """Enough elements for torch to use several threads and whole vectors."""
    models = several(number_of_models(case), shapes={"visual.conv1.weight": (100_003,)})
    fisher = information(models) if case == "fisher" else []
    method = learn(METHODS[case](), models, fisher)
    whole = mixed(method, models, 0.3, fisher=fisher)
    cuts = random.Random(0).sample(range(100_003), 50)
    assert differing(mixed(method, models, 0.3, fisher=fisher, cuts=cuts), whole) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", METHODS)
def test_another_dtype_is_fp32_rounded_once(case, dtype):
    models, fisher = inputs(case)
    method = learn(METHODS[case](), models, fisher)
    for alpha in ALPHAS:
        wanted = mixed(method, models, alpha, fisher=fisher)
        found = mixed(method, models, alpha, fisher=fisher, dtype=dtype)
        assert differing(found, {name: value.to(dtype) for name, value in wanted.items()}) == []


@pytest.mark.parametrize("case", METHODS)
def test_inputs_are_left_as_they_are(case):
    models, fisher = inputs(case)
    for prepared in (False, True):
        mixed(learn(METHODS[case](), models, fisher), models, 0.3, fisher=fisher, prepared=prepared)
    for first, second in zip([*models, *fisher], [*inputs(case)[0], *inputs(case)[1]], strict=True):
        assert differing(first, second) == []


@pytest.mark.parametrize("case", METHODS)
def test_threads_do_not_disturb_each_other(case):
    models, fisher = inputs(case)
    method = learn(METHODS[case](), models, fisher)
    wanted = {alpha: mixed(method, models, alpha, fisher=fisher) for alpha in ALPHAS}
    with ThreadPoolExecutor(4) as pool:
        jobs = [(alpha, pool.submit(mixed, method, models, alpha, fisher=fisher)) for alpha in ALPHAS * 4]
        for alpha, job in jobs:
            assert differing(job.result(), wanted[alpha]) == []


@pytest.mark.parametrize("case", [case for case in METHODS if METHODS[case]().num_passes])
def test_statistics_do_not_depend_on_who_took_which_block_nor_when(case, monkeypatch):
    monkeypatch.setattr(interface, "BLOCK_ELEMENTS", 10)
    models, _ = inputs(case)
    wanted, shuffled = learn(METHODS[case](), models), METHODS[case]()
    sizes = {name: value.numel() for name, value in models[0].items()}
    shuffled.begin(sizes)
    for number in range(shuffled.num_passes):
        order = random.Random(number).sample(list(blocks(sizes)), k=len(list(blocks(sizes))))
        found = {
            block: shuffled.observe(number, slices_of(block.name, models).piece(block.start, block.stop))
            for block in order
        }
        shuffled.conclude(number, add_up(found))
    assert shuffled.describe() == wanted.describe()
    assert differing(mixed(shuffled, models, 0.3), mixed(wanted, models, 0.3)) == []


@pytest.mark.parametrize("case", [case for case in METHODS if METHODS[case]().num_passes])
def test_statistics_do_not_depend_on_the_number_of_threads(case):
    models = several(number_of_models(case), shapes={"visual.conv1.weight": (200_003,)})
    described, usual = [], torch.get_num_threads()
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            described.append(learn(METHODS[case](), models).describe())
    finally:
        torch.set_num_threads(usual)
    assert described[0] == described[1] == described[2]


@pytest.mark.parametrize("case", METHODS)
def test_provenance_names_the_method_and_can_be_written_as_json(case):
    models, fisher = inputs(case)
    method: Method = learn(METHODS[case](), models, fisher)
    described = method.describe()
    assert described["name"] == method.name
    assert json.loads(json.dumps(described)) == described


@pytest.mark.parametrize("name", [case for case in METHODS if case not in ("layers", "lines")])
def test_a_method_is_chosen_by_its_name(name):
    fisher = ("a", "b") if name == "fisher" else ()
    assert make_method(MergeConfig(method=name, fisher=fisher)).name == name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("case", METHODS)
def test_slices_on_a_device_give_the_model_to_rounding(case):
    models, fisher = inputs(case)
    method = learn(METHODS[case](), models, fisher)
    wanted = mixed(method, models, 0.3, fisher=fisher)
    for name in models[0]:
        whole = slices_of(name, *([{key: v.cuda() for key, v in m.items()} for m in ms] for ms in (models, fisher)))
        out = torch.empty(models[0][name].numel(), device="cuda")
        method.mix(whole, 0.3, out)
        torch.testing.assert_close(out.cpu(), wanted[name].reshape(-1), rtol=3e-7, atol=1e-10)


def test_a_piece_of_a_piece_knows_its_place():
    piece = Slices("w", 100, [torch.arange(9.0)], [torch.arange(9.0)], torch.arange(9.0)).piece(2, 8).piece(3, 5)
    assert piece.start == 105
    assert [tensor.tolist() for tensor in (*piece.models, *piece.fisher, piece.endpoint)] == [[5.0, 6.0]] * 3
