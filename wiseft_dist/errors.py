"""The two kinds of failure that are answered in one sentence instead of a traceback."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user can mend: a setting, a path, a class list. Exit code 2.

    The message is one sentence or two: what is wrong, where, and what to do about it.
    """


class RunError(RuntimeError):
    """Something that went wrong while a run was under way: a failed job, a shard that ends early. Exit code 1."""
