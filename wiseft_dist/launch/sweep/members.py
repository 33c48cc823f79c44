"""The runs of a sweep: every combination is read and checked before anything is written or submitted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wiseft_dist import storage
from wiseft_dist.commits import digest, is_committed
from wiseft_dist.config import RunConfig, batch_arithmetic, load_config
from wiseft_dist.data.manifest import Manifest
from wiseft_dist.data.stage import TRAIN, evaluated_sizes, index_all, refuse_credentials, refuse_other_training_data
from wiseft_dist.errors import UserError
from wiseft_dist.evaluate.cells.parts import job_names
from wiseft_dist.evaluate.dataset_checks import check_datasets
from wiseft_dist.launch.container_checks import unseen_in_containers
from wiseft_dist.launch.model_files import check_merged_models, check_model_files
from wiseft_dist.launch.start import refuse_placeholders, resolve_paths
from wiseft_dist.launch.sweep.directory import Member
from wiseft_dist.launch.sweep.grid import Grid, refuse_what_makes_no_runs
from wiseft_dist.launch.sweep.names import run_names, value_text
from wiseft_dist.run import Run, find_run


@dataclass(frozen=True)
class Planned:
    """A run of a sweep, whose settings and data are found to be right."""

    member: Member
    config: RunConfig
    manifests: dict[str, Manifest]
    """Of its datasets; runs on the same data share them."""

    @property
    def run(self) -> Run:
        """Its directory."""
        return Run(Path(self.config.output))

    @property
    def sizes(self) -> dict[str, int]:
        """Samples of what is evaluated."""
        return evaluated_sizes(self.config, self.manifests)


def read_members(path: Path, grid: Grid, folder: Path | None) -> tuple[Path, list[tuple[Member, RunConfig]]]:
    """The configuration of every run, in the order of the grid; each has its own output.

    Args:
        path: The configuration file.
        grid: What differs.
        folder: The sweep's; left out, the configuration's ``output`` is it.

    Returns:
        The sweep's folder, and its runs.

    Raises:
        UserError: if a combination is no right configuration, or two are the same.
    """
    first, *others = grid.combinations()  # a mistake in the first is most likely one of all
    configs = [load_config(path, first)]
    refuse_what_makes_no_runs(grid)
    configs += [_load(path, overrides) for overrides in others]
    folder = (folder or Path(configs[0].output)).expanduser().absolute()
    trees = [config.model_dump(mode="json") for config in configs]
    settings = [{key: _at(tree, key) for key in grid.keys} for tree in trees]
    _refuse_same_values(settings)
    _refuse_other_launches(configs)
    names = run_names(grid.keys, [list(each.values()) for each in settings])
    members = [Member(name, each) for name, each in zip(names, settings, strict=True)]
    return folder, [
        (member, _at_its_place(config, folder, member)) for member, config in zip(members, configs, strict=True)
    ]


def check_members(members: Sequence[tuple[Member, RunConfig]]) -> tuple[list[Planned], list[str]]:
    """Check all that can be checked; datasets are listed and read once for all runs that share them.

    Returns:
        The runs, and sentences about what may be wrong.

    Raises:
        UserError: naming the run and the first mistake.
    """
    checked: set[str] = set()
    indexed: dict[str, dict[str, Manifest]] = {}
    warnings: dict[str, None] = {}
    planned = []
    for member, config in members:
        try:
            manifests = _check(config, checked, indexed, warnings)
        except UserError as error:
            raise UserError(f"{member.name}: {error}") from error
        planned.append(Planned(member, config, manifests))
    _refuse_other_numbers_of_jobs(planned)
    return planned, list(warnings)


def _load(path: Path, overrides: list[str]) -> RunConfig:
    try:
        return load_config(path, overrides)
    except UserError as error:
        raise UserError(f"with {' '.join(overrides)}: {error}") from error


def _at_its_place(config: RunConfig, folder: Path, member: Member) -> RunConfig:
    """The configuration as a run of the sweep: an output, and a place to publish, of its own."""
    publish = config.publish and storage.join(config.publish, member.name)
    return resolve_paths(config.model_copy(update={"output": str(folder / member.name), "publish": publish}))


def _at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree[part] if isinstance(tree, dict) and part in tree else None
    return tree


def _refuse_same_values(settings: Sequence[Mapping[str, Any]]) -> None:
    """Two ways to write one number are found when the configuration has read both."""
    seen: dict[str, Mapping[str, Any]] = {}
    for each in settings:
        name = digest(dict(each))
        if name in seen:
            same = ", ".join(f"{key}={value_text(value)}" for key, value in each.items())
            raise UserError(f"{same} occurs twice: two of the values are the same, written in two ways.")
        seen[name] = each


def _refuse_other_launches(configs: Sequence[RunConfig]) -> None:
    """The jobs of a stage are one array, with one set of resources."""
    if any(config.launch != configs[0].launch for config in configs):
        raise UserError("launch: its settings depend on one that differs between runs. Give them values of their own.")


def _refuse_other_numbers_of_jobs(planned: Sequence[Planned]) -> None:
    counts = {each.member.name: len(job_names(each.config, each.sizes)) if each.sizes else 0 for each in planned}
    (first, expected), *others = counts.items()
    for name, count in others:
        if count != expected:
            raise UserError(
                f"{name} would be evaluated by {count} jobs, {first} by {expected}: runs of a sweep need the same "
                "number. Give evaluate.job_images and what is evaluated one value."
            )


def _check(
    config: RunConfig, checked: set[str], indexed: dict[str, dict[str, Manifest]], warnings: dict[str, None]
) -> dict[str, Manifest]:
    """Everything about one run, leaving out what was checked for another in the same words."""
    refuse_placeholders(config)
    batch_arithmetic(config, config.launch.finetune.num_tasks)
    refuse_credentials(config)
    run = find_run(config)
    if not is_committed(run.zero_shot) and _is_new(checked, ["model", config.model.model_dump()]):
        check_model_files(config.model)
    if _is_new(checked, ["merge", config.merge.models, config.merge.fisher]):
        check_merged_models(config.merge)
    manifests = _indexed(config, run, indexed)
    if _is_new(checked, ["data", config.data.model_dump(mode="json"), config.finetune.recipe]):
        warnings.update(dict.fromkeys(check_datasets(config, manifests)))
    if config.launch.executor == "slurm":
        warnings.update(dict.fromkeys(unseen_in_containers(config)))
    return manifests


def _is_new(checked: set[str], what: Iterable[Any]) -> bool:
    name = digest(list(what))
    if name in checked:
        return False
    checked.add(name)
    return True


def _indexed(config: RunConfig, run: Run, indexed: dict[str, dict[str, Manifest]]) -> dict[str, Manifest]:
    target = str(config.finetune.recipe == "contrastive")  # captions or labels
    name = digest([config.data.model_dump(mode="json"), target])
    if name not in indexed:
        indexed[name] = indexed[target] = index_all(config, run, known=indexed.get(target))
    else:
        refuse_other_training_data(run, indexed[name][TRAIN])
    return indexed[name]
