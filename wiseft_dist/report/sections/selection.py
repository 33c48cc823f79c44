"""The page's sections on how alpha was chosen, and on what the run cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from wiseft_dist.evaluate.statistics.statistics import Statistics
from wiseft_dist.report.curves import (
    FIT,
    MARKS,
    Place,
    chart_of,
    curve,
    over_alpha,
    place_points,
    point_at,
)
from wiseft_dist.report.history import TRAININGS, Attempt, History
from wiseft_dist.report.page.charts import Chart, Line
from wiseft_dist.report.page.section import Cell, Row, Section
from wiseft_dist.report.sections.numbers import count_cell
from wiseft_dist.report.table import choice
from wiseft_dist.report.wording import NOTHING, metric_name, percent

STAGES = ("finetune", "merge", "evaluate", "report")
ON_GPUS = ("finetune", "evaluate")
"""Stages whose processes compute on a GPU each, where there is one."""


def selection_section(statistics: Statistics) -> Section:
    """Which alpha is reported, by which rule, and how far an oracle is from it."""
    chart = selection_chart(statistics)
    return Section(
        "How alpha was chosen",
        sentences=tuple(_rules(statistics)),
        charts=() if chart is None else (chart,),
        note="What saw the shifts or a test set is a bound, no result.",
    )


def selection_chart(statistics: Statistics) -> Chart | None:
    """The accuracy that chose alpha, and what an oracle would have looked at; None where nothing was held out."""
    held_out = next((each for each in statistics.datasets.values() if each.role == "id_val"), None)
    chosen, oracle = choice(statistics, "id_val"), choice(statistics, "oracle")
    if held_out is None or chosen is None:
        return None
    label = f"held-out piece, {metric_name(held_out)}"
    places = [over_alpha(entry) for entry in held_out.alphas]
    lines = curve(places, f"{label} (it decides)", "alpha", label)
    colour, shape = MARKS["ensemble, chosen on ID-val"]
    lines += [Line(f"chosen ({chosen.alpha:g})", point_at(places, chosen.alpha, "alpha", label), "mark", colour, shape)]
    seen = [place for place in _oracle_places(statistics) if place.is_known]
    if seen and oracle is not None:
        name = "mean of reference and shift average" if statistics.reference else "shift average"
        lines += [Line(f"{name} (a bound: it saw the shifts)", place_points(seen, "alpha", name), "dashed", FIT)]
        lines += [Line(f"oracle ({oracle.alpha:g})", point_at(seen, oracle.alpha, "alpha", name), "mark", FIT, "star")]
    return replace(chart_of("The accuracy that chose alpha", "alpha", "accuracy (%)", lines, False), is_small=True)


def selection_sentence(statistics: Statistics) -> str:
    """How alpha was chosen."""
    chosen = choice(statistics, "id_val")
    held_out = next((each for each in statistics.datasets.values() if each.role == "id_val"), None)
    if chosen is None or held_out is None:
        return "No alpha was chosen by validation: nothing was held out of the training set."
    text = f"Alpha {chosen.alpha:g} was chosen on {held_out.num_samples:,} samples held out of the training set; "
    if statistics.reference == held_out.name:
        return text + "there is no test set, so the accuracies are on the same samples."
    return text + "the shifts were not looked at."


def cost_sections(history: History) -> Iterator[Section]:
    """Time, processes and bytes of each stage; none where no attempt was recorded."""
    rows = [_cost(stage, history) for stage in STAGES if any(each.stage == stage for each in history.attempts)]
    if rows:
        yield Section(
            "What it cost",
            ("stage", "wall-clock", "GPU-hours", "CPU process-hours", "attempts", "requeues", "work"),
            tuple(rows),
            note="Wall-clock: time in which at least one process was at work, without queues. Hours are those of "
            "processes: from the start of an attempt to its last event; of the evaluation, from the start of a part to "
            "its commit, with the loading before. What a killed process did after its last event is not known. The "
            "report counts up to this page.",
        )


def exact_duration(seconds: float) -> str:
    """``1 h 12 min``, ``3 min 20 s``, ``0.4 s``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _rules(statistics: Statistics) -> Iterator[str]:
    yield selection_sentence(statistics)
    held_out = next((each for each in statistics.datasets.values() if each.role == "id_val"), None)
    id_val, fixed, oracle = (choice(statistics, name) for name in ("id_val", "fixed", "oracle"))
    if id_val is not None and held_out is not None:
        yield (
            f"The rule: the highest {metric_name(held_out)} on the held-out piece, "
            f"{percent(held_out.at(id_val.alpha).value)} %; among equals the alpha nearest to 0.5."
        )
    elif fixed is not None:
        yield "Reported is the fixed alpha 0.5, which needs no data."
    if oracle is None or statistics.chosen is None:
        return
    chosen, best = (_seen(statistics, alpha) for alpha in (statistics.chosen, oracle.alpha))
    what = "the mean of reference and shift average" if statistics.reference else "the shift average"
    yield (
        f"The oracle, which saw the shifts, takes alpha {oracle.alpha:g}: {percent(best)} % on {what}, where alpha "
        f"{statistics.chosen:g} has {percent(chosen)} %."
    )


