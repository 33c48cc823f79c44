"""What Slurm would refuse or never start of a run, asked before anything is submitted: partitions, limits, accounts."""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Iterable, Mapping
from dataclasses import replace

from wiseft_dist.config import Resources
from wiseft_dist.errors import RunError
from wiseft_dist.findings import Finding, Level
from wiseft_dist.slurm import ask, has_accounting, parse_minutes


def check_site(stages: Mapping[str, Resources]) -> list[str]:
    """Sentences about what Slurm will refuse or never start; empty where there is no Slurm or nothing is wrong."""
    return [finding.text for finding in site_findings(stages)]


def site_findings(stages: Mapping[str, Resources]) -> list[Finding]:
    """What Slurm will refuse or never start is an error; what may change, or depends on the site, a warning."""
    if shutil.which("scontrol") is None:
        return [_finding("Slurm's commands are not installed here, so nothing is known of partitions and limits.")]
    partitions = _partitions(_answer("scontrol", "--oneliner", "show", "partition"))
    if not partitions:
        return [_finding("Slurm does not answer, so nothing is known of partitions and limits.")]
    found: list[Finding] = []
    for stage, resources in stages.items():
        found += _of_stage(stage, resources, partitions)
    return found + _accounts(stages)


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
    gpus = _most_gpus(_answer("sinfo", "--noheader", "--partition", name, "--format=%G"))
    if gpus is not None and resources.gpus_per_node > gpus:
        wanted = resources.gpus_per_node
        yield _finding(
            f"launch.{stage}.gpus_per_node is {wanted}, and no node of {name} has more than {gpus}.", "error"
        )


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


def _partitions(text: str) -> dict[str, dict[str, str]]:
    """``scontrol --oneliner show partition``: the fields of each, by its name."""
    lines = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in text.splitlines()]
    return {fields["PartitionName"]: fields for fields in lines if "PartitionName" in fields}


def _most_gpus(text: str) -> int | None:
    """The most GPUs of a node, from lines such as ``gpu:a100:4(S:0-1),gpu:1`` or ``(null)``; None for no answer."""
    if not text:
        return None
    lines = [re.findall(r"gpu(?::[A-Za-z][^:,(]*)?:(\d+)", line) for line in text.splitlines()]
    return max(sum(map(int, numbers)) for numbers in lines)


def _answer(*command: str) -> str:
    """What Slurm says, or nothing: a plan is made without it too."""
    try:
        return ask(command, patience_seconds=0.0)
    except RunError:
        return ""
