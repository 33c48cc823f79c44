"""Pages in a real browser: Debian's chromium, headless, that may ask for nothing but the page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

LOWEST_CONTRAST = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = (colour) => numbers(colour).slice(0, 3)
    .map((part) => part / 255).map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
  const background = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const found = getComputedStyle(each).backgroundColor;
      if ((numbers(found)[3] ?? 1) === 1) return found;
    }
    return "rgb(255, 255, 255)";
  };
  let lowest = [Infinity, "nothing"], count = 0;
  for (const element of document.querySelectorAll("body *:not(script, style, title, desc)")) {
    const isText = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!isText || !element.checkVisibility()) continue;
    const style = getComputedStyle(element), isDrawn = element instanceof SVGElement;
    const [a, b] = [luminance(isDrawn ? style.fill : style.color), luminance(background(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    count += 1;
    if (ratio < lowest[0]) lowest = [ratio, `${element.tagName} ${element.className.baseVal ?? element.className}`];
  }
  return { ratio: lowest[0], where: lowest[1], count };
}"""
"""The lowest contrast of a text to what is behind it, where, and of how many texts."""
FOCUSED = """() => {
  const element = document.activeElement, style = getComputedStyle(element);
  return { name: element.tagName.toLowerCase(), text: element.textContent.trim(), class: element.className,
           id: element.id, isOutlined: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2 };
}"""
"""The element that has the keyboard."""
NEXT_FRAME = "new Promise((drawn) => requestAnimationFrame(() => setTimeout(drawn)))"
"""The browser has drawn a frame, and told the page's observers of it."""


@contextmanager
def running() -> Iterator[Browser]:
    """A browser; skips the test where chromium is not installed, but never on CI."""
    program = shutil.which("chromium")
    if program is None:
        message = "no chromium: apt-get install chromium"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(
    path: Path, *, width: int = 1200, dark: bool = False, scripts: bool = True, browser: Browser | None = None
) -> Iterator[Page]:
    """The page at a path. An error, a warning, a dialog, or a request for anything else fails the test.

    It scrolls at once, as for readers who want less motion: while a page glides, nothing has its place.

    Args:
        path: Of the file.
        width: Of the window, pixels.
        dark: What the system prefers.
        scripts: Whether scripts may run.
        browser: One that runs; by default one is started.
    """
    found: list[str] = []
    url = path.resolve().as_uri()
    with running() if browser is None else nullcontext(browser) as started:
        page = started.new_page(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            java_script_enabled=scripts,
            reduced_motion="reduce",
        )
        page.set_default_timeout(60_000)
        page.on("console", lambda message: found.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: found.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (found.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on(
            "request",
            lambda request: found.append(f"request: {request.url[:200]}") if _is_other(request.url, url) else None,
        )
        page.goto(url)
        yield page
        if scripts:
            page.evaluate(NEXT_FRAME)  # what the browser does by itself after the last step may go wrong too
        page.close()
    assert found == []


def _is_other(requested: str, url: str) -> bool:
    return requested.partition("#")[0] != url and not requested.startswith("data:")
