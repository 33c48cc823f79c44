"""The page in a real browser for every reader: dark, narrow, by keyboard, with a screen reader, printed, scriptless."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from browser import FOCUSED, LOWEST_CONTRAST
from made_up_page import NUM_ALPHAS

from wiseft_dist.report.page.render import Page, render
from wiseft_dist.report.page.section import Cell, Row, Section


def focus_walk(page, presses: int) -> Iterator[dict]:
    for _ in range(presses):
        page.keyboard.press("Tab")
        yield page.evaluate(FOCUSED)


def test_dark_and_light_are_different_and_both_can_be_read(opening, file):
    backgrounds = []
    for dark in (False, True):
        with opening(file, dark=dark) as page:
            page.locator("#a-table-to-sort").get_by_role("button", name="accuracy").click()
            for folded in page.locator("main details").all():
                folded.evaluate("details => { details.open = true }")
            contrast = page.evaluate(LOWEST_CONTRAST)
            assert contrast["count"] > 300
            assert contrast["ratio"] >= 4.5, contrast
            backgrounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert backgrounds == ["rgb(255, 255, 255)", "rgb(20, 23, 28)"]


def test_the_button_turns_the_colours_and_the_page_forgets_it(opening, file):
    with opening(file) as page:
        page.get_by_role("button", name="Dark colours").click()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"
        assert page.evaluate(LOWEST_CONTRAST)["ratio"] >= 4.5
        page.get_by_role("button", name="Light colours").click()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        page.get_by_role("button", name="Dark colours").click()
        page.reload()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_a_narrow_window_scrolls_only_downwards(opening, file, finished):
    for path in (file, finished.run.report / "index.html"):
        with opening(path, width=360) as page:
            for folded in page.locator("details").all():
                folded.evaluate("details => { details.open = true }")
            assert page.evaluate("document.scrollingElement.scrollWidth") <= 360
            sizes = page.locator(".plot:visible text").evaluate_all(
                "texts => texts.map(text => text.getBoundingClientRect().height)"
            )
            assert sizes and min(sizes) > 8


def test_the_keyboard_reaches_everything_in_order_and_it_is_seen_where(opening, file):
    with opening(file) as page:
        seen = list(focus_walk(page, 40))
        assert (seen[0]["text"], seen[1]["id"]) == ("Skip to the content", "mode")
        assert all(each["isOutlined"] for each in seen if each["name"] != "body"), seen
        texts = [each["text"] for each in seen]
        assert texts.index("Logit axes") < texts.index("accuracy")
        assert [each["name"] for each in seen].count("svg") >= 2


def test_the_skip_link_goes_to_the_content(opening, file):
    with opening(file) as page:
        page.keyboard.press("Tab")
        assert page.locator(".skip").evaluate("link => link.getBoundingClientRect().top") >= 0
        page.keyboard.press("Enter")
        page.locator("#content:focus").wait_for()  # the browser moves it with its next frame


def test_figures_and_tables_have_names_for_screen_readers(opening, file):
    with opening(file) as page:
        tree = page.locator("body").aria_snapshot()
        assert 'img "Average over the shifts against the reference"' in tree
        assert 'table "A table to sort"' in tree
        assert 'columnheader "accuracy"' in tree
        assert 'rowheader "model 10"' in tree
        assert "navigation" in tree and "main" in tree
        levels = page.locator("h1, h2, h3").evaluate_all("all => all.map(each => Number(each.tagName[1]))")
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))
        assert page.locator("svg[role=img]:visible").evaluate_all(
            "all => all.every(each => each.querySelector('desc'))"
        )


def test_it_can_be_printed_with_everything_unfolded(opening, file):
    with opening(file, dark=True) as page:
        printed = page.pdf(format="A4")
        assert printed.startswith(b"%PDF") and len(printed) > 30_000
        page.emulate_media(media="print")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.locator("button:visible:not(th *)").count() == 0
        assert page.locator("#classes tbody tr").last.is_visible()


def test_a_table_of_many_columns_is_printed_whole(opening, tmp_path):
    cells = tuple(Cell("80.00", "(78.00 to 82.00)", 80.0) for _ in range(32))
    table = Section("Wide", ("alpha", *(f"dataset_{n}" for n in range(32))), (Row("0.5", cells),))
    (tmp_path / "wide.html").write_text(render(Page("run", (), (), (table,), "")), encoding="utf-8")
    with opening(tmp_path / "wide.html", width=680) as page:  # A4 without its margins
        page.emulate_media(media="print")
        assert page.locator("table").evaluate("table => table.getBoundingClientRect().width") <= 680
        assert page.locator("td").last.evaluate("cell => cell.getBoundingClientRect().right") <= 681


def test_without_scripts_the_figure_and_the_tables_are_there(opening, file):
    with opening(file, scripts=False) as page:
        assert page.locator("#the-trade-off svg[role=img]:visible .point").count() == NUM_ALPHAS
        assert page.locator("button:visible").count() == 0
        assert page.locator("#a-table-to-sort tbody tr").first.is_visible()
        assert page.locator("nav a").first.is_visible()
