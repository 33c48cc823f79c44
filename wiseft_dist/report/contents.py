"""What the page of a run says, in its order; files of their own make sections of statistics, events and cells."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

import wiseft_dist
from wiseft_dist.config import RunConfig
from wiseft_dist.data.stage import ID_VAL
from wiseft_dist.evaluate.run_datasets import dataset_of_run
from wiseft_dist.evaluate.statistics.statistics import Statistics
from wiseft_dist.models.files import CLASSES_FILE
from wiseft_dist.report.history import History, history
from wiseft_dist.report.page.render import Page
from wiseft_dist.report.page.section import Section
from wiseft_dist.report.sections.accuracies import accuracy_sections, lead_sections
from wiseft_dist.report.sections.calibration import calibration_sections
from wiseft_dist.report.sections.cautions import cautions, history_cautions
from wiseft_dist.report.sections.classes import class_sections
from wiseft_dist.report.sections.comparisons import diversity_sections, paired_sections
from wiseft_dist.report.sections.pictures import picture_sections
from wiseft_dist.report.sections.provenance import provenance_sections
from wiseft_dist.report.sections.robustness import robustness_sections
from wiseft_dist.report.sections.selection import cost_sections, selection_section
from wiseft_dist.report.sections.training import training_sections
from wiseft_dist.report.wording import shown_datasets
from wiseft_dist.run import Run
from wiseft_dist.tracking.scrubbing import scrubbed


def page_of_run(config: RunConfig, run: Run, statistics: Statistics) -> Page:
    """The page of a run whose cells are all there; reads its events, manifests and cells, and some shards for pictures.

    Raises:
        RunError: if a cell is damaged. What is wrong with a shard is a sentence on the page.
    """
    told, classnames = history(run), _classnames(config, run)
    pictures, problems = picture_sections(config, run, statistics, classnames)
    counts = _published_counts(config, run)
    return Page(
        run.path.name,
        tuple(lead_sections(statistics)),
        tuple(map(scrubbed, (*cautions(statistics, counts), *history_cautions(told), *problems))),
        (
            *number_sections(statistics, classnames, told),
            *pictures,
            *training_sections(told),
            *provenance_sections(config, run, told),
        ),
        footer(statistics),
    )


def number_sections(
    statistics: Statistics, classnames: Mapping[str, Sequence[str]], told: History
) -> Iterator[Section]:
    """What follows from statistics and events alone.

    Args:
        statistics: Of the run.
        classnames: By dataset, where they are known.
        told: The run's events.
    """
    yield from accuracy_sections(statistics)
    yield selection_section(statistics)
    yield from cost_sections(told)
    yield from paired_sections(statistics)
    yield from robustness_sections(statistics)
    yield from calibration_sections(statistics)
    yield from diversity_sections(statistics)
    yield from class_sections(statistics, classnames)


def footer(statistics: Statistics) -> str:
    """How many samples stand behind the numbers, and who explains them."""
    datasets = [statistics.datasets[name] for name in shown_datasets(statistics)]
    counts = ", ".join(f"{dataset.title} {dataset.num_samples:,}" for dataset in datasets)
    return f"Samples: {counts}. Every number is explained in docs/evaluation.md. wiseft_dist {wiseft_dist.__version__}."


def _classnames(config: RunConfig, run: Run) -> dict[str, Sequence[str]]:
    """What the labels of each dataset mean: its own classes, or else the head's."""
    head = json.loads((run.zero_shot / CLASSES_FILE).read_text(encoding="utf-8"))["classnames"]
    return {name: dataset_of_run(config, run, name).classnames or head for name in config.data.evaluated} | {
        ID_VAL: head
    }


def _published_counts(config: RunConfig, run: Run) -> Mapping[str, int]:
    counts = {name: dataset_of_run(config, run, name).spec.num_samples for name in config.data.evaluated}
    return {name: count for name, count in counts.items() if count is not None}
