"""Where the settings of ``launch`` come from: a site profile, the run's own file, the command line.

Each of the three may say what all stages have in common (``launch.all``) and what one stage has of its own. Of two
values for a setting of a stage, the later in this order counts: the site's for all, the site's for the stage, the
file's for all, the file's for the stage, the command line's for all, the command line's for the stage. Mappings
(``environment``, ``extra``) are joined, and ``NAME: null`` takes an entry out again; lists are replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wiseft_dist.config.launch import STAGE_SECTIONS

SHAPE = ("nodes", "tasks_per_node", "gpus_per_node")
"""What only makes sense for one stage: the report runs in one process, and merging needs no GPU."""
ENTRIES = ("environment", "extra")

Tree = Mapping[str, Any]


def join_launch(site: Tree, own: Tree, overrides: Tree) -> dict[str, Any]:
    """The section ``launch`` with every stage's settings and without ``site`` and ``all``.

    Args:
        site: Of the site profile.
        own: Of the file, with what the command line says put in.
        overrides: Of the command line alone: what is set in it is taken from ``own``.
    """
    layers = (site, own, _picked(own, overrides))
    joined = joined_trees(site, own)
    for stage in STAGE_SECTIONS:
        resources = joined_trees(*(layer.get(part) or {} for layer in layers for part in ("all", stage)))
        is_asked = any("gpu_isolation" in (layer.get(stage) or {}) for layer in layers)
        if not resources.get("gpus_per_node") and not is_asked:
            resources.pop("gpu_isolation", None)  # said for all, it is meant for those that have GPUs
        joined[stage] = without_removed(resources)
    return {name: value for name, value in joined.items() if name not in ("site", "all")}


def shape_for_all(launch: Tree) -> str | None:
    """A setting under ``all`` that belongs under one stage."""
    return next((name for name in SHAPE if name in (launch.get("all") or {})), None)


def joined_trees(*trees: Tree) -> dict[str, Any]:
    """Nested mappings put over each other; of two values at a place the later counts."""
    joined: dict[str, Any] = {}
    for tree in trees:
        for name, value in tree.items():
            below = joined.get(name)
            is_both = isinstance(below, Mapping) and isinstance(value, Mapping)
            joined[name] = joined_trees(below, value) if is_both else value  # type: ignore[arg-type]
    return joined


def without_removed(resources: Tree) -> dict[str, Any]:
    """A stage's settings without the entries that a later layer set to nothing."""
    kept = {}
    for name, value in resources.items():
        is_mapping = name in ENTRIES and isinstance(value, Mapping)
        kept[name] = {key: each for key, each in value.items() if each is not None} if is_mapping else value
    return kept


def _picked(tree: Tree, keys: Tree) -> dict[str, Any]:
    """The part of a tree at the places that ``keys`` has."""
    picked: dict[str, Any] = {}
    for name, below in keys.items():
        value = tree.get(name)
        is_both = isinstance(below, Mapping) and isinstance(value, Mapping)
        picked[name] = _picked(value, below) if is_both else value  # type: ignore[arg-type]
    return picked
