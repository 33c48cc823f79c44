"""``events.jsonl``: whole lines, whoever writes and whatever breaks."""

from __future__ import annotations

import multiprocessing
import resource

import pytest

from wiseft_dist.run import Run
from wiseft_dist.tracking import append_event, read_events
from wiseft_dist.tracking.events import Tail


def append_many(file, writer):
    for index in range(200):
        append_event(file, writer=writer, index=index, text="x" * (20_000 if index % 20 == 0 else 50))


def test_two_processes_that_write_at_once_leave_whole_lines(tmp_path):
    run = Run(tmp_path)
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=append_many, args=(run.events_file, name)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    events = read_events(run)
    for name in "ab":
        assert [event["index"] for event in events if event["writer"] == name] == list(range(200))


def test_a_line_that_is_still_being_written_is_left_out(tmp_path):
    run = Run(tmp_path)
    assert read_events(run) == []
    append_event(run.events_file, event="started")
    with run.events_file.open("a") as handle:
        handle.write('{"event": "fin')
    assert [event["event"] for event in read_events(run)] == ["started"]


def test_an_event_that_was_torn_takes_no_other_with_it(tmp_path):
    run = Run(tmp_path)
    append_event(run.events_file, event="started")
    with run.events_file.open("a") as handle:
        handle.write('{"event": "met')
    append_event(run.events_file, event="finished")
    assert [event["event"] for event in read_events(run)] == ["started", "finished"]
    assert run.events_file.read_text().count("\n") == 3


def test_an_event_for_which_there_is_no_room_is_an_error(tmp_path):
    run, (soft, hard) = Run(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            append_event(run.events_file, event="metrics", text="x" * 1_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert run.events_file.stat().st_size == 1_000_000  # the system took what it could
    append_event(run.events_file, event="finished")
    assert [event["event"] for event in read_events(run)] == ["finished"]


def test_what_is_appended_is_read_once_each_with_its_place(tmp_path):
    run = Run(tmp_path)
    tail = Tail(run)
    assert list(tail.read()) == []
    append_event(run.events_file, event="started")
    size = run.events_file.stat().st_size
    with run.events_file.open("a") as handle:
        handle.write('{"event": "met')
    assert [(begin, event["event"]) for begin, event in tail.read()] == [(0, "started")]
    with run.events_file.open("a") as handle:
        handle.write('rics"}\n')
    append_event(run.events_file, event="finished")
    second = size + len('{"event": "metrics"}\n')
    assert [(begin, event["event"]) for begin, event in tail.read()] == [(size, "metrics"), (second, "finished")]
    assert list(tail.read()) == []
