"""Waiting for what another process, or a thread, does."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_SECONDS = 300.0
"""Long enough for a busy machine: a test that ends here has found that nothing comes."""

REVOKED_SECONDS = 2.0
"""Within the second in which a job was requeued, slurmd takes its new start for the old one, and the job is over."""


def wait_until(
    condition: Callable[[], object],
    *,
    seconds: float = PATIENCE_SECONDS,
    every: float = 0.1,
    because: Callable[[], object] = lambda: "",
) -> None:
    """Return once the condition holds; fail the test, saying ``because()``, if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so within {seconds:.0f} s {because()}"
        time.sleep(every)
