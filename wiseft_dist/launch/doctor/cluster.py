"""What Slurm says of itself and its partitions, and whether a run's resources exist there."""

from __future__ import annotations

import getpass
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from wiseft_dist import slurm
from wiseft_dist.config import Resources, RunConfig
from wiseft_dist.errors import RunError
from wiseft_dist.findings import Finding, Level
from wiseft_dist.launch.site_checks import site_findings
from wiseft_dist.pipeline import STAGES
from wiseft_dist.ranks import node_name
from wiseft_dist.slurm import num_gpus, parse_minutes

ANSWER_SECONDS = 5.0
"""How long a controller that does not answer is asked again: somebody waits in front of the screen."""
USABLE = ("idle", "mixed", "allocated", "completing", "reserved", "planned")
"""Node states from which jobs come to run, as sinfo(1) writes them."""


@dataclass(frozen=True)
class Partition:
    """A partition and its nodes."""

    name: str
    is_default: bool
    is_up: bool
    time_limit_minutes: float | None
    """None for no limit."""
    gpus_per_node: int
    """Of its node with the most."""
    states: dict[str, int]
    """How many nodes are ``idle``, ``mixed``, ``drained``."""

    @property
    def num_nodes(self) -> int:
        """All of them."""
        return sum(self.states.values())

    @property
    def num_usable(self) -> int:
        """Those that run jobs, now or when the present ones have ended."""
        return sum(number for state, number in self.states.items() if state in USABLE) if self.is_up else 0

    def __str__(self) -> str:
        limit = "no time limit" if self.time_limit_minutes is None else f"limit {self.time_limit_minutes:g} min"
        gpus = f"{self.gpus_per_node} GPUs a node" if self.gpus_per_node else "no GPUs"
        states = ", ".join(f"{number} {state}" for state, number in sorted(self.states.items()))
        default = " (default)" if self.is_default else ""
        return f"{self.name}{default}: {self.num_nodes} nodes ({states}), {gpus}, {limit}"


def read_partitions() -> list[Partition]:
    """Every partition that this user may see.

    Raises:
        RunError: if sinfo does not answer.
    """
    command = ["sinfo", "--noheader", "--Node", "--format=%P|%a|%T|%l|%G"]
    return parse_partitions(slurm.ask(command, patience_seconds=ANSWER_SECONDS))


def parse_partitions(text: str) -> list[Partition]:
    """From sinfo's lines, one a node and partition: ``low*|up|idle|infinite|gpu:a100:8(S:0-1)``."""
    rows = [line.strip().split("|") for line in text.splitlines()]
    found = []
    for name in dict.fromkeys(row[0] for row in rows if len(row) == 5):
        own = [row for row in rows if row[0] == name]
        found.append(
            Partition(
                name=name.rstrip("*"),
                is_default=name.endswith("*"),
                is_up=own[0][1] == "up",
                time_limit_minutes=_limit(own[0][3]),
                gpus_per_node=max(num_gpus(row[4]) for row in own),
                states=dict(Counter(re.sub(r"\W", "", row[2]) for row in own)),
            )
        )
    return found


def _limit(text: str) -> float | None:
    return float(text) if text.isdigit() else parse_minutes(text)  # a bare number is of minutes


def check_cluster(config: RunConfig | None) -> list[Finding]:
    """Slurm's settings and partitions, and what a run asks of them; one warning where there is no Slurm.

    Args:
        config: A run. If it runs on Slurm, a Slurm that does not answer is an error.
    """
    needs_slurm = config is not None and config.launch.executor == "slurm"
    try:
        version = slurm.ask(["sinfo", "--version"], patience_seconds=0.0).split()[-1]
    except (RunError, IndexError) as error:
        said = "Slurm's commands are not installed here" if "not installed" in str(error) else str(error)
        return [_finding("slurm", "error" if needs_slurm else "ok", f"{said}; launch.executor=local works without")]
    try:
        slurm.ask(["scontrol", "ping"], patience_seconds=ANSWER_SECONDS)
        settings, partitions = slurm.cluster_settings(), read_partitions()
    except RunError as error:
        level: Level = "error" if needs_slurm else "warning"
        return [_finding("slurm", level, f"version {version}, but no controller answers: {error}")]
    told = [("slurm", "ok", f"version {version}, the controller answers"), *_judge_settings(settings)]
    told += [judge_partition(partition) for partition in partitions]
    if config is not None and needs_slurm:
        told += [line for stage in STAGES for line in judge_stage(stage, getattr(config.launch, stage))]
    return [_finding(check, level, text) for check, level, text in (*told, *_account(settings))]


