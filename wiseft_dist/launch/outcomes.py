"""What became of a job, in one word, and in a sentence for whoever has to do something about it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from signal import SIGKILL
from typing import Any

from wiseft_dist.slurm import NOT_STARTED, JobState


class Outcome(StrEnum):
    """A job's end, or that it has not come to one."""

    waiting = "waiting"
    running = "running"
    finished = "finished"
    failed = "failed"
    timed_out = "timed_out"
    out_of_memory = "out_of_memory"
    """The host's."""
    out_of_gpu_memory = "out_of_gpu_memory"
    node_failed = "node_failed"
    preempted = "preempted"
    cancelled = "cancelled"
    blocked = "blocked"
    """A job that it waits for has failed: it can never start."""
    forgotten = "forgotten"
    """Its executor does not know it any more, and it left no result."""


ENDINGS = {
    "COMPLETED": Outcome.failed,  # without its result
    "FAILED": Outcome.failed,
    "BOOT_FAIL": Outcome.node_failed,
    "NODE_FAIL": Outcome.node_failed,
    "TIMEOUT": Outcome.timed_out,
    "DEADLINE": Outcome.timed_out,
    "OUT_OF_MEMORY": Outcome.out_of_memory,
    "PREEMPTED": Outcome.preempted,
    "CANCELLED": Outcome.cancelled,
    "REVOKED": Outcome.cancelled,
}
NEVER_SATISFIED = "DependencyNeverSatisfied"
UNDER_WAY = (Outcome.waiting, Outcome.running)
OUT_OF_HOST_MEMORY = ("oom-kill", "oom_kill", "Out Of Memory", "xceeded job memory limit", "xceeded memory limit")
"""What slurmstepd writes into a job's log where Slurm calls the job itself only failed."""
OUT_OF_GPU_MEMORY = ("CUDA out of memory", "HIP out of memory", "CUDA error: out of memory")
"""What PyTorch says, in its allocator's words and in the driver's."""
WORDS_OF_SLURM = (
    ("DUE TO TIME LIMIT", Outcome.timed_out),
    ("DUE TO PREEMPTION", Outcome.preempted),
    ("DUE TO NODE FAILURE", Outcome.node_failed),
)
"""What it writes into a job's log: `slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT ... DUE TO TIME LIMIT ***`."""
WENT_WELL = "Job completed successfully"
WENT_WRONG = "Submitted job triggered an exception"
"""What submitit writes into a job's log where its function returns, or raises."""
INTERRUPTS = ("KeyboardInterrupt", "SystemExit")
"""Being told to stop: nothing that a job could add to what Slurm says."""
REASONS = {
    "BeginTime": "Slurm lets a job that comes back pause",
    "Dependency": "for the jobs before it",
    "Resources": "for free nodes",
    "Priority": "other jobs come first",
    "JobArrayTaskLimit": "as many jobs of its array run as may at once",
    "JobHeldUser": "it is held: `scontrol release {id}` lets it go",
    "JobHeldAdmin": "it is held: `scontrol release {id}` lets it go, or whoever runs the cluster",
    "job requeued in held state": "it is held: `scontrol release {id}` lets it go",
    "ReqNodeNotAvail": "the nodes that it asks for are down or reserved",
    "PartitionNodeLimit": "its partition has not as many nodes: change launch.{stage}.nodes or partition",
    "PartitionTimeLimit": "its partition allows less time: change launch.{stage}.timeout_minutes or partition",
    "BadConstraints": "no node is what it asks for: change launch.{stage}",
}
"""Slurm's words for why a job waits."""


def outcome_of(
    state: JobState | None, *, has_result: bool, failure: Mapping[str, Any] | None, log: str = ""
) -> Outcome:
    """What became of a job.

    Args:
        state: What its executor says; None if it does not know the job.
        has_result: Whether the job's output is committed.
        failure: The newest ``failed`` event of the job since it last started.
        log: The end of its log, where known.
    """
    if state is not None and state.is_active:
        if state.state not in NOT_STARTED:
            return Outcome.running
        return Outcome.blocked if state.reason == NEVER_SATISFIED else Outcome.waiting
    if has_result:
        return Outcome.finished
    if state is None:
        return _of_its_log(log) if failure is None else _in_its_own_words(failure, log)
    if state.reason == NEVER_SATISFIED:
        return Outcome.blocked
    ending = ENDINGS.get(state.state, Outcome.failed)
    if ending is not Outcome.failed:
        return ending
    # Slurm would know of somebody's cancelling: here srun has interrupted the other ranks when one died.
    own = _in_its_own_words(failure, log)
    return Outcome.failed if own is Outcome.cancelled else own


