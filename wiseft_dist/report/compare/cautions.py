"""What a reader should know before trusting a comparison: in what the runs are not alike beside their models."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from wiseft_dist.commits import digest
from wiseft_dist.evaluate.statistics.statistics import DatasetStatistics
from wiseft_dist.models.files import CLASSES_FILE
from wiseft_dist.report.compare.differences import Difference
from wiseft_dist.report.compare.given import Compared
from wiseft_dist.report.compare.shared import Shared
from wiseft_dist.report.table import choice
from wiseft_dist.report.wording import shown_datasets

METHODS = {"clopper_pearson": "Clopper-Pearson", "bootstrap": "bootstrap", "combined": "combined"}


def cautions(runs: Sequence[Compared], shared: Shared, found: Iterable[Difference]) -> tuple[str, ...]:
    """One sentence each; nothing where the runs are alike.

    Args:
        runs: As they are compared.
        shared: On what.
        found: How they differ from the first.
    """
    return (
        *shared.left_out,
        *_of_datasets(runs),
        *_of_choices(runs),
        *_classes(runs),
        *_code(runs),
        *_unpaired(runs, found),
    )


def _of_datasets(runs: Sequence[Compared]) -> Iterator[str]:
    for name in shown_datasets(runs[0].statistics):
        datasets = {run.name: run.statistics.datasets[name] for run in runs}
        for sentence, of in (
            ("{name} has {values}: the runs are not measured on the same samples.", _num_samples),
            ("{name}: {values}, which count in no number.", _num_skipped),
            ("{name}: {values}.", _intervals),
            ("{name}: {values}, so the same picture may have another right class.", _class_map),
        ):
            if told := _where_they_differ(datasets, of):
                yield sentence.format(name=name, values=told)


def _num_samples(dataset: DatasetStatistics) -> str:
    return f"{dataset.num_samples + dataset.num_skipped:,} samples"


def _num_skipped(dataset: DatasetStatistics) -> str:
    return f"{dataset.num_skipped:,} samples were skipped"


def _intervals(dataset: DatasetStatistics) -> str:
    interval = dataset.alphas[0].interval
    by = f" by {interval.cluster}" if interval.cluster else ""
    return f"{METHODS[interval.method]} intervals{by}"


def _class_map(dataset: DatasetStatistics) -> str:
    return f"classes by the map {dataset.class_map}" if dataset.class_map else "the head's own classes"


def _of_choices(runs: Sequence[Compared]) -> Iterator[str]:
    if told := _where_they_differ({run.name: run for run in runs}, _how_chosen):
        yield f"The reported alpha was {told}: what was chosen by validation is not like what was fixed."
    if told := _where_they_differ({run.name: run for run in runs}, _held_out):
        yield f"Alpha was chosen on {told}: ID-val numbers of these runs cannot be compared."
    alphas = {run.name: run.statistics.alphas for run in runs}
    if len(set(alphas.values())) > 1:
        most = max(alphas, key=lambda name: len(alphas[name]))
        others = ", ".join(name for name in alphas if alphas[name] != alphas[most])
        yield (
            f"Not every run was evaluated at the same alphas ({others} at others than {most}): a run with more of them "
            "had more to choose from."
        )


def _how_chosen(run: Compared) -> str:
    if choice(run.statistics, "id_val"):
        return "chosen on held-out samples"
    return "fixed before" if run.statistics.chosen is not None else "not chosen at all"


def _held_out(run: Compared) -> str:
    held_out = next((each for each in run.statistics.datasets.values() if each.role == "id_val"), None)
    return "nothing" if held_out is None else f"{held_out.num_samples:,} held-out samples"


def _classes(runs: Sequence[Compared]) -> Iterator[str]:
    lists = {run.name: names for run in runs if (names := _classnames(run)) is not None}
    counts = {name: f"{len(names):,} classes" for name, names in lists.items()}
    if len({digest(names) for names in lists.values()}) > 1:
        told = ", ".join(f"{count} in {name}" for name, count in counts.items())
        yield f"The heads have other class lists ({told}): accuracies over other classes are other numbers."


def _classnames(run: Compared) -> list[Any] | None:
    """Of the run's head; None where they are not known."""
    if run.run is None:
        return None
    try:
        return list(json.loads((run.run.zero_shot / CLASSES_FILE).read_text(encoding="utf-8"))["classnames"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _code(runs: Sequence[Compared]) -> Iterator[str]:
    codes = {run.name: run.history.codes for run in runs if run.history.codes}
    if len({str(each[-1].get("code")) for each in codes.values()}) < 2:
        return
    versions = _where_they_differ(codes, lambda each: f"version {each[-1].get('version')}")
    yield f"The runs ran with different code: {versions or 'of one version, with other files'}."


def _unpaired(runs: Sequence[Compared], found: Iterable[Difference]) -> Iterator[str]:
    """One sentence for all runs and datasets with one reason."""
    datasets: dict[tuple[str, str], dict[str, None]] = {}
    for each in found:
        if each.reason and each.dataset in runs[0].statistics.datasets:
            datasets.setdefault((each.reason, each.run), {}).setdefault(each.dataset)
    alike: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (reason, run), of in datasets.items():
        alike.setdefault((reason, tuple(of)), []).append(run)
    for (reason, names), unpaired in alike.items():
        verb = "is" if len(unpaired) == 1 else "are"
        yield f"{', '.join(unpaired)} {verb} not paired with {runs[0].name} on {', '.join(names)}: {reason}."


def _where_they_differ(things: Mapping[str, Any], of: Callable[[Any], str]) -> str:
    """``11 samples in a, 12 samples in b, c``; empty where all are the same."""
    groups: dict[str, list[str]] = {}
    for name, thing in things.items():
        groups.setdefault(of(thing), []).append(name)
    if len(groups) < 2:
        return ""
    return "; ".join(f"{value} in {', '.join(names)}" for value, names in groups.items())
