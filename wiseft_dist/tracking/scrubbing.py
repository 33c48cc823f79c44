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
SECRET_SHAPES = re.compile(
    r"""(?ix) (?P<before> \b[\w-]*(?:[_-]key|apikey|token|secret|passw(?:or)?d|credentials?)["']?\s*[=:]\s*["']?
                        | \bbearer\s+ ) [^\s"',;&]+"""
)
"""``NAME_KEY=value``, ``"token": "value"``, ``Bearer value``."""
HOMES = re.compile(r"(?<![\w.~-])(?:/(?:home|Users|users|u)/[^/\s:'\",]+|/root)(?![\w.-])")
"""Where people's directories lie; only as the beginning of a path."""
CUT = "***"


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
    for host in _hosts():
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
    found = {value for name, value in os.environ.items() if SECRET_NAME.search(name)}
    return sorted((value for value in found if _is_secret(value)), key=len, reverse=True)


def _is_secret(value: str) -> bool:
    """A file or folder is no secret: ``XAUTHORITY``, ``SSH_AUTH_SOCK``."""
    return len(value) >= SHORTEST_SECRET and not value.startswith("/")


def _homes() -> list[str]:
    home = os.environ.get("HOME", "").rstrip("/")
    return sorted({path for path in (home, os.path.realpath(home)) if path not in ("", "/")}, key=len, reverse=True)


@cache
def _hosts() -> tuple[str, ...]:
    """This host's name, long and short."""
    host = socket.gethostname()
    return tuple(name for name in dict.fromkeys((host, host.split(".")[0])) if name and name != "localhost")


@cache
def _user() -> str:
    """This user's name; empty where there is none, as for some users in containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""
