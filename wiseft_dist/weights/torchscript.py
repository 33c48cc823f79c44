"""The state dict of a TorchScript archive, such as OpenAI's CLIP models, without running any of its code.

Format: as ``torch.save``'s, but the pickle holds instances of the archive's own classes, with their attributes, and
``code/`` their source. A class's ``__parameters__`` and ``__buffers__`` say which of its tensors are in the state
dict (torch/csrc/jit/serialization/python_print.cpp).
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Callable
from typing import Any

from wiseft_dist.weights.stored_tensor import StoredTensor

PACKAGE = "__torch__"
"""Where the classes of an archive live; nothing of that name can be imported."""
MOST_MODULES = 100_000
"""Counted as often as they have names: modules that hold each other twice have a name for every path."""
DEEPEST = 64
"""Modules in each other."""


class Scripted:
    """An instance of a class of the archive; only its attributes are known."""

    module = name = ""
    attributes: dict[str, Any] = {}  # noqa: RUF012 - replaced, never changed

    def __setstate__(self, state: Any) -> None:
        """Keep the attributes that the pickle says."""
        if not isinstance(state, dict):
            raise TypeError(f"an instance of {self.module}.{self.name} is no dictionary of attributes")
        self.attributes = state


class ScriptedState(dict[str, StoredTensor]):
    """The state dict of a TorchScript module."""


def is_scripted(module: str) -> bool:
    """Whether a class of that module is one of an archive's own."""
    return module == PACKAGE or module.startswith(f"{PACKAGE}.")


def scripted_class(module: str, name: str) -> type[Scripted]:
    """What stands in for a class of an archive."""
    return type(name, (Scripted,), {"module": module, "name": name})


def scripted_state(root: Scripted, read_code: Callable[[str], str | None]) -> ScriptedState:
    """Parameters and buffers by their names.

    Args:
        root: The outermost module.
        read_code: From the name of a module of code to its source; None where the archive has none.
    """
    listed: dict[str, dict[str, frozenset[str]]] = {}

    def in_state(module: str, name: str) -> frozenset[str] | None:
        if module not in listed:
            listed[module] = _listed_tensors(read_code(module) or "")
        return listed[module].get(name)

    state = ScriptedState()
    count = itertools.count(1)

    def collect(instance: Scripted, prefix: str, depth: int) -> None:
        if depth > DEEPEST or next(count) > MOST_MODULES:
            raise ValueError(f"more than {MOST_MODULES:,} modules, or {DEEPEST} in each other")
        names = in_state(instance.module, instance.name)
        for name, value in instance.attributes.items():
            if isinstance(value, Scripted):
                collect(value, f"{prefix}{name}.", depth + 1)
            elif isinstance(value, StoredTensor) and (names is None or name in names):
                state[prefix + name] = value

    collect(root, "", 1)
    return state


def _listed_tensors(code: str) -> dict[str, frozenset[str]]:
    """By class, the names of the tensors that its code lists."""
    found = {}
    for definition in ast.parse(code).body:
        if isinstance(definition, ast.ClassDef):
            listed = {
                target.id: ast.literal_eval(line.value)
                for line in definition.body
                if isinstance(line, ast.Assign)
                for target in line.targets
                if isinstance(target, ast.Name) and target.id in ("__parameters__", "__buffers__")
            }
            if listed:
                found[definition.name] = frozenset(name for names in listed.values() for name in names)
    return found
