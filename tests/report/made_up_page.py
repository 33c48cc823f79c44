"""A page with one of everything, about nothing; its names are as bad as names can be."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
from PIL import Image

from wiseft_dist.report.page.charts import GREY, Chart, Line, Point, Shape
from wiseft_dist.report.page.render import Page
from wiseft_dist.report.page.section import Cell, KeyNumbers, Picture, Row, Section

NUM_ALPHAS = 21
SCRIPT = "<script>alert(1)</script>"
IMAGE = '"><img src=x onerror=alert(1)>'
CONTROLS = "bell\a, turned \u202eround\u202c"
RIGHT_TO_LEFT = "مجموعة الصور"
LONG = "a_very_long_name_without_a_single_space_" * 6
BAD_NAMES = (SCRIPT, IMAGE, CONTROLS, RIGHT_TO_LEFT, LONG)


def curve_points() -> tuple[Point, ...]:
    """An ensemble that is better than both of its ends, in percent."""
    alphas = np.linspace(0, 1, NUM_ALPHAS)
    xs, ys = 76 + 6.5 * np.sqrt(alphas), 60 + 16 * alphas * np.exp(-1.1 * alphas**2) - 8.5 * alphas**3
    return tuple(
        Point(
            *(x, y, f"alpha {alpha:.3g}: reference {x:.2f} %, shift average {y:.2f} %", f"{alpha:.3g}"),
            *((x - 0.4, x + 0.4), (y - 0.6, y + 0.6)),
        )
        for alpha, x, y in zip(alphas.tolist(), xs.tolist(), ys.tolist(), strict=True)
    )


def trade_off(title: str = "Average over the shifts against the reference", **more: object) -> Chart:
    """The paper's figure."""
    points = curve_points()

    def marked(index: int, name: str, colour: int, shape: Shape) -> Line:
        return Line(name, (replace(points[index], x_range=None, y_range=None),), "mark", colour, shape)

    lines = (
        Line(
            "straight line between the ends",
            (replace(points[0], label=""), replace(points[-1], label="")),
            "dotted",
            GREY,
        ),
        Line("standard models", tuple(Point(x, 0.9 * x - 15.5) for x in (75.5, 79.0, 83.0)), "dashed", 6),
        Line("ensembles", points),
        marked(0, "zero-shot (0)", 1, "square"),
        marked(-1, "fine-tuned (1)", 2, "diamond"),
        marked(9, "chosen (0.45)", 4, "star"),
    )
    chart = Chart(title, "reference top-1 (%)", "average over shifts, top-1 (%)", lines, ("linear", "logit"))
    return replace(chart, **more)  # type: ignore[arg-type]


def losses() -> Chart:
    """A training curve."""
    steps = tuple(Point(float(step), 4.0 * 0.99**step + 0.01) for step in range(0, 1000, 10))
    return Chart("Training loss", "step", "loss (nats)", (Line("loss", steps, "plain"),), ("linear", "log"))


def key_numbers() -> tuple[KeyNumbers, ...]:
    return (
        KeyNumbers(
            "Zero-shot", (("reference", Cell("76.00")), ("shift average", Cell("60.00"))), "alpha 0", 1, "square"
        ),
        KeyNumbers(
            *("Fine-tuned", (("reference", Cell("82.50", "+6.50 pp")), ("shift average", Cell("56.83", "-3.17 pp")))),
            *("alpha 1", 2, "diamond"),
        ),
        KeyNumbers(
            *("Chosen", (("reference", Cell("80.36", "+4.36 pp")), ("shift average", Cell("64.99", "+4.99 pp")))),
            *("alpha 0.45, on the held-out piece", 4, "star"),
        ),
    )


def picture(caption: tuple[str, ...] = ("val/000017", "labelled: dog", "chosen: dog, fine-tuned: cat")) -> Picture:
    buffer = io.BytesIO()
    Image.effect_noise((160, 120), 60).save(buffer, "JPEG", quality=70)
    return Picture(buffer.getvalue(), f"A sample of {caption[1]}", caption)


SORTED = Section(
    "A table to sort",
    ("model", "alpha", "accuracy", "remark", "began"),
    (
        Row(
            "model 10",
            (Cell("0.5"), Cell("80.00", "(78.00 to 82.00)", 80.001), Cell("b"), Cell("10:01", value=1795000001.0)),
        ),
        Row(
            "model 9",
            (Cell("1e-05"), Cell("80.00", "(70.00 to 82.00)", 80.002), Cell("ä"), Cell("10:01", value=1795000003.5)),
        ),
        Row("model 2", (Cell("1,000"), Cell("–", value=float("nan")), Cell("z"), Cell("10:01", value=1795000002.0))),
        Row("Model 1", (Cell("–"), Cell("9.00", value=9.0), Cell("b"), Cell("10:01", value=1795000003.0))),
        Row("model 3", (Cell("+3.5"), Cell("110.00", value=110.0), Cell(""), Cell("10:00", value=1794999999.0))),
    ),
    note="How to read it.",
)


def made_up_page() -> Page:
    classes = tuple(Row(f"class {label}", (Cell(f"{label % 7}"), Cell(f"{label / 3:.2f}"))) for label in range(40))
    names = tuple(Row(name, (Cell(name), Cell("1"))) for name in BAD_NAMES)
    return Page(
        "A run",
        (Section("The trade-off", charts=(trade_off(is_tabled=True),), key_numbers=key_numbers()),),
        (f"{SCRIPT} has 995 samples here and 1,000 as published.", *(f"Caution {number}." for number in range(5))),
        (
            SORTED,
            Section("Every dataset", charts=tuple(trade_off(name, is_small=True) for name in BAD_NAMES)),
            Section("Training", charts=(losses(),), sentences=("It took a minute.", f"It was called {IMAGE}.")),
            Section("Classes", ("class", "samples", "accuracy"), classes, is_folded=True),
            Section(SCRIPT, (IMAGE, LONG, "plain"), names, note=CONTROLS),
            Section(SCRIPT, is_folded=True, sentences=BAD_NAMES),
            Section("Pictures that changed most", pictures=(picture(), picture((*BAD_NAMES,)))),
        ),
        "wiseft_dist. Every number is explained in the documentation.",
    )
