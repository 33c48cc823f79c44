"""What Slurm would refuse or never start of a run, asked before anything is submitted: partitions, nodes, accounts.

Of a job that waits for another one, Slurm itself looks at some of this only when its turn comes.
"""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from wiseft_dist.config import Resources
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.findings import Finding, Level, only
from wiseft_dist.launch.executors import refusal
from wiseft_dist.slurm import ask, has_accounting, num_gpus, parse_minutes

FOR_GOOD = re.compile(r"\b(invalid|unrecognized|unknown|ambiguous|not permitted)\b", re.IGNORECASE)
"""What sbatch calls a request that no waiting mends: an account, a qos, a licence, an option that it does not have."""
FOR_NOW = re.compile(r"not available|down, drained|busy|contact|timed out|connect|communication", re.IGNORECASE)
"""Its words where nodes are drained or its controller is away: it would take the job all the same, or later."""
NODE_FORMAT = "%G|%c|%m|%f"
"""For sinfo: generic resources, CPUs, megabytes of memory, features."""


def check_site(stages: Mapping[str, Resources]) -> list[str]:
    """Sentences about what Slurm may not do of stages that are to be submitted.

    Raises:
        UserError: with what it would refuse: else the stages before it were in the queue already.
    """
    found = site_findings(stages)
    if errors := only(found, "error"):
        raise UserError(f"nothing was submitted: {' '.join(finding.text for finding in errors)}")
    return [finding.text for finding in found]


def site_findings(stages: Mapping[str, Resources]) -> list[Finding]:
    """What Slurm will refuse or never start is an error; what may change, or depends on the site, a warning."""
    if shutil.which("scontrol") is None:
        return [_finding("Slurm's commands are not installed here, so nothing is known of partitions and limits.")]
    partitions = _partitions(_answer("scontrol", "--oneliner", "show", "partition"))
    if not partitions:
        return [_finding("Slurm does not answer, so nothing is known of partitions and limits.")]
    found: list[Finding] = []
    for stage, resources in stages.items():
        own = list(_of_stage(stage, resources, partitions))
        found += own if only(own, "error") else [*own, *_refused(stage, resources)]
    return [*found, *_accounts(stages), *_pyxis(stages)]


def _finding(text: str, level: Level = "warning") -> Finding:
    return Finding("site", level, text, socket.gethostname())


def _of_stage(stage: str, resources: Resources, partitions: Mapping[str, Mapping[str, str]]) -> Iterable[Finding]:
    default = next((name for name, fields in partitions.items() if fields.get("Default") == "YES"), None)
    name = resources.partition or default
    if name is None:
        known = ", ".join(partitions)
        yield _finding(f"launch.{stage}.partition is not set, and Slurm has no default: there are {known}.", "error")
        return
    names = name.split(",")
    for each in (each for each in names if each not in partitions):
        known = ", ".join(partitions)
        yield _finding(f"launch.{stage}.partition is {each!r}, which Slurm does not have: there are {known}.", "error")
    found = [list(_of_partition(stage, resources, each, partitions[each])) for each in names if each in partitions]
    is_one_good = any(all(finding.level != "error" for finding in one) for one in found)  # Slurm takes any of them
    for finding in (finding for one in found for finding in one):
        yield replace(finding, level="warning") if is_one_good else finding


def _of_partition(stage: str, resources: Resources, name: str, fields: Mapping[str, str]) -> Iterable[Finding]:
    limit = parse_minutes(fields.get("MaxTime", ""))
    if limit is not None and resources.timeout_minutes > limit:
        yield _finding(
            f"launch.{stage}.timeout_minutes is {resources.timeout_minutes}, and partition {name} allows {limit:.0f}: "
            "the job would wait forever. It saves and comes back at its limit, so set that.",
            "warning" if resources.qos or "reservation" in resources.extra else "error",  # these may allow more
        )
    if fields.get("State", "UP") != "UP":
        yield _finding(f"launch.{stage}: partition {name} is {fields['State']}: it starts no jobs.")
    num_nodes = int(fields["TotalNodes"]) if fields.get("TotalNodes", "").isdecimal() else None
    if num_nodes is not None and resources.nodes > num_nodes:
        yield _finding(f"launch.{stage}.nodes is {resources.nodes}, and partition {name} has {num_nodes}.", "error")
    if nodes := _nodes(_answer("sinfo", "--noheader", "--exact", "--partition", name, f"--format={NODE_FORMAT}")):
        yield from (_finding(f"launch.{stage}.{text}", "error") for text in _of_nodes(resources, name, nodes))


