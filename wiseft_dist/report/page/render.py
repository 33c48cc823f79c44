"""The page as one HTML file that needs nothing beside itself, and may fetch and run nothing else."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from wiseft_dist.report.page.chart_numbers import numbers_of
from wiseft_dist.report.page.charts import Chart, Line, Scale
from wiseft_dist.report.page.contents import contents
from wiseft_dist.report.page.drawing import mark, svg, symbol
from wiseft_dist.report.page.section import Cell, Row, Section
from wiseft_dist.report.page.text import shown

SCALE_NAMES = {"linear": "Linear axes", "logit": "Logit axes", "log": "Logarithmic y axis"}
MANY_ROWS = 20
"""A table of so many has a field to search in."""


@dataclass(frozen=True)
class Page:
    """Everything that a page shows; plain text, all of which is escaped."""

    title: str
    lead: tuple[Section, ...]
    """What is seen first: the figure and the numbers that matter."""
    cautions: tuple[str, ...]
    """What a reader should know before trusting the numbers; stands above the lead."""
    sections: tuple[Section, ...]
    footer: str


def render(page: Page) -> str:
    """HTML of a page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("wiseft_dist.report", "page"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalized,
    )
    environment.globals |= {"svg": svg, "symbol": symbol, "mark": mark, "numbers_of": numbers_of}
    environment.globals |= {"legend_of": _legend, "scales_of": _scales, "scale_names": SCALE_NAMES}
    environment.tests |= {"searchable": _is_searchable, "of_texts": _is_of_texts}
    environment.filters |= {"base64": _base64, "sort_value": _sort_value}
    style, script = _asset("page.css"), _asset("page.js")
    lead, sections = _anchored(page)
    text = environment.get_template("page.html.j2").render(
        page=page,
        lead=lead,
        sections=sections,
        contents=contents([(anchor, section.title) for anchor, section in lead + sections]),
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script),
    )
    return text + "\n"


def _asset(name: str) -> str:
    return (files("wiseft_dist.report.page") / name).read_text(encoding="utf-8").strip()


def _policy(style: str, script: str) -> str:
    """A Content-Security-Policy: pictures from the page itself; this style and this script and no others."""
    return (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _finalized(value: Any) -> Any:
    """Every text that a template puts in; what is HTML already stays."""
    return shown(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _sort_value(entry: Cell | Row) -> Markup:
    """The attribute that says what a cell sorts by, where its text does not say it."""
    text = entry.name if isinstance(entry, Row) else entry.text
    if entry.value is None or _is_number(text, entry.value):
        return Markup("")
    return Markup(' data-v="{}"').format(repr(float(entry.value)))


def _is_number(text: str, value: float) -> bool:
    """Whether a text says all of a value."""
    try:
        return math.isfinite(value) and float(text) == value
    except ValueError:
        return False


def _is_searchable(section: Section) -> bool:
    """Whether a table is long and its rows have names of their own, such as classes."""
    names = [row.name for row in section.rows if row.value is None]
    return len(set(names)) >= MANY_ROWS and not all(re.fullmatch(r"[\d.]+", name) for name in names)


def _is_of_texts(section: Section) -> bool:
    """Whether a table has texts rather than numbers, such as versions, which are read from the left."""
    cells = [cell for row in section.rows for cell in row.cells]
    numbers = [cell for cell in cells if cell.value is not None or re.fullmatch(r"[+-]?[\d,]+(\.\d+)?", cell.text)]
    return 2 * len(numbers) < len(cells)


def _legend(charts: Sequence[Chart]) -> list[Line]:
    """One entry a name and look: a run may be called what a mark of all runs is called."""
    named = (line for chart in charts for line in chart.lines if line.name)
    # Joined or not, the points of a line are the same line's: a long one has no symbols.
    return list({(line.name, line.style == "mark", line.colour, line.shape): line for line in named}.values())


def _scales(charts: Sequence[Chart]) -> list[Scale]:
    """All that one of the charts has."""
    return list(dict.fromkeys(scale for chart in charts for scale in chart.scales))


def _anchored(page: Page) -> tuple[list[tuple[str, Section]], list[tuple[str, Section]]]:
    """The sections with their anchors, no two of which are the same."""
    used = {"content", "cautions", "contents"}
    lead = [(_anchor(section, used), section) for section in page.lead]
    return lead, [(_anchor(section, used), section) for section in page.sections]


def _anchor(section: Section, used: set[str]) -> str:
    plain = unicodedata.normalize("NFKD", section.identity or section.title).encode("ascii", "ignore").decode().lower()
    wanted = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:60] or "section"
    found = next(name for name in _numbered(wanted) if name not in used)
    used.add(found)
    return found


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name}-{number}"
        number += 1
