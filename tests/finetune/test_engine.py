"""Every way to shard, to accumulate and to compute is the training that a few lines of PyTorch do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_ranks import LEARNING_RATE, Case, batch_of, make_module, run_cases
from torch import Tensor, nn

from wiseft_dist.config import FinetuneConfig
from wiseft_dist.errors import UserError
from wiseft_dist.finetune.engine import Engine

STEPS = 4
BF16, FP16 = (pytest.param(name, marks=pytest.mark.matrix) for name in ("bf16", "fp16"))
SGD = {"optimizer": {"name": "sgd", "lr": LEARNING_RATE, "weight_decay": 0.01}}
NO_DECAY = {"optimizer": {"lr": LEARNING_RATE, "decay_biases_and_norms": False}}


def plain(case: Case) -> dict[str, Any]:
    """The same training in fp64, in one process, of whole batches, with nothing but torch."""
    module, config = make_module().double(), case.config
    start = [parameter.detach().clone() for parameter in module.parameters()]
    averages = [torch.zeros_like(p) if config.ema and config.ema.debias else p.clone() for p in start]
    free = [] if config.optimizer.decay_biases_and_norms else [p for p in module.parameters() if p.ndim < 2]
    decayed = [p for p in module.parameters() if all(p is not other for other in free)]
    groups = [{"params": decayed}, {"params": free, "weight_decay": 0.0}]
    optimizer: torch.optim.Optimizer
    if config.optimizer.name == "sgd":
        optimizer = torch.optim.SGD(
            groups, lr=LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=config.optimizer.weight_decay
        )
    else:
        optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, weight_decay=0.1)
    losses, norms = [], []
    for step in range(case.last_step):
        inputs, labels = batch_of(step)
        loss = nn.functional.cross_entropy(module(inputs.double()), labels)
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(module.parameters(), config.gradient_clipping or 1e9)))
        for (name, parameter), first in zip(module.named_parameters(), start, strict=True):
            if pull := case.pull_on(name):
                anchor = first if pull.towards_start else torch.zeros_like(first)
                parameter.grad += pull.strength * (parameter.detach() - anchor)
        optimizer.step()
        losses.append(loss.item())
        if config.ema:
            for average, parameter in zip(averages, module.parameters(), strict=True):
                average.lerp_(parameter.detach(), 1 - config.ema.decay)
    weights = {name: parameter.detach().flatten() for name, parameter in module.named_parameters()}
    return {"losses": losses, "norms": norms, "weights": weights, "averages": dict(zip(weights, averages, strict=True))}


def matrix(world_size: int) -> list[Case]:
    cases = [
        Case(f"stage_{stage}-accumulate_{accumulate}", {"zero_stage": stage}, accumulation_steps=accumulate)
        for stage in (0, 1, 2, 3)
        for accumulate in (1, 2)
    ]
    if world_size != 2:
        return cases
    return [
        *cases,
        *(Case(f"sgd-{stage}", SGD | {"zero_stage": stage}) for stage in (0, 2, 3)),
        *(Case(f"no_decay-{stage}", NO_DECAY | {"zero_stage": stage}) for stage in (0, 1, 3)),
        *(Case(f"offload-{stage}", {"zero_stage": stage, "offload_optimizer": True}) for stage in (1, 2, 3)),
        *(Case(f"unclipped-{stage}", {"zero_stage": stage, "gradient_clipping": 0}) for stage in (0, 2)),
        *(Case(f"pull-{stage}", {"zero_stage": stage}, pull="pull") for stage in (0, 2, 3)),
        Case("shrink", {"zero_stage": 2}, pull="shrink"),
        *(Case(f"ema-{stage}", {"zero_stage": stage, "ema": {"decay": 0.5}}) for stage in (0, 1, 3)),
        Case("debiased", {"zero_stage": 2, "ema": {"decay": 0.5, "debias": True}}),
        Case("debiased-sgd", SGD | {"zero_stage": 3, "ema": {"decay": 0.5, "debias": True}}),
    ]


@pytest.mark.parametrize("world_size", [1, 2, pytest.param(4, marks=pytest.mark.matrix)])
def test_sharded_training_is_that_of_plain_pytorch(tmp_path: Path, world_size: int) -> None:
    cases = matrix(world_size)
    results = run_cases(cases, tmp_path, world_size=world_size)
    for case in cases:
        found, expected = results[case.name], plain(case)
        assert found["losses"] == pytest.approx(expected["losses"], rel=1e-4), case.name
        assert found["norms"] == pytest.approx(expected["norms"], rel=1e-3), case.name
        assert found["updates"] == STEPS and not any(found["skipped"]), case.name
        for name, weights in expected["weights"].items():
            torch.testing.assert_close(found["state"][name]["fp32"].double(), weights, rtol=1e-3, atol=1e-3)
        _check_evaluation(case, found, expected)


def _check_evaluation(case: Case, found: dict[str, Any], expected: dict[str, Any]) -> None:
    """The average is evaluated where there is one, and the masters are afterwards what they were."""
    module, ema = make_module().double(), case.config.ema
    weight = 1 - ema.decay**STEPS if ema and ema.debias else 1.0
    for name, parameter in module.named_parameters():
        values = expected["averages"][name] / weight if ema else expected["weights"][name]
        parameter.data.copy_(values.reshape(parameter.shape))
    wanted = module(torch.ones(2, 37).double()).float()
    torch.testing.assert_close(found["evaluated"], wanted, rtol=1e-2, atol=2e-3)
    assert same_state(found["state"], found["after_evaluation"]), case.name
    if ema:
        assert not torch.allclose(found["evaluated"], found["last"], atol=1e-2), case.name


def same_state(first: dict[str, dict[str, Tensor]], second: dict[str, dict[str, Tensor]]) -> bool:
    """Whether two gathered states are equal to the bit."""
    return first.keys() == second.keys() and all(
        first[name].keys() == second[name].keys()
        and all(torch.equal(value, second[name][key]) for key, value in first[name].items())
        for name in first
    )


@pytest.mark.parametrize("precision", ["bf16", FP16])
def test_masters_start_at_the_zero_shot_weights_to_the_bit(tmp_path: Path, precision: str) -> None:
    start = dict(make_module().named_parameters())
    for stages in ((1, 2, 3), (0,)):  # autocast is global in DeepSpeed: stage 0 gets processes of its own
        cases = [Case(f"stage_{stage}", {"zero_stage": stage, "precision": precision}) for stage in stages]
        for name, found in run_cases(cases, tmp_path, world_size=2, fp16=precision == "fp16").items():
            for parameter, state in found["at_start"].items():
                assert torch.equal(state["fp32"], start[parameter].detach().flatten()), (name, parameter)
            assert found["losses"] == pytest.approx(plain(cases[0])["losses"], rel=0.03), name
            assert found["norms"] == pytest.approx(plain(cases[0])["norms"], rel=0.03), name
            assert found["loss_scale"] == (65536.0 if precision == "fp16" else 1.0), name


@pytest.mark.parametrize("precision", ["bf16", FP16])
def test_gradients_in_16_bit_are_added_up_in_fp32(tmp_path: Path, precision: str) -> None:
    """Seven small ones after a large one would each be rounded away."""
    small = {"bf16": 1 / 300, "fp16": 1 / 3000}[precision]
    settings = {"precision": precision, "gradient_clipping": 0}
    for stages in ((1, 2, 3), (0,)):
        cases = [
            Case(f"{stage}-{echo}", settings | {"zero_stage": stage}, accumulation_steps=8, last_step=1, echo=echo)
            for stage in stages
            for echo in (0.0, small)
        ]
        found = run_cases(cases, tmp_path, world_size=2, fp16=precision == "fp16")
        for stage in stages:
            grown = found[f"{stage}-{small}"]["norms"][0] / found[f"{stage}-0.0"]["norms"][0]
            assert grown - 1 == pytest.approx(7 * small, rel=0.1), stage


def test_ranks_evaluate_one_model_also_where_it_keeps_statistics(tmp_path: Path) -> None:
    cases = [Case(f"stage_{stage}", {"zero_stage": stage}, batch_norm=True) for stage in (0, 2, 3)]
    for name, found in run_cases(cases, tmp_path, world_size=2).items():
        first, second = found["statistics"]
        assert torch.equal(first["2.running_mean"], second["2.running_mean"]), name
        assert first["2.running_mean"].abs().max() > 0.01  # they moved, on different samples


def test_a_scale_that_finds_no_finite_gradient_leaves_steps_out_to_the_end(tmp_path: Path) -> None:
    case = Case("fp16", {"zero_stage": 2, "precision": "fp16"}, last_step=20, poison=-1)
    found = run_cases([case], tmp_path, world_size=2, fp16=True)["fp16"]
    assert found["skipped"] == [True] * 20 and found["loss_scale"] == 1.0
    assert found["norms"] == [float("inf")] * 20 and found["updates"] == 0


@pytest.mark.parametrize("precision", ["fp32", BF16, FP16])
def test_a_gradient_that_is_not_finite_changes_nothing(tmp_path: Path, precision: str) -> None:
    for stages in ((1, 2, 3), (0,)):
        cases = [
            Case(f"stage_{stage}", {"zero_stage": stage, "precision": precision, "ema": {"decay": 0.5}}, poison=2)
            for stage in stages
        ]
        for case in list(cases):
            cases.append(replace(case, name=f"until_{case.name}", last_step=2))
            cases.append(replace(case, name=f"and_{case.name}", last_step=3))
        found = run_cases(cases, tmp_path, world_size=2, fp16=precision == "fp16")
        for stage in stages:
            assert found[f"stage_{stage}"]["skipped"] == [False, False, True, False], stage
            assert found[f"stage_{stage}"]["updates"] == 3
            until, and_one_more = found[f"until_stage_{stage}"]["state"], found[f"and_stage_{stage}"]["state"]
            assert same_state(until, and_one_more), stage


def test_fp16_is_refused_in_a_sentence_where_a_device_cannot_compute_in_it(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"finetune\.precision is fp16, which this device cannot compute in"):
        run_cases([Case("fp16", {"zero_stage": 1, "precision": "fp16"})], tmp_path, world_size=1)


@pytest.mark.parametrize("setting", ["compile", "activation_checkpointing"])
def test_what_a_module_cannot_do_is_refused_in_a_sentence(setting: str) -> None:
    config = FinetuneConfig.model_validate({setting: True})
    with pytest.raises(UserError, match=rf"finetune\.{setting}: this model has no .* set it to false"):
        Engine(make_module(), config, device=torch.device("cpu"), micro_batch_size=1, accumulation_steps=1)
