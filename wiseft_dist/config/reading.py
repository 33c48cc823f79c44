"""From a YAML file, its site profile and ``KEY=VALUE`` overrides to a checked configuration, and back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from wiseft_dist.config.checking import parse_section
from wiseft_dist.config.sections import RunConfig
from wiseft_dist.config.sites import with_site
from wiseft_dist.config.trees import load_tree


def load_config(path: Path | str, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Read a YAML file, apply ``KEY=VALUE`` overrides, resolve interpolations and the site, and check everything.

    Raises:
        UserError: naming the file, the key and, for a misspelt key, the nearest right one.
    """
    tree = with_site(load_tree(path, overrides), path, overrides)
    return parse_section(RunConfig, tree, source=str(path))


def dump_config(config: RunConfig) -> str:
    """The configuration as YAML, readable by :func:`load_config`."""
    text: str = yaml.safe_dump(_escaped(config.model_dump(mode="json")), sort_keys=False, allow_unicode=True)
    return text


def _escaped(tree: Any) -> Any:
    """The tree with every literal ``${`` marked as one, so that OmegaConf does not take it for an interpolation."""
    if isinstance(tree, dict):
        return {key: _escaped(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_escaped(value) for value in tree]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", tree) if isinstance(tree, str) else tree