def _refused(stage: str, resources: Resources) -> Iterable[Finding]:
    """What Slurm itself says of a job, as if it were submitted now and waited for nothing."""
    words = refusal(resources)
    if words and not FOR_NOW.search(words):
        yield _finding(f"launch.{stage}: sbatch says: {words}.", "error" if FOR_GOOD.search(words) else "warning")


@dataclass(frozen=True)
class _Node:
    """What some nodes of a partition have."""

    gpus: int
    cpus: int
    megabytes: int
    features: frozenset[str]


def _of_nodes(resources: Resources, partition: str, nodes: Sequence[_Node]) -> Iterable[str]:
    """What no node of a partition has."""
    gpus = max(node.gpus for node in nodes)
    if resources.gpus_per_node > gpus:
        yield f"gpus_per_node is {resources.gpus_per_node}, and no node of {partition} has more than {gpus}."
    cpus, a_process = max(node.cpus for node in nodes), resources.cpus_per_task or 1
    if resources.tasks_per_node * a_process > cpus and "overcommit" not in resources.extra:
        tasks = f"{resources.tasks_per_node} processes a node" if resources.tasks_per_node > 1 else "one process a node"
        yield f"cpus_per_task is {a_process} for {tasks}, and no node of {partition} has more than {cpus} CPUs."
    megabytes = max(node.megabytes for node in nodes)
    if (resources.mem_gb or 0) * 1024 > megabytes:
        most = f"{megabytes / 1024:.4g}"
        yield f"mem_gb is {resources.mem_gb:g}, and no node of {partition} has more than {most}."
    known = frozenset(feature for node in nodes for feature in node.features)
    wanted = _features(resources.constraint or "")
    missing = [feature for feature in wanted if feature not in known]
    if missing and ("|" not in (resources.constraint or "") or len(missing) == len(wanted)):
        yield f"constraint names {', '.join(missing)}, and no node of {partition} has that."


def _accounts(stages: Mapping[str, Resources]) -> list[Finding]:
    """Whether an unknown account matters is the site's choice (``AccountingStorageEnforce``)."""
    wanted = {resources.account: stage for stage, resources in stages.items() if resources.account}
    try:
        if not wanted or not has_accounting():
            return []
    except RunError:
        return []
    text = _answer("sacctmgr", "--noheader", "--parsable2", "show", "associations", "format=account")
    known = set(text.split())
    unknown = [account for account in wanted if known and account.lower() not in known]
    return [
        _finding(f"launch.{wanted[each]}.account is {each!r}, which Slurm's accounting does not have.")
        for each in unknown
    ]


def _pyxis(stages: Mapping[str, Resources]) -> Iterable[Finding]:
    """Whether srun starts containers: the one here need not have the plugin that those of the nodes have."""
    wanted = [stage for stage, each in stages.items() if each.container and each.container_runtime == "pyxis"]
    options = _answer("srun", "--help") if wanted else ""
    if options and "--container-image" not in options:
        yield _finding(
            f"launch.{wanted[0]}.container_runtime is pyxis, and srun here knows no --container-image: where the nodes "
            "have no pyxis either, the job fails at once."
        )


def _partitions(text: str) -> dict[str, dict[str, str]]:
    """``scontrol --oneliner show partition``: the fields of each, by its name."""
    lines = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in text.splitlines()]
    return {fields["PartitionName"]: fields for fields in lines if "PartitionName" in fields}


def _nodes(text: str) -> list[_Node]:
    """Lines of :data:`NODE_FORMAT`: ``gpu:a100:4(S:0-1),gpu:1|128|1031000|a100,ib``, or ``(null)`` for nothing."""
    rows = [line.split("|") for line in text.splitlines()]
    return [
        _Node(num_gpus(gres), int(cpus.rstrip("+")), int(megabytes.rstrip("+")), frozenset(features.split(",")))
        for gres, cpus, megabytes, features in rows
    ]


def _features(constraint: str) -> list[str]:
    """The names in ``[rack1*2&rack2*4]`` and ``(a100|h100)&ib``."""
    return [name for name in re.split(r"[\s&|,()\[\]]+", re.sub(r"\*\d+", "", constraint)) if name]


def _answer(*command: str) -> str:
    """What Slurm says, or nothing: a plan is made without it too."""
    try:
        return ask(command, patience_seconds=0.0)
    except RunError:
        return ""
