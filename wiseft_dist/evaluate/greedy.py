"""The greedy soup: which fine-tuned models are averaged is decided on ID-val, one model after the other.

Source: Model soups (arXiv 2203.05482), recipe 1. Models are tried in the order of their own accuracy; each stays in the
soup if the soup is not worse with it. What counts is ID-val's own metric, as when alpha is chosen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import wiseft_dist
from wiseft_dist.commits import refuse_damaged, write_atomically
from wiseft_dist.config import DatasetSpec, RunConfig
from wiseft_dist.data.stage import ID_VAL, sizes_to_evaluate
from wiseft_dist.distributed import device_of, require_single_process, use_cores
from wiseft_dist.errors import UserError
from wiseft_dist.evaluate.catalog.entries import describe_dataset
from wiseft_dist.evaluate.cells.parts import Part
from wiseft_dist.evaluate.cells.store import ARITHMETIC, EVALUATION_CODE_VERSION, content_of
from wiseft_dist.evaluate.predictions import Member
from wiseft_dist.evaluate.scoring import layers_of, load_module, open_test_set_of_run, score_part
from wiseft_dist.evaluate.statistics.metrics.primary import primary_metric
from wiseft_dist.merge.methods.method import Slices
from wiseft_dist.merge.methods.uniform_soup import UniformSoup
from wiseft_dist.models.classifier import Classifier
from wiseft_dist.progress import progress_bar
from wiseft_dist.ranks import discover_ranks
from wiseft_dist.run import Run
from wiseft_dist.tracking import tracking
from wiseft_dist.weights.finetuned import candidates_digest, open_models
from wiseft_dist.weights.pairing import Models

METRIC_SETTINGS = ("metric", "group", "group_names", "excluded_groups", "cluster", "anchor", "offset", "neighbours")
"""Of ID-val's description: what decides its value, beside the predictions."""


def choose_soup(config: RunConfig, run: Run) -> None:
    """Write down which models the run's soup is made of, unless that is written already.

    Every accuracy is kept as soon as it is known: started again, the choice goes on where it was.

    Raises:
        UserError: if nothing is held out for ID-val, or the models do not fit together.
        RunError: if a fine-tuning has not finished.
    """
    num_held_out = sizes_to_evaluate(config, run).get(ID_VAL, 0)
    if not num_held_out:
        raise UserError(
            f"{run.path}: greedy_soup chooses on ID-val, and nothing is held out: set data.id_val_fraction."
        )
    trials = _Trials(config, run)
    if trials.chosen is not None:
        return
    require_single_process("merge with greedy_soup")
    use_cores(num_processes=1)
    refuse_damaged(run.finished_checkpoint())
    candidates = range(1 + len(config.merge.models))
    with (
        tracking(config, run, "merge", job="soup") as tracker,
        open_models(config, run, ingredients=candidates) as models,
        progress_bar("choosing the soup", total=2 * len(candidates) - 1, unit="trials") as bar,
    ):
        soup = _Soup(load_module(config, run, device_of(discover_ranks())), models)
        score = _scorer(config, run, soup, num_held_out)

        def accuracy(ingredients: Sequence[int]) -> float:
            if (known := trials.accuracy(ingredients)) is not None:
                return known
            soup.fill(ingredients)
            found = score(f"trying {_label(ingredients)}")
            trials.add(ingredients, found)
            tracker.event("tried", models=[trials.names[number] for number in ingredients], accuracy=found)
            bar.advance()
            return found

        chosen = greedy(candidates, accuracy)
        trials.choose(chosen)
        tracker.event("chosen", models=[trials.names[number] for number in chosen])


def greedy(candidates: Sequence[int], accuracy: Callable[[Sequence[int]], float]) -> list[int]:
    """The numbers of the models in the soup, the best single one first.

    Args:
        candidates: Numbers of the models.
        accuracy: Of the average of some of them.
    """
    first, *others = sorted(candidates, key=lambda number: -accuracy([number]))
    chosen, best = [first], accuracy([first])
    for number in others:
        found = accuracy([*chosen, number])
        if found >= best:
            chosen, best = [*chosen, number], found
    return chosen


