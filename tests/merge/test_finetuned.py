"""What theta_1 of a run is: only what was trained, an average, a head of its own. The runs are real, theta_1 is set."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import safetensors.torch
import torch
from real_checkpoints import same_bits
from torch import Tensor

from wiseft_dist.commits import committing
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.evaluate.cells.store import CellStore, members_of
from wiseft_dist.evaluate.predictions import Member
from wiseft_dist.evaluate.stage import _load_ensemble, evaluate
from wiseft_dist.merge.stage import merge
from wiseft_dist.models.files import HEAD_FILE
from wiseft_dist.pipeline import remaining
from wiseft_dist.run import Run
from wiseft_dist.weights.finetuned import describe_finetuned, is_finetuned
from wiseft_dist.weights.sources import open_weights

CPU = torch.device("cpu")
EMA = {"decay": 0.9, "debias": True, "updates": 2}


def theta_0(run: Run) -> dict[str, Tensor]:
    with open_weights(run.zero_shot) as weights:
        return {name: weights.tensor(name) for name in weights}


def moved(run: Run, *, head: bool, towers: bool) -> dict[str, Tensor]:
    """Weights that were trained from theta_0 for a while."""
    chosen = {name: value for name, value in theta_0(run).items() if (head if name.startswith("head.") else towers)}
    return {name: value + 0.01 if value.is_floating_point() else value for name, value in chosen.items()}


def without_merged(run: Run, settings: dict[str, Any], weights: dict[str, Tensor]) -> Run:
    """The run with other settings of `finetune` and this theta_1 (a checkpoint of stage 0), merged nowhere yet."""
    text = run.config_file.read_text()
    for key, value in settings.items():
        (line,) = [line for line in text.splitlines() if line.startswith(f"  {key}: ")]
        text = text.replace(line, f"  {key}: {json.dumps(value)}")
    run.config_file.write_text(text)
    shutil.rmtree(run.merged)
    names = [name for name, value in weights.items() if value.is_floating_point()]
    averages = {
        i: {"ema": (weights[name] + 1) * (1 - 0.9**2), "step": torch.tensor(2.0)} for i, name in enumerate(names)
    }
    optimizer = {"state": averages, "param_groups": [{"params": list(range(len(names)))}]}
    record = {"final": True, "trained": list(weights), "groups": [names], "ema": EMA}
    with committing(run.finished_checkpoint(), step=8, world_size=1, **record) as folder:
        saved = {"module": weights, "optimizer": optimizer, "buffer_names": []}
        torch.save(saved, folder / "mp_rank_00_model_states.pt")
    return run


def ends(run: Run) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the merge stage writes for alpha 0 and 1."""
    merge(run.load_config(), run)
    with open_weights(run.ensemble(0.0)) as first, open_weights(run.ensemble(1.0)) as last:
        return {name: first.tensor(name) for name in first}, {name: last.tensor(name) for name in last}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in found if not same_bits(found[name], expected[name])] == []


def test_what_a_linear_head_leaves_untrained_is_theta_0s(copied: Run):
    head = moved(copied, head=True, towers=False)
    first, last = ends(without_merged(copied, {"recipe": "linear_head"}, head))
    assert_same(first, theta_0(copied))
    assert_same(last, theta_0(copied) | head)


def test_what_was_not_trained_is_held_once_in_memory_and_evaluated(copied: Run):
    run = without_merged(copied, {"recipe": "linear_head"}, moved(copied, head=True, towers=False))
    config = run.load_config()
    ensemble = _load_ensemble(config, run, CPU)
    assert [target.dim() for target, _ in ensemble._mixed] == [2, 1]  # the head's weight and bias
    merge(config, run)
    for alpha in (0.0, 1.0, 0.5):
        ensemble.set_alpha(alpha)
        with open_weights(run.ensemble(alpha)) as written:
            state = ensemble.module.state_dict()
            assert [name for name in state if not torch.equal(state[name], written.tensor(name))] == []
    evaluate(config, run, dataset="sketch")
    assert CellStore.of_run(config, run).missing("sketch", members_of(config)) == []