def _oracle_places(statistics: Statistics) -> Iterator[Place]:
    for entry in statistics.shift_average:
        if statistics.reference is None:
            yield Place(entry.alpha, entry.alpha, 100 * entry.value)
        else:
            reference = statistics.datasets[statistics.reference].at(entry.alpha).value
            yield Place(entry.alpha, entry.alpha, 50 * (entry.value + reference))


def _seen(statistics: Statistics, alpha: float) -> float | None:
    """What the oracle looks at, a fraction."""
    average = statistics.shift_average_at(alpha)
    if average is None:
        return None
    if statistics.reference is None:
        return average.value
    return (average.value + statistics.datasets[statistics.reference].at(alpha).value) / 2


def _cost(stage: str, history: History) -> Row:
    attempts = [each for each in history.attempts if each.stage == stage]
    spans = _part_spans(history, attempts) if stage == "evaluate" else _spans(attempts)
    hours = {True: 0.0, False: 0.0}
    for began, ended, num_processes, has_gpu in spans:
        hours[has_gpu and stage in ON_GPUS] += num_processes * (ended - began) / 3600
    wall = _union((began, ended) for began, ended, *_ in spans)
    cells = (
        Cell(exact_duration(wall), value=wall),
        *(Cell(f"{hours[on_gpu]:,.3f}" if hours[on_gpu] else NOTHING, value=hours[on_gpu]) for on_gpu in (True, False)),
        count_cell(len(attempts)),
        count_cell(sum(attempt.is_requeued for attempt in attempts)),
        Cell(_work(stage, history)),
    )
    return Row(stage, cells)


Span = tuple[float, float, int, bool]
"""Begin and end in seconds, processes, whether their host has GPUs."""


def _spans(attempts: Sequence[Attempt]) -> list[Span]:
    return [(each.began, each.ended, each.world_size, _has_gpu(each.event)) for each in attempts]


def _part_spans(history: History, attempts: Sequence[Attempt]) -> list[Span]:
    """Parts are of one process each; before its first one, every process of an attempt loads."""
    has_gpu = any(_has_gpu(each.event) for each in attempts)
    spans = [(part.began, part.ended, 1, has_gpu) for part in history.parts]
    starts = sorted(part.began for part in history.parts)
    for each in attempts:
        first = next((start for start in starts if each.began <= start <= each.ended), None)
        if first is not None:
            spans.append((each.began, first, each.world_size, has_gpu))
    return spans


def _union(spans: Iterable[tuple[float, float]]) -> float:
    """Seconds that at least one span covers."""
    total, reached = 0.0, float("-inf")
    for began, ended in sorted(spans):
        total += max(0.0, ended - max(began, reached))
        reached = max(reached, ended)
    return total


def _has_gpu(event: Mapping[str, object]) -> bool:
    return bool(event.get("gpus"))


def _work(stage: str, history: History) -> str:
    if stage == "merge":
        return f"{history.merged_bytes / 1e9:,.3f} GB written"
    if stage == "evaluate":
        images = sum(part.num_samples for part in history.parts)
        scored = sum(part.num_samples * part.num_members for part in history.parts)
        return f"{images:,} images, {scored:,} predictions"
    if stage == "finetune":
        totals = [history.trainings[name].total_steps for name in TRAININGS if name in history.trainings]
        return f"{sum(filter(None, totals)):,} steps"
    return ""
