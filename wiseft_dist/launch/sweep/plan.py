"""What a sweep would be, found out and checked before anything is written or submitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wiseft_dist.config import LaunchConfig, Resources
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.evaluate.cells.parts import job_names
from wiseft_dist.launch.site_checks import site_findings
from wiseft_dist.launch.start import left_of
from wiseft_dist.launch.sweep.arrays import Array, Missing, make_arrays
from wiseft_dist.launch.sweep.directory import SWEEP_FILE, SoupKind, Sweep, is_sweep, read_sweep, refuse_another_sweep
from wiseft_dist.launch.sweep.grid import parse_grid
from wiseft_dist.launch.sweep.members import Planned, check_members, read_members
from wiseft_dist.launch.sweep.soup import why_no_soup
from wiseft_dist.pipeline import STAGES
from wiseft_dist.slurm import max_array_size

USUAL_ARRAY_SIZE = 1001


@dataclass(frozen=True)
class Asked:
    """What the command line asks for."""

    config: Path
    settings: tuple[str, ...]
    output: Path | None = None
    at_once: int | None = None
    soup: SoupKind | None = None
    """None: as it was for this sweep, else uniform where the runs' models can be averaged."""
    soup_of_finished: bool | None = None
    """None: as it was for this sweep, else no."""


@dataclass(frozen=True)
class Plan:
    """A sweep whose runs are checked."""

    sweep: Sweep
    planned: tuple[Planned, ...]
    warnings: tuple[str, ...]
    at_once: int | None

    @property
    def launch(self) -> LaunchConfig:
        """The resources, the same for all runs."""
        return self.planned[0].config.launch

    @property
    def soup_missing(self) -> Missing:
        """What a soup lacks of which nothing is known yet."""
        first = self.planned[0]
        parts = job_names(first.config, first.sizes)
        return (("merge", None), *(("evaluate", part) for part in parts), ("report", None))

    def arrays(self, missing: dict[str, Missing], *, longest: int) -> list[Array]:
        """How Slurm gets what is missing, in arrays of at most ``longest`` tasks."""
        return make_arrays(missing, longest=longest, at_once=self.at_once or self.launch.finetune.max_parallel)


def plan_sweep(asked: Asked) -> Plan:
    """Read and check every run. Writes nothing.

    Raises:
        UserError: for every mistake that can be seen by now.
    """
    if asked.output is not None and any(setting.startswith("output=") for setting in asked.settings):
        raise UserError("--output and output=... both name the sweep's folder: give one of them.")
    grid = parse_grid(asked.settings)
    folder, members = read_members(asked.config, grid, asked.output)
    before = read_sweep(folder) if is_sweep(folder) else None
    if before is not None:  # runs keep their names, whatever the order of the settings is now
        _, members = read_members(asked.config, grid.in_order_of(before.keys), asked.output)
    else:
        _refuse_other_files(folder)
    planned, warnings = check_members(members)
    soup, sentence = _soup(asked, before, planned)
    of_finished = asked.soup_of_finished
    if of_finished is None:
        of_finished = before is not None and before.soup_of_finished
    keys = grid.in_order_of(before.keys).keys if before else grid.keys
    sweep = Sweep(folder, keys, tuple(each.member for each in planned), soup, of_finished)
    if before is not None:
        refuse_another_sweep(before, sweep)
    return Plan(sweep, tuple(planned), (*warnings, *([sentence] if sentence else [])), asked.at_once)


def missing_of(plan: Plan) -> dict[str, Missing]:
    """What each run lacks, whether or not it has been written."""
    return {
        each.member.name: tuple(
            (job.stage, job.part) for step in left_of(each.config, each.run, each.manifests) for job in step.jobs
        )
        for each in plan.planned
    }


def stages_of(plan: Plan, missing: Mapping[str, Missing]) -> dict[str, Resources]:
    """The resources of the stages that some run lacks."""
    stages = {stage for jobs in missing.values() for stage, _ in jobs}
    return {stage: getattr(plan.launch, stage) for stage in STAGES if stage in stages}


def describe(plan: Plan) -> dict[str, Any]:
    """What would be run or submitted, for people and for JSON."""
    missing, launch = missing_of(plan), plan.launch
    described: dict[str, Any] = {
        "sweep": str(plan.sweep.folder),
        "executor": launch.executor,
        "runs": [
            {"name": each.member.name, "settings": each.member.settings, "missing": _names(missing[each.member.name])}
            for each in plan.planned
        ],
        "soup": plan.sweep.soup,
        "warnings": list(plan.warnings),
    }
    if launch.executor == "slurm":
        found = site_findings(stages_of(plan, missing))
        described["slurm"] = [{"level": finding.level, "text": finding.text} for finding in found]
        described["arrays"] = [
            {
                "job": array.name,
                "tasks": len(array.runs),
                "at_once": array.at_once,
                "ranks": getattr(launch, array.stage).num_tasks,
                "nodes": getattr(launch, array.stage).nodes,
                "after": list(array.after),
                "runs": list(array.runs),
            }
            for array in plan.arrays(missing, longest=_longest_array())
        ]
    return described


def _longest_array() -> int:
    """Slurm's word, or its default where it is not there to be asked: a plan can be made anywhere."""
    try:
        return max_array_size()
    except RunError:
        return USUAL_ARRAY_SIZE


def _names(missing: Missing) -> list[str]:
    return [stage if part is None else f"{stage}/{part}" for stage, part in missing]


def _refuse_other_files(folder: Path) -> None:
    """A folder of a sweep that was never begun may have its lock."""
    lock = folder / "jobs" / "lock"
    if folder.is_dir() and any(path not in (lock.parent, lock) for path in folder.rglob("*")):
        what = "is a run" if (folder / "config.yaml").is_file() else "holds other files"
        raise UserError(f"{folder} {what} and has no {SWEEP_FILE}: choose a new or an empty folder with --output.")


def _soup(asked: Asked, before: Sweep | None, planned: list[Planned]) -> tuple[SoupKind, str | None]:
    """The kind of soup, and a sentence where there is none though nobody said so.

    Raises:
        UserError: if one is asked for that cannot be.
    """
    kind = asked.soup or (before.soup if before is not None else None)
    if kind == "none":
        return "none", None
    reason = why_no_soup([each.config for each in planned])
    if reason is None and kind == "greedy" and not planned[0].sizes.get("id_val"):
        reason = "a greedy soup is chosen on ID-val, and nothing is held out: set data.id_val_fraction."
    if reason is None:
        return kind or "uniform", None
    if asked.soup is not None:
        raise UserError(f"--soup {asked.soup}: {reason}")
    return "none", f"There will be no soup: {reason}"


def refuse_what_came_between(plan: Plan) -> None:
    """Look again when the lock is held: what is in the folder may be of whoever held it before.

    Raises:
        UserError: if another sweep lies there by now.
    """
    if is_sweep(plan.sweep.folder):
        refuse_another_sweep(read_sweep(plan.sweep.folder), plan.sweep)
    else:
        _refuse_other_files(plan.sweep.folder)
