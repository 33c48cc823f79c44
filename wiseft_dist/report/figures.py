"""The paper's figure: reference accuracy against the average of the shifts, one point an alpha.

Without shifts there is no trade-off to draw: then it is accuracy over alpha.
"""

from __future__ import annotations

from pathlib import Path

from wiseft_dist.report.results import Results
from wiseft_dist.report.table import named_alphas

MARKERS = {"zero-shot": "s", "fine-tuned": "D", "ensemble, fixed": "*", "ensemble, chosen on ID-val": "P"}


def draw_curve(results: Results, *paths: Path) -> None:
    """Draw the trade-off curve (arXiv 2109.01903, figure 1) to each path; its suffix decides the format."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    reference = results.top1(results.reference)
    x = [100 * reference[alpha] if results.shifts else alpha for alpha in results.alphas]
    y = [100 * (results.shift_average or reference)[alpha] for alpha in results.alphas]
    points = dict(zip(results.alphas, zip(x, y, strict=True), strict=True))
    figure, axes = pyplot.subplots(figsize=(6.4, 4.8), layout="constrained")
    axes.plot([x[0], x[-1]], [y[0], y[-1]], ":", color="0.6", label="straight line between the ends")
    axes.plot(x, y, "o-", color="#3465a4", markersize=4, label=r"ensembles $\theta_\alpha$")
    for alpha, point in points.items():
        axes.annotate(f"{alpha:g}", point, textcoords="offset points", xytext=(5, 4), fontsize=7, color="0.4")
    colors = iter(("#1b9e77", "#d95f02", "#7570b3", "#e7298a"))  # ColorBrewer Dark2
    for name, alpha in named_alphas(results).items():
        if name in MARKERS:
            axes.plot(
                *points[alpha],
                MARKERS[name],
                color=next(colors),
                markersize=11,
                label=f"{name} ({alpha:g})",
                zorder=3,
            )
    axes.set_xlabel(f"{results.reference} top-1 (%)" if results.shifts else "alpha")
    axes.set_ylabel("average over shifts, top-1 (%)" if results.shifts else f"{results.reference} top-1 (%)")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    for path in paths:
        figure.savefig(path, dpi=150)
    pyplot.close(figure)
