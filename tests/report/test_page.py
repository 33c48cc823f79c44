from __future__ import annotations

import html
import html.parser
import io
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from made_up import dataset, statistics, with_dataset, without_held_out
from PIL import Image
from rich.console import Console

from wiseft_dist.report.figures import draw_curve
from wiseft_dist.report.page.render import page
from wiseft_dist.report.results import gather, read_statistics
from wiseft_dist.report.stage import report
from wiseft_dist.report.table import summary_table
from wiseft_dist.run import Run


class _Page(html.parser.HTMLParser):
    """Which elements are open, what they refer to, and every table's cells."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str | None] = []
        self.tags: set[str] = set()
        self.widths: list[list[int]] = []
        self.headings: list[int] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.references += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        self.tags.add(tag)
        if tag == "table":
            self.widths.append([])
        if tag == "tr":
            self.widths[-1].append(0)
        if tag in ("td", "th"):
            self.widths[-1][-1] += 1
        if tag == "th":
            assert dict(attrs)["scope"] in ("row", "col")
        if re.fullmatch(r"h\d", tag):
            self.headings.append(int(tag[1]))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def curve(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("curve") / "curve.png"
    draw_curve(statistics(), file)
    return file


@pytest.fixture
def made_up(curve):
    """The page of made-up statistics."""

    def render(given, title="run", classnames=None, counts=None):
        return page(title, given, curve, classnames=classnames or {}, published_counts=counts or {})

    return render


def test_the_curve_is_drawn_as_png_and_svg(finished):
    with Image.open(finished.run.report / "curve.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 400
    assert "<svg" in (finished.run.report / "curve.svg").read_text()


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ({}, ("photo top-1 (%)", "average over shifts (%)")),
        ({"shifts": ("sketch",)}, ("photo top-1 (%)", "average over shifts, top-1 (%)")),
        ({"shifts": (), "shift_average": ()}, ("alpha", "photo top-1 (%)")),
        ({"reference": None}, ("alpha", "average over shifts (%)")),
    ],
)
def test_the_axes_say_what_they_show(tmp_path, changes, labels):
    draw_curve(replace(statistics(), **changes), tmp_path / "curve.svg")
    comments = re.findall(r"<!-- (.*?) -->", (tmp_path / "curve.svg").read_text())
    assert [comment for comment in comments if comment in labels] == list(labels)


def test_the_page_needs_nothing_beside_itself(finished):
    text = (finished.run.report / "index.html").read_text()
    found = _Page(text)
    assert found.references
    assert all(reference.startswith("data:") for reference in found.references)
    assert not found.tags & {"script", "link", "iframe"}
    assert not re.search(r"url\(|@import|https?://", text)


def test_every_table_is_rectangular_and_headings_do_not_skip_a_level(made_up):
    for found in (_Page(made_up(statistics())), _Page(made_up(replace(without_held_out(statistics()), chosen=None)))):
        assert len(found.widths) >= 6
        assert all(len(set(widths)) == 1 and len(widths) > 1 for widths in found.widths)
        assert found.headings[0] == 1 and set(found.headings[1:]) == {2}


def test_the_page_has_every_number_of_the_table(finished):
    text = (finished.run.report / "index.html").read_text()
    found = gather(finished.config, finished.run)
    for name in ("photo", "sketch", "clipart"):
        assert name in text
        for numbers in found.datasets[name].alphas:
            low, high = (f"{100 * value:.2f}" for value in (numbers.interval.low, numbers.interval.high))
            assert f"<td>{100 * numbers.top1:.2f} <small>({low} to {high})</small></td>" in text
    assert "held out of the training set" in text
    assert all(observation.sentence in html.unescape(text) for observation in found.observations)
    assert "red" in text  # a class by its name


def test_a_run_name_that_looks_like_html_is_shown_and_not_obeyed(finished, tmp_path):
    run = Run(tmp_path / "<b>&run")
    shutil.copytree(finished.run.path, run.path)
    report(finished.config, run)
    text = (run.report / "index.html").read_text()
    assert "<h1>&lt;b&gt;&amp;run</h1>" in text
    assert "<b>" not in text


def test_classes_titles_columns_and_groups_that_look_like_html_are_shown_and_not_obeyed(made_up):
    script = "<script>alert('x')</script>"
    given = with_dataset(with_dataset(statistics(), "sketch", title=script), "fmow", group="<i>")
    groups = tuple(replace(each, groups={"<u>": 0.5}) for each in given.datasets["fmow"].alphas)
    text = made_up(with_dataset(given, "fmow", alphas=groups), "run", {"photo": [script] * 12})
    assert _Page(text).tags.isdisjoint({"script", "i", "u"})
    assert text.count(html.escape(script).replace("&#x27;", "&#39;")) >= 11


def test_what_should_be_known_first_stands_above_the_figure(made_up):
    text = made_up(with_dataset(statistics(), "sketch", num_skipped=3), counts={"photo": 50_000})
    warned = text.split("<figure>")[0]
    assert "photo has 1,000 samples here and 50,000 as published" in warned
    assert "sketch: 3 samples could not be decoded" in warned
    assert "extrapolated" in warned


def test_a_page_with_nothing_to_warn_of_has_no_heading_for_it(made_up):
    given = with_dataset(replace(statistics(), robustness={}), "fmow", alphas=dataset("fmow", (1, 2, 3)).alphas)
    assert "Before you trust" not in made_up(given)
    assert "Before you trust" in made_up(without_held_out(given))


@pytest.mark.parametrize(
    "changes",
    [
        {"shifts": (), "shift_average": (), "robustness": {}},
        {"reference": None},
        {"observations": (), "oracles": {}, "choices": (), "chosen": None},
    ],
    ids=["no shifts", "no reference", "nothing chosen"],
)
def test_a_page_does_without_what_a_run_does_not_have(made_up, changes):
    found = _Page(made_up(replace(statistics(), **changes)))
    assert all(len(set(widths)) == 1 for widths in found.widths)


def test_the_table_fits_a_hundred_columns(finished):
    text = io.StringIO()
    Console(file=text, width=100).print(summary_table(read_statistics(finished.run.statistics_file)))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    assert "ensemble, oracle (saw the shifts)" in text.getvalue()
    assert "…" not in text.getvalue()
