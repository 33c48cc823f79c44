"""Before fine-tuning, every node shows that it is fit: what is wrong on one of 64 would otherwise cost all of them.

Each rank looks at its machine, the ranks compare what they have seen, and neighbouring nodes measure the network
between them. All findings are gathered before anyone gives up, so that one start names every bad node.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import torch.distributed as dist

from wiseft_dist.code_identity import package_digest
from wiseft_dist.config import PreflightConfig, RunConfig
from wiseft_dist.distributed import device_of
from wiseft_dist.errors import RunError
from wiseft_dist.findings import Finding, by_text, only
from wiseft_dist.network_checks import (
    NETWORK_SECONDS,
    Pair,
    judge_network,
    measure_all_reduce,
    measure_pairs,
    neighbours,
)
from wiseft_dist.node_checks import check_here
from wiseft_dist.printable import printable
from wiseft_dist.ranks import Ranks, node_name
from wiseft_dist.run import Run
from wiseft_dist.tracking import append_event

LIBRARIES = ("torch", "deepspeed", "open_clip_torch")
MAX_NAMED = 16


@dataclass(frozen=True)
class Look:
    """What one rank has seen of its machine."""

    rank: int
    host: str
    is_leader: bool
    """Whether it is the first of its node, and speaks for it."""
    seconds: float
    """Its clock, since 1970, at a moment that all ranks share."""
    code: str
    versions: dict[str, str]
    gpu: str
    """What tells its GPU apart; empty without one."""
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Survey:
    """Everything that was seen; the same on every rank."""

    looks: list[Look]
    pairs: list[Pair] = field(default_factory=list)
    all_reduce: float = 0.0
    """10^9 bytes a second through each rank; 0 for a rank alone."""


def preflight(config: RunConfig, run: Run, ranks: Ranks) -> None:
    """Look at every node of the process group that this process is in; all its ranks call it.

    Raises:
        RunError: naming every node that is not fit, and why; on all ranks.
    """
    started = time.monotonic()
    device = device_of(ranks)
    survey = _survey(config, run, ranks, device)
    findings = judge(survey, config.launch.preflight)
    errors, warnings = only(findings, "error"), only(findings, "warning")
    if ranks.is_main:
        _report(run, survey, warnings, errors, time.monotonic() - started)
    if errors:
        raise RunError(error_sentence(errors))


def judge(survey: Survey, settings: PreflightConfig) -> list[Finding]:
    """What is to be said of all nodes together, after what each of them has found."""
    own = [finding for look in survey.looks for finding in look.findings]
    return [
        *own,
        *judge_code(survey.looks),
        *judge_binding(survey.looks),
        *judge_clocks(survey.looks, settings.max_clock_difference_seconds),
        *judge_network(survey.pairs, settings.min_gigabytes_per_second),
    ]


def judge_code(looks: Sequence[Look]) -> list[Finding]:
    """Ranks with other code or libraries than the first one's."""
    first, found = looks[0], []
    for look in looks[1:]:
        if look.code != first.code:
            found.append(_error("code", look, "runs another wiseft_dist than rank 0"))
        for name, number in look.versions.items():
            if number != first.versions.get(name):
                found.append(_error("code", look, f"has {name} {number}, and rank 0 {first.versions.get(name)}"))
    return found


def judge_binding(looks: Sequence[Look]) -> list[Finding]:
    """Ranks that share a GPU."""
    owners: dict[str, Look] = {}
    found = []
    for look in looks:
        other = owners.setdefault(look.gpu, look) if look.gpu else look
        if other is not look:
            found.append(_error("gpu", look, f"has the same GPU as rank {other.rank}, {look.gpu}"))
    return found


def judge_clocks(looks: Sequence[Look], limit_seconds: float) -> list[Finding]:
    """Nodes whose clock differs from the first rank's."""
    first, found = looks[0], []
    for look in looks:
        difference = look.seconds - first.seconds
        if look.is_leader and abs(difference) > limit_seconds:
            way = "ahead of" if difference > 0 else "behind"
            limit = f"launch.preflight.max_clock_difference_seconds={limit_seconds:g}"
            text = f"the clock is {abs(difference):.0f} s {way} rank 0's, more than {limit}"
            found.append(Finding("clock", "error", text, look.host))
    return found


