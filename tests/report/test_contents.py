"""The page of a run as a whole: its order, and its numbers held against statistics.json."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest

from wiseft_dist.report.contents import page_of_run
from wiseft_dist.report.page.render import Page, render
from wiseft_dist.report.page.section import Section
from wiseft_dist.report.results import read_statistics

NUMBER = re.compile(r"[<]? ?[+-]?[\d,]*\.?\d+|inf")
COMPUTED_BEFORE = (
    "In short",
    "Every alpha",
    "Alpha",
    "Fine-tuned against",
    "Effective robustness",
    "Calibration",
    "How zero",
)
"""Sections whose tables hold nothing but what statistics.json has."""


@pytest.fixture(scope="module")
def page(finished) -> Page:
    return page_of_run(finished.config, finished.run, read_statistics(finished.run.statistics_file))


def tables(page: Page) -> Iterator[Section]:
    yield from (section for section in (*page.lead, *page.sections) if section.rows)


def test_the_page_goes_from_the_figure_to_the_settings(page: Page, finished) -> None:
    assert page.title == finished.run.path.name
    assert [section.title for section in page.lead] == ["The trade-off", "In short"]
    titles = [section.title for section in page.sections]
    wanted = [
        *("Each dataset", "The paper's observations", "Every alpha", "How alpha was chosen", "What it cost"),
        *("Alpha 1 against the ends", "Effective robustness", "Calibration", "Reliability curves"),
        *("How zero-shot and fine-tuned differ", "photo: classes that gain and lose most"),
        *("photo: pictures whose prediction changed most", "Training"),
        *("Software", "Attempts", "Files and their hashes", "Settings"),
    ]
    assert [title for title in titles if title in wanted] == wanted
    assert "photo 11, sketch 13, clipart 7" in page.footer


def test_the_figure_stands_beside_the_numbers_that_matter(page: Page, finished) -> None:
    lead = page.lead[0]
    statistics = read_statistics(finished.run.statistics_file)
    assert len(lead.charts[0].lines[1].points) == len(statistics.alphas) == 3
    first, last = lead.key_numbers
    assert (first.name, last.name) == ("zero-shot", "fine-tuned, chosen")
    assert first.numbers[0][1].value == pytest.approx(100 * statistics.datasets["photo"].at(0.0).value)
    assert last.numbers[1][0] == "shift average"
    assert last.numbers[0][1].small.endswith(" pp)") and first.numbers[0][1].small == ""


def leaves(tree: Any) -> Iterator[float]:
    if isinstance(tree, dict):
        for value in tree.values():
            yield from leaves(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from leaves(value)
    elif isinstance(tree, int | float):
        yield float(tree)


def test_every_number_of_its_tables_is_one_of_statistics_json(page: Page, finished) -> None:
    content = json.loads(finished.run.statistics_file.read_text())
    known = {round(factor * value, 9) for value in leaves(content) for factor in (1, 100)}
    checked = 0
    for section in tables(page):
        if not section.title.startswith(COMPUTED_BEFORE):
            continue
        for row in section.rows:
            for column, cell in zip(section.columns[1:], row.cells, strict=True):
                is_mean = column == "mean confidence (%)" or "oracle per dataset" in row.name
                if cell.value is not None and not is_mean:
                    assert round(cell.value, 9) in known, (section.title, row.name, column)
                    checked += 1
    assert checked > 100


def test_the_mean_confidence_is_that_of_the_bins(page: Page, finished) -> None:
    bins = read_statistics(finished.run.statistics_file).datasets["photo"].at(0.0).reliability
    total = sum(entry.num_samples * (entry.confidence or 0) for entry in bins)
    (section,) = (section for section in page.sections if section.title == "Calibration")
    assert section.rows[0].cells[0].value == pytest.approx(100 * total / 11)


def test_a_cell_sorts_by_the_number_that_it_shows(page: Page) -> None:
    for section in tables(page):
        for row in section.rows:
            assert len(row.cells) == len(section.columns) - 1
            for cell in row.cells if section.title != "Settings" else ():
                if section.title.startswith(("Software", "Files")):
                    continue
                if NUMBER.fullmatch(cell.text) and cell.text != "inf":
                    assert cell.value is not None, (section.title, row.name, cell.text)
                    shown = float(cell.text.replace(",", "").replace("< ", ""))
                    assert math.isclose(shown, cell.value, abs_tol=0.00501), (section.title, row.name)


def test_it_is_one_file_without_anything_from_elsewhere(page: Page) -> None:
    text = render(page)
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
    assert len(text) < 400_000
