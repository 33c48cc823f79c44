"""Why jobs are in the queue again: what accounting says, what has become of their nodes, how long they had run."""

from __future__ import annotations

import time
from collections.abc import Sequence

from wiseft_dist.errors import RunError
from wiseft_dist.slurm import JobState, last_endings, silent_nodes

TIME_IS_UP = 0.8
"""Of its time limit; submitit takes the end of a job that ran so long for its time limit, too."""
MAX_ASKED = 12
"""Jobs whose nodes are asked for, each with a call of its own."""


def why_requeued(before: Sequence[JobState]) -> list[str]:
    """Why each of some jobs was put into the queue again, as far as anybody can tell: ``lost node7``.

    Args:
        before: What was last known of each while it ran.
    """
    endings = last_endings([state.job_id for state in before]) if before else {}
    return [_why(state, endings.get(state.job_id, ""), asks=number < MAX_ASKED) for number, state in enumerate(before)]


def _why(before: JobState, ending: str, *, asks: bool) -> str:
    if ending == "PREEMPTED":
        return "preempted"
    lost = _lost_nodes(before) if asks and ending in ("", "NODE_FAIL") else ""
    if lost or ending == "NODE_FAIL":
        return f"lost {lost or 'a node'}"
    if before.started is None or before.time_limit_minutes is None:
        return "preempted or requeued"
    is_late = time.time() - before.started > 60 * before.time_limit_minutes * TIME_IS_UP
    return "its time was up" if is_late else "preempted or requeued"


def _lost_nodes(before: JobState) -> str:
    """Those that it ran on and that do not answer Slurm now."""
    try:
        return ", ".join(silent_nodes(before.nodes)) if before.nodes else ""
    except RunError:
        return ""
