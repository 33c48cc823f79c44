"""The report as one HTML file that needs nothing beside itself."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2

import wiseft_dist
from wiseft_dist.evaluate.statistics.statistics import Statistics
from wiseft_dist.report.sections.accuracies import accuracy_sections
from wiseft_dist.report.sections.cautions import cautions
from wiseft_dist.report.sections.comparisons import comparison_sections
from wiseft_dist.report.wording import has_both, shown_datasets


def page(
    title: str,
    statistics: Statistics,
    curve: Path,
    *,
    classnames: Mapping[str, Sequence[str]],
    published_counts: Mapping[str, int],
) -> str:
    """The page; jinja2 escapes every text that comes from data.

    Args:
        title: Its heading.
        statistics: What it shows.
        curve: The figure, a PNG file.
        classnames: By dataset, where they are known.
        published_counts: How many samples a dataset should have, where that is known.
    """
    template = jinja2.Environment(
        loader=jinja2.PackageLoader("wiseft_dist.report", "page"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    ).get_template("page.html.j2")
    datasets = [statistics.datasets[name] for name in shown_datasets(statistics)]
    return template.render(
        title=title,
        reference=datasets[0].title if statistics.reference is not None else "the shifts",
        against="against the average over the shifts, one point" if has_both(statistics) else "over alpha, one point",
        curve=base64.b64encode(curve.read_bytes()).decode(),
        cautions=cautions(statistics, published_counts),
        sections=[*accuracy_sections(statistics), *comparison_sections(statistics, classnames)],
        counts=[(dataset.title, dataset.num_samples) for dataset in datasets],
        version=wiseft_dist.__version__,
    )
