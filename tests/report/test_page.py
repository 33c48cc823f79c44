"""The page as text: what may be in it, what is escaped, what refers to what."""

from __future__ import annotations

import base64
import hashlib
import html
import html.parser
import re
import shutil
from dataclasses import replace

import pytest
from made_up_page import BAD_NAMES, SCRIPT, made_up_page, picture

from wiseft_dist.report.page.charts import GREY, Chart, Line, Point
from wiseft_dist.report.page.contents import contents
from wiseft_dist.report.page.render import Page, render
from wiseft_dist.report.page.section import Cell, KeyNumbers, Row, Section, row
from wiseft_dist.report.results import gather
from wiseft_dist.report.stage import report
from wiseft_dist.run import Run


class _Page(html.parser.HTMLParser):
    """Which elements are open, what they refer to, and every table's cells."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str | None] = []
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.identities: list[str] = []
        self.widths: list[list[int]] = []
        self.headings: list[int] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.references += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.identities += [value for name, value in attrs if name == "id"]
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

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def page_of(*sections: Section, **more) -> str:
    return render(replace(Page("run", (), (), sections, ""), **more))


@pytest.fixture(scope="module")
def made_up() -> str:
    return render(made_up_page())


def test_the_page_needs_nothing_beside_itself(finished, made_up):
    for text in ((finished.run.report / "index.html").read_text(encoding="utf-8"), made_up):
        found = _Page(text)
        assert all(reference.startswith(("data:image/jpeg;base64,", "#")) for reference in found.references)
        assert not {"link", "iframe", "object", "embed", "form", "base"}.intersection(found.tags)
        assert found.tags.count("script") == found.tags.count("style") == 1
        style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
        assert style is not None and not re.search(r"url\(|@import|https?:", style[1])


def test_only_the_style_and_the_script_of_the_page_are_allowed(made_up):
    found = re.search(r'http-equiv="Content-Security-Policy" content="(.*?)"', made_up)
    assert found is not None
    hashes = {
        name: base64.b64encode(
            hashlib.sha256(re.search(rf"<{name}>(.*?)</{name}>", made_up, re.DOTALL)[1].encode()).digest()
        )
        for name in ("style", "script")
    }
    assert html.unescape(found[1]) == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{hashes['style'].decode()}'; "
        f"script-src 'sha256-{hashes['script'].decode()}'; base-uri 'none'; form-action 'none'"
    )
    assert not [name for name in _Page(made_up).attributes if name == "style" or name.startswith("on")]


def test_every_table_is_rectangular_and_headings_do_not_skip_a_level(finished, made_up):
    for text in ((finished.run.report / "index.html").read_text(encoding="utf-8"), made_up):
        found = _Page(text)
        assert len(found.widths) >= 3
        assert all(len(set(widths)) == 1 and len(widths) > 1 for widths in found.widths)
        assert found.headings[0] == 1 and found.headings.count(1) == 1
        assert all(after <= before + 1 for before, after in zip(found.headings, found.headings[1:], strict=False))


def test_anchors_are_unique_and_every_link_has_one(finished, made_up):
    for text in ((finished.run.report / "index.html").read_text(encoding="utf-8"), made_up):
        found = _Page(text)
        assert len(set(found.identities)) == len(found.identities)
        links = {reference[1:] for reference in found.references if reference.startswith("#")}
        assert len(links) >= 8 and links <= set(found.identities)


def test_names_that_look_like_html_are_shown_and_not_obeyed(made_up):
    found = _Page(made_up)
    assert found.tags.count("script") == 1 and found.tags.count("img") == 2
    assert SCRIPT not in made_up and "<img src=x" not in made_up
    assert "\u202e" not in made_up and "\a" not in made_up
    assert "turned \\u202eround" in made_up


def test_every_text_of_a_section_is_escaped():
    cell = Cell(SCRIPT, SCRIPT)
    section = Section(
        SCRIPT,
        (SCRIPT, SCRIPT),
        (Row(SCRIPT, (cell,)),),
        sentences=(SCRIPT,),
        note=SCRIPT,
        pictures=(picture(BAD_NAMES),),
        key_numbers=(KeyNumbers(SCRIPT, ((SCRIPT, cell),), SCRIPT),),
        identity=SCRIPT,
    )
    text = page_of(section, title=SCRIPT, lead=(section,), cautions=(SCRIPT,), footer=SCRIPT)
    assert _Page(text).tags.count("script") == 1
    assert SCRIPT not in text


def test_a_cell_says_what_it_sorts_by_where_its_text_does_not():
    cells = (Cell("80.00", value=80.001), Cell("80", value=80.0), Cell("12"), Cell("–", value=float("nan")))
    text = page_of(Section("T", ("model", "a", "b", "c", "d"), (Row("alpha", cells, 0.5),)))
    assert '<th scope="row" data-v="0.5"><bdi>alpha</bdi></th>' in text
    assert '<td data-v="80.001">80.00</td><td>80</td><td>12</td><td data-v="nan">–</td>' in text


def test_what_should_be_known_first_stands_above_the_figure():
    text = render(replace(made_up_page(), cautions=("sketch: 3 samples could not be decoded.",)))
    assert "sketch: 3 samples could not be decoded." in text.split("<figure")[0]
    assert "Before you trust" in text
    assert "Before you trust" not in render(replace(made_up_page(), cautions=()))


def test_a_section_without_anything_is_a_heading():
    found = _Page(page_of(Section("Nothing"), Section("Folded", is_folded=True)))
    assert found.headings == [1, 2, 2]
    assert found.tags.count("table") == found.tags.count("figure") == 0


def test_long_tables_of_names_can_be_filtered_and_others_need_not():
    def has_filter(names: list[str]) -> bool:
        text = page_of(Section("T", ("class", "samples"), tuple(row(name, "1") for name in names)))
        return "data-filter" in text.partition("<script>")[0]

    assert has_filter([f"class {label}" for label in range(20)])
    assert not has_filter([f"class {label}" for label in range(19)])
    assert not has_filter(["loss"] * 300)
    assert not has_filter([f"{alpha / 20:g}" for alpha in range(21)])


def test_texts_are_read_from_the_left_and_numbers_from_the_right():
    assert '<table class="texts">' in page_of(
        Section(
            "T",
            ("what", "version"),
            (row("torch", "2.11.0"), row("code", "7"), row("pillow", "13.0.0"), row("numpy", "2.4.6")),
        )
    )
    settings = (row("lr", "0.1"), row("epochs", "10"), row("name", "adamw"), row("eps", "1e-08"), row("ema", "–"))
    assert '<table class="texts">' in page_of(Section("Settings", ("setting", "value"), settings))
    assert "<table>" in page_of(
        Section("T", ("model", "accuracy", "remark"), (row("chosen", "80.00", "extrapolated"),))
    )


def test_the_page_has_every_number_of_the_table(finished):
    text = (finished.run.report / "index.html").read_text(encoding="utf-8")
    found = gather(finished.config, finished.run)
    for name in ("photo", "sketch", "clipart"):
        assert name in text
        for numbers in found.datasets[name].alphas:
            low, high = (f"{100 * value:.2f}" for value in (numbers.interval.low, numbers.interval.high))
            assert re.search(rf"<td[^>]*>{100 * numbers.top1:.2f} <small>\({low} to {high}\)</small></td>", text)
    assert "held out of the training set" in text
    assert all(observation.sentence in html.unescape(text) for observation in found.observations)
    assert "red" in text  # a class by its name


def test_a_run_name_that_looks_like_html_is_shown_and_not_obeyed(finished, tmp_path):
    run = Run(tmp_path / "<b>&run")
    shutil.copytree(finished.run.path, run.path)
    report(finished.config, run)
    text = (run.report / "index.html").read_text(encoding="utf-8")
    assert "<h1><bdi>&lt;b&gt;&amp;run</bdi></h1>" in text
    assert "b" not in _Page(text).tags


def test_the_contents_have_one_line_for_what_is_said_of_many_datasets():
    titles = ["In short", *(f"{name}: classes" for name in "abc"), "a: one", "b: two", "b: one", "d: e: classes", "End"]
    found = contents([(str(number), title) for number, title in enumerate(titles)])
    assert [entry.title for entry in found] == ["In short", "Classes", "a: one", "b: two", "b: one", "End"]
    assert [(each.title, each.anchor) for each in found[1].entries] == [
        ("a", "1"),
        ("b", "2"),
        ("c", "3"),
        ("d: e", "7"),
    ]
    assert [entry.anchor for entry in found] == ["0", "", "4", "5", "6", "8"]


def test_a_line_keeps_its_entry_in_the_legend_though_a_mark_is_called_the_same():
    points = (Point(1, 2), Point(2, 3))
    lines = (Line("zero-shot", points), Line("b", points, colour=1), Line("zero-shot", (), "mark", GREY, "square"))
    longer = Chart("C", "x", "y", (Line("b", points, "plain", 1),), is_small=True)
    text = page_of(Section("S", charts=(Chart("C", "x", "y", lines, is_small=True), longer)))
    legend = re.search(r'<ul class="legend">(.*?)</ul>', text, re.DOTALL)
    assert legend is not None
    assert re.findall(r"<bdi>(.*?)</bdi>", legend[1]) == ["zero-shot", "b", "zero-shot"]
