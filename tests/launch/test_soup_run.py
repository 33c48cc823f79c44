"""A run whose ensembles are soups: further models are tried on ID-val, and what helps is averaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_run import wiseft

from wiseft_dist.merge.request import PROVENANCE_FILE, missing_ensembles
from wiseft_dist.models.files import HEAD_FILE, WEIGHTS_FILE
from wiseft_dist.run import Run
from wiseft_dist.weights.finetuned import open_finetuned
from wiseft_dist.weights.sources import open_weights


def theta_1(run: Run) -> dict[str, torch.Tensor]:
    with open_finetuned(run.load_config(), run) as weights:
        return {name: weights.tensor(name) for name in weights}


@pytest.fixture
def soup(copied: Run, tmp_path: Path) -> Run:
    """A finished fine-tuning with two further models: one much like theta_1, and noise."""
    trained = theta_1(copied)
    torch.manual_seed(0)
    save_file({name: value * 1.001 for name, value in trained.items()}, tmp_path / "near.safetensors")
    save_file({name: torch.randn_like(value) for name, value in trained.items()}, tmp_path / "noise.safetensors")
    copied.config_file.write_text(
        copied.config_file.read_text().replace(
            "  method: wise\n  models: []\n",
            f"  method: greedy_soup\n  models: [{tmp_path / 'near.safetensors'}, {tmp_path / 'noise.safetensors'}]\n",
        )
    )
    assert copied.load_config().merge.method == "greedy_soup"
    for alpha in (0.0, 0.5, 1.0):
        folder = copied.ensemble(alpha)
        folder.rename(folder.with_name(f"before_{alpha}"))
    return copied


def test_a_greedy_soup_leaves_out_what_makes_it_worse(soup: Run):
    config = soup.config_file
    done = wiseft("run", config)
    assert done.returncode == 0, done.stderr
    found = json.loads(soup.soup_file.read_text())
    accuracies = found["accuracies"]
    assert {"0", "1", "2"} <= accuracies.keys()
    best = max("012", key=lambda number: accuracies[number])
    assert found["chosen"][0] == int(best)
    label = "+".join(map(str, found["chosen"]))
    assert accuracies[label] >= accuracies[best]
    provenance = json.loads((soup.ensemble(1.0) / PROVENANCE_FILE).read_text())
    assert len(provenance["sources"]["finetuned"]) == len(found["chosen"])
    candidates = [theta_1(soup), *map(_loaded, soup.load_config().merge.models)]
    chosen = [candidates[number] for number in found["chosen"]]
    with open_weights(soup.ensemble(1.0)) as written:
        for name in chosen[0]:
            average = torch.stack([each[name].double().reshape(written[name].shape) for each in chosen]).mean(dim=0)
            torch.testing.assert_close(written.tensor(name), average.float(), rtol=1e-6, atol=1e-7)
    events = soup.events_file.read_text()
    again = wiseft("run", config)
    assert again.returncode == 0, again.stderr
    assert soup.events_file.read_text().count('"tried"') == events.count('"tried"') == len(accuracies)


def test_a_choice_that_was_interrupted_goes_on_with_what_it_knows(soup: Run):
    assert wiseft("merge", soup.path).returncode == 0
    whole = json.loads(soup.soup_file.read_text())
    known = dict(list(whole["accuracies"].items())[:2])
    soup.soup_file.write_text(json.dumps(whole | {"accuracies": known, "chosen": None}))
    before = soup.events_file.read_text().count('"tried"')
    assert wiseft("merge", soup.path).returncode == 0
    assert json.loads(soup.soup_file.read_text()) == whole
    assert soup.events_file.read_text().count('"tried"') == before + len(whole["accuracies"]) - len(known)


def test_a_further_model_that_is_not_there_is_said_before_anything_starts(soup: Run):
    text = soup.config_file.read_text()
    soup.config_file.write_text(text.replace("near.safetensors", "far.safetensors"))
    done = wiseft("run", soup.config_file)
    assert done.returncode == 2
    assert "far.safetensors is not there" in done.stderr


def test_a_further_model_may_be_whole_and_a_changed_one_makes_new_ensembles(copied: Run, tmp_path: Path):
    further = tmp_path / "further"
    copied.ensemble(1.0).rename(further)
    text = copied.config_file.read_text().replace(
        "  method: wise\n  models: []\n", "  method: uniform_soup\n  models: X\n"
    )
    copied.config_file.write_text(text.replace("models: X", f"models: [{further}]"))
    before = _loaded(str(further))
    done = wiseft("merge", copied.path)
    assert done.returncode == 0, done.stderr
    soup = _loaded(str(copied.ensemble(1.0)))
    assert all(torch.equal(soup[name], before[name]) for name in before)  # theta_1 with itself
    assert missing_ensembles(copied.load_config(), copied) == []
    head = load_file(further / HEAD_FILE)
    save_file({name: value + 1 for name, value in head.items()}, further / HEAD_FILE)
    assert missing_ensembles(copied.load_config(), copied) == [0.0, 0.5, 1.0]
    assert wiseft("merge", copied.path).returncode == 0
    torch.testing.assert_close(_loaded(str(copied.ensemble(1.0)))["head.bias"], before["head.bias"] + 0.5)


def test_a_further_model_that_differs_in_what_the_run_does_not_train_is_refused(copied: Run, tmp_path: Path):
    further = tmp_path / "further"
    copied.ensemble(1.0).rename(further)
    weights = load_file(further / WEIGHTS_FILE)
    weights["ln_final.bias"] += 1
    save_file(weights, further / WEIGHTS_FILE)
    text = copied.config_file.read_text().replace(
        "  method: wise\n  models: []\n", "  method: uniform_soup\n  models: X\n"
    )
    copied.config_file.write_text(text.replace("models: X", f"models: [{further}]"))
    done = wiseft("merge", copied.path)
    assert done.returncode == 2
    assert "has another ln_final.bias than theta_0, which this run does not train" in done.stderr


def _loaded(path: str) -> dict[str, torch.Tensor]:
    with open_weights(path) as weights:
        return {name: weights.tensor(name) for name in weights}
