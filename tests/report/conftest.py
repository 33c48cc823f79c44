"""A browser, and a page with one of everything to open in it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from browser import opened, running
from made_up_page import made_up_page

from wiseft_dist.report.page.render import render


@pytest.fixture(scope="module")
def browser():
    with running() as started:
        yield started


@pytest.fixture
def opening(browser):
    return partial(opened, browser=browser)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    found = tmp_path_factory.mktemp("page") / "index.html"
    found.write_text(render(made_up_page()), encoding="utf-8")
    return found
