"""What leaves for W&B says nothing about the people and machines it comes from: no homes, names, hosts or secrets."""

from __future__ import annotations

import getpass
import os
import re
import socket
from collections.abc import Mapping
from functools import cache
from typing import Any

from wiseft_dist.storage.urls import without_secrets

SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|AUTH", re.IGNORECASE)
"""Variables of such names hold something that nobody else may read."""
SHORTEST_SECRET = 8
"""Letters. Shorter values of such variables (``1``, ``true``) are words that may stand anywhere."""
PATH_NAMES = ("_FILE", "_SOCK", "_PATH", "_DIR")
"""How variables end that name a place, be it there or not."""
SECRET_SHAPES = re.compile(
    r"""(?ix) (?P<before> \b[\w-]*(?:[_-]key|apikey|token|secret|passw(?:or)?d|credentials?)["']?\s*[=:]\s*["']?
                        | \bbearer\s+ ) [^\s"',;&]+"""
)
"""``NAME_KEY=value``, ``"token": "value"``, ``Bearer value``."""
HOMES = re.compile(r"(?<![\w.~-])(?:/(?:home|Users|users|u)/[^/\s:'\",]+|/root)(?![\w.-])")
"""Where people's directories lie; only as the beginning of a path."""
CUT = "***"
_OTHER_HOSTS: dict[str, None] = {}
"""Names of the machines that the run's events tell of."""


def scrubbed(text: str) -> str:
    """A text without home directories, this user's and machine's names, and secrets.

    Home directories become ``~``; of other paths (``/scratch/alice/run``) the user's name becomes ``USER``; this host's
    name becomes ``HOST``. Passwords and queries of URLs go, and values of variables that look like secrets are cut.
    """
    for value in _secrets():
        text = text.replace(value, CUT)
    text = SECRET_SHAPES.sub(rf"\g<before>{CUT}", without_secrets(text))
    for home in _homes():
        text = re.sub(rf"(?<![\w.~-]){re.escape(home)}(?![\w.-])", "~", text)
    text = HOMES.sub("~", text)
    text = re.sub(rf"(?<=/){re.escape(_user())}(?=/|$)", "USER", text) if _user() else text
    for host in (*_hosts(), *_OTHER_HOSTS):
        text = re.sub(rf"(?<![\w.-]){re.escape(host)}(?![\w-])", "HOST", text)
    return text


def scrubbed_tree(value: Any) -> Any:
    """A tree of JSON with every text in it scrubbed. Of keys only those that are paths: others are names of ours."""
    if isinstance(value, str):
        return scrubbed(value)
    if isinstance(value, Mapping):
        return {scrubbed(key) if "/" in key else key: scrubbed_tree(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [scrubbed_tree(entry) for entry in value]
    return value


def _secrets() -> list[str]:
    """Longest first: one may be a part of another."""
    found = {value for name, value in os.environ.items() if SECRET_NAME.search(name) and _is_secret(name, value)}
    return sorted(found, key=len, reverse=True)


def _is_secret(name: str, value: str) -> bool:
    """A file or folder is no secret: ``XAUTHORITY``, ``SSH_AUTH_SOCK``. A key may begin with ``/`` too."""
    is_path = value.startswith("/") and (name.upper().endswith(PATH_NAMES) or os.access(value, os.F_OK))
    return len(value) >= SHORTEST_SECRET and not is_path


def _homes() -> list[str]:
    home = os.environ.get("HOME", "").rstrip("/")
    return sorted({path for path in (home, os.path.realpath(home)) if path not in ("", "/")}, key=len, reverse=True)


def hide_hosts_of(event: Mapping[str, Any]) -> None:
    """Cut, from now on, the names of the machines that an event tells of: errors of other ranks name theirs."""
    if event.get("event") == "attempt":
        _OTHER_HOSTS.update(dict.fromkeys(_long_and_short(event.get("host"))))
    elif event.get("event") == "preflight" and isinstance(event.get("nodes"), list):
        _OTHER_HOSTS.update(dict.fromkeys(name for host in event["nodes"] for name in _long_and_short(host)))


@cache
def _hosts() -> tuple[str, ...]:
    """This machine's names, its own and Slurm's, long and short."""
    names = (socket.gethostname(), os.environ.get("SLURMD_NODENAME"))
    return tuple(dict.fromkeys(name for host in names for name in _long_and_short(host)))


def _long_and_short(host: Any) -> tuple[str, ...]:
    if not isinstance(host, str) or host in ("", "localhost"):
        return ()
    return tuple(dict.fromkeys((host, host.split(".")[0])))


@cache
def _user() -> str:
    """This user's name; empty where there is none, as for some users in containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""