def test_a_trained_parameter_that_the_checkpoint_lacks_is_refused(copied: Run):
    run = without_merged(copied, {"recipe": "linear_head"}, moved(copied, head=True, towers=False))
    with committing(run.finished_checkpoint(), final=True, trained=["head.weight", "head.bias"]) as folder:
        head = {"head.weight": theta_0(run)["head.weight"]}
        torch.save({"module": head, "optimizer": {}}, folder / "mp_rank_00_model_states.pt")
    with pytest.raises(UserError, match=r"only in the zero-shot model: head\.bias"):
        merge(run.load_config(), run)
    with pytest.raises(UserError, match=r"only in the zero-shot model: head\.bias"):
        _load_ensemble(run.load_config(), run, CPU)


def test_flyp_has_the_head_that_was_computed_from_its_towers(copied: Run):
    towers = moved(copied, head=False, towers=True)
    run = without_merged(copied, {"recipe": "flyp"}, towers)
    head = moved(run, head=True, towers=False)
    with committing(run.finetuned_head) as folder:
        safetensors.torch.save_file(head, folder / HEAD_FILE)
    assert_same(ends(run)[1], towers | head)
    provenance = json.loads((run.ensemble(1.0) / "model.json").read_text())
    (source,) = provenance["sources"]["finetuned"]
    assert {**source, "content": None} == describe_finetuned(run.load_config(), run) | {"content": None}


def test_statistics_in_memory_are_those_of_the_whole_model(copied: Run):
    """FLYP changes the text tower too, which the module that classifies images has not."""
    towers = moved(copied, head=False, towers=True)
    far = {name: value if name.startswith("visual.") else value + 1 for name, value in towers.items()}
    run = without_merged(copied, {"recipe": "flyp"}, far)
    with committing(run.finetuned_head) as folder:
        safetensors.torch.save_file(moved(run, head=True, towers=False), folder / HEAD_FILE)
    config = run.load_config()
    config = config.model_copy(update={"merge": config.merge.model_copy(update={"method": "ties", "density": 0.3})})
    merge(config, run)
    ensemble = _load_ensemble(config, run, CPU)
    for alpha in config.merge.alphas:
        ensemble.set_alpha(alpha)
        with open_weights(run.ensemble(alpha)) as written:
            state = ensemble.module.state_dict()
            assert [name for name in state if not torch.equal(state[name], written.tensor(name))] == []


def test_flyp_without_its_head_is_not_finished(copied: Run):
    run = without_merged(copied, {"recipe": "flyp"}, moved(copied, head=False, towers=True))
    config = run.load_config()
    assert not is_finetuned(config, run)
    assert [step.stage for step in remaining(config, run)] == ["finetune", "merge", "evaluate", "report"]
    with pytest.raises(RunError, match=r"the fine-tuned head is missing. Run `wiseft finetune .*` again"):
        merge(config, run)


def test_another_head_of_flyp_makes_other_cells(copied: Run):
    run = without_merged(copied, {"recipe": "flyp"}, moved(copied, head=False, towers=True))
    folders = []
    for offset in (0, 1):
        with committing(run.finetuned_head) as folder:
            safetensors.torch.save_file({"head.bias": torch.zeros(3) + offset}, folder / HEAD_FILE)
        folders.append(CellStore.of_run(run.load_config(), run).folder("sketch", Member(0.5)))
    assert len(set(folders)) == 2


def test_where_a_run_keeps_an_average_it_is_theta_1(copied: Run):
    weights = moved(copied, head=True, towers=False)
    run = without_merged(copied, {"ema": {"decay": 0.9, "debias": True}}, weights)
    average = ends(run)[1]
    for name in weights:
        torch.testing.assert_close(average[name], weights[name] + 1)
    provenance = json.loads((run.ensemble(1.0) / "model.json").read_text())
    assert provenance["sources"]["finetuned"][0]["average"] == EMA
    _load_ensemble(run.load_config(), run, CPU).set_alpha(1.0)


def test_an_average_and_the_last_weights_are_other_cells(copied: Run):
    weights = moved(copied, head=True, towers=False)
    last = CellStore.of_run(without_merged(copied, {}, weights).load_config(), copied).folder("sketch", Member(1.0))
    config = copied.load_config()
    averaging = config.finetune.model_validate(config.finetune.model_dump() | {"ema": {"decay": 0.9}})
    averaged = config.model_copy(update={"finetune": averaging})
    average = CellStore.of_run(averaged, copied).folder("sketch", Member(1.0))
    assert last != average
