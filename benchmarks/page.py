"""A large page: 21 alphas x 16 datasets x 1,000 classes, 6 pictures a dataset, training curves, all made up.

Measured in a real browser (Debian's chromium, headless): how long the page takes to open, from asking for it to the end
of its ``load`` event with every script run and everything drawn. Bounds: 5 MB, and 2 s.

``vs_limit``: seconds for a page of as many bytes, all of them one picture's, over ours: reading and nothing to lay out.
There is no peer: nothing else makes such a page.

    python -m benchmarks.page [--alphas K] [--datasets D] [--classes C] [--pictures P] [--repeats R] [--keep FILE]
"""

from __future__ import annotations

import argparse
import io
import json
import math
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from benchmarks.page_statistics import made_up_statistics
from wiseft_dist.evaluate.statistics.statistics import Statistics
from wiseft_dist.report.contents import footer, number_sections
from wiseft_dist.report.history import History, history_of
from wiseft_dist.report.page.render import Page, render
from wiseft_dist.report.page.section import Picture, Section
from wiseft_dist.report.sections.accuracies import lead_sections
from wiseft_dist.report.sections.training import training_sections
from wiseft_dist.report.wording import shown_datasets

if TYPE_CHECKING:
    from playwright.sync_api import Browser

MAX_BYTES, MAX_SECONDS = 5_000_000, 2.0
NUM_STEPS = 20_000


def main() -> None:
    """Measure and print; the last line is one JSON object."""
    options = _options()
    given = made_up_statistics(options.alphas, options.datasets, options.classes)
    started = time.perf_counter()
    text = large_page(given, options.pictures)
    rendering = time.perf_counter() - started
    num_bytes = len(text.encode())
    print(f"{num_bytes / 1e6:.2f} MB, rendered in {rendering:.2f} s")
    with tempfile.TemporaryDirectory() as temporary, _running() as browser:
        file, plain = options.keep or Path(temporary) / "index.html", Path(temporary) / "plain.html"
        file.write_text(text, encoding="utf-8")
        plain.write_text(
            f'<!doctype html><title>plain</title><img alt="" src="data:image/jpeg;base64,{"A" * num_bytes}">'
        )
        seconds, limit = (opening_seconds(browser, each, options.repeats) for each in (file, plain))
    print(f"opens in {seconds:.2f} s; as many bytes of a picture in {limit:.2f} s")
    result = {
        "benchmark": "page",
        "alphas": options.alphas,
        "datasets": options.datasets,
        "classes": options.classes,
        "pictures": options.pictures,
        "megabytes": round(num_bytes / 1e6, 2),
        "rendering_seconds": round(rendering, 2),
        "seconds": round(seconds, 3),
        "vs_peer": None,
        "vs_limit": round(limit / seconds, 3),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "within_bounds": num_bytes < MAX_BYTES and seconds < MAX_SECONDS,
    }
    print(json.dumps(result))


def large_page(given: Statistics, num_pictures: int) -> str:
    """The page of a run with these statistics, so many pictures a dataset and a long training."""
    told = _training()
    names = [f"a class with a name of several words {label}" for label in range(1000)]
    classnames = dict.fromkeys(shown_datasets(given), names)
    page = Page(
        "a large run",
        tuple(lead_sections(given)),
        (),
        (*number_sections(given, classnames, told), *_pictures(given, num_pictures), *training_sections(told)),
        footer(given),
    )
    return render(page)


def opening_seconds(browser: Browser, file: Path, repeats: int) -> float:
    """The median of some openings, each with an empty cache, until the first frame after ``load``."""
    seconds = []
    for _ in range(repeats):
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        started = time.perf_counter()
        page.goto(file.resolve().as_uri(), wait_until="load")
        page.evaluate("new Promise((drawn) => requestAnimationFrame(() => setTimeout(drawn)))")
        seconds.append(time.perf_counter() - started)
        page.close()
    return statistics.median(seconds)


@contextmanager
def _running() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--alphas", type=int, default=21)
    parser.add_argument("--datasets", type=int, default=16)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--pictures", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--keep", type=Path)
    return parser.parse_args()


def _training() -> History:
    """A loss that falls, logged every tenth step."""
    rng = np.random.default_rng(0)
    return history_of(
        {
            "time": 1e9 + step,
            "stage": "finetune",
            "event": "metrics",
            "step": step,
            "loss": 2 * math.exp(-step / 5000) + 0.1 * rng.random(),
            "lr": 1e-5 * (1 + math.cos(math.pi * step / NUM_STEPS)),
            "gradient_norm": 1 + rng.random(),
            "samples_per_second": 2000 + 50 * rng.random(),
        }
        for step in range(0, NUM_STEPS, 10)
    )


def _pictures(given: Statistics, num_pictures: int) -> list[Section]:
    """As large as thumbnails of photographs are."""
    rng = np.random.default_rng(0)
    return [
        Section(
            f"{name}: pictures whose prediction changed most",
            pictures=tuple(
                Picture(
                    _photograph(rng),
                    f"{name} {number}, labelled a class",
                    (
                        "gained: a class",
                        f"{name}/{number:06d}",
                        *(f"{who}: some class 61.23 %" for who in ("zero-shot", "chosen", "fine-tuned")),
                    ),
                )
                for number in range(num_pictures)
            ),
        )
        for name in shown_datasets(given)
    ]


def _photograph(rng: np.random.Generator) -> bytes:
    """Smooth colours with some noise, 192 x 192."""
    colours = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(
        (192, 192), Image.Resampling.BICUBIC
    )
    noise = rng.normal(0, 8, (192, 192, 3))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(np.asarray(colours) + noise, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=75)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
