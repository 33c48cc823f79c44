"""A model card beside each written ensemble: ``README.md`` as the Hugging Face Hub reads it.

What it says comes from the run alone; no path of this machine is in it, and names from data are escaped. It is no part
of the commit, which is of the weights: a new report writes it anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wiseft_dist.code_identity import code_identity
from wiseft_dist.commits import digest, is_committed, read_commit, write_atomically
from wiseft_dist.config import RunConfig
from wiseft_dist.data.manifest import Manifest
from wiseft_dist.data.stage import TRAIN, load_manifest
from wiseft_dist.evaluate.statistics.intervals import Interval
from wiseft_dist.evaluate.statistics.statistics import Statistics
from wiseft_dist.models.files import CLASSES_FILE, HEAD_FILE, WEIGHTS_FILE
from wiseft_dist.report.card_metadata import base_model, front_matter, is_contrastive
from wiseft_dist.report.card_texts import CITATION, LIMITS, loading
from wiseft_dist.report.markdown import escaped, table
from wiseft_dist.report.table import choice
from wiseft_dist.report.wording import column_name, percent, percent_range, shown_datasets
from wiseft_dist.run import CARD_FILE, Run

MAX_CLASSES = 30
"""That are named."""
ROLES = {"zero_shot": "zero-shot", "finetuned": "fine-tuned", "fisher": "Fisher"}
MODEL_FILE = "model.json"
"""Where an ensemble comes from, as the merge wrote it."""


def write_cards(config: RunConfig, run: Run, statistics: Statistics) -> None:
    """Write a card beside each ensemble that was written and evaluated."""
    manifest = load_manifest(run, TRAIN)
    for alpha in config.merge.alphas:
        folder = run.ensemble(alpha)
        if alpha in statistics.alphas and is_committed(folder):
            card = Card(config, run.path.name, alpha, folder, statistics, manifest)
            write_atomically(folder / CARD_FILE, card.text())


@dataclass(frozen=True)
class Card:
    """What the card of one ensemble is made of."""

    config: RunConfig
    run_name: str
    alpha: float
    folder: Path
    statistics: Statistics
    manifest: Manifest
    """Of the training shards."""

    def text(self) -> str:
        """The whole file."""
        base = base_model(self.config.model)
        about = front_matter(self.config, f"{self.run_name}-{self.folder.name}", self.alpha, self.statistics, base)
        sections = {
            f"{escaped(self.run_name)}, alpha = {self.alpha:g}": self._what(base),
            "Loading it": loading(
                self.folder.name,
                has_head=(self.folder / HEAD_FILE).is_file(),
                is_in_one_file=(self.folder / WEIGHTS_FILE).is_file(),
            ),
            "Results": "\n\n".join(self._results()),
            "How alpha was chosen": self._choice(),
            "Training": "\n".join(self._training()),
            "Where it comes from": "\n".join(self._provenance()),
            "Limits": LIMITS,
            "Citation": CITATION,
        }
        first, *others = (f"{title}\n\n{content}" for title, content in sections.items())
        return about + f"\n# {first}\n\n" + "\n\n".join(f"## {section}" for section in others) + "\n"

    def _what(self, base: str | None) -> str:
        start = f"`{base}`" if base else "a zero-shot CLIP model"
        if self.alpha == 0:
            return f"The zero-shot end (alpha = 0) of a weight-space ensemble: {start} before any fine-tuning."
        if self.alpha == 1:
            return f"The fine-tuned end (alpha = 1) of a weight-space ensemble that starts at {start}."
        merge = self.config.merge
        if merge.method != "wise":
            return (
                f"A CLIP model, merged in weight space by `{merge.method}` from {start} and "
                f"{1 + len(merge.models)} fine-tuned model(s), at alpha = {self.alpha:g}."
            )
        return (
            "A weight-space ensemble of a zero-shot and a fine-tuned CLIP model (WiSE-FT): "
            f"theta_alpha = (1 - alpha) theta_0 + alpha theta_1 with alpha = {self.alpha:g}, where theta_0 is {start} "
            "and theta_1 the same model after fine-tuning."
        )

    def _results(self) -> Iterator[str]:
        statistics, alpha = self.statistics, self.alpha
        ends = {name: end for name, end in (("zero-shot", 0.0), ("fine-tuned", 1.0)) if end in statistics.alphas}
        rows = []
        for name in shown_datasets(statistics):
            dataset = statistics.datasets[name]
            own = dataset.at(alpha)
            title = column_name(statistics, name).replace(name, dataset.title, 1)
            if name == statistics.reference:
                title += " [reference]"
            others = [percent(dataset.at(end).value) for end in ends.values()]
            rows.append([escaped(title), f"{dataset.num_samples:,}", *_with_range(own.value, own.interval), *others])
        average = statistics.shift_average_at(alpha)
        if average is not None:
            ends_of_average = [statistics.shift_average_at(end) for end in ends.values()]
            others = [percent(None if end is None else end.value) for end in ends_of_average]
            rows.append(["**average of the shifts**", "", *_with_range(average.value, average.interval), *others])
        yield table(["dataset", "samples", "this model (%)", "95 % interval", *(f"{name} (%)" for name in ends)], rows)
        yield (
            "Top-1 accuracy where no other metric is named. Intervals are of the test samples alone "
            "(exact or bootstrap), not of a repeated training."
        )

    def _choice(self) -> str:
        found = {name: choice(self.statistics, name) for name in ("id_val", "fixed", "oracle")}
        id_val, fixed, oracle = (None if each is None else each.alpha for each in found.values())
        said = []
        if id_val is not None:
            at = "this one" if id_val == self.alpha else f"alpha = {id_val:g}, not this one"
            said.append(
                f"Of {len(self.statistics.alphas)} alphas the one with the best accuracy on a held-out piece of the "
                f"training set was chosen: {at}. No test set was looked at for this choice."
            )
        if fixed == self.alpha:
            said.append("It is the alpha that was fixed before anything was measured.")
        if id_val is None and fixed != self.alpha:
            said.append("It was not chosen: it is one of the alphas of a curve.")
        if oracle == self.alpha:
            said.append("It is also the best on the test sets themselves, which is a bound and no fair choice.")
        return " ".join(said)

    def _training(self) -> Iterator[str]:
        finetune, manifest = self.config.finetune, self.manifest
        length = f"{finetune.epochs:g} epochs, global batch size {finetune.global_batch_size}"
        yield f"- recipe: `{finetune.recipe}`, {length}"
        rates = f"learning rate {finetune.optimizer.lr:g}, weight decay {finetune.optimizer.weight_decay:g}"
        schedule = f"{finetune.schedule.name} schedule with {finetune.schedule.warmup_steps} warm-up steps"
        yield f"- {finetune.optimizer.name}, {rates}, {schedule}, {finetune.precision}"
        yield f"- {manifest.num_training:,} training samples; {manifest.num_held_out:,} more held out to choose alpha"
        yield from self._classes()
        yield f"- merged by `{self.config.merge.method}`, stored as {self.config.merge.dtype}; seed {self.config.seed}"

    def _classes(self) -> Iterator[str]:
        names = _read(self.folder / CLASSES_FILE).get("classnames", [])
        if names and not is_contrastive(self.config):
            more = f" and {len(names) - MAX_CLASSES:,} more" if len(names) > MAX_CLASSES else ""
            yield f"- {len(names):,} classes: {', '.join(escaped(str(name)) for name in names[:MAX_CLASSES])}{more}"

    def _provenance(self) -> Iterator[str]:
        origin = _read(self.folder / MODEL_FILE)
        versions = ", ".join(f"{escaped(name)} {escaped(text)}" for name, text in origin.get("versions", {}).items())
        yield f"- made with {versions or 'wiseft_dist'}; report by wiseft_dist {escaped(str(code_identity()))}"
        for role, models in origin.get("sources", {}).items():
            for model in models:
                yield f"- bytes of the {ROLES.get(role, role)} model (XXH3): `{model.get('content', '')}`"
        files = digest(read_commit(self.folder)["files"])
        yield f"- files of this model: `{files}`, one by one in `COMMITTED.json`"
        yield f"- training samples: `{self.manifest.content_digest}`"


def _with_range(value: float, interval: Interval) -> tuple[str, str]:
    return percent(value), percent_range(interval)


def _read(file: Path) -> Mapping[str, Any]:
    if not file.is_file():
        return {}
    content: dict[str, Any] = json.loads(file.read_text())
    return content
