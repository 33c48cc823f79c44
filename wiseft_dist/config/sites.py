"""Site profiles: what a cluster asks of every run, in a YAML file beside the runs' own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wiseft_dist.config.checking import check_launch_fields
from wiseft_dist.config.layers import join_launch, shape_for_all, without_removed
from wiseft_dist.config.trees import load_tree, override_tree
from wiseft_dist.errors import UserError

CHECKOUT_SITES = Path(__file__).parents[2] / "configs" / "sites"
SITES_VARIABLE = "WISEFT_SITES"
"""An environment variable that names folders with profiles, separated by colons."""


def with_site(tree: dict[str, Any], path: Path | str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A configuration's tree whose stages hold what their site profile and ``launch.all`` say.

    Args:
        tree: Of the file at ``path``, with the overrides put in and interpolations resolved.
        path: The file.
        overrides: ``KEY=VALUE``; they count more than anything in a file.

    Raises:
        UserError: naming the file and the setting, or the profiles that there are.
    """
    own = tree.get("launch")
    if not isinstance(own, Mapping) or (own.get("site") is None and own.get("all") is None):
        return tree
    _check(own, str(path))
    file = None if own.get("site") is None else find_site(own["site"], path)
    site = {} if file is None else _read_site(file)
    given = override_tree(overrides).get("launch")
    return tree | {"launch": join_launch(site, own, given if isinstance(given, Mapping) else {})}


def site_in_force(path: Path | str, overrides: Sequence[str] = ()) -> str | None:
    """The file of the profile that a configuration names, to show it."""
    launch = load_tree(path, tuple(overrides)).get("launch")
    name = launch.get("site") if isinstance(launch, Mapping) else None
    return None if name is None else str(find_site(name, path))


def find_site(name: str, config_file: Path | str) -> Path:
    """The file of a profile: a path, or a name that is looked up beside the configuration first.

    Raises:
        UserError: listing the profiles that there are.
    """
    if "/" in name or name.endswith((".yaml", ".yml")):
        file = Path(name).expanduser()
        if not file.is_file():
            raise UserError(f"launch.site: {file} is not there.")
        return file
    folders = _folders(config_file)
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = [f"{', '.join(names)} (in {folder})" for folder in folders if (names := _names(folder))]
    raise UserError(
        f"launch.site is {name!r}, and there is no such profile. There are: {'; '.join(known) or 'none'}. Others are "
        f"looked for in {folders[0]} and in the folders that {SITES_VARIABLE} names."
    )


def _folders(config_file: Path | str) -> list[Path]:
    named = [Path(folder).expanduser() for folder in os.environ.get(SITES_VARIABLE, "").split(os.pathsep) if folder]
    return [Path(config_file).absolute().parent / "sites", *named, CHECKOUT_SITES]


def _names(folder: Path) -> list[str]:
    return sorted(file.stem for file in folder.glob("*.yaml"))


def _read_site(file: Path) -> dict[str, Any]:
    tree = load_tree(file)
    others = sorted(tree.keys() - {"launch"})
    if others:
        raise UserError(f"{file}: a site profile has the section launch alone, and this one has {', '.join(others)}.")
    section = tree.get("launch") or {}
    if not isinstance(section, Mapping):
        raise UserError(f"{file}: launch is {section!r}: it is a section, with settings of its own under it.")
    launch = {name: value for name, value in section.items() if value is not None}  # of some, all is commented out
    if "site" in launch:
        raise UserError(f"{file}: launch.site: a site profile does not start from another.")
    _check(launch, str(file))
    return launch


def _check(launch: Mapping[str, Any], source: str) -> None:
    fields = {name: without_removed(value) if isinstance(value, Mapping) else value for name, value in launch.items()}
    check_launch_fields(fields, source=source)
    name = shape_for_all(launch)
    if name is not None:
        raise UserError(
            f"{source}: launch.all.{name} would be the report's and the merge's too: set launch.finetune.{name} and "
            f"launch.evaluate.{name}."
        )
