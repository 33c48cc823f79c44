"""open_clip without W&B: ``from wiseft_dist.models.without_wandb import open_clip``.

open_clip imports timm, which imports ``wandb`` wherever it is installed, for a function that nobody here calls. That
takes half a second of every start of every rank, and leaves two folders in the temporary directory of each process that
is killed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _as_if_not_installed(name: str) -> Iterator[None]:
    """Make importing a module fail, where it is not imported already."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


with _as_if_not_installed("wandb"):
    import open_clip

__all__ = ["open_clip"]
