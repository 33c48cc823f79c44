"""What a page tells of how its run went, from events alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from wiseft_dist.report.history import MAX_SENTENCES, History, history, history_of
from wiseft_dist.report.page.drawing import svg
from wiseft_dist.report.page.section import Section
from wiseft_dist.report.sections.cautions import history_cautions
from wiseft_dist.report.sections.provenance import _attempts
from wiseft_dist.report.sections.selection import cost_sections, exact_duration
from wiseft_dist.report.sections.training import MAX_POINTS, thinned, training_sections
from wiseft_dist.run import Run


def event(when: float, stage: str, name: str, **values: Any) -> dict[str, Any]:
    return {"time": when, "stage": stage, "event": name, **values}


def killed_and_resumed() -> list[dict[str, Any]]:
    """Steps 2 and 4, a kill, and steps 4 and 6 by the next session."""
    return [
        event(1.0, "finetune", "started", step=0, total_steps=6, world_size=2),
        event(2.0, "finetune", "metrics", step=2, loss=3.0, lr=0.1, gradient_norm=1.0, samples_per_second=10.0),
        event(3.0, "finetune", "metrics", step=4, loss=2.0, lr=0.2, gradient_norm=1.5, samples_per_second=11.0),
        event(3.1, "finetune", "metrics", step=4, **{"id_val/top1": 0.5, "id_val/loss": 2.5}),
        event(9.0, "finetune", "started", step=2, total_steps=6, world_size=2),
        event(10.0, "finetune", "metrics", step=4, loss=99.0, lr=0.2, gradient_norm=1.5, samples_per_second=11.0),
        event(11.0, "finetune", "metrics", step=6, loss=1.0, lr=0.1, gradient_norm=1.2, samples_per_second=12.0),
        event(11.1, "finetune", "metrics", step=6, **{"id_val/top1": 0.75, "id_val/loss": 1.5}),
        event(11.2, "finetune", "bad_step", step=5, reason="NaN"),
        event(11.3, "finetune", "bottleneck", summary="Bottleneck: reading data."),
        event(11.4, "finetune", "finished", step=6),
    ]


def charts(section: Section) -> dict[str, list[list[tuple[float, float]]]]:
    return {
        chart.title: [[(point.x, point.y) for point in line.points] for line in chart.lines] for chart in section.charts
    }


def test_a_step_that_was_done_again_is_shown_once_as_it_was_told_first() -> None:
    (section,) = training_sections(history_of(killed_and_resumed()))
    found = charts(section)
    assert found["Loss"] == [[(2, 3.0), (4, 2.0), (6, 1.0)], [(4, 2.5), (6, 1.5)], [(2, 3.0)]]
    assert found["Accuracy on the held-out piece"][0] == [(4, 50.0), (6, 75.0)]
    assert list(found) == ["Loss", "Accuracy on the held-out piece", "Learning rate", "Gradient norm", "Speed"]
    assert section.charts[0].lines[2].name == "resumed"
    assert "Resumed at step 2." in section.note
    assert section.sentences == (
        "The last session: Bottleneck: reading data.",
        "1 step was left out: its gradients were no numbers.",
    )


def test_loss_and_gradient_norm_have_logarithmic_axes_where_every_value_has_a_logarithm() -> None:
    events = killed_and_resumed()
    (section,) = training_sections(history_of(events))
    assert [chart.title for chart in section.charts if chart.scales == ("linear", "log")] == ["Loss", "Gradient norm"]
    (section,) = training_sections(history_of([*events, event(12.0, "finetune", "metrics", step=8, loss=0.0)]))
    assert [chart.title for chart in section.charts if "log" in chart.scales] == ["Gradient norm"]


def test_a_training_that_diverged_is_drawn() -> None:
    norms = (1.0, 1e300, 1.7e308, math.inf)
    events = [event(n, "finetune", "metrics", step=n, gradient_norm=norm) for n, norm in enumerate(norms)]
    (section,) = training_sections(history_of([event(0.0, "finetune", "started", step=0), *events]))
    for scale in section.charts[0].scales:
        assert svg(section.charts[0], scale).count('class="point') == 3


def test_both_trainings_of_lp_ft_are_shown() -> None:
    head = [event(0.5, "linear_head", "metrics", step=1, loss=5.0)]
    sections = list(training_sections(history_of([*head, *killed_and_resumed()])))
    assert [section.title for section in sections] == ["Training of the head", "Training"]
    assert charts(sections[0]) == {"Loss": [[(1, 5.0)]]}


def test_a_run_without_events_tells_nothing(tmp_path: Path) -> None:
    found = history(Run(tmp_path))
    assert [*training_sections(found), *cost_sections(found), *history_cautions(found)] == []


def test_thinning_keeps_the_ends_and_every_peak() -> None:
    steps = [float(step) for step in range(100_000)]
    values = [math.sin(step / 700) for step in steps]
    values[54_321], values[77], values[99_998] = 50.0, -50.0, math.nan
    chosen = thinned(steps, values)
    assert len(chosen) <= MAX_POINTS and chosen == sorted(set(chosen))
    assert {0, 77, 54_321, 99_999} <= set(chosen)
    assert thinned(steps[:300], values[:300]) == list(range(300))


def test_torn_and_foreign_lines_are_passed_over(tmp_path: Path) -> None:
    lines = [*map(json.dumps, killed_and_resumed()), '{"time": 1, "stage": "fine', "[]", '{"event": 3}', "", "\x00"]
    run = Run(tmp_path)
    run.events_file.write_text("\n".join(lines))
    (section,) = training_sections(history(run))
    assert charts(section)["Loss"][0] == [(2, 3.0), (4, 2.0), (6, 1.0)]


def test_events_whose_values_are_of_other_types_cost_no_page() -> None:
    odd = [
        event(0.5, "finetune", "attempt", world_size="x", restart=10**400, gpus=[{}, {}], job=[], code=None),
        event(0.6, "finetune", "started", step="y", total_steps="x"),
        event(0.7, "finetune", "metrics", step=math.nan, loss=1.0),
        event(0.7, "finetune", "metrics", step=1, loss=10**400),
        event(0.8, "finetune", "preflight", warnings=3),
        event(0.8, "finetune", "epoch", skipped="none"),
        event(math.nan, "finetune", "attempt"),
        event(1e300, "finetune", "attempt"),
        event(0.9, "merge", "finished", bytes=10**400),
        event(0.9, "evaluate", "started", dataset="photo", start=0, stop=math.inf),
        event(0.9, "evaluate", "finished", dataset="photo", start=0, stop=math.inf),
    ]
    told = history_of([*odd, *killed_and_resumed()])
    (section,) = training_sections(told)
    assert charts(section)["Loss"][0] == [(2, 3.0), (4, 2.0), (6, 1.0)]
    (cost,) = cost_sections(told)
    assert [cell.text for cell in cost.rows[0].cells][3:] == ["1", "0", "6 steps"]
    (attempts,) = (each for each in _attempts(told))
    assert [cell.text for cell in attempts.rows[0].cells][4:] == ["2 x {}", "", "0"]
    assert history_cautions(told) == ["finetune: 1 step had gradients that are no numbers and changed no weight."]


@pytest.mark.matrix
def test_a_million_lines_are_read_without_keeping_them(tmp_path: Path) -> None:
    run, line = Run(tmp_path), json.dumps(event(1.0, "finetune", "metrics", step=0, loss=1.5, lr=0.1))
    with run.events_file.open("w") as file:
        file.writelines(line.replace('"step": 0', f'"step": {step}') + "\n" for step in range(1_000_000))
    found = history(run)
    assert len(found.trainings["finetune"].series["loss"]) == 1_000_000
    (section,) = training_sections(found)
    assert len(section.charts[0].lines[0].points) <= MAX_POINTS


def costs() -> list[dict[str, Any]]:
    """Two attempts of a training on 4 GPUs, a merge, an evaluation by two processes at once."""
    gpus = {"gpus": ["NVIDIA H100"] * 4}
    attempt = {"job": None, "restart": 0, "host": "a", "code": "c1", "version": "1"}
    return [
        event(0.0, "finetune", "attempt", world_size=4, **attempt, **gpus),
        event(3600.0, "finetune", "metrics", step=1, loss=1.0),
        event(7200.0, "finetune", "attempt", world_size=4, **attempt | {"restart": 1, "code": "c2"}, **gpus),
        event(9000.0, "finetune", "finished", step=1),
        event(9100.0, "merge", "attempt", world_size=1, **attempt | {"code": "c2"}),
        event(9190.0, "merge", "finished", alphas=[0.0, 1.0], seconds=80.0, bytes=2_500_000_000),
        event(9200.0, "evaluate", "attempt", world_size=2, **attempt | {"job": "1-of-1", "code": "c2"}, **gpus),
        event(9236.0, "evaluate", "started", dataset="photo", start=0, stop=10, alphas=[0.0, 0.5], output_alphas=[0.5]),
        event(9236.0, "evaluate", "started", dataset="photo", start=10, stop=30, alphas=[0.0, 0.5]),
        event(9272.0, "evaluate", "finished", dataset="photo", start=10, stop=30),
        event(9308.0, "evaluate", "finished", dataset="photo", start=0, stop=10),
        event(9309.0, "evaluate", "started", dataset="photo", start=30, stop=40, alphas=[0.0]),  # and never finished
    ]


def test_what_each_stage_cost_is_told_in_time_processes_and_work() -> None:
    (section,) = cost_sections(history_of(costs()))
    found = {row.name: [cell.text for cell in row.cells] for row in section.rows}
    # One hour and a half hour of four processes each.
    assert found["finetune"] == ["1 h 30 min", "6.000", "–", "2", "1", "0 steps"]
    assert found["merge"] == ["1 min 30 s", "–", "0.025", "1", "0", "2.500 GB written"]
    # Two processes load for 36 s; then one is at work for 36 s and the other for 72 s.
    assert found["evaluate"] == ["1 min 48 s", "0.050", "–", "1", "0", "30 images, 70 predictions"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.44, "0.4 s"), (59.96, "1 min 0 s"), (61.0, "1 min 1 s"), (4500.0, "1 h 15 min")]
)
def test_durations_are_told_in_two_units(seconds: float, text: str) -> None:
    assert exact_duration(seconds) == text


def test_what_went_wrong_on_the_way_is_told_as_cautions() -> None:
    skipped = event(9001.0, "finetune", "epoch", epoch=0, skipped=["0.tar: sample 's1' does not decode: x"])
    failed = event(9002.0, "evaluate", "failed", kind="RunError", error="no")
    warned = event(9003.0, "finetune", "warning", warning="W&B has not everything: `wiseft sync` sends the rest")
    bad = event(9004.0, "finetune", "bad_step", step=3, reason="NaN")
    found = history_cautions(history_of([*costs(), skipped, failed, warned, warned, bad, bad]))
    assert found == [
        "The run was made by 2 different states of the code (c1, c2): see Software.",
        "finetune was requeued 1 time and went on.",
        "evaluate failed 1 time before it was finished.",
        "finetune: 2 steps had gradients that are no numbers and changed no weight.",
        "finetune: 1 sample of the training set could not be used, such as 0.tar: sample 's1' does not decode: x.",
        "W&B has not everything: `wiseft sync` sends the rest.",
    ]


def test_a_run_in_which_nothing_went_wrong_has_no_such_caution() -> None:
    smooth = [each for each in costs() if each.get("restart", 0) == 0 and each["stage"] == "finetune"]
    assert history_cautions(history_of(smooth)) == []
    assert history_cautions(History()) == []


@pytest.mark.parametrize(
    ("num_warnings", "left_out"), [(9, "1 earlier warning is"), (1501, "1,493 earlier warnings are")]
)
def test_only_the_last_warnings_of_many_are_repeated(num_warnings: int, left_out: str) -> None:
    events = [event(float(n), "shards", "warning", warning=f"number {n}.") for n in range(num_warnings)]
    told = history_of([*events, *events[:1]])
    last = [f"number {number}." for number in range(num_warnings - 8, num_warnings)]
    assert history_cautions(told) == [*last, f"{left_out} in events.jsonl."]
    assert len(told.warnings.last) <= MAX_SENTENCES


def test_every_sample_that_was_skipped_is_counted_once_over_all_epochs() -> None:
    events = [
        event(float(epoch), "finetune", "epoch", skipped=[f"0.tar: sample {n} is damaged" for n in range(count)])
        for epoch, count in enumerate((500, 1500, 1500))
    ]
    assert history_cautions(history_of(events)) == [
        "finetune: 1,500 samples of the training set could not be used, such as 0.tar: sample 0 is damaged."
    ]


def test_attempts_of_which_no_code_is_known_are_no_other_code() -> None:
    old = event(1.0, "merge", "attempt", job=None)
    assert history_cautions(history_of([old, event(2.0, "evaluate", "attempt", job=None, code="abc")])) == []


def test_no_attempt_ends_before_it_began_whatever_the_clocks_say() -> None:
    told = history_of(
        [
            event(100.0, "evaluate", "attempt", job=None, world_size=1),
            event(104.0, "evaluate", "started", dataset="photo", start=0, stop=10, alphas=[0.0]),
            event(40.0, "evaluate", "finished", dataset="photo", start=0, stop=10),  # by a host that is a minute behind
        ]
    )
    assert [(each.began, each.ended) for each in told.attempts] == [(100.0, 104.0)]
    assert [(each.began, each.ended) for each in told.parts] == [(104.0, 104.0)]
