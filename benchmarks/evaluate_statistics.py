"""From cells to the finished report: 21 alphas x 10 datasets x 50,000 samples, made up.

Ours reads real cells (Parquet), one dataset at a time, computes all that a report holds (metrics, intervals, paired
tests, diversity, choices, observations, robustness) and writes its files. Bounds: a minute and 2 GB.

``vs_peer``: seconds of a part of this done the plain way on the same arrays, in memory already, over ours for
everything: scikit-learn's accuracy and balanced accuracy, top-5, a loop over calibration bins, and for every alpha a
percentile bootstrap of the accuracy that draws samples (10 resamples are timed and scaled to as many as ours).
``vs_limit``: seconds of reading the cells' bytes alone, over ours. It is far below 1: numbers are computed, not copied.

    python -m benchmarks.evaluate_statistics [--samples N] [--datasets D] [--alphas K] [--resamples B] [--without-peer]
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from wiseft_dist.config.dataset import DatasetSpec
from wiseft_dist.evaluate.cells.parts import cut
from wiseft_dist.evaluate.cells.store import CellStore, Content
from wiseft_dist.evaluate.predictions import Member, Predictions
from wiseft_dist.evaluate.statistics.cell_source import CellSource
from wiseft_dist.evaluate.statistics.intervals import NUM_RESAMPLES
from wiseft_dist.evaluate.statistics.statistics import Role, statistics
from wiseft_dist.report.contents import footer, number_sections
from wiseft_dist.report.figures import draw_figures
from wiseft_dist.report.history import History
from wiseft_dist.report.page.render import Page, render
from wiseft_dist.report.rows import to_csv
from wiseft_dist.report.sections.accuracies import lead_sections
from wiseft_dist.report.sections.cautions import cautions

NUM_CLASSES = 1000
PART_SAMPLES = 8192
MAX_SECONDS, MAX_MEGABYTES = 60, 2000
PEER_RESAMPLES = 10


def main() -> None:
    """Measure and print; the last line is one JSON object."""
    options = _options()
    members = [Member(float(alpha)) for alpha in np.linspace(0, 1, options.alphas)]
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        content = Content(options.samples, {})
        store = CellStore(root / "cells", {}, lambda _: content)
        sources = _made_up(options, store, members)
        size = sum(file.stat().st_size for file in root.rglob("*") if file.is_file())
        print(f"{options.datasets} datasets in {len(list(root.rglob('*.parquet')))} files, {size / 2**20:.0f} MiB")
        before = _peak_megabytes()  # writing made arrays too; ours is what it needs on top, or in all if that is more
        cpu_before = time.process_time()
        seconds = _time(lambda: _ours(sources, members, root, options.resamples))
        cpu_seconds, limit = time.process_time() - cpu_before, _time(lambda: _read(root))
        peak = _peak_megabytes()
        print(f"ours {seconds:.1f} s, peak {peak:.0f} MB ({before:.0f} MB before); reading the bytes {limit:.2f} s")
        peer = None if options.without_peer else _time(lambda: _peer(sources, options.resamples))
    result = {
        "benchmark": "evaluate_statistics",
        "alphas": options.alphas,
        "datasets": options.datasets,
        "samples": options.samples,
        "resamples": options.resamples,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "peak_memory_mb": round(peak),
        "vs_peer": None if peer is None else round(peer / seconds, 2),
        "vs_limit": round(limit / seconds, 4),
        "within_bounds": seconds <= MAX_SECONDS and peak <= MAX_MEGABYTES,
    }
    print(json.dumps(result))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--datasets", type=int, default=10)
    parser.add_argument("--alphas", type=int, default=21)
    parser.add_argument("--resamples", type=int, default=NUM_RESAMPLES)
    parser.add_argument("--without-peer", action="store_true")
    return parser.parse_args()


def _ours(sources: Sequence[CellSource], members: Sequence[Member], root: Path, num_resamples: int) -> None:
    """Everything, to the files of a report."""
    result = statistics(sources, members, num_resamples=num_resamples)
    (root / "statistics.json").write_text(json.dumps(result.as_dict(), indent=1, allow_nan=False))
    (root / "results.csv").write_text(to_csv(result))
    draw_figures(result, root)
    sections = tuple(number_sections(result, {}, History()))
    page = Page("made up", tuple(lead_sections(result)), tuple(cautions(result, {})), sections, footer(result))
    (root / "index.html").write_text(render(page))


def _read(root: Path) -> None:
    for file in root.rglob("*.parquet"):
        file.read_bytes()


def _made_up(options: argparse.Namespace, store: CellStore, members: Sequence[Member]) -> list[CellSource]:
    """Cells of a reference, and of shifts with all the metrics that have intervals of their own."""
    kinds: list[dict[str, Any]] = [
        {"reference": "imagenet", "robustness_fit": "imagenet_v2"},
        {"metric": "macro_f1", "cluster": "place", "metadata": {"place": "npy:0"}},
        {"metric": "worst_group", "group": "place", "metadata": {"place": "npy:0"}},
        {"metric": "mean_per_class"},
        {"metric": "macro_f1"},
    ]
    sources = []
    for number in range(options.datasets):
        name = "imagenet" if number == 0 else f"shift{number}"
        spec = DatasetSpec() if number == 0 else DatasetSpec.model_validate(kinds[number % len(kinds)])
        parts = cut({name: options.samples}, PART_SAMPLES)
        for part in parts:
            predictions = _predictions((number, part.start), part.start, part.stop, members)
            store.write(name, part, members, predictions)
        role: Role = "reference" if number == 0 else "shift"
        sources.append(CellSource(name, spec, role, store, tuple(members), max_bad=0))
    return sources


def _predictions(seed: tuple[int, int], start: int, stop: int, members: Sequence[Member]) -> Predictions:
    """Two models that err differently, and ensembles between them that are better than a mixture of their scores."""
    rng = np.random.default_rng(seed)
    num_samples = stop - start
    labels = rng.integers(NUM_CLASSES, size=num_samples)
    shared = rng.normal(0.6, 1.0, num_samples)
    ends = shared + rng.normal(0.0, 0.8, (2, num_samples))
    wrong = (labels + rng.integers(1, NUM_CLASSES, (2, num_samples))) % NUM_CLASSES
    others = rng.integers(NUM_CLASSES, size=(num_samples, 3))
    alphas = np.array([member.alpha for member in members])[:, None]
    scores = (1 - alphas) * ends[0] + alphas * ends[1] + 1.2 * alphas * (1 - alphas)
    right = scores > 0
    other = np.where(alphas < 0.5, wrong[0], wrong[1])
    classes = np.where(right, labels, other).astype(np.int32)
    second = np.where(right, other, np.where(scores > -0.8, labels, (labels + 1) % NUM_CLASSES))
    rest = np.broadcast_to(others, (len(members), *others.shape))
    confidences = (1 / (1 + np.exp(-np.abs(scores) - 0.3))).astype(np.float32)
    probability = np.where(right, confidences, 1 - confidences)
    return Predictions(
        keys=tuple(f"s{position:07d}" for position in range(start, stop)),
        positions=np.arange(start, stop),
        labels=labels[:, None],
        classes=classes,
        top5=np.concatenate([np.stack([classes, second], axis=2), rest], axis=2).astype(np.int32),
        confidences=confidences,
        margins=np.abs(scores).astype(np.float32),
        log_probs=np.log(probability).astype(np.float32),
        briers=((1 - probability) ** 2).astype(np.float32),
        divergences=(alphas * np.abs(ends[1] - ends[0])).astype(np.float32),
        metadata={"place": rng.integers(48, size=num_samples)},
    )


def _peer(sources: Sequence[CellSource], num_resamples: int) -> float:
    """Seconds of the plain way, on arrays that are in memory already."""
    from sklearn.metrics import accuracy_score, balanced_accuracy_score

    seconds = 0.0
    for source in sources:
        predictions = source.load()
        labels = predictions.labels[:, 0]
        for index, classes in enumerate(predictions.classes):
            started = time.perf_counter()
            accuracy_score(labels, classes)
            balanced_accuracy_score(labels, classes)
            (predictions.top5[index] == labels[:, None]).any(axis=1).mean()
            _binned(predictions.confidences[index], classes == labels)
            seconds += time.perf_counter() - started
            started = time.perf_counter()
            rng = np.random.default_rng(index)
            for _ in range(PEER_RESAMPLES):
                drawn = rng.integers(len(labels), size=len(labels))
                accuracy_score(labels[drawn], classes[drawn])
            seconds += (time.perf_counter() - started) * num_resamples / PEER_RESAMPLES
    return seconds


def _binned(confidences: np.ndarray, correct: np.ndarray, num_bins: int = 15) -> float:
    """Calibration error, one bin after the other."""
    edges, error = np.linspace(0, 1, num_bins + 1), 0.0
    for low, high in pairwise(edges):
        inside = (confidences > low) & (confidences <= high)
        if inside.any():
            error += inside.mean() * abs(correct[inside].mean() - confidences[inside].mean())
    return error


def _time(work: Callable[[], float | None]) -> float:
    """Seconds of the wall clock; of work that times itself, what it says."""
    started = time.perf_counter()
    measured = work()
    return time.perf_counter() - started if measured is None else measured


def _peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


if __name__ == "__main__":
    main()
