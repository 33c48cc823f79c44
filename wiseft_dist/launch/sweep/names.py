"""What the runs of a sweep are called: ``lr=1e-05,epochs=5``, the same whenever the sweep is asked for again."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from wiseft_dist.commits import digest

MAX_LENGTH = 100
"""Characters of a name; file systems take 255 bytes, and others are put behind it."""
UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+")
"""What a file name does without: separators, blanks, everything that a shell reads as its own."""


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each dotted key, and as many more before it as tell it from the others."""
    parts = {key: key.split(".") for key in keys}

    def short(key: str) -> str:
        for length in range(1, len(parts[key]) + 1):
            name = parts[key][-length:]
            if not any(other != key and parts[other][-length:] == name for other in keys):
                break
        return ".".join(name)

    return {key: short(key) for key in keys}


def value_text(value: Any) -> str:
    """A setting's value as people read it: ``1e-05``, ``5``, ``true``, ``[0,1]``."""
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def run_names(keys: Sequence[str], settings: Sequence[Sequence[Any]]) -> list[str]:
    """A folder's name for each run.

    It follows from the run's own values alone, so that it stays when others join the sweep: a value that cannot be part
    of a file name as it is, or a name that is too long, brings a hash of all values with it.

    Args:
        keys: The settings that differ.
        settings: Their values, for each run in the order of ``keys``.
    """
    short = short_keys(keys)
    return [_name([short[key] for key in keys], list(values)) for values in settings]


def _name(keys: Sequence[str], values: list[Any]) -> str:
    texts = [value_text(value) for value in values]
    name = ",".join(f"{key}={UNSAFE.sub('_', text)}" for key, text in zip(keys, texts, strict=True))
    if len(name) <= MAX_LENGTH and not any(UNSAFE.search(text) for text in texts):
        return name
    return f"{name[:MAX_LENGTH]}-{digest(values)[:8]}"


def few(names: Sequence[str], *, most: int = 3) -> str:
    """Names in a sentence; of many the first ones."""
    others = f" and {len(names) - most} others" if len(names) > most else ""
    return ", ".join(names[:most]) + others
