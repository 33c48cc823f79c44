"""A run that is told to stop saves a checkpoint, on all ranks at the same step, and then does what it was told."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest

from wiseft_dist.finetune.stopping import ECHO_SECONDS, SIGNALS, StopRequest
from wiseft_dist.ranks import Ranks


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_only_leaves_a_note_and_a_sentence(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    with StopRequest(Ranks(rank=3, world_size=4)) as stop:
        assert stop.told == 0
        signal.raise_signal(number)
        assert stop.told == 1 + SIGNALS.index(number)
    error = capfd.readouterr().err
    assert error == (
        f"wiseft: rank 3 got {number.name}: saving a checkpoint before stopping; interrupt again to stop at once.\n"
    )


def test_the_signal_that_requeues_goes_before_the_one_that_ends(capfd: pytest.CaptureFixture[str]) -> None:
    with StopRequest(Ranks()) as stop:
        for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGTERM):
            signal.raise_signal(number)
    assert SIGNALS[stop.told - 1] == signal.SIGUSR2
    assert capfd.readouterr().err.count("\n") == 1


def test_a_second_interrupt_stops_at_once() -> None:
    with StopRequest(Ranks()) as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # the terminal's, and that of `wiseft run`
        time.sleep(ECHO_SECONDS + 0.1)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.told == 1


def test_what_handled_a_signal_before_handles_it_afterwards() -> None:
    heard: list[int] = []
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        signal.signal(signal.SIGUSR2, lambda number, frame: heard.append(number))
        with StopRequest(Ranks()) as stop:
            signal.raise_signal(signal.SIGUSR2)
            assert heard == []
        signal.raise_signal(signal.SIGUSR2)
        assert heard == [signal.SIGUSR2]
        with pytest.raises(SystemExit) as ended:
            stop.hand_over(stop.told)
        assert heard == [signal.SIGUSR2] * 2 and ended.value.code == 0
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN  # a requeue sends it
    finally:
        restore(before)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_nobody_handled_before_ends_the_run_as_an_interrupt(number: signal.Signals) -> None:
    before = {each: signal.getsignal(each) for each in SIGNALS}
    try:
        with StopRequest(Ranks()) as stop:
            signal.raise_signal(number)
        assert {each: signal.getsignal(each) for each in SIGNALS} == before
        with pytest.raises(KeyboardInterrupt):
            stop.hand_over(stop.told)
    finally:
        restore(before)


def restore(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