def explain(
    outcome: Outcome, name: str, state: JobState | None = None, failure: Mapping[str, Any] | None = None
) -> str:
    """What became of a job and what to do about it: a sentence or two, that begin with the job's name.

    Args:
        outcome: As :func:`outcome_of` found it.
        name: The job's: ``evaluate/1-of-3``.
        state: What its executor says.
        failure: What the job itself could say.
    """
    stage, job = name.partition("/")[0], name if state is None else f"{name} (job {state.job_id})"
    if outcome is Outcome.waiting and state is not None:
        return f"{job} waits: {why_it_waits(state, stage)}."
    if outcome is Outcome.forgotten:
        return f"{job} is not there any more and left no result: run again to go on from what is committed."
    has_words = failure and failure.get("error") and failure.get("kind") not in INTERRUPTS
    words = f" Its last words: {failure['error']}" if failure and has_words else ""
    if outcome is Outcome.failed:
        return f"{job} failed{_exit(state)}." + words
    sentence = SENTENCES.get(outcome, "is {outcome}.")
    cure = GPU_MEMORY_CURES.get(stage, f"give launch.{stage} GPUs with more of it")
    return f"{job} " + sentence.format(outcome=outcome, stage=stage, cure=cure, **_facts(state)) + words


def why_it_waits(state: JobState, stage: str) -> str:
    """The reason of a waiting job, and what to do where waiting does not help."""
    word = state.reason.partition(",")[0]
    return REASONS[word].format(id=state.job_id, stage=stage) if word in REASONS else state.reason or "no reason given"


SENTENCES = {
    Outcome.running: "runs.",
    Outcome.finished: "is finished.",
    Outcome.timed_out: "ran into its time limit{limit} and did not come back: "
    "raise launch.{stage}.timeout_minutes, or run again to go on from what is committed.",
    Outcome.out_of_memory: "ran out of memory: raise launch.{stage}.mem_gb, or lower the batch size or data.workers.",
    Outcome.out_of_gpu_memory: "ran out of GPU memory: {cure}, then run again.",
    Outcome.node_failed: "lost a node{nodes}: run again to go on from what is committed; "
    "if it is the same node each time, tell whoever runs the cluster.",
    Outcome.preempted: "was preempted{nodes} and not put into the queue again: run again to go on from what is "
    "committed; preemption that requeues is a setting of the partition or qos.",
    Outcome.cancelled: "was cancelled{by}: run again to go on from what is committed.",
    Outcome.blocked: "can never start, because a job that it waits for did not end well: "
    "see to that one, then run again.",
}
GPU_MEMORY_CURES = {
    "finetune": "lower finetune.micro_batch_size, set finetune.activation_checkpointing or raise finetune.zero_stage "
    "(none of them needs a new output)",
    "evaluate": "lower evaluate.batch_size",
}


def _of_its_log(log: str) -> Outcome:
    """The end of a job that nobody knows any more and that said nothing itself; what stands last in the log counts."""
    found = {log.rfind(words): outcome for words, outcome in WORDS_OF_SLURM if words in log}
    found |= {log.rfind(words): Outcome.out_of_memory for words in OUT_OF_HOST_MEMORY if words in log}
    found |= {log.rfind(words): Outcome.out_of_gpu_memory for words in OUT_OF_GPU_MEMORY if words in log}
    if found:
        return found[max(found)]
    return Outcome.failed if WENT_WRONG in log[max(0, log.rfind(WENT_WELL)) :] else Outcome.forgotten


def _in_its_own_words(failure: Mapping[str, Any] | None, log: str) -> Outcome:
    """A failure, or what is behind it: somebody's interrupt, or the lack of memory."""
    kind, error = (str((failure or {}).get(field, "")) for field in ("kind", "error"))
    if kind in INTERRUPTS:
        return Outcome.cancelled
    if kind == "OutOfMemoryError" or any(words in error for words in OUT_OF_GPU_MEMORY):  # torch's name for a GPU's
        return Outcome.out_of_gpu_memory
    is_memory = kind == "MemoryError" or any(words in log for words in OUT_OF_HOST_MEMORY)
    return Outcome.out_of_memory if is_memory else Outcome.failed


def _facts(state: JobState | None) -> dict[str, str]:
    if state is None:
        return {"limit": "", "nodes": "", "by": ""}
    minutes = state.time_limit_minutes
    return {
        "limit": "" if minutes is None else f" of {minutes:g} minutes",
        "nodes": f" (it ran on {state.nodes})" if state.nodes else "",
        "by": f" {state.reason}" if state.reason.startswith("by ") else "",
    }


def _exit(state: JobState | None) -> str:
    """How its processes ended, as far as Slurm tells."""
    if state is None:
        return ""
    if state.state == "COMPLETED":
        return ": it ended without its result"
    code = state.exit_code or 0
    signal = state.signal or max(0, code - 128)  # srun gives on what a shell would
    if signal == SIGKILL:
        return " (killed by signal 9: by hand, or by the kernel for want of memory)"
    if signal:
        return f" (killed by signal {signal})"
    return f" (exit code {code})" if code else ""