def error_sentence(errors: Sequence[Finding]) -> str:
    """All errors, those of several nodes together, and what to do."""
    named = [f"{_hosts(hosts)}: {text}" for text, hosts in by_text(errors).items()]
    more = f"; and {len(named) - MAX_NAMED} more" if len(named) > MAX_NAMED else ""
    bad = list(dict.fromkeys(finding.host for finding in errors))
    return (
        f"not every node is fit to fine-tune. {'; '.join(named[:MAX_NAMED])}{more}. Mend this, or leave bad nodes out "
        f'with launch.finetune `extra: {{exclude: "{",".join(bad[:MAX_NAMED])}"}}`, then `wiseft run` again.'
    )


def _survey(config: RunConfig, run: Run, ranks: Ranks, device: torch.device) -> Survey:
    # A group of its own where the network between GPUs may be what is broken.
    is_gloo = dist.get_backend() == "gloo"
    group: Any = None if is_gloo else dist.new_group(backend="gloo", timeout=timedelta(seconds=2 * NETWORK_SECONDS))
    findings = check_here(config, run, "finetune", ranks, device.index if device.type == "cuda" else None)
    versions, code, gpu = _versions(), package_digest(), _gpu_identity(device)
    dist.barrier(group)
    look = Look(ranks.rank, node_name(), ranks.local_rank == 0, time.time(), code, versions, gpu, tuple(findings))
    looks: list[Look] = _gathered(look, group)
    leaders = [look for look in looks if look.is_leader]
    rates = _gathered(measure_pairs(ranks, [leader.rank for leader in leaders], device), group)
    pairs = [
        Pair(leaders[first].host, leaders[second].host, rates[leaders[first].rank].get(second, 0.0))
        for first, second in (pair for pairs in neighbours(len(leaders)) for pair in pairs)
    ]
    all_reduce = measure_all_reduce(ranks, device) if all(pair.rate for pair in pairs) else 0.0
    return Survey(looks, pairs, all_reduce)


def _gathered(value: Any, group: Any) -> list[Any]:
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=group)
    return values


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def _gpu_identity(device: torch.device) -> str:
    """The GPU's own number, which is the same however it is numbered here; of a slice of one, the slice's."""
    if device.type != "cuda":
        return ""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    index = device.index or 0
    if index < len(chosen) and chosen[index].startswith("MIG-"):
        return chosen[index]
    return f"GPU-{torch.cuda.get_device_properties(index).uuid}"


def _report(run: Run, survey: Survey, warnings: Sequence[Finding], errors: Sequence[Finding], seconds: float) -> None:
    hosts = [look.host for look in survey.looks if look.is_leader]
    append_event(
        run.events_file,
        stage="finetune",
        event="preflight",
        nodes=hosts,
        ranks=len(survey.looks),
        seconds=round(seconds, 3),
        all_reduce_gigabytes_per_second=round(survey.all_reduce, 3),
        pairs=[asdict(pair) | {"rate": round(pair.rate, 3)} for pair in survey.pairs],
        warnings=[f"{finding.host}: {finding.text}" for finding in warnings],
        errors=[f"{finding.host}: {finding.text}" for finding in errors],
    )
    for text, where in by_text(warnings).items():
        print(f"wiseft: warning: {printable(f'{_hosts(where)}: {text}')}", file=sys.stderr, flush=True)
    network = f", all-reduce {survey.all_reduce:.3g} GB/s" if survey.all_reduce else ""
    verdict = f"{len(errors)} errors" if errors else "fit"
    print(
        f"wiseft: preflight: {len(survey.looks)} ranks on {len(hosts)} nodes: {verdict}{network} ({seconds:.2f} s).",
        file=sys.stderr,
        flush=True,
    )


def _hosts(hosts: Sequence[str]) -> str:
    return ", ".join(hosts[:MAX_NAMED]) + (f" and {len(hosts) - MAX_NAMED} more" if len(hosts) > MAX_NAMED else "")


def _error(check: str, look: Look, text: str) -> Finding:
    return Finding(check, "error", f"rank {look.rank} {text}", look.host)
