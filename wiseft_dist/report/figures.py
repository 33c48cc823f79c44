"""The paper's figure: reference accuracy against the average of the shifts, one point an alpha.

Without shifts, or without a reference, there is no trade-off to draw: then it is accuracy over alpha.
"""

from __future__ import annotations

from pathlib import Path

from wiseft_dist.evaluate.statistics.statistics import Statistics
from wiseft_dist.report.table import named_alphas
from wiseft_dist.report.wording import has_both, is_all_top1, metric_name

MARKERS = {"zero-shot": "s", "fine-tuned": "D", "ensemble, fixed": "*", "ensemble, chosen on ID-val": "P"}


def draw_curve(statistics: Statistics, *paths: Path) -> None:
    """Draw the trade-off curve (arXiv 2109.01903, figure 1) to each path; its suffix decides the format."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    x, y = _coordinates(statistics)
    points = dict(zip(statistics.alphas, zip(x, y, strict=True), strict=True))
    figure, axes = pyplot.subplots(figsize=(6.4, 4.8), layout="constrained")
    axes.plot([x[0], x[-1]], [y[0], y[-1]], ":", color="0.6", label="straight line between the ends")
    axes.plot(x, y, "o-", color="#3465a4", markersize=4, label=r"ensembles $\theta_\alpha$")
    for alpha, point in points.items():
        axes.annotate(f"{alpha:g}", point, textcoords="offset points", xytext=(5, 4), fontsize=7, color="0.4")
    colors = iter(("#1b9e77", "#d95f02", "#7570b3", "#e7298a"))  # ColorBrewer Dark2
    for name, alpha in named_alphas(statistics).items():
        if name in MARKERS:
            label = f"{name} ({alpha:g})"
            axes.plot(*points[alpha], MARKERS[name], color=next(colors), markersize=11, label=label, zorder=3)
    x_label, y_label = _labels(statistics)
    axes.set_xlabel(x_label, parse_math=False)
    axes.set_ylabel(y_label, parse_math=False)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    for path in paths:
        figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _coordinates(statistics: Statistics) -> tuple[list[float], list[float]]:
    """Percent on both axes, or alpha and percent."""
    average = [100 * entry.value for entry in statistics.shift_average]
    if statistics.reference is None:
        return list(statistics.alphas), average
    reference = [100 * entry.value for entry in statistics.datasets[statistics.reference].alphas]
    return (reference, average) if average else (list(statistics.alphas), reference)


def _labels(statistics: Statistics) -> tuple[str, str]:
    average = "average over shifts, top-1 (%)" if is_all_top1(statistics) else "average over shifts (%)"
    if statistics.reference is None:
        return "alpha", average
    dataset = statistics.datasets[statistics.reference]
    reference = f"{dataset.title} {metric_name(dataset)} (%)"
    return (reference, average) if has_both(statistics) else ("alpha", reference)
