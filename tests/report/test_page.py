from __future__ import annotations

import html.parser
import io
import re
import shutil

from PIL import Image
from rich.console import Console

from wiseft_dist.report.results import gather
from wiseft_dist.report.stage import report
from wiseft_dist.report.table import summary_table
from wiseft_dist.run import Run


def test_the_curve_is_drawn_as_png_and_svg(finished):
    with Image.open(finished.run.report / "curve.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 400
    assert "<svg" in (finished.run.report / "curve.svg").read_text()


class _References(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        assert tag not in ("script", "link", "iframe")


def test_the_page_needs_nothing_beside_itself(finished):
    page = (finished.run.report / "index.html").read_text()
    references = _References()
    references.feed(page)
    assert references.found
    assert all(reference.startswith("data:") for reference in references.found)
    assert not re.search(r"url\(|@import|https?://", page)


def test_the_page_has_every_number_of_the_table(finished):
    page = (finished.run.report / "index.html").read_text()
    results = gather(finished.config, finished.run)
    for name in ("photo", "sketch", "clipart"):
        assert name in page
        assert all(f"<td>{100 * results.cells[name, alpha].top1:.2f}</td>" in page for alpha in results.alphas)
    assert "held out of the training set" in page


def test_a_name_that_looks_like_html_is_shown_and_not_obeyed(finished, tmp_path):
    run = Run(tmp_path / "<b>&run")
    shutil.copytree(finished.run.path, run.path)
    report(finished.config, run)
    page = (run.report / "index.html").read_text()
    assert "<h1>&lt;b&gt;&amp;run</h1>" in page
    assert "<b>" not in page


def test_the_table_fits_a_hundred_columns(finished):
    text = io.StringIO()
    Console(file=text, width=100).print(summary_table(gather(finished.config, finished.run)))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    assert "ensemble, oracle (saw the shifts)" in text.getvalue()
    assert "…" not in text.getvalue()
