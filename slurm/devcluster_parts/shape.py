"""What a cluster looks like, and what can be wrong with asking for one."""

import dataclasses
import json
import shlex
import sys
from pathlib import Path


class DevclusterError(Exception):
    """The cluster cannot be started or asked; exit status 1."""


class UsageError(DevclusterError):
    """What was asked for cannot be had; exit status 2."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a cluster looks like from outside. Written to its directory, it marks the directory as ours."""

    nodes: int
    cpus: int
    preempt: bool
    gpus: int = 0
    accounting: bool = False
    settings: tuple[str, ...] = ()

    def node_names(self) -> list[str]:
        """The nodes: loopback addresses, so that they resolve by themselves."""
        return [f"127.0.0.{11 + index}" for index in range(self.nodes)]

    def __str__(self) -> str:
        flags = " --preempt" * self.preempt + " --accounting" * self.accounting
        settings = "".join(f" --set {shlex.quote(line)}" for line in self.settings)
        return f"--nodes {self.nodes} --cpus {self.cpus}" + f" --gpus {self.gpus}" * bool(self.gpus) + flags + settings


def conf_file(directory: Path) -> Path:
    """What SLURM_CONF points at."""
    return directory / "slurm.conf"


def shape_of(directory: Path) -> Shape | None:
    """The shape of the cluster that lives in a directory, if one does."""
    try:
        values = json.loads((directory / "shape.json").read_text())
        return Shape(**values | {"settings": tuple(values.get("settings", ()))})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"cannot read {directory}/shape.json ({error}); name another --dir.") from None


def say(sentence: str) -> None:
    """Tell whoever has called; standard output is for what a shell evaluates."""
    print(f"devcluster: {sentence}", file=sys.stderr, flush=True)