def _scorer(config: RunConfig, run: Run, soup: _Soup, num_held_out: int) -> Callable[[str], float]:
    """What gives the value of the soup as it is on ID-val, under a title for its progress bar."""
    spec = _spec(config)
    layers, test_set = layers_of(soup, config.evaluate), open_test_set_of_run(config, run, ID_VAL)
    score = partial(score_part, soup, layers, test_set, Part(ID_VAL, 0, num_held_out), [Member(1.0)], config.evaluate)

    def accuracy(title: str) -> float:
        with progress_bar(title, total=num_held_out, unit="images") as bar:
            predictions = score(compare=False, on_progress=bar.advance)
        return float(primary_metric(ID_VAL, spec, predictions, predictions.correct).tally.values[0])

    return accuracy


def _spec(config: RunConfig) -> DatasetSpec:
    """What is known of ID-val, its metric above all."""
    return describe_dataset(ID_VAL, config.data.datasets.get(ID_VAL)).spec


class _Trials:
    """``RUN/merge/soup.json``: what was tried so far with these models, and what was chosen."""

    def __init__(self, config: RunConfig, run: Run) -> None:
        self._file = run.soup_file
        self.names = [str(run.path), *config.merge.models]
        settings = config.evaluate.model_dump(mode="json", include=set(ARITHMETIC))
        key = {
            "candidates": candidates_digest(config, run),
            "data": dict(content_of(config, run, ID_VAL).key),
            "metric": _spec(config).model_dump(mode="json", include=set(METRIC_SETTINGS)),
            "settings": settings,
            "code": [EVALUATION_CODE_VERSION, wiseft_dist.__version__],
        }
        known = json.loads(self._file.read_text()) if self._file.is_file() else {}
        if {name: known.get(name) for name in key} != key:
            known = {**key, "models": self.names, "accuracies": {}, "chosen": None}
        self._known = known

    @property
    def chosen(self) -> list[int] | None:
        """The numbers of the chosen models, once all is tried."""
        chosen: list[int] | None = self._known["chosen"]
        return chosen

    def accuracy(self, ingredients: Sequence[int]) -> float | None:
        """Of the average of these models, if it was tried."""
        found: float | None = self._known["accuracies"].get(_label(ingredients))
        return found

    def add(self, ingredients: Sequence[int], accuracy: float) -> None:
        self._known["accuracies"][_label(ingredients)] = accuracy
        self._write()

    def choose(self, ingredients: list[int]) -> None:
        self._known["chosen"] = ingredients
        self._write()

    def _write(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._file, json.dumps(self._known, indent=1))


def _label(ingredients: Sequence[int]) -> str:
    return "+".join(map(str, ingredients))


@dataclass(frozen=True)
class _Soup:
    """A module that is given averages, one tensor at a time: no more than one model is held."""

    module: Classifier
    models: Models
    varying: frozenset[str] = frozenset()

    def set_alpha(self, alpha: float) -> None:
        """The soup itself is what was filled in."""
        assert alpha == 1.0

    @torch.no_grad()
    def fill(self, ingredients: Sequence[int]) -> None:
        """Make the module the average of some models; the bits are those of the written soup in fp32."""
        for name, target in self.module.state_dict(keep_vars=True).items():
            if self.models.is_mixed(name):
                target.data.copy_(self._average(name, ingredients).reshape(target.shape))

    def _average(self, name: str, ingredients: Sequence[int]) -> Tensor:
        chosen = [self.models.finetuned[number] for number in ingredients]
        slices = Slices(name, 0, [weights.read(name).float() for weights in (self.models.zero_shot, *chosen)])
        out = torch.empty_like(slices.models[0])
        UniformSoup().mix(slices, 1.0, out)
        return out