def judge_partition(partition: Partition) -> tuple[str, Level, str]:
    """A partition without a node that takes jobs is worth a warning."""
    if not partition.is_up:
        return "partition", "warning", f"{partition}: it is not up, jobs wait there"
    if not partition.num_usable:
        return "partition", "warning", f"{partition}: no node takes jobs; `sinfo --list-reasons` says why"
    return "partition", "ok", str(partition)


def judge_stage(stage: str, resources: Resources) -> Iterator[tuple[str, Level, str]]:
    """What `wiseft plan` and `wiseft run` would say of what a stage asks for."""
    check, found = f"launch.{stage}", site_findings({stage: resources})
    yield from ((check, finding.level, finding.text) for finding in found)
    if not found:
        yield check, "ok", f"{resources.nodes} nodes in {resources.partition or 'the default partition'}"


def _judge_settings(settings: Mapping[str, str]) -> Iterator[tuple[str, Level, str]]:
    is_accounted = settings.get("AccountingStorageType", "").rpartition("/")[2] not in ("", "none", "(null)")
    if is_accounted:
        yield "accounting", "ok", "on: what became of a job is known after Slurm has forgotten it"
    else:
        age = settings.get("MinJobAge", "300 sec")
        yield "accounting", "warning", f"off: Slurm forgets an ended job after {age}; only what it left on disk counts"
    mode = settings.get("PreemptMode", "OFF")
    sends_signal = "preempt_send_user_signal" in settings.get("SlurmctldParameters", "")
    if mode == "OFF" or sends_signal:
        yield "preemption", "ok", f"PreemptMode {mode}{', preempt_send_user_signal is set' if sends_signal else ''}"
    else:
        yield (
            "preemption",
            "warning",
            f"PreemptMode {mode} without SlurmctldParameters=preempt_send_user_signal: a preempted job hears SIGTERM "
            "alone and has its partition's GraceTime to save; set finetune.checkpoint.every_minutes to match",
        )
    requeues = settings.get("JobRequeue", "1") == "1"
    yield "requeue", "ok", "JobRequeue 1" if requeues else "JobRequeue 0; wiseft's jobs ask to be requeued themselves"
    yield "arrays", "ok", f"MaxArraySize {settings.get('MaxArraySize', 'unknown')}; longer steps are split"


def _account(settings: Mapping[str, str]) -> Iterator[tuple[str, Level, str]]:
    """The account that this user's jobs go to, where accounting knows."""
    if settings.get("AccountingStorageType", "").rpartition("/")[2] != "slurmdbd":
        return
    command = ["sacctmgr", "--noheader", "--parsable2", "show", "user", getpass.getuser(), "format=DefaultAccount"]
    try:
        account = slurm.ask(command, patience_seconds=0.0).strip()
    except RunError as error:
        yield "account", "warning", f"sacctmgr does not say: {error}"
        return
    enforced = "associations" in settings.get("AccountingStorageEnforce", "")
    if account:
        yield "account", "ok", f"default account {account}"
    elif enforced:
        yield "account", "warning", f"{getpass.getuser()} has no default account: set launch.STAGE.account"
    else:
        yield "account", "ok", "no default account, and none is needed"


def _finding(check: str, level: Level, text: str) -> Finding:
    return Finding(check, level, text, node_name())
