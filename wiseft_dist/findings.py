"""What a check has found: all is well, something to know, or something that must not go on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at on one machine."""

    check: str
    """What was looked at: ``gpu``, ``disk``, ``store``, ``clock``, ``code``, ``network``."""
    level: Level
    """Whether work can go on, and whether a person should know."""
    text: str
    """One sentence: what is there and, where it is not well, what to do."""
    host: str
    """The machine."""


def only(findings: Iterable[Finding], level: Level) -> list[Finding]:
    """Those of one level."""
    return [finding for finding in findings if finding.level == level]


def by_text(findings: Iterable[Finding]) -> dict[str, list[str]]:
    """What was found, with the machines where it was; each machine once, in the order in which they were given."""
    hosts: dict[str, list[str]] = {}
    for finding in findings:
        named = hosts.setdefault(finding.text, [])
        if finding.host not in named:
            named.append(finding.host)
    return hosts
