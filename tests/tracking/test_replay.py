"""From events to what W&B shows: every step once, whatever was killed and resumed in between."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from wiseft_dist.tracking.replay import Alert, Item, Preempting, Replay, Report, Row, Summary, wandb_runs

Event = Mapping[str, Any]


def event(name: str, stage: str = "finetune", **values: Any) -> Event:
    return {"time": 100.0, "stage": stage, "event": name, **values}


def metrics(step: int, **values: float) -> Event:
    return event("metrics", step=step, **values)


def replayed(events: Iterable[Event], stage: str = "finetune", job: str = "", after: int = -1) -> list[Item]:
    replay = Replay(stage, job, after=after)
    return [item for each in events for item in replay.feed(each)]


def rows(items: Iterable[Item]) -> list[tuple[int, dict[str, Any]]]:
    return [(item.step, item.values) for item in items if isinstance(item, Row)]


KILLED = [
    event("started", step=0),
    *(metrics(step, loss=float(step)) for step in (2, 4, 6)),
    metrics(6, **{"id_val/top1": 0.5}),
    metrics(8, loss=8.0),
    event("attempt"),
    event("started", step=4),
    metrics(6, loss=6.5),
    metrics(6, **{"id_val/top1": 0.6}),
    metrics(8, loss=8.5),
    metrics(8, **{"id_val/top1": 0.8}),
    metrics(10, loss=10.0),
    event("finished", step=10),
]
ONCE = [
    (2, {"step": 2, "finetune/loss": 2.0}),
    (4, {"step": 4, "finetune/loss": 4.0}),
    (6, {"step": 6, "finetune/loss": 6.0, "finetune/id_val/top1": 0.5}),
    (8, {"step": 8, "finetune/loss": 8.0, "finetune/id_val/top1": 0.8}),
    (10, {"step": 10, "finetune/loss": 10.0}),
]


def test_all_events_of_a_step_are_one_row_and_what_was_told_first_stays():
    assert rows(replayed(KILLED)) == ONCE


@pytest.mark.parametrize("killed_after", range(len(KILLED) + 1))
def test_wherever_a_mirror_was_killed_the_next_one_tells_the_rest(killed_after):
    first = rows(replayed(KILLED[:killed_after]))
    after = first[-1][0] if first else -1
    assert first + rows(replayed(KILLED, after=after)) == ONCE


def test_a_step_that_may_be_cut_off_is_told_only_when_a_later_one_comes_or_nothing_more():
    replay = Replay("finetune")
    assert [item for each in KILLED[:4] for item in replay.feed(each)] == [
        Row(2, {"step": 2, "finetune/loss": 2.0}, 100.0),
        Row(4, {"step": 4, "finetune/loss": 4.0}, 100.0),
    ]
    assert list(replay.flush()) == [Row(6, {"step": 6, "finetune/loss": 6.0}, 100.0)]
    assert list(replay.flush()) == []


def test_steps_that_only_the_resumed_training_logged_are_told_in_their_order():
    events = [metrics(2, loss=2.0), metrics(6, loss=6.0), metrics(4, loss=4.0), metrics(6, loss=6.5), event("finished")]
    assert [step for step, _ in rows(replayed(events))] == [2, 4, 6]


def test_the_machines_own_metrics_keep_their_names():
    (row,) = rows(replayed([metrics(1, **{"system/cpu_percent": 5.0, "lr": 0.1}), event("finished")]))
    assert row[1] == {"step": 1, "system/cpu_percent": 5.0, "finetune/lr": 0.1}


def test_the_head_of_lp_ft_is_a_training_of_its_own():
    events = [event("metrics", "linear_head", step=1, loss=3.0), metrics(1, loss=1.0), event("finished", "linear_head")]
    assert rows(replayed(events, "linear_head")) == [(1, {"step": 1, "linear_head/loss": 3.0})]
    assert wandb_runs(events) == [("linear_head", ""), ("finetune", "")]


def test_of_a_merge_its_size_and_pace_are_told():
    events = [event("started", "merge"), event("finished", "merge", alphas=[0, 1], seconds=4.0, bytes=2_000_000_000)]
    assert rows(replayed(events, "merge")) == [
        (0, {"step": 0, "merge/ensembles": 2, "merge/seconds": 4.0, "merge/gb": 2.0, "merge/gb_per_second": 0.5})
    ]


def test_of_a_soup_every_trial_and_the_choice_are_told():
    events = [
        event("tried", "merge", job="soup", models=["a"], accuracy=0.5),
        event("tried", "merge", job="soup", models=["a", "b"], accuracy=0.75),
        event("chosen", "merge", job="soup", models=["a", "b"]),
    ]
    items = replayed(events, "merge", "soup")
    assert [values["soup/accuracy"] for _, values in rows(items)] == [0.5, 0.75]
    assert items[-1] == Summary({"soup/chosen": ["a", "b"]})
    assert replayed(events, "merge") == []


def test_of_an_evaluation_the_images_of_its_own_job_are_counted():
    def part(name: str, job: str, dataset: str, start: int, stop: int, time: float) -> Event:
        return event(name, "evaluate", job=job, dataset=dataset, start=start, stop=stop) | {"time": time}

    events = [
        part("started", "1-of-2", "photo", 0, 8, 10.0),
        part("started", "2-of-2", "photo", 8, 16, 10.0),
        part("finished", "1-of-2", "photo", 0, 8, 12.0),
        part("started", "1-of-2", "sketch", 0, 4, 12.0),  # killed here
        part("started", "1-of-2", "sketch", 0, 4, 20.0),
        part("finished", "1-of-2", "sketch", 0, 4, 24.0),
    ]
    first = {"step": 0, "evaluate/images": 8, "evaluate/photo/images": 8, "evaluate/images_per_second": 4.0}
    second = {"step": 1, "evaluate/images": 12, "evaluate/sketch/images": 4, "evaluate/images_per_second": 1.0}
    assert rows(replayed(events, "evaluate", "1-of-2")) == [(0, first), (1, second)]
    assert rows(replayed(events, "evaluate", "1-of-2", after=0)) == [(1, second)]
    assert wandb_runs(events) == [("evaluate", "1-of-2"), ("evaluate", "2-of-2")]


def test_a_report_is_shown_when_it_is_written_and_that_is_worth_a_message():
    events = [event("started", "report", job="ab"), event("finished", "report", job="ab")]
    shown, message = replayed(events, "report", "ab")
    assert shown == Report() and isinstance(message, Alert) and message.level == "INFO"
    assert replayed(events[:1], "report", "ab") == [] == wandb_runs(events[:1])


def test_a_failure_is_worth_a_message_and_an_end_that_somebody_wanted_is_not():
    failed = event("failed", "evaluate", job="1-of-2", dataset="photo", kind="RunError", error="damaged")
    assert replayed([failed], "evaluate", "1-of-2") == [
        Alert("evaluate 1-of-2 of photo failed", "RunError: damaged", "ERROR")
    ]
    assert replayed([{**failed, "kind": "KeyboardInterrupt"}], "evaluate", "1-of-2") == []


def test_a_requeue_is_told_to_every_part_of_the_stage_that_may_be_under_way():
    requeue = event("preempting", job=None)
    assert replayed([requeue]) == replayed([requeue], "linear_head") == [Preempting()]
    assert replayed([requeue], "merge") == []
    assert replayed([event("preempting", "merge", job=None)], "merge", "soup") == [Preempting()]
    assert replayed([event("preempting", "evaluate", job="1-of-2")], "evaluate", "2-of-2") == []


def test_attempts_steps_left_out_and_the_bottleneck_are_in_the_summary():
    events = [event("attempt"), event("attempt"), event("bad_step", step=3), event("bottleneck", summary="waits")]
    assert replayed(events) == [
        Summary({"finetune/attempts": 1}),
        Summary({"finetune/attempts": 2}),
        Summary({"finetune/bad_steps": 1}),
        Summary({"finetune/bottleneck": "waits"}),
    ]
