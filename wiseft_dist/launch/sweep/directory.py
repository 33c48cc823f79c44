"""``OUTPUT/sweep.json``: the runs of a sweep and what they differ in. Each is an ordinary directory beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from wiseft_dist.commits import write_atomically
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.launch.sweep.names import few, value_text
from wiseft_dist.run import Run

SWEEP_FILE = "sweep.json"
SOUP = "soup"
"""The folder of the soup's run; no other run is called so, because their names have ``=`` in them."""
SoupKind = Literal["uniform", "greedy", "none"]


@dataclass(frozen=True)
class Member:
    """One run of a sweep."""

    name: str
    settings: dict[str, Any]
    """What it has of the settings that differ, by their dotted keys."""


@dataclass(frozen=True)
class Sweep:
    """A sweep that was started."""

    folder: Path
    keys: tuple[str, ...]
    """The settings that differ."""
    members: tuple[Member, ...]
    soup: SoupKind
    soup_of_finished: bool
    """Whether the soup does without the runs that failed, and waits for the results of all."""

    @property
    def file(self) -> Path:
        """Where all this is written."""
        return self.folder / SWEEP_FILE

    @property
    def jobs(self) -> Path:
        """Submitit's folders, and the lock of the `wiseft sweep` that is at work."""
        return self.folder / "jobs"

    @property
    def soup_run(self) -> Run:
        """The run that merges and evaluates the soup."""
        return Run(self.folder / SOUP)

    def run(self, name: str) -> Run:
        """The directory of a run."""
        return Run(self.folder / name)

    def write(self) -> None:
        """Replace ``sweep.json`` as a whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {key: value for key, value in asdict(self).items() if key != "folder"}
        write_atomically(self.file, json.dumps(content, indent=1))


def is_sweep(folder: Path) -> bool:
    """Whether a sweep was started in a folder."""
    return (folder / SWEEP_FILE).is_file()


def read_sweep(folder: Path) -> Sweep:
    """A sweep that was started.

    Raises:
        UserError: if there is none in the folder.
        RunError: if its file is damaged.
    """
    file = folder.absolute() / SWEEP_FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return Sweep(
            folder.absolute(),
            tuple(content["keys"]),
            tuple(Member(each["name"], each["settings"]) for each in content["members"]),
            content["soup"],
            content["soup_of_finished"],
        )
    except FileNotFoundError:
        raise UserError(f"{folder} is not a sweep: it has no {SWEEP_FILE}. Start one with `wiseft sweep`.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{file} is damaged ({error}): start the same sweep again after moving it away.") from error


def refuse_another_sweep(before: Sweep, now: Sweep) -> None:
    """Values may be added to a sweep; other settings make another one, and no run is taken out of it.

    Raises:
        UserError: naming what differs.
    """
    if set(before.keys) != set(now.keys):
        raise UserError(
            f"{before.folder} is the directory of a sweep over {', '.join(before.keys)}, not over "
            f"{', '.join(now.keys)}. Choose another --output."
        )
    asked = [member.settings for member in now.members]
    gone = [member for member in before.members if member.settings not in asked]
    if gone:
        raise UserError(
            f"{before.folder} already has {few([member.name for member in gone])}, which these values leave out. "
            f"Values can be added to a sweep, not taken out: ask for {_missing_values(gone, now.members)} too, or "
            "choose another --output."
        )


def _missing_values(gone: Sequence[Member], members: Sequence[Member]) -> str:
    missing = [
        f"{key}={value_text(value)}"
        for key in gone[0].settings
        for value in dict.fromkeys(value_text(member.settings[key]) for member in gone)
        if value not in {value_text(member.settings[key]) for member in members}
    ]
    return ", ".join(missing) or "them"
